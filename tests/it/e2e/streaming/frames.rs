//! The frames of `chatmesh.v1` that docs/protocol.md lists, over real sockets.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::numbered_words;
use crate::support::model::{Answer, Script};
use crate::support::system::TestSystem;
use crate::support::v1::V1Client;
use crate::support::{QUIET_PERIOD, unique_name};

pub(super) async fn message_is_accepted_streamed_and_ended_once(system: Arc<TestSystem>) {
    let user = unique_name("frames");
    let prompt = unique_name("stream");
    let text = numbered_words("piece", 12);
    let script = Script::complete(&text).chunk_interval(Duration::from_millis(40));
    system.model().queue_answer(&prompt, script);
    let mut device = V1Client::open(system.port(0), &user).await;
    let welcome = device.frames[0].clone();
    assert_eq!(welcome["recovered"], false, "the client sent no position");
    assert_eq!(welcome["pending"], json!([]));
    let terminal = device.send_and_wait("m-1", &prompt).await;
    assert_eq!(terminal["type"], "response", "{terminal}");
    assert_eq!(terminal["content"], text.as_str());
    assert_eq!(terminal["finish_reason"], "stop");
    assert_eq!(terminal["model"], "scripted-model");
    assert_eq!(terminal["attempt"], 1);
    assert_eq!(terminal["usage"]["total_tokens"], 18);
    assert_eq!(terminal["conversation_id"], "default");
    assert_eq!(terminal["id"], "m-1");
    let message = device.message("m-1");
    assert_eq!(
        message.accepted,
        [false],
        "expected one `accepted` without the content"
    );
    assert!(message.deltas > 3, "{} deltas", message.deltas);
    assert_eq!(message.restarts, 0);
    device.expect_no_frame(QUIET_PERIOD).await;
    let deltas: String = device
        .frames
        .iter()
        .filter(|frame| frame["type"] == "delta")
        .map(|frame| {
            assert_eq!(frame["id"], "m-1", "the frame has another id: {frame}");
            frame["content"].as_str().unwrap()
        })
        .collect();
    assert_eq!(deltas, text);
}

pub(super) async fn first_token_is_sent_without_delay(system: Arc<TestSystem>) {
    let prompt = unique_name("first");
    let script = Script::new()
        .role()
        .token("first ")
        .wait(Duration::from_secs(4))
        .token("last")
        .finish("stop")
        .usage()
        .done();
    system.model().queue_answer(&prompt, script);
    let mut device = V1Client::open(system.port(0), &unique_name("frames")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first").await;
    assert!(device.message("m-1").is_streaming());
    let requested_at = system.model().requests_for(&prompt)[0].received_at;
    assert!(
        requested_at.elapsed() < Duration::from_secs(3),
        "the first token was delayed"
    );
    let terminal = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(terminal["content"], "first last");
}

pub(super) async fn many_tokens_are_batched_into_few_frames(system: Arc<TestSystem>) {
    let prompt = unique_name("many");
    let text = numbered_words("t", 300);
    let script = Script::complete(&text).chunk_interval(Duration::from_millis(10));
    system.model().queue_answer(&prompt, script);
    let mut device = V1Client::open(system.port(0), &unique_name("frames")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "t0").await;
    let started = Instant::now();
    let terminal = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(terminal["content"], text.as_str());
    let max_deltas = started.elapsed().as_secs_f64() * 40.0 + 8.0;
    let deltas = device.message("m-1").deltas;
    assert!(
        (deltas as f64) < max_deltas,
        "{deltas} deltas, expected fewer than {max_deltas}"
    );
    assert!(deltas > 20, "only {deltas} deltas");
}

pub(super) async fn ping_is_answered_by_pong(system: Arc<TestSystem>) {
    let mut device = V1Client::open(system.port(0), &unique_name("frames")).await;
    device.send_text(r#"{"type":"ping"}"#).await;
    let pong = device.next_frame().await;
    assert_eq!(pong, json!({"type": "pong"}));
}

pub(super) async fn invalid_frame_is_refused_and_the_socket_stays_open(system: Arc<TestSystem>) {
    let user = unique_name("frames");
    let mut device = V1Client::open(system.port(0), &user).await;
    let long_content = "x".repeat(8001);
    let long_id = "i".repeat(65);
    let invalid_frames: [(Value, &str); 12] = [
        (
            json!({"type": "message", "content": "no id"}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "", "content": "x"}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": long_id, "content": "x"}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "a b", "content": "x"}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "r-1", "content": ""}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "r-1", "content": 7}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "r-1", "content": "x", "userid": "other"}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "r-1", "content": "x", "conversation_id": "a b"}),
            "invalid_message",
        ),
        (
            json!({"type": "message", "id": "r-1", "content": long_content}),
            "too_large",
        ),
        (json!({"type": "cancel"}), "invalid_message"),
        (json!({"type": "no-such-type"}), "invalid_message"),
        (json!(["message"]), "invalid_message"),
    ];
    for (frame, code) in invalid_frames {
        device.send_text(&frame.to_string()).await;
        let error = device.next_frame().await;
        let frame_start: String = frame.to_string().chars().take(80).collect();
        assert_eq!(error["type"], "error", "{frame_start}: {error}");
        assert_eq!(error["code"], code, "{frame_start}: {error}");
        assert!(
            error.get("message_id").is_none(),
            "a refusal must not name a message_id: {error}"
        );
        assert_eq!(error["retryable"], false, "{frame_start}: {error}");
        let text = error["message"].as_str().unwrap();
        assert!(
            text.starts_with("Invalid message"),
            "{frame_start}: {error}"
        );
        if frame["id"] == "r-1" {
            assert_eq!(
                error["id"], "r-1",
                "the error must name the id of the message: {error}"
            );
        }
    }
    let prompt = unique_name("valid");
    let valid_frame =
        json!({"type": "message", "id": "m-1", "content": prompt, "userid": user, "x": 1});
    device.send_message_frame(&valid_frame).await;
    let terminal = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(terminal["content"], format!("echo: {prompt}"));
}

pub(super) async fn failure_is_a_terminal_error(system: Arc<TestSystem>) {
    let user = unique_name("frames");
    let prompt = unique_name("rejected");
    let refusal = Answer::error(400, "invalid_request_error", "this model does not like you");
    system.model().queue_answer(&prompt, refusal);
    let mut device = V1Client::open(system.port(0), &user).await;
    let terminal = device.send_and_wait("m-1", &prompt).await;
    assert_eq!(terminal["type"], "error", "{terminal}");
    assert_eq!(terminal["code"], "provider_rejected");
    assert_eq!(terminal["retryable"], false);
    assert_eq!(terminal["id"], "m-1");
    assert_eq!(device.message("m-1").accepted, [false]);
    // The next message of the conversation is answered.
    let terminal = device.send_and_wait("m-2", &unique_name("next")).await;
    assert_eq!(terminal["type"], "response", "{terminal}");
}

pub(super) async fn interrupted_provider_restarts_the_text(system: Arc<TestSystem>) {
    let prompt = unique_name("interrupted");
    let chunk_interval = Duration::from_millis(60);
    let interrupted = Script::new()
        .role()
        .text("old words that are discarded ")
        .disconnect();
    system
        .model()
        .queue_answer(&prompt, interrupted.chunk_interval(chunk_interval));
    let second_text = numbered_words("new", 6);
    system.model().queue_answer(
        &prompt,
        Script::complete(&second_text).chunk_interval(chunk_interval),
    );
    let mut device = V1Client::open(system.port(0), &unique_name("frames")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "old").await;
    let terminal = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(terminal["type"], "response", "{terminal}");
    assert_eq!(terminal["content"], second_text.as_str());
    assert_eq!(terminal["attempt"], 2);
    assert_eq!(device.message("m-1").restarts, 1);
    assert_eq!(system.model().request_count_for(&prompt), 2);
    let restarted = device
        .frames
        .iter()
        .find(|frame| frame["type"] == "restarted");
    let restarted = restarted.unwrap();
    assert_eq!(restarted["attempt"], 2);
    let stream_of = |attempt: u64| {
        let mut frames = device.frames.iter();
        let delta = frames.find(|f| f["type"] == "delta" && f["attempt"] == attempt);
        delta.unwrap()["stream"].clone()
    };
    assert_eq!(restarted["stream"], stream_of(2));
    assert_ne!(stream_of(1), stream_of(2));
}

pub(super) async fn cancel_of_an_unknown_or_ended_message_is_reported(system: Arc<TestSystem>) {
    let mut device = V1Client::open(system.port(0), &unique_name("frames")).await;
    device.cancel("never-sent").await;
    let result = device.next_frame().await;
    assert_eq!(result["type"], "cancel_result", "{result}");
    assert_eq!(result["result"], "unknown");
    assert_eq!(result["id"], "never-sent");
    let terminal = device.send_and_wait("m-1", &unique_name("ended")).await;
    device.cancel("m-1").await;
    let result = device.next_frame().await;
    assert_eq!(result["result"], "already_done", "{result}");
    assert_eq!(result["id"], "m-1");
    let message_id = terminal["message_id"].as_str().unwrap().to_owned();
    device.cancel_message(&message_id).await;
    let result = device.next_frame().await;
    assert_eq!(result["result"], "already_done", "{result}");
    assert_eq!(result["message_id"], message_id.as_str());
    device.expect_no_frame(QUIET_PERIOD).await;
}
