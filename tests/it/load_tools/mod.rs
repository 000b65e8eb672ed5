//! `chatmesh load-test` and `chatmesh mock-openai`, as a user starts them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::{TEST_TIMEOUT, http, wait_until};

mod endings;
mod misuse;

/// Killed when dropped.
struct Mock {
    child: Child,
    url: String,
}

impl Mock {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chatmesh"))
            .args(["mock-openai", "--port", "0"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let (_, url) = line.trim().split_once("OPENAI_BASE_URL=").unwrap();
        let url = url.to_owned();
        Self { child, url }
    }

    async fn ask(&self, prompt: &str, stream: bool) -> reqwest::Response {
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

/// The events of a stream, `[DONE]` left out.
fn events(stream: &str) -> Vec<Value> {
    let data = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok())
        .collect()
}

#[tokio::test]
async fn the_mock_streams_what_it_says_whole_with_its_usage() {
    let mock = Mock::start(&["--tokens", "5..9"]);
    let stream = mock.ask("hello", true).await.text().await.unwrap();
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let events = events(&stream);
    let content = |event: &Value| event["choices"][0]["delta"]["content"].clone();
    let streamed: String = events
        .iter()
        .filter_map(|event| content(event).as_str().map(str::to_owned))
        .collect();
    let whole: Value = mock.ask("hello", false).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed);
    // FNV-1a of "hello".
    assert!(streamed.starts_with("a430d84680aabd0b "), "{streamed}");

    let [.., end, usage] = &events[..] else {
        panic!("{stream}")
    };
    assert_eq!(end["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    let tokens = streamed.split_inclusive(' ').count();
    assert!((5..=9).contains(&tokens));
    assert_eq!(usage["usage"]["completion_tokens"], tokens);
    assert!(end["usage"].is_null() && end.get("usage").is_some());
    assert_eq!(usage["usage"], whole["usage"]);
}

#[tokio::test]
async fn the_mock_fails_as_it_is_told_and_counts_it() {
    let failing = Mock::start(&["--error-share", "1"]);
    let status = failing.ask("x", true).await.status().as_u16();
    assert!((500..=503).contains(&status), "{status}");

    let busy = Mock::start(&["--rate-limit-share", "100%", "--retry-after", "7"]);
    let refused = busy.ask("x", true).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "7");

    let flags = ["--cut-share", "1", "--echo", "--tokens-per-second", "50"];
    let cutting = Mock::start(&flags);
    let mut cut = cutting.ask("one two three four", true).await;
    let mut text = Vec::new();
    let broken = loop {
        match cut.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken, "the stream ended in order");
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("one") && !text.contains("four"), "{text}");

    for (mock, counter) in [
        (&failing, "errors"),
        (&busy, "rate_limited"),
        (&cutting, "cut"),
    ] {
        let stats = mock.stats().await;
        assert_eq!((&stats["calls"], &stats[counter]), (&json!(1), &json!(1)));
        assert_eq!(stats["in_flight"], 0, "{stats}");
    }
}

fn spec(server: &ChatmeshProcess, flags: &[&str]) -> ProcessSpec {
    let url = server.url("").replace("http", "ws");
    let spec = ProcessSpec::new(&["load-test", "--url", &url]);
    flags.iter().fold(spec, |spec, flag| spec.arg(flag))
}

fn load_test(server: &ChatmeshProcess, flags: &[&str]) -> (Option<i32>, String, String) {
    spec(server, flags).run()
}

fn result(server: &ChatmeshProcess, flags: &[&str]) -> (Option<i32>, Value) {
    let (code, out, errors) = load_test(server, flags);
    let result = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{errors}"));
    (code, result)
}

#[tokio::test]
async fn a_load_test_counts_every_message_in_both_protocols_and_modes() {
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
        let (code, result) = result(&server, &flags);
        assert_eq!(code, Some(0), "{result:#}");
        for (name, want) in [
            ("connections", 12),
            ("sent", 60),
            ("delivered", 60),
            ("lost", 0),
            ("doubles", 0),
            ("out_of_order", 0),
            ("mixed_up", 0),
            ("not_understood", 0),
        ] {
            assert_eq!(result[name], want, "{name}: {result:#}");
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
async fn a_missed_condition_is_exit_code_1_and_the_report_is_one_file() {
    let server = ProcessSpec::ephemeral().start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    let file = file.to_str().unwrap();
    let few = ["--clients", "4", "--messages", "3", "--rate", "100"];
    let flags = [&few[..], &["--require", "p99<1us", "--html", file]].concat();
    let (code, text, errors) = load_test(&server, &flags);
    assert_eq!(code, Some(1), "{text}{errors}");
    assert!(text.contains("✗ p99<1us"), "{text}");
    let page = std::fs::read_to_string(file).unwrap();
    assert!(page.contains("<svg") && page.contains("p99&lt;1us"));
    for outside in ["<script", "http://", "https://", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    // A condition that means nothing is found before anything is sent.
    let (code, _, errors) = load_test(&server, &["--require", "speed>1"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("throughput"), "{errors}");
}

#[tokio::test]
async fn a_measured_rate_limit_is_named_with_what_lifts_it() {
    let spec = ProcessSpec::ephemeral().env("USER_RATE_LIMIT_MAX_REQUESTS", "2");
    let server = spec.start().await;
    let flags = ["--clients", "3", "--messages", "5", "--rate", "200"];
    let (code, text, errors) = load_test(&server, &flags);
    assert_eq!(code, Some(0), "{errors}");
    let wants = [
        "9 of 15 messages were refused",
        "USER_RATE_LIMIT_MAX_REQUESTS=0",
        "USER_MAX_PENDING=0",
    ];
    for want in wants {
        assert!(text.contains(want), "{want}: {text}");
    }
}

#[tokio::test]
async fn an_idle_test_holds_its_connections_until_its_time_is_over() {
    let server = ProcessSpec::ephemeral().start().await;
    let flags = ["--idle", "--clients", "30", "--duration", "3s", "--json"];
    let spec = spec(&server, &flags);
    let test = tokio::task::spawn_blocking(move || spec.run());
    let url = server.url("/health");
    wait_until("all are connected", TEST_TIMEOUT, || async {
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
    assert_eq!(result["aborted_prompts"], json!({}));
}
