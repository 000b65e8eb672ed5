//! Invalid input is refused or becomes a dead letter, and affects no other message.

use serde_json::json;

use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::model::ScriptedModel;
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::redis::subscribe;
use crate::support::stack::{MESSAGES, RELAYS, RESPONSES, Stack, WORKERS};
use crate::support::{TEST_TIMEOUT, wait_until};

/// Starts a process with all roles that uses this model.
async fn start_embedded(model: &ScriptedModel) -> ChatmeshProcess {
    ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "10000")
        .start()
        .await
}

#[tokio::test]
async fn malformed_message_is_refused_and_the_socket_stays_open() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    let too_long = "x".repeat(8001);
    let invalid_messages = [
        "not json".to_owned(),
        String::new(),
        "[]".to_owned(),
        "null".to_owned(),
        "{}".to_owned(),
        json!({"type": "message", "userid": "alice"}).to_string(),
        json!({"type": "message", "content": 7, "userid": "alice"}).to_string(),
        json!({"type": "message", "content": null, "userid": "alice"}).to_string(),
        json!({"type": "message", "content": "", "userid": "alice"}).to_string(),
        json!({"type": "message", "content": " \n\t ", "userid": "alice"}).to_string(),
        json!({"type": "message", "content": "\u{0}", "userid": "alice"}).to_string(),
        json!({"type": "message", "content": too_long, "userid": "alice"}).to_string(),
        json!({"type": "message", "content": "hi", "userid": "bob"}).to_string(),
        json!({"type": "message", "content": "hi", "userid": 5}).to_string(),
        json!({"type": "no-such-type", "content": "hi", "userid": "alice"}).to_string(),
        json!({"type": 1, "content": "hi", "userid": "alice"}).to_string(),
        json!({"content": "hi", "userid": "alice"}).to_string(),
        // The nesting is deeper than a parser should follow.
        "[".repeat(20_000),
        // Half of a surrogate pair is not a character.
        r#"{"type":"message","content":"\ud800","userid":"alice"}"#.to_owned(),
    ];
    for (n, text) in invalid_messages.iter().enumerate() {
        client.send_text(text).await;
        let frame = client.next_frame().await;
        let text_start: String = text.chars().take(60).collect();
        assert_eq!(frame["type"], "error", "{n}: {text_start}: {frame}");
        let message = frame["message"].as_str().unwrap_or("");
        assert!(
            message.starts_with("Invalid message"),
            "{n}: {text_start}: {frame}"
        );
        assert_eq!(frame["userid"], "alice");
        assert!(
            frame.get("message_id").is_none(),
            "{n}: a refusal must not name a message_id: {frame}"
        );
        let code = frame["code"].as_str().unwrap();
        assert!(
            ["invalid_message", "too_large"].contains(&code),
            "{n}: {frame}"
        );
    }
    assert_eq!(
        model.request_count(),
        0,
        "a refused message reached the model"
    );
    assert_eq!(
        client.send_and_wait("hello").await["content"],
        "echo: hello"
    );
}

#[tokio::test]
async fn message_that_the_original_allowed_is_answered() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    let longest = "ü".repeat(8000);
    let valid_messages = [
        (
            json!({"type": "message", "content": "no userid"}),
            "no userid",
        ),
        (
            json!({"type": "message", "content": "extra", "userid": "alice", "x": {"y": []}}),
            "extra",
        ),
        (
            json!({"type": "message", "content": longest, "userid": "alice"}),
            longest.as_str(),
        ),
        (
            json!({"type": "message", "content": "a\u{0}b\u{0}", "userid": "alice"}),
            // The NUL characters are removed from the prompt.
            "ab",
        ),
        (
            json!({"type": "message", "content": "tab\there\r\nand \u{1b}[31m 🦀", "userid": "alice"}),
            "tab\there\r\nand \u{1b}[31m 🦀",
        ),
    ];
    for (frame, prompt) in valid_messages {
        client.send_text(&frame.to_string()).await;
        let answer = client.next_frame().await;
        assert_eq!(answer["type"], "response", "{answer}");
        assert_eq!(model.request_count_for(prompt), 1, "{answer}");
    }
}

#[tokio::test]
async fn protocol_violation_closes_the_socket_with_its_code() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let mut other = ClassicClient::open(process.port(), "bob").await;

    let mut client = ClassicClient::open(process.port(), "alice").await;
    client.send_binary(b"{}").await;
    assert_eq!(client.expect_close().await, Some(1003));

    let mut client = ClassicClient::open(process.port(), "alice").await;
    client.send_invalid_utf8().await;
    assert_eq!(client.expect_close().await, Some(1007));

    let mut client = ClassicClient::open(process.port(), "alice").await;
    client.send_text(&"x".repeat(70_000)).await;
    // The close frame can be lost when the server resets a connection with unread bytes.
    match client.next_event(TEST_TIMEOUT).await {
        ClientEvent::Closed(code) => assert!([Some(1009), None].contains(&code), "{code:?}"),
        other => panic!("expected a close, got {other:?}"),
    }
    assert_eq!(other.send_and_wait("hello").await["content"], "echo: hello");
}

#[tokio::test]
async fn invalid_parameters_are_refused_before_the_upgrade() {
    let process = ProcessSpec::ephemeral().start().await;
    let long = "u".repeat(129);
    for (path, status) in [
        ("/ws?token=t".to_owned(), 400),
        ("/ws?token=t&userid=".to_owned(), 400),
        (format!("/ws?token=t&userid={long}"), 400),
        ("/ws?token=t&userid=a%20b".to_owned(), 400),
        ("/ws?token=t&userid=a%2Fb".to_owned(), 400),
        ("/ws?token=t&userid=%F0%9F%A6%80".to_owned(), 400),
        ("/ws?userid=alice".to_owned(), 401),
        ("/ws?token=&userid=alice".to_owned(), 401),
    ] {
        let refused = ClassicClient::connect_with(process.port(), &path, &[], "alice").await;
        let refused = refused.map(|_| ()).expect_err(&path);
        assert_eq!(refused.status, status, "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn open_loopback_server_refuses_a_foreign_origin() {
    let process = ProcessSpec::ephemeral().start().await;
    let headers = [("origin", "http://evil.example")];
    let path = "/ws?token=t&userid=alice";
    let refused = ClassicClient::connect_with(process.port(), path, &headers, "alice").await;
    assert_eq!(refused.unwrap_err().status, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_message_becomes_a_dead_letter_and_delays_nothing() {
    let stack = Stack::start().await;
    let kafka = stack.kafka_client();
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let (_client, mut channel) = subscribe(&stack.redis.url(), "user:alice").await;
    let long_user = "u".repeat(129);
    let unreadable = [
        "not json".to_owned(),
        "{\"type\":\"message\"".to_owned(),
        json!({"type": "message", "userid": "alice"}).to_string(),
        json!({"type": "message", "content": 7, "userid": "alice"}).to_string(),
        json!({"type": "message", "content": "hi", "userid": "no good"}).to_string(),
        json!({"type": "message", "content": "hi", "userid": long_user}).to_string(),
        json!({"type": "other", "content": "hi", "userid": "alice"}).to_string(),
    ];
    for value in &unreadable {
        kafka.produce(MESSAGES, Some("someone"), value, &[]).await;
    }
    // The headers of this record name its message, and its key names its user, so the user gets an
    // error.
    let headers = [("message_id", "m-1"), ("correlation_id", "c-1")];
    kafka.produce(MESSAGES, Some("alice"), "{", &headers).await;
    let valid = json!({"type": "message", "content": "hello", "userid": "alice"}).to_string();
    kafka.produce(MESSAGES, Some("alice"), &valid, &[]).await;

    let mut frames = Vec::new();
    while frames.len() < 2 {
        let frame = tokio::time::timeout(TEST_TIMEOUT, channel.recv()).await;
        let frame = frame.expect("a frame").expect("an open channel");
        frames.push(serde_json::from_str::<serde_json::Value>(&frame).unwrap());
    }
    let error = frames
        .iter()
        .find(|frame| frame["type"] == "error")
        .expect("an error frame");
    assert_eq!(error["message_id"], "m-1");
    assert_eq!(error["userid"], "alice");
    assert!(
        frames.iter().any(|frame| frame["content"] == "echo: hello"),
        "{frames:?}"
    );

    let dead_letters = kafka
        .read(
            &format!("{MESSAGES}.dlq"),
            unreadable.len() + 1,
            TEST_TIMEOUT,
        )
        .await;
    let mut values: Vec<&str> = dead_letters
        .iter()
        .map(|record| record.value.as_str())
        .collect();
    let mut expected: Vec<&str> = unreadable.iter().map(String::as_str).chain(["{"]).collect();
    values.sort_unstable();
    expected.sort_unstable();
    assert_eq!(values, expected);
    for dead_letter in &dead_letters {
        assert_eq!(dead_letter.headers["dlq.topic"], MESSAGES);
        assert!(
            !dead_letter.headers["dlq.reason"].is_empty(),
            "{dead_letter:?}"
        );
        assert!(dead_letter.key.is_some());
    }
    wait_until("all offsets are committed", TEST_TIMEOUT, || async {
        kafka.lag(WORKERS, MESSAGES).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_answer_becomes_a_dead_letter_and_delays_nothing() {
    let stack = Stack::start().await;
    let kafka = stack.kafka_client();
    let relay = stack.relay("relay_1").start().await;
    let (_client, mut channel) = subscribe(&stack.redis.url(), "user:alice").await;
    let unreadable = [
        "not json".to_owned(),
        json!({"type": "response", "content": "hi"}).to_string(),
        json!({"type": "delta", "content": "hi", "userid": "alice"}).to_string(),
        json!({"type": "response", "content": "hi", "userid": "no good"}).to_string(),
    ];
    for value in &unreadable {
        kafka.produce(RESPONSES, Some("alice"), value, &[]).await;
    }
    let valid = json!({
        "v": 1, "type": "response", "content": "hello", "userid": "alice",
        "timestamp": "2024-01-01T12:00:00Z", "processing_time_ms": 1,
        "correlation_id": "c", "message_id": "m-2",
    });
    kafka
        .produce(RESPONSES, Some("alice"), &valid.to_string(), &[])
        .await;
    let frame = tokio::time::timeout(TEST_TIMEOUT, channel.recv()).await;
    let frame: serde_json::Value = serde_json::from_str(&frame.unwrap().unwrap()).unwrap();
    assert_eq!(frame["content"], "hello", "{frame}");
    let dead_letters = kafka
        .read(&format!("{RESPONSES}.dlq"), unreadable.len(), TEST_TIMEOUT)
        .await;
    assert_eq!(dead_letters.len(), unreadable.len(), "{dead_letters:?}");
    wait_until("all offsets are committed", TEST_TIMEOUT, || async {
        kafka.lag(RELAYS, RESPONSES).await == 0
    })
    .await;
    assert!(relay.is_ready().await);
    // The next frame is a later answer of the same user, so no frame of an unreadable record was
    // delivered.
    let mut later_answer = valid;
    later_answer["message_id"] = "m-3".into();
    kafka
        .produce(RESPONSES, Some("alice"), &later_answer.to_string(), &[])
        .await;
    let frame = tokio::time::timeout(TEST_TIMEOUT, channel.recv()).await;
    let frame: serde_json::Value = serde_json::from_str(&frame.unwrap().unwrap()).unwrap();
    assert_eq!(frame["message_id"], "m-3", "{frame}");
}
