//! Invalid options, unreachable servers and unwritable reports, and their exit codes.

use serde_json::{Value, json};

use super::{Mock, run_load_test, run_load_test_for_json};
use crate::support::process::{ProcessSpec, free_port};

#[tokio::test]
async fn order_and_duplicates_are_not_measured_for_unmarked_classic_answers() {
    let mock = Mock::start(&[]);
    let server = ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &mock.url)
        .start()
        .await;
    let small_load = [
        "--classic",
        "--closed-loop",
        "--clients",
        "2",
        "--messages",
        "3",
    ];
    let flags = [&small_load[..], &["--json", "--require", "doubles=0"]].concat();
    let (code, result) = run_load_test_for_json(&server, &flags);
    assert_eq!(result["delivered"], 6, "{result:#}");
    for name in ["doubles", "out_of_order", "mixed_up"] {
        assert!(result.get(name).is_some_and(Value::is_null), "{result:#}");
    }
    let required = json!([{"condition": "doubles=0", "value": null, "met": false}]);
    assert_eq!((code, &result["required"]), (Some(1), &required));
    let (code, text, _) = run_load_test(&server, &small_load);
    assert_eq!(code, Some(0), "{text}");
    for name in ["doubles", "out of order", "mixed up"] {
        let mut lines = text.lines();
        let line = lines.find(|line| line.trim_start().starts_with(name));
        assert!(
            line.is_some_and(|line| line.ends_with("not measured")),
            "{text}"
        );
    }
}

#[tokio::test]
async fn result_is_printed_when_the_html_report_can_not_be_written() {
    let server = ProcessSpec::ephemeral().start().await;
    let flags = [
        "--clients",
        "2",
        "--messages",
        "2",
        "--json",
        "--html",
        "/dev/full",
    ];
    let (code, out, errors) = run_load_test(&server, &flags);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("/dev/full can't be written"), "{errors}");
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(result["delivered"], 4, "{result:#}");
}

#[tokio::test]
async fn test_without_a_delivery_fails() {
    let server = ProcessSpec::ephemeral()
        .env("MAX_CONTENT_CHARS", "10")
        .start()
        .await;
    let (code, text, errors) = run_load_test(&server, &["--clients", "2", "--messages", "2"]);
    assert_eq!(code, Some(1), "{text}{errors}");
    assert!(
        text.contains("not a single message was delivered"),
        "{text}"
    );
}

#[test]
fn unreachable_server_is_reported_and_leaves_no_html_report() {
    let url = format!("ws://127.0.0.1:{}", free_port());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    let spec = ProcessSpec::new(&["load-test", "--url", &url]);
    let with_report = spec.clone().arg("--html").arg(file.to_str().unwrap());
    let (code, _, errors) = with_report.run();
    assert_eq!(code, Some(3));
    assert!(errors.contains("does not answer"), "{errors}");
    assert!(!file.exists());
    // With a token, the load test makes no HTTP request, so its connections fail.
    let (code, text, errors) = spec.arg("--token").arg("x").run();
    assert_eq!(code, Some(3), "{errors}");
    assert!(text.contains("100 clients could not connect"), "{text}");
}

/// Commands with invalid options, and a part of the expected error.
const INVALID_OPTIONS: &[(&str, &[&str], &str)] = &[
    ("load-test", &["--messages", "0"], "0 is not in"),
    ("load-test", &["--duration", "0"], "above 0"),
    ("load-test", &["--clients", "0"], "0 is not in"),
    ("load-test", &["--url", "foo"], "ws://"),
    ("load-test", &["--url", "ftp://x"], "ws://"),
    ("load-test", &["--url", "ws://127.0.0.1:99999"], "port"),
    ("load-test", &["--html", "-"], "standard output"),
    (
        "load-test",
        &["--html", "/nowhere/x.html"],
        "can't be written",
    ),
    ("load-test", &["--source", "192.0.2.1"], "of this machine"),
    ("load-test", &["--require", "p99<5%"], "not a time"),
    ("mock-openai", &["--tokens", "1..200000"], "100000"),
    ("mock-openai", &["--model", " "], "needs a name"),
    (
        "mock-openai",
        &["--error-share", "60%", "--cut-share", "0.5"],
        "110 %",
    ),
];

#[test]
fn invalid_options_are_rejected_before_the_test_starts() {
    for (command, flags, expected) in INVALID_OPTIONS {
        let spec = ProcessSpec::new(&[command]);
        let spec = flags.iter().fold(spec, |spec, flag| spec.arg(flag));
        let (code, out, errors) = spec.run();
        assert_eq!(code, Some(2), "{flags:?}: {out}{errors}");
        assert!(errors.contains(expected), "{flags:?}: {errors}");
    }
}
