//! `chatmesh load-test` and `chatmesh mock-openai`, run as processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::{TEST_TIMEOUT, http, wait_until};

mod interruptions;
mod misuse;

/// A running `mock-openai`, which is killed when it is dropped.
struct Mock {
    child: Child,
    url: String,
    /// Owns the working folder of the process.
    _spec: ProcessSpec,
}

impl Mock {
    fn start(flags: &[&str]) -> Self {
        let spec = ProcessSpec::new(&["mock-openai", "--port", "0"]);
        let spec = flags.iter().fold(spec, |spec, flag| spec.arg(flag));
        let mut child = spec.command().stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let (_, url) = line.trim().split_once("OPENAI_BASE_URL=").unwrap();
        let url = url.to_owned();
        Self {
            child,
            url,
            _spec: spec,
        }
    }

    async fn complete(&self, prompt: &str, stream: bool) -> reqwest::Response {
        let body = json!({
            "model": "m",
            "stream": stream,
            "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": prompt}],
        });
        let url = format!("{}/chat/completions", self.url);
        let request = reqwest::Client::new().post(url).json(&body);
        request.send().await.unwrap()
    }

    async fn stats(&self) -> Value {
        let url = self.url.replace("/v1", "/stats");
        reqwest::get(url).await.unwrap().json().await.unwrap()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a stream without `[DONE]`.
fn events(stream: &str) -> Vec<Value> {
    let data = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok())
        .collect()
}

#[tokio::test]
async fn mock_stream_matches_the_whole_answer_and_its_usage() {
    let mock = Mock::start(&["--tokens", "5..9"]);
    let stream = mock.complete("hello", true).await.text().await.unwrap();
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let events = events(&stream);
    let content = |event: &Value| event["choices"][0]["delta"]["content"].clone();
    let streamed: String = events
        .iter()
        .filter_map(|event| content(event).as_str().map(str::to_owned))
        .collect();
    let whole: Value = mock.complete("hello", false).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed);
    // The FNV-1a hash of "hello".
    assert!(streamed.starts_with("a430d84680aabd0b "), "{streamed}");

    let [.., last_chunk, usage] = &events[..] else {
        panic!("expected two events or more: {stream}")
    };
    assert_eq!(last_chunk["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    let tokens = streamed.split_inclusive(' ').count();
    assert!((5..=9).contains(&tokens));
    assert_eq!(usage["usage"]["completion_tokens"], tokens);
    assert!(last_chunk["usage"].is_null() && last_chunk.get("usage").is_some());
    assert_eq!(usage["usage"], whole["usage"]);
}

#[tokio::test]
async fn mock_fails_by_its_options_and_counts_the_failures() {
    let failing_mock = Mock::start(&["--error-share", "1"]);
    let status = failing_mock.complete("x", true).await.status().as_u16();
    assert!((500..=503).contains(&status), "{status}");

    let throttling_mock = Mock::start(&["--rate-limit-share", "100%", "--retry-after", "7"]);
    let rejected = throttling_mock.complete("x", true).await;
    assert_eq!(rejected.status(), 429);
    assert_eq!(rejected.headers()["retry-after"], "7");

    let flags = ["--cut-share", "1", "--echo", "--tokens-per-second", "50"];
    let cutting_mock = Mock::start(&flags);
    let mut response = cutting_mock.complete("one two three four", true).await;
    let mut text = Vec::new();
    let is_cut = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(is_cut, "expected the stream to be cut");
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("one") && !text.contains("four"), "{text}");

    for (mock, counter) in [
        (&failing_mock, "errors"),
        (&throttling_mock, "rate_limited"),
        (&cutting_mock, "cut"),
    ] {
        let stats = mock.stats().await;
        assert_eq!((&stats["calls"], &stats[counter]), (&json!(1), &json!(1)));
        assert_eq!(stats["in_flight"], 0, "{stats}");
    }
}

fn load_test_spec(server: &ChatmeshProcess, flags: &[&str]) -> ProcessSpec {
    let url = server.url("").replace("http", "ws");
    let spec = ProcessSpec::new(&["load-test", "--url", &url]);
    flags.iter().fold(spec, |spec, flag| spec.arg(flag))
}

fn run_load_test(server: &ChatmeshProcess, flags: &[&str]) -> (Option<i32>, String, String) {
    load_test_spec(server, flags).run()
}

/// Runs a load test with JSON output. Returns its exit code and its result.
fn run_load_test_for_json(server: &ChatmeshProcess, flags: &[&str]) -> (Option<i32>, Value) {
    let (code, out, errors) = run_load_test(server, flags);
    let result = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{errors}"));
    (code, result)
}

#[tokio::test]
async fn every_message_is_counted_in_both_protocols_and_modes() {
    let server = ProcessSpec::ephemeral().start().await;
    for flags in [
        &["--rate", "300"][..],
        &["--rate", "300", "--classic", "--threads", "2"],
        &["--closed-loop"],
        &["--closed-loop", "--in-flight", "4", "--classic"],
    ] {
        let flags = [&["--json", "--clients", "12", "--messages", "5"], flags].concat();
        let flags = [
            &flags[..],
            &["--require", "loss=0", "--require", "delivered=100%"],
        ]
        .concat();
        let (code, result) = run_load_test_for_json(&server, &flags);
        assert_eq!(code, Some(0), "{result:#}");
        for (name, expected) in [
            ("connections", 12),
            ("sent", 60),
            ("delivered", 60),
            ("lost", 0),
            ("doubles", 0),
            ("out_of_order", 0),
            ("mixed_up", 0),
            ("not_understood", 0),
        ] {
            assert_eq!(result[name], expected, "{name}: {result:#}");
        }
        assert_eq!(result["latency_ms"]["whole"]["count"], 60);
        let accepted = &result["latency_ms"]["accepted"]["count"];
        if flags.contains(&"--classic") {
            assert!(accepted.is_null(), "{result:#}");
        } else {
            assert_eq!((accepted, &result["accepted"]), (&json!(60), &json!(60)));
        }
    }
}

#[tokio::test]
async fn unmet_condition_exits_with_1_and_the_html_report_is_self_contained() {
    let server = ProcessSpec::ephemeral().start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    let file = file.to_str().unwrap();
    let small_load = ["--clients", "4", "--messages", "3", "--rate", "100"];
    let flags = [&small_load[..], &["--require", "p99<1us", "--html", file]].concat();
    let (code, text, errors) = run_load_test(&server, &flags);
    assert_eq!(code, Some(1), "{text}{errors}");
    assert!(text.contains("✗ p99<1us"), "{text}");
    let page = std::fs::read_to_string(file).unwrap();
    assert!(page.contains("<svg") && page.contains("p99&lt;1us"));
    for external in ["<script", "http://", "https://", "src="] {
        assert!(
            !page.contains(external),
            "expected no {external} in the report"
        );
    }
    // An unknown name in a condition is found before the test starts.
    let (code, _, errors) = run_load_test(&server, &["--require", "speed>1"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("throughput"), "{errors}");
}

#[tokio::test]
async fn reached_rate_limit_is_reported_with_the_setting_that_removes_it() {
    let spec = ProcessSpec::ephemeral().env("USER_RATE_LIMIT_MAX_REQUESTS", "2");
    let server = spec.start().await;
    let flags = ["--clients", "3", "--messages", "5", "--rate", "200"];
    let (code, text, errors) = run_load_test(&server, &flags);
    assert_eq!(code, Some(0), "{errors}");
    let expected = [
        "9 of 15 messages were refused",
        "USER_RATE_LIMIT_MAX_REQUESTS=0",
        "USER_MAX_PENDING=0",
    ];
    for part in expected {
        assert!(text.contains(part), "expected {part:?} in {text}");
    }
}

#[tokio::test]
async fn idle_test_holds_its_connections_for_its_duration() {
    let server = ProcessSpec::ephemeral().start().await;
    let flags = ["--idle", "--clients", "30", "--duration", "3s", "--json"];
    let spec = load_test_spec(&server, &flags);
    let test = tokio::task::spawn_blocking(move || spec.run());
    let url = server.url("/health");
    wait_until("all clients are connected", TEST_TIMEOUT, || async {
        http::get(&url).await.json()["total_connections"] == 30
    })
    .await;
    let (code, out, errors) = test.await.unwrap();
    assert_eq!(code, Some(0), "{out}{errors}");
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&result["connections"], &result["sent"]),
        (&json!(30), &json!(0))
    );
    assert_eq!(result["closed_early"], json!({}));
}
