//! Several devices of one user: shared answers, cancels, interrupts, resends, and the order of
//! messages.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::numbered_words;
use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::history::HistoryClient;
use crate::support::model::Script;
use crate::support::system::TestSystem;
use crate::support::v1::{Transcript, V1Client};
use crate::support::{QUIET_PERIOD, TEST_TIMEOUT, unique_name, wait_until};

/// Pause between two chunks of a scripted answer.
const CHUNK_INTERVAL: Duration = Duration::from_millis(60);

/// An answer that begins with this text and never ends.
fn endless_answer(text: &str) -> Script {
    Script::new().role().text(text).hang()
}

/// Waits until the worker has closed its request to the model, and checks that it did so within
/// 1.2 s of the cancel.
async fn assert_model_request_closed(system: &TestSystem, prompt: &str, cancelled_at: Instant) {
    wait_until(
        "the request to the model is closed",
        TEST_TIMEOUT,
        || async {
            system
                .model()
                .aborted_prompts()
                .iter()
                .any(|aborted| aborted == prompt)
        },
    )
    .await;
    let elapsed = cancelled_at.elapsed();
    assert!(
        elapsed < Duration::from_millis(1200),
        "closed after {elapsed:?}"
    );
}

pub(super) async fn all_devices_show_the_same_answer_even_if_they_join_late(
    system: Arc<TestSystem>,
) {
    let user = unique_name("devices");
    let prompt = unique_name("shared");
    let text = numbered_words("shared", 60);
    system.model().queue_answer(
        &prompt,
        Script::complete(&text).chunk_interval(CHUNK_INTERVAL),
    );
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    laptop.send_message("m-1", &prompt).await;
    laptop.wait_for_text("m-1", "shared3 ").await;
    let mut tablet = V1Client::new(&user);
    let welcome = tablet.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], false);
    let pending = &welcome["pending"][0];
    assert_eq!(pending["content"], prompt.as_str(), "{welcome}");
    assert_eq!(pending["id"], "m-1");
    assert_eq!(pending["conversation_id"], "default");
    // A reconnect during the answer recovers everything.
    laptop.drop_connection();
    let welcome = laptop.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    for device in [&mut laptop, &mut phone, &mut tablet] {
        let terminal = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(terminal["content"], text.as_str());
        assert_eq!(device.transcript.stray_frames, 0);
    }
    assert_eq!(
        phone.message("m-1").accepted,
        [true],
        "expected one `accepted` with the content at the phone"
    );
    assert_eq!(phone.message("m-1").question.as_deref(), Some(&*prompt));
    assert_eq!(phone.message("m-1").snapshots, 0);
    assert_eq!(tablet.message("m-1").snapshots, 1);
    assert_eq!(
        tablet.frames[1]["type"], "snapshot",
        "{:?}",
        tablet.frames[1]
    );
    assert!(
        tablet.message("m-1").deltas > 0,
        "the tablet receives no delta after the snapshot"
    );
    assert_eq!(tablet.message("m-1").question.as_deref(), Some(&*prompt));
    assert_eq!(laptop.message("m-1").snapshots, 1);
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn classic_client_receives_only_response_and_error(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let (v1_prompt, classic_prompt, cancelled_prompt) = (
        unique_name("v1"),
        unique_name("classic"),
        unique_name("cancelled"),
    );
    system.model().queue_answer(
        &v1_prompt,
        Script::complete(&numbered_words("a", 8)).chunk_interval(CHUNK_INTERVAL),
    );
    system.model().queue_answer(
        &classic_prompt,
        Script::complete(&numbered_words("b", 8)).chunk_interval(CHUNK_INTERVAL),
    );
    system
        .model()
        .queue_answer(&cancelled_prompt, endless_answer("some words "));
    let mut classic = ClassicClient::open(system.port(0), &user).await;
    let mut device = V1Client::open(system.port(1), &user).await;
    device.send_and_wait("m-1", &v1_prompt).await;
    classic.send_message(&classic_prompt).await;
    let classic_message_has_ended = |transcript: &Transcript| {
        transcript.messages().any(|message| {
            message.question.as_deref() == Some(&*classic_prompt)
                && message.outcome_type().is_some()
        })
    };
    device
        .wait_for(
            "the message of the classic client ends",
            classic_message_has_ended,
        )
        .await;
    let classic_message = device
        .transcript
        .messages()
        .find(|message| message.id.is_none())
        .unwrap();
    assert_eq!(
        classic_message.accepted,
        [true],
        "expected one `accepted` with the question"
    );
    assert!(
        classic_message.deltas > 1,
        "{} deltas",
        classic_message.deltas
    );
    device.send_message("m-3", &cancelled_prompt).await;
    device.wait_for_text("m-3", "some").await;
    device.cancel("m-3").await;
    device.wait_for_terminal_frames(&["m-3"]).await;
    assert_eq!(device.message("m-3").outcome_type(), Some("cancelled"));
    let expected_frames: [(&str, Value); 3] = [
        ("response", numbered_words("a", 8).into()),
        ("response", numbered_words("b", 8).into()),
        ("error", Value::Null),
    ];
    for (frame_type, content) in expected_frames {
        let frame = classic.next_frame().await;
        assert_eq!(frame["type"], frame_type, "{frame}");
        assert_eq!(frame["content"], content, "{frame}");
        for field in [
            "position",
            "n",
            "n_id",
            "attempt",
            "usage",
            "conversation_id",
        ] {
            assert!(
                frame.get(field).is_none(),
                "the classic protocol has no field {field}: {frame}"
            );
        }
        if frame_type == "error" {
            assert_eq!(frame["code"], "cancelled");
            assert!(frame["message"].is_string(), "{frame}");
        }
    }
    match classic.next_event(QUIET_PERIOD).await {
        ClientEvent::TimedOut => {}
        other => panic!("expected no further frame, got {other:?}"),
    }
}

pub(super) async fn cancel_from_another_device_stops_a_running_answer(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let prompt = unique_name("cancelled");
    system
        .model()
        .queue_answer(&prompt, endless_answer("the text written so far "));
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    laptop.send_message("m-1", &prompt).await;
    // Wait for the complete text, because the outcome has the text that was streamed before the
    // cancel.
    phone.wait_for_text("m-1", "so far").await;
    // The model sends nothing more, so only the cancel itself can make the worker stop.
    phone.cancel("m-1").await;
    let cancelled_at = Instant::now();
    let result = phone.wait_for_type("cancel_result").await;
    assert_eq!(result["result"], "cancelling", "{result}");
    assert_model_request_closed(&system, &prompt, cancelled_at).await;
    for device in [&mut laptop, &mut phone] {
        let terminal = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(terminal["type"], "cancelled", "{terminal}");
        assert_eq!(
            terminal["content"], "the text written so far ",
            "{terminal}"
        );
        assert_eq!(terminal["id"], "m-1");
    }
    phone.cancel("m-1").await;
    assert_eq!(phone.next_frame().await["result"], "already_done");
    let message_id = laptop.transcript.message_id("m-1").unwrap().to_owned();
    let history = HistoryClient::new(system.port(0), &user);
    let turn = history
        .turn("default", &message_id)
        .await
        .expect("a turn in the history");
    assert_eq!(turn.status, "cancelled");
    assert_eq!(turn.answer, "the text written so far ");
    assert_eq!(turn.question.as_deref(), Some(&*prompt));
    // The context of the next request to the model has the cancelled answer.
    let next = unique_name("next");
    laptop.send_and_wait("m-2", &next).await;
    let context = system.model().requests_for(&next).remove(0).messages();
    let texts: Vec<&str> = context.iter().map(|(_, text)| text.trim()).collect();
    assert!(texts.contains(&"the text written so far"), "{texts:?}");
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn cancel_before_the_model_call_prevents_it(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let (first, second) = (unique_name("first"), unique_name("second"));
    system.model().queue_answer(&first, endless_answer("busy "));
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    laptop.send_message("m-1", &first).await;
    laptop.wait_for_text("m-1", "busy").await;
    laptop.send_message("m-2", &second).await;
    laptop.wait_for_accepted("m-2").await;
    phone.wait_for_accepted("m-2").await;
    let message_id = phone.transcript.message_id("m-2").unwrap().to_owned();
    phone.cancel_message(&message_id).await;
    let result = phone.wait_for_type("cancel_result").await;
    assert_eq!(result["result"], "cancelling", "{result}");
    assert_eq!(result["message_id"], message_id.as_str());
    phone.cancel("m-1").await;
    for device in [&mut laptop, &mut phone] {
        device.wait_for_terminal_frames(&["m-1", "m-2"]).await;
        for id in ["m-1", "m-2"] {
            assert_eq!(device.message(id).outcome_type(), Some("cancelled"), "{id}");
        }
        assert_eq!(device.transcript.outcome_order("default"), ["m-1", "m-2"]);
    }
    assert_eq!(laptop.message("m-2").text, "");
    assert_eq!(
        system.model().request_count_for(&second),
        0,
        "the model was called for the cancelled message"
    );
}

pub(super) async fn interrupt_cancels_earlier_pending_messages(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let (running, waiting, interrupting) = (
        unique_name("running"),
        unique_name("waiting"),
        unique_name("interrupting"),
    );
    let other_conversation = unique_name("other");
    system
        .model()
        .queue_answer(&running, endless_answer("on and on "));
    let slow = Script::complete(&numbered_words("other", 30)).chunk_interval(CHUNK_INTERVAL);
    system.model().queue_answer(&other_conversation, slow);
    let mut device = V1Client::open(system.port(0), &user).await;
    device
        .send_message_in("other", "o-1", &other_conversation)
        .await;
    device.send_message("m-1", &running).await;
    device.wait_for_text("m-1", "on and").await;
    device.send_message("m-2", &waiting).await;
    device.wait_for_accepted("m-2").await;
    device.send_interrupting_message("m-3", &interrupting).await;
    device
        .wait_for_terminal_frames(&["m-1", "m-2", "m-3", "o-1"])
        .await;
    let outcome_types = ["m-1", "m-2", "m-3", "o-1"]
        .map(|id| device.message(id).outcome_type().unwrap().to_owned());
    assert_eq!(
        outcome_types,
        ["cancelled", "cancelled", "response", "response"]
    );
    assert_eq!(device.message("m-3").text, format!("echo: {interrupting}"));
    assert_eq!(
        device.transcript.outcome_order("default"),
        ["m-1", "m-2", "m-3"]
    );
    assert_eq!(system.model().request_count_for(&waiting), 0);
    let cancel_results = device
        .frames
        .iter()
        .filter(|frame| frame["type"] == "cancel_result");
    assert_eq!(
        cancel_results.count(),
        0,
        "a cancel_result arrived although the client sent no cancel"
    );
}

pub(super) async fn same_id_through_two_gateways_is_one_message(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let prompt = unique_name("same-id");
    let text = numbered_words("once", 20);
    system.model().queue_answer(
        &prompt,
        Script::complete(&text).chunk_interval(CHUNK_INTERVAL),
    );
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    tokio::join!(
        laptop.send_message("m-1", &prompt),
        phone.send_message("m-1", &prompt)
    );
    // Send the message again while its answer is in flight.
    laptop.wait_for_text("m-1", "once1 ").await;
    laptop.send_message("m-1", &prompt).await;
    for device in [&mut laptop, &mut phone] {
        let terminal = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(terminal["content"], text.as_str());
        assert!(
            device.message("m-1").accepted.contains(&false),
            "expected an `accepted` without the content, because this device sent the message"
        );
    }
    let ids = [&laptop, &phone].map(|device| device.transcript.message_id("m-1").unwrap());
    assert_eq!(ids[0], ids[1]);
    for device in [&mut laptop, &mut phone] {
        // Further `accepted` frames are allowed; the transcript rejects a second outcome.
        let deadline = Instant::now() + QUIET_PERIOD;
        while let ClientEvent::Frame(_) = device.next_event(deadline - Instant::now()).await {}
        assert_eq!(
            device.message("m-1").repeated_outcomes,
            0,
            "a second terminal frame arrived although no resend followed the outcome"
        );
    }
    assert_eq!(
        system.model().request_count_for(&prompt),
        1,
        "the model was called twice"
    );
}

pub(super) async fn id_resent_after_the_outcome_returns_the_stored_answer(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let prompt = unique_name("stored");
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    let terminal = laptop.send_and_wait("m-1", &prompt).await;
    phone.wait_for_terminal_frames(&["m-1"]).await;
    let first_new_frame = laptop.frames.len();
    laptop.send_message("m-1", &prompt).await;
    let has_repeated_outcome =
        |t: &Transcript| t.get("m-1").is_some_and(|m| m.repeated_outcomes == 1);
    laptop
        .wait_for("the stored answer arrives", has_repeated_outcome)
        .await;
    let frame_types: Vec<&Value> = laptop.frames[first_new_frame..]
        .iter()
        .map(|frame| &frame["type"])
        .collect();
    assert_eq!(frame_types, ["accepted", "response"]);
    assert_eq!(laptop.frames.last(), Some(&terminal));
    // A device that connects later and does not know the message receives the same answer.
    let mut late = V1Client::open(system.port(1), &user).await;
    late.send_message("m-1", &prompt).await;
    assert_eq!(late.wait_for_terminal_frame("m-1").await, terminal);
    for device in [&mut laptop, &mut phone, &mut late] {
        device.expect_no_frame(QUIET_PERIOD).await;
    }
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn messages_of_a_conversation_run_in_order_beside_other_conversations(
    system: Arc<TestSystem>,
) {
    let user = unique_name("devices");
    let (first, second, other) = (
        unique_name("first"),
        unique_name("second"),
        unique_name("other"),
    );
    let slow = Script::complete(&numbered_words("slow", 60)).chunk_interval(CHUNK_INTERVAL);
    system.model().queue_answer(&first, slow);
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_message("m-1", &first).await;
    device.send_message("m-2", &second).await;
    device.wait_for_text("m-1", "slow0").await;
    device.send_message_in("other", "o-1", &other).await;
    device.wait_for_terminal_frames(&["o-1"]).await;
    assert_eq!(
        device.message("m-1").outcome_type(),
        None,
        "the answer of the other conversation did not arrive first"
    );
    assert_eq!(
        system.model().request_count_for(&second),
        0,
        "the model was called for the second message before the first had ended"
    );
    device.wait_for_terminal_frames(&["m-1", "m-2"]).await;
    assert_eq!(device.transcript.outcome_order("default"), ["m-1", "m-2"]);
    assert_eq!(device.message("o-1").conversation.as_deref(), Some("other"));
    let context = system.model().requests_for(&second).remove(0).messages();
    let has_other = context.iter().any(|(_, text)| text.contains(&other));
    let has_first = context.iter().any(|(_, text)| *text == first);
    assert!(has_first && !has_other, "{context:?}");
}
