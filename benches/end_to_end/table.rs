//! The results as a table for the terminal and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Pair;

fn ratio(ours: f64, bare: f64) -> Option<f64> {
    (bare > 0.0).then(|| ours / bare)
}

pub(crate) fn text(pairs: &[Pair]) -> String {
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
        let (bare, ours) = (&pair.floor, &pair.chatmesh);
        let _ = writeln!(
            out,
            "{:<6} {:>7} │ {:>8.2} {:>8.2} {:>10.0} │ {:>8} {:>8.2} {:>8.2} {:>10.0} │ {:>6} {:>6} {:>6}",
            pair.model,
            pair.clients,
            bare.p50,
            bare.p99,
            bare.throughput,
            shown(ours.first_token_p50),
            ours.p50,
            ours.p99,
            ours.throughput,
            shown(ratio(ours.p50, bare.p50)),
            shown(ratio(ours.p99, bare.p99)),
            shown(ratio(ours.throughput, bare.throughput)),
        );
        if bare.lost + ours.lost > 0 {
            let _ = writeln!(out, "  lost: floor {}, chatmesh {}", bare.lost, ours.lost);
        }
    }
    out
}

pub(crate) fn json(pair: &Pair) -> Value {
    let (bare, ours) = (&pair.floor, &pair.chatmesh);
    json!({
        "model": pair.model,
        "clients": pair.clients,
        "floor": bare.json(),
        "chatmesh": ours.json(),
        "ratio": {
            "p50": ratio(ours.p50, bare.p50),
            "p99": ratio(ours.p99, bare.p99),
            "throughput": ratio(ours.throughput, bare.throughput),
            "first_token_to_floor_p50":
                ours.first_token_p50.and_then(|first| ratio(first, bare.p50)),
        },
    })
}
