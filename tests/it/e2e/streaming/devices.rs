//! Several devices of one user: cancelling, interrupting, sending again, and the order of messages.

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

const PACE: Duration = Duration::from_millis(60);

/// An answer that begins and never ends.
fn endless(text: &str) -> Script {
    Script::new().role().text(text).hang()
}

/// Waits until the worker has closed its request to the model, within 1.2 s of `since`.
async fn assert_call_closed(system: &TestSystem, prompt: &str, since: Instant) {
    wait_until(
        "the request to the model is closed",
        TEST_TIMEOUT,
        || async {
            system
                .model()
                .aborted_prompts()
                .iter()
                .any(|closed| closed == prompt)
        },
    )
    .await;
    let took = since.elapsed();
    assert!(took < Duration::from_millis(1200), "closed after {took:?}");
}

pub(super) async fn all_devices_show_the_same_answer_even_if_they_join_late(
    system: Arc<TestSystem>,
) {
    let user = unique_name("devices");
    let prompt = unique_name("shared");
    let text = numbered_words("shared", 60);
    system
        .model()
        .queue_answer(&prompt, Script::complete(&text).chunk_interval(PACE));
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
        let end = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(end["content"], text.as_str());
        assert_eq!(device.transcript.stray_frames, 0);
    }
    assert_eq!(
        phone.message("m-1").accepted,
        [true],
        "one `accepted`, with the content"
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
        "deltas continue after the snapshot"
    );
    assert_eq!(tablet.message("m-1").question.as_deref(), Some(&*prompt));
    assert_eq!(laptop.message("m-1").snapshots, 1);
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn classic_client_receives_only_response_and_error(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let (asked, told, stopped) = (
        unique_name("by-v1"),
        unique_name("by-classic"),
        unique_name("stopped"),
    );
    system.model().queue_answer(
        &asked,
        Script::complete(&numbered_words("a", 8)).chunk_interval(PACE),
    );
    system.model().queue_answer(
        &told,
        Script::complete(&numbered_words("b", 8)).chunk_interval(PACE),
    );
    system
        .model()
        .queue_answer(&stopped, endless("some words "));
    let mut classic = ClassicClient::open(system.port(0), &user).await;
    let mut device = V1Client::open(system.port(1), &user).await;
    device.send_and_wait("m-1", &asked).await;
    classic.send_message(&told).await;
    let of_classic = |transcript: &Transcript| {
        let mut all = transcript.messages();
        all.any(|message| {
            message.question.as_deref() == Some(&*told) && message.outcome_type().is_some()
        })
    };
    device
        .wait_for("the classic client's message ends", of_classic)
        .await;
    let by_classic = device
        .transcript
        .messages()
        .find(|message| message.id.is_none())
        .unwrap();
    assert_eq!(by_classic.accepted, [true], "the question is shown as well");
    assert!(by_classic.deltas > 1, "{} deltas", by_classic.deltas);
    device.send_message("m-3", &stopped).await;
    device.wait_for_text("m-3", "some").await;
    device.cancel("m-3").await;
    device.wait_for_terminal_frames(&["m-3"]).await;
    assert_eq!(device.message("m-3").outcome_type(), Some("cancelled"));
    let expected: [(&str, Value); 3] = [
        ("response", numbered_words("a", 8).into()),
        ("response", numbered_words("b", 8).into()),
        ("error", Value::Null),
    ];
    for (kind, content) in expected {
        let frame = classic.next_frame().await;
        assert_eq!(frame["type"], kind, "{frame}");
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
                "{field} is not classic: {frame}"
            );
        }
        if kind == "error" {
            assert_eq!(frame["code"], "cancelled");
            assert!(frame["message"].is_string(), "{frame}");
        }
    }
    match classic.next_event(QUIET_PERIOD).await {
        ClientEvent::TimedOut => {}
        other => panic!("{other:?}"),
    }
}

pub(super) async fn cancel_from_another_device_stops_a_running_answer(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let prompt = unique_name("written");
    system
        .model()
        .queue_answer(&prompt, endless("what was said so far "));
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    laptop.send_message("m-1", &prompt).await;
    // Wait for all of the text, because the text so far is what is stored.
    phone.wait_for_text("m-1", "so far").await;
    // The worker learns of the cancel although the model sends nothing.
    phone.cancel("m-1").await;
    let cancelled = Instant::now();
    let result = phone.wait_for_type("cancel_result").await;
    assert_eq!(result["result"], "cancelling", "{result}");
    assert_call_closed(&system, &prompt, cancelled).await;
    for device in [&mut laptop, &mut phone] {
        let end = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(end["type"], "cancelled", "{end}");
        assert_eq!(end["content"], "what was said so far ", "{end}");
        assert_eq!(end["id"], "m-1");
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
    assert_eq!(turn.answer, "what was said so far ");
    assert_eq!(turn.question.as_deref(), Some(&*prompt));
    // The model's context has it too.
    let next = unique_name("next");
    laptop.send_and_wait("m-2", &next).await;
    let context = system.model().requests_for(&next).remove(0).messages();
    let said: Vec<&str> = context.iter().map(|(_, text)| text.trim()).collect();
    assert!(said.contains(&"what was said so far"), "{said:?}");
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn cancel_before_the_model_call_prevents_it(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let (first, second) = (unique_name("first"), unique_name("second"));
    system.model().queue_answer(&first, endless("busy "));
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
        "the model was called"
    );
}

pub(super) async fn interrupt_cancels_earlier_pending_messages(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let (first, waiting, last) = (
        unique_name("first"),
        unique_name("waiting"),
        unique_name("last"),
    );
    let elsewhere = unique_name("elsewhere");
    system.model().queue_answer(&first, endless("on and on "));
    let slow = Script::complete(&numbered_words("else", 30)).chunk_interval(PACE);
    system.model().queue_answer(&elsewhere, slow);
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_message_in("other", "o-1", &elsewhere).await;
    device.send_message("m-1", &first).await;
    device.wait_for_text("m-1", "on and").await;
    device.send_message("m-2", &waiting).await;
    device.wait_for_accepted("m-2").await;
    device.send_interrupting_message("m-3", &last).await;
    device
        .wait_for_terminal_frames(&["m-1", "m-2", "m-3", "o-1"])
        .await;
    let kinds = ["m-1", "m-2", "m-3", "o-1"]
        .map(|id| device.message(id).outcome_type().unwrap().to_owned());
    assert_eq!(kinds, ["cancelled", "cancelled", "response", "response"]);
    assert_eq!(device.message("m-3").text, format!("echo: {last}"));
    assert_eq!(
        device.transcript.outcome_order("default"),
        ["m-1", "m-2", "m-3"]
    );
    assert_eq!(system.model().request_count_for(&waiting), 0);
    let results = device
        .frames
        .iter()
        .filter(|frame| frame["type"] == "cancel_result");
    assert_eq!(results.count(), 0, "no cancel was requested");
}

pub(super) async fn same_id_through_two_gateways_is_one_message(system: Arc<TestSystem>) {
    let user = unique_name("devices");
    let prompt = unique_name("nervous");
    let text = numbered_words("once", 20);
    system
        .model()
        .queue_answer(&prompt, Script::complete(&text).chunk_interval(PACE));
    let mut laptop = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    tokio::join!(
        laptop.send_message("m-1", &prompt),
        phone.send_message("m-1", &prompt)
    );
    // The message is sent again while it is in flight.
    laptop.wait_for_text("m-1", "once1 ").await;
    laptop.send_message("m-1", &prompt).await;
    for device in [&mut laptop, &mut phone] {
        let end = device.wait_for_terminal_frame("m-1").await;
        assert_eq!(end["content"], text.as_str());
        assert!(
            device.message("m-1").accepted.contains(&false),
            "an `accepted` of its own"
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
            "it was not resent after the outcome"
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
    let end = laptop.send_and_wait("m-1", &prompt).await;
    phone.wait_for_terminal_frames(&["m-1"]).await;
    let seen = laptop.frames.len();
    laptop.send_message("m-1", &prompt).await;
    let again = |t: &Transcript| t.get("m-1").is_some_and(|m| m.repeated_outcomes == 1);
    laptop.wait_for("the stored answer arrives", again).await;
    let kinds: Vec<&Value> = laptop.frames[seen..]
        .iter()
        .map(|frame| &frame["type"])
        .collect();
    assert_eq!(kinds, ["accepted", "response"]);
    assert_eq!(laptop.frames.last(), Some(&end));
    // The same for a device that connects later and does not know the message.
    let mut late = V1Client::open(system.port(1), &user).await;
    late.send_message("m-1", &prompt).await;
    assert_eq!(late.wait_for_terminal_frame("m-1").await, end);
    for device in [&mut laptop, &mut phone, &mut late] {
        device.expect_no_frame(QUIET_PERIOD).await;
    }
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn messages_of_a_conversation_run_in_order_beside_other_conversations(
    system: Arc<TestSystem>,
) {
    let user = unique_name("devices");
    let (first, second, beside) = (
        unique_name("first"),
        unique_name("second"),
        unique_name("beside"),
    );
    let slow = Script::complete(&numbered_words("slow", 60)).chunk_interval(PACE);
    system.model().queue_answer(&first, slow);
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_message("m-1", &first).await;
    device.send_message("m-2", &second).await;
    device.wait_for_text("m-1", "slow0").await;
    device.send_message_in("beside", "b-1", &beside).await;
    device.wait_for_terminal_frames(&["b-1"]).await;
    assert_eq!(
        device.message("m-1").outcome_type(),
        None,
        "the other conversation was delayed"
    );
    assert_eq!(
        system.model().request_count_for(&second),
        0,
        "the second message overtook the first"
    );
    device.wait_for_terminal_frames(&["m-1", "m-2"]).await;
    assert_eq!(device.transcript.outcome_order("default"), ["m-1", "m-2"]);
    assert_eq!(
        device.message("b-1").conversation.as_deref(),
        Some("beside")
    );
    let context = system.model().requests_for(&second).remove(0).messages();
    let knows_beside = context.iter().any(|(_, text)| text.contains(&beside));
    let knows_first = context.iter().any(|(_, text)| *text == first);
    assert!(knows_first && !knows_beside, "{context:?}");
}
