//! Load tests whose server is killed, or that the user interrupts.

use serde_json::{Value, json};

use super::{Mock, load_test_spec};
use crate::support::process::{ChatmeshProcess, ProcessSpec, signal};
use crate::support::{TEST_TIMEOUT, http, wait_until};

/// Number of messages that a server has received.
async fn received_messages(server: &ChatmeshProcess) -> f64 {
    let page = http::get(&server.url("/metrics")).await.body;
    let values = page.lines().filter_map(|line| {
        let sample = line.strip_prefix("websocket_messages_received_total")?;
        sample.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.sum()
}

/// Number of messages in 5 s at 40 messages a second.
const SCHEDULED: u64 = 200;

/// Starts a test of [`SCHEDULED`] messages. Returns when the server has received the first 20.
async fn start_load(
    server: &ChatmeshProcess,
    flags: &[&str],
) -> tokio::task::JoinHandle<(Option<i32>, Value)> {
    let flags = [
        &[
            "--json",
            "--clients",
            "4",
            "--rate",
            "40",
            "--duration",
            "5s",
        ],
        flags,
    ]
    .concat();
    let spec = load_test_spec(server, &flags);
    let test = tokio::task::spawn_blocking(move || {
        let (code, out, errors) = spec.run();
        let result = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{errors}"));
        (code, result)
    });
    wait_until("the server receives messages", TEST_TIMEOUT, || async {
        received_messages(server).await >= 20.0
    })
    .await;
    test
}

fn sum(counts: &Value) -> u64 {
    let counts = counts.as_object().unwrap().values();
    counts.filter_map(Value::as_u64).sum()
}

#[tokio::test]
async fn killed_server_is_measured_over_the_whole_planned_duration() {
    let mut server = ProcessSpec::ephemeral().start().await;
    let flags = [
        "--patience",
        "1s",
        "--require",
        "loss=0",
        "--require",
        "original",
    ];
    let test = start_load(&server, &flags).await;
    server.kill();
    let (code, result) = test.await.unwrap();
    assert_eq!(code, Some(1), "{result:#}");
    let count = |name: &str| result[name].as_u64().unwrap();
    assert!(count("not_sent") > 0, "{result:#}");
    assert_eq!(count("sent") + count("not_sent"), SCHEDULED, "{result:#}");
    let delivered = count("delivered") as f64;
    let assert_near = |name: &str, expected: f64| {
        let actual = result[name].as_f64().unwrap();
        assert!(
            (actual - expected).abs() < 0.01,
            "{name}, {expected}: {result:#}"
        );
    };
    assert_near("seconds", 5.0);
    assert_near("delivered_percent", delivered * 100.0 / SCHEDULED as f64);
    assert_near("throughput", delivered / 5.0);
    assert_eq!(sum(&result["closed_early"]), 4, "{result:#}");
    assert_eq!(sum(&result["not_back"]), 4, "{result:#}");
    let is_unmet = |verdict: &Value| verdict["met"] == false;
    assert!(is_unmet(&result["required"][0]), "{result:#}");
    let criteria = result["original_criteria"].as_array().unwrap();
    assert!(criteria.iter().all(is_unmet), "{result:#}");
    let notes = result["notes"].to_string();
    assert!(notes.contains("4 connections ended early"), "{notes}");
}

#[tokio::test]
async fn clients_reconnect_to_a_restarted_server_and_miss_nothing() {
    let spec = ProcessSpec::durable();
    let mut server = spec.start().await;
    let flags = [
        "--require",
        "loss=0",
        "--require",
        "doubles=0",
        "--require",
        "delivered=100%",
    ];
    let test = start_load(&server, &flags).await;
    server.kill();
    let _server = spec.start().await;
    let (code, result) = test.await.unwrap();
    assert_eq!(code, Some(0), "{result:#}");
    assert_eq!(result["came_back"], 4, "{result:#}");
    for (name, expected) in [
        ("sent", SCHEDULED),
        ("delivered", SCHEDULED),
        ("not_sent", 0),
        ("out_of_order", 0),
        ("mixed_up", 0),
    ] {
        assert_eq!(result[name], expected, "{name}: {result:#}");
    }
    let accepted = &result["latency_ms"]["accepted"]["count"];
    assert_eq!(accepted, SCHEDULED, "{result:#}");
}

#[tokio::test]
async fn interrupted_test_reports_pending_messages_as_not_lost() {
    let mock = Mock::start(&["--latency-ms", "600000"]);
    let server = ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &mock.url)
        .env("OPENAI_TIMEOUT_MS", "120000")
        .start()
        .await;
    for (signal_name, exit_code, calls) in [("INT", 130, 3), ("TERM", 143, 6)] {
        let flags = [
            "--clients",
            "3",
            "--rate",
            "20",
            "--duration",
            "10m",
            "--json",
        ];
        let mut test = load_test_spec(&server, &flags).spawn();
        wait_until(
            "the model is called for each client",
            TEST_TIMEOUT,
            || async { mock.stats().await["calls"].as_u64() >= Some(calls) },
        )
        .await;
        signal(test.pid(), signal_name);
        let ended = test.wait_exit(TEST_TIMEOUT).await;
        assert_eq!(ended.code(), Some(exit_code), "{}", test.log());
        let result: Value = serde_json::from_str(&test.log()).unwrap();
        assert_eq!(result["interrupted"], true, "{result:#}");
        assert_eq!(result["lost"], 0, "{result:#}");
        assert!(result["open"].as_u64() >= Some(3), "{result:#}");
        assert_eq!(result["open"], result["sent"], "{result:#}");
        assert_eq!(result["delivered_percent"], json!(null), "{result:#}");
    }
}
