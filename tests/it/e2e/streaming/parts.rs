//! Answers of several parts: reasoning, text, tool calls, sources, data and refusals.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::support::classic::ClassicClient;
use crate::support::history::HistoryClient;
use crate::support::model::AnswerScript;
use crate::support::parts::finished_parts_field;
use crate::support::system::TestSystem;
use crate::support::unique_name;
use crate::support::v1::V1Client;

/// Pause between two chunks of a scripted answer.
const CHUNK_INTERVAL: Duration = Duration::from_millis(50);

pub(super) async fn every_kind_is_streamed_ended_and_stored(system: Arc<TestSystem>) {
    let user = unique_name("parts");
    let prompt = unique_name("kinds");
    let answer = AnswerScript::of_every_kind("once", 6);
    let script = answer.complete().chunk_interval(CHUNK_INTERVAL);
    system.model().queue_answer(&prompt, script);
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    let mut classic = ClassicClient::open(system.port(0), &user).await;
    laptop.send_message("m-1", &prompt).await;
    let finished = finished_parts_field(&answer.parts, false);
    for device in [&mut laptop, &mut phone] {
        device.wait_for_part("m-1", "reasoning", "thought2").await;
        assert_eq!(
            device.message("m-1").text,
            "",
            "reasoning is no text of the answer"
        );
        device
            .wait_for_part("m-1", "tool_call", r#"{"call":"once-a0 "#)
            .await;
        let terminal = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(terminal["content"], answer.content());
        assert_eq!(terminal["parts"], finished);
        // The transcript has the reasoning from the deltas, and checks everything else of the
        // terminal frame against them.
        assert_eq!(device.message("m-1").parts(), answer.parts);
        assert_eq!(device.message("m-1").snapshots, 0);
        let openings = device.frames.iter().filter(|f| f.get("kind").is_some());
        assert_eq!(openings.count(), answer.parts.len());
    }
    let frame = classic.next_frame().await;
    assert_eq!(frame["content"], answer.content());
    for field in ["parts", "stream", "kind"] {
        assert_eq!(frame.get(field), None, "{frame}");
    }
    let message_id = laptop.transcript.message_id("m-1").unwrap().to_owned();
    let history = HistoryClient::new(system.port(1), &user);
    let turn = history.turn("default", &message_id).await.unwrap();
    assert_eq!((turn.answer, turn.parts), (answer.content(), finished));
    assert_next_prompt_has_only_text(&system, &mut laptop, &answer).await;
}

/// Checks that the model receives the text of the answer with the next message, and no other part
/// of it.
pub(super) async fn assert_next_prompt_has_only_text(
    system: &TestSystem,
    device: &mut V1Client,
    answer: &AnswerScript,
) {
    let next = unique_name("next");
    device.send_and_wait(&unique_name("id"), &next).await;
    let request = system.model().requests_for(&next).remove(0);
    let texts: Vec<String> = request
        .messages()
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert!(texts.contains(&answer.content()), "{texts:?}");
    for hidden in [
        "thought",
        "doubt",
        "search",
        "call_0",
        "rows",
        "source.test",
    ] {
        assert!(
            !request.body.to_string().contains(hidden),
            "{hidden} in {}",
            request.body
        );
    }
}

pub(super) async fn device_that_joins_or_hops_in_any_part_shows_whole_parts(
    system: Arc<TestSystem>,
) {
    let user = unique_name("parts");
    let prompt = unique_name("joined");
    let answer = AnswerScript::of_every_kind("once", 10);
    let places = [
        ("reasoning", "thought3"),
        ("text", "first3"),
        ("tool_call", "a3"),
        ("reasoning", "doubt3"),
        ("text", "second3"),
        ("refusal", "refusal3"),
    ];
    // The answer waits at each place, so that it ends in no other part while a device connects.
    let (script, gates) = answer.complete_with_gates(&places.map(|(_, text)| text));
    let script = script.chunk_interval(Duration::from_millis(20));
    system.model().queue_answer(&prompt, script);
    let mut watcher = V1Client::open(system.port(0), &user).await;
    let mut hopper = V1Client::open(system.port(1), &user).await;
    watcher.send_message("m-1", &prompt).await;
    let mut joined = Vec::new();
    for (n, ((kind, text), gate)) in places.into_iter().zip(gates).enumerate() {
        watcher.wait_for_part("m-1", kind, text).await;
        let mut device = V1Client::open(system.port(n), &user).await;
        let snapshot = device.next_frame().await;
        assert_eq!(snapshot["type"], "snapshot", "{snapshot}");
        let last = device.message("m-1").parts().last();
        assert_eq!(last.map(|part| part.kind.as_str()), Some(kind));
        joined.push(device);
        // The transcript checks that the parts after the hop extend those before.
        hopper.drop_connection();
        hopper.connect(system.port(n)).await;
        hopper.wait_for_part("m-1", kind, text).await;
        assert!(hopper.message("m-1").is_streaming());
        gate.open();
    }
    let hops = joined.len();
    for device in joined.iter_mut().chain([&mut watcher, &mut hopper]) {
        let terminal = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(terminal["content"], answer.content());
        let message = device.message("m-1");
        assert_eq!(message.parts(), answer.parts);
        assert_eq!(message.restarts, 0);
        assert!(message.deltas > 0, "no delta");
    }
    assert!(joined.iter().all(|d| d.message("m-1").snapshots == 1));
    assert_eq!(hopper.message("m-1").snapshots, hops);
    assert_eq!(watcher.message("m-1").snapshots, 0);
    assert_eq!(system.model().request_count_for(&prompt), 1);
    // A device that connects after the end has the parts from the history, and no frame of them.
    let mut late = V1Client::open(system.port(1), &user).await;
    late.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(late.next_frame().await["type"], Value::from("pong"));
}
