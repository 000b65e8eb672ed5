//! Formats the results as a table for the terminal and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::StepPair;

/// Returns chatmesh's value in relation to that of the floor; `None` if the floor's value is 0.
fn ratio(chatmesh: f64, floor: f64) -> Option<f64> {
    (floor > 0.0).then(|| chatmesh / floor)
}

/// Formats the results as a table with one line per step.
pub(crate) fn text(pairs: &[StepPair]) -> String {
    let mut out = format!(
        "{:<6} {:>7} │ {:>28} │ {:>37} │ {:>20}\n{:<6} {:>7} │ {:>8} {:>8} {:>10} │ {:>8} {:>8} {:>8} {:>10} │ {:>6} {:>6} {:>6}\n",
        "",
        "",
        "floor",
        "chatmesh",
        "chatmesh / floor",
        "model",
        "clients",
        "p50 ms",
        "p99 ms",
        "answers/s",
        "first",
        "p50 ms",
        "p99 ms",
        "answers/s",
        "p50",
        "p99",
        "/s"
    );
    let shown = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.2}"));
    for pair in pairs {
        let (floor, chatmesh) = (&pair.floor, &pair.chatmesh);
        let _ = writeln!(
            out,
            "{:<6} {:>7} │ {:>8.2} {:>8.2} {:>10.0} │ {:>8} {:>8.2} {:>8.2} {:>10.0} │ {:>6} {:>6} {:>6}",
            pair.model,
            pair.clients,
            floor.p50_ms,
            floor.p99_ms,
            floor.throughput,
            shown(chatmesh.first_token_p50_ms),
            chatmesh.p50_ms,
            chatmesh.p99_ms,
            chatmesh.throughput,
            shown(ratio(chatmesh.p50_ms, floor.p50_ms)),
            shown(ratio(chatmesh.p99_ms, floor.p99_ms)),
            shown(ratio(chatmesh.throughput, floor.throughput)),
        );
        if floor.lost + chatmesh.lost > 0 {
            let _ = writeln!(
                out,
                "  lost: floor {}, chatmesh {}",
                floor.lost, chatmesh.lost
            );
        }
    }
    out
}

/// Returns the results of a step as JSON.
pub(crate) fn json(pair: &StepPair) -> Value {
    let (floor, chatmesh) = (&pair.floor, &pair.chatmesh);
    json!({
        "model": pair.model,
        "clients": pair.clients,
        "floor": floor.json(),
        "chatmesh": chatmesh.json(),
        "ratio": {
            "p50": ratio(chatmesh.p50_ms, floor.p50_ms),
            "p99": ratio(chatmesh.p99_ms, floor.p99_ms),
            "throughput": ratio(chatmesh.throughput, floor.throughput),
            "first_token_to_floor_p50":
                chatmesh.first_token_p50_ms.and_then(|first| ratio(first, floor.p50_ms)),
        },
    })
}
