//! Load tests whose server dies, or whose user has seen enough.

use serde_json::{Value, json};

use super::{Mock, spec};
use crate::support::process::{ChatmeshProcess, ProcessSpec, signal};
use crate::support::{TEST_TIMEOUT, http, wait_until};

/// Messages that a server has received.
async fn received(server: &ChatmeshProcess) -> f64 {
    let page = http::get(&server.url("/metrics")).await.body;
    let values = page.lines().filter_map(|line| {
        let of = line.strip_prefix("websocket_messages_received_total")?;
        of.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.sum()
}

/// In 5 s at 40 messages a second.
const SCHEDULED: u64 = 200;

/// Begins a test of so many messages, and returns in its midst.
async fn begun(
    server: &ChatmeshProcess,
    flags: &[&str],
) -> tokio::task::JoinHandle<(Option<i32>, Value)> {
    let all = [
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
    let spec = spec(server, &all);
    let test = tokio::task::spawn_blocking(move || {
        let (code, out, errors) = spec.run();
        let result = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{errors}"));
        (code, result)
    });
    wait_until("messages come", TEST_TIMEOUT, || async {
        received(server).await >= 20.0
    })
    .await;
    test
}

fn sum(counts: &Value) -> u64 {
    let counts = counts.as_object().unwrap().values();
    counts.filter_map(Value::as_u64).sum()
}

#[tokio::test]
async fn a_server_that_dies_does_not_make_its_figures_better() {
    let mut server = ProcessSpec::ephemeral().start().await;
    let flags = [
        "--patience",
        "1s",
        "--require",
        "loss=0",
        "--require",
        "original",
    ];
    let test = begun(&server, &flags).await;
    server.kill();
    let (code, result) = test.await.unwrap();
    assert_eq!(code, Some(1), "{result:#}");
    let number = |name: &str| result[name].as_u64().unwrap();
    assert!(number("not_sent") > 0, "{result:#}");
    assert_eq!(number("sent") + number("not_sent"), SCHEDULED, "{result:#}");
    let delivered = number("delivered") as f64;
    let near = |name: &str, want: f64| {
        let got = result[name].as_f64().unwrap();
        assert!((got - want).abs() < 0.01, "{name}, {want}: {result:#}");
    };
    near("seconds", 5.0);
    near("delivered_percent", delivered * 100.0 / SCHEDULED as f64);
    near("throughput", delivered / 5.0);
    assert_eq!(sum(&result["aborted_prompts"]), 4, "{result:#}");
    assert_eq!(sum(&result["not_back"]), 4, "{result:#}");
    let missed = |judged: &Value| judged["met"] == false;
    assert!(missed(&result["required"][0]), "{result:#}");
    let criteria = result["original_criteria"].as_array().unwrap();
    assert!(criteria.iter().all(missed), "{result:#}");
    let notes = result["notes"].to_string();
    assert!(notes.contains("4 connections ended early"), "{notes}");
}

#[tokio::test]
async fn clients_come_back_to_a_server_that_does_and_miss_nothing() {
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
    let test = begun(&server, &flags).await;
    server.kill();
    let _server = spec.start().await;
    let (code, result) = test.await.unwrap();
    assert_eq!(code, Some(0), "{result:#}");
    assert_eq!(result["came_back"], 4, "{result:#}");
    for (name, want) in [
        ("sent", SCHEDULED),
        ("delivered", SCHEDULED),
        ("not_sent", 0),
        ("out_of_order", 0),
        ("mixed_up", 0),
    ] {
        assert_eq!(result[name], want, "{name}: {result:#}");
    }
    let accepted = &result["latency_ms"]["accepted"]["count"];
    assert_eq!(accepted, SCHEDULED, "{result:#}");
}

#[tokio::test]
async fn a_test_that_its_user_ends_still_reports_and_calls_nothing_lost() {
    let mock = Mock::start(&["--latency-ms", "600000"]);
    let server = ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &mock.url)
        .env("OPENAI_TIMEOUT_MS", "120000")
        .start()
        .await;
    for (name, code, call) in [("INT", 130, 3), ("TERM", 143, 6)] {
        let flags = [
            "--clients",
            "3",
            "--rate",
            "20",
            "--duration",
            "10m",
            "--json",
        ];
        let mut test = spec(&server, &flags).spawn();
        wait_until(
            "the model is asked for each client",
            TEST_TIMEOUT,
            || async { mock.stats().await["calls"].as_u64() >= Some(call) },
        )
        .await;
        signal(test.pid(), name);
        let ended = test.wait_exit(TEST_TIMEOUT).await;
        assert_eq!(ended.code(), Some(code), "{}", test.log());
        let result: Value = serde_json::from_str(&test.log()).unwrap();
        assert_eq!(result["interrupted"], true, "{result:#}");
        assert_eq!(result["lost"], 0, "{result:#}");
        assert!(result["open"].as_u64() >= Some(3), "{result:#}");
        assert_eq!(result["open"], result["sent"], "{result:#}");
        assert_eq!(result["delivered_percent"], json!(null), "{result:#}");
    }
}
