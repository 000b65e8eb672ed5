//! Catch-up of clients that connect in the middle of an answer, resume, or are slow.

use std::fmt::Write as _;

use super::*;
use crate::support::{TEST_TIMEOUT, wait_until};

/// A step of an answer: the kind and the properties of a part that it opens, or `None` if it
/// continues the last part, and the text.
type Step = (Option<(PartKind, Value)>, &'static str);

/// An answer with parts of every kind.
fn steps_of_every_kind() -> Vec<Step> {
    let open = |kind| Some((kind, Value::Null));
    let call = json!({"id": "call_0", "name": "search"});
    let source = json!({"url": "https://source.test/", "title": "Source"});
    vec![
        (open(PartKind::Reasoning), ""),
        (None, "hm 𝄞"),
        (None, "m"),
        (open(PartKind::Text), "one "),
        (None, "e\u{301}"),
        (Some((PartKind::ToolCall, call)), ""),
        (None, r#"{"q":"#),
        (None, r#""𝄞"}"#),
        (Some((PartKind::Source, source)), ""),
        (
            Some((PartKind::Data, json!({"name": "rows"}))),
            r#"{"n":1}"#,
        ),
        (open(PartKind::Text), "two"),
        (open(PartKind::Refusal), "no"),
        (None, " more"),
    ]
}

impl Gateway {
    async fn publish_step(&self, answer: &mut Answer, (opening, text): Step) {
        match opening {
            Some((kind, meta)) => self.open_part(answer, kind, meta, text).await,
            None => self.stream(answer, text).await,
        }
    }
}

/// Panics unless the device shows exactly the parts of the answer.
fn assert_shows(device: &V1Client, answer: &Answer) {
    let shown: Vec<_> = device.message("a1").parts().iter().collect();
    let shown = shown
        .iter()
        .map(|part| (part.kind.as_str(), &part.meta, part.text.as_str()));
    let expected = answer.parts.iter();
    let expected = expected.map(|(kind, meta, text)| (kind.as_str(), meta, text.as_str()));
    assert!(
        shown.clone().eq(expected),
        "{:?}",
        shown.collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn reconnecting_at_any_point_gives_the_same_parts() {
    let gateway = start(settings()).await;
    let last_step = steps_of_every_kind().len() + 2;
    for cut in 0..=last_step {
        let user = format!("user-{cut}");
        let mut device = gateway.device(&user).await;
        let mut step = 0;
        let mut reconnect_at_cut = async |device: &mut V1Client| {
            if step == cut {
                device.drop_connection();
                device.connect(gateway.port).await;
            }
            step += 1;
        };
        device.send_message("a1", "x").await;
        device.wait_for_accepted("a1").await;
        reconnect_at_cut(&mut device).await;
        let mut answer = gateway.begin(&user, "a1").await;
        for next in steps_of_every_kind() {
            gateway.publish_step(&mut answer, next).await;
            reconnect_at_cut(&mut device).await;
        }
        let has_all_parts = |t: &crate::support::v1::Transcript| match t
            .get("a1")
            .map(crate::support::v1::Message::parts)
        {
            Some([.., last]) => last.text == "no more",
            _ => false,
        };
        device.wait_for("all parts are shown", has_all_parts).await;
        assert_shows(&device, &answer);
        gateway.finish(&answer).await;
        reconnect_at_cut(&mut device).await;
        let terminal_frame = device.wait_for_terminal_frame("a1").await;
        assert_eq!(terminal_frame["content"], "one e\u{301}twono more");
        assert_shows(&device, &answer);
        // Resuming from the last position delivers no frame.
        device.drop_connection();
        let welcome = device.connect(gateway.port).await;
        assert_eq!(welcome["recovered"], true);
        device.send_text(r#"{"type":"ping"}"#).await;
        assert_eq!(device.next_frame().await["type"], "pong");
    }
}

#[tokio::test]
async fn client_that_connects_during_an_answer_receives_a_snapshot_and_then_deltas() {
    let gateway = start(settings()).await;
    let mut phone = gateway.device("alice").await;
    phone.send_message("a1", "the question").await;
    phone.wait_for_accepted("a1").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.stream(&mut answer, "one ").await;
    gateway.stream(&mut answer, "two ").await;
    let mut laptop = gateway.device("alice").await;
    let pending = laptop.frames[0]["pending"].clone();
    assert_eq!(pending[0]["content"], "the question");
    assert_eq!(pending[0]["id"], "a1");
    let snapshot = laptop.next_frame().await;
    assert_eq!(snapshot["type"], "snapshot");
    let expected = json!([{"kind": "text", "content": "one two "}]);
    assert_eq!(snapshot["parts"], expected);
    gateway.stream(&mut answer, "three").await;
    let delta = laptop.next_frame().await;
    assert_eq!(delta["type"], "delta");
    assert_eq!(delta["stream"], snapshot["stream"]);
    assert_eq!(
        (&delta["part"], &delta["offset"], &delta["end"]),
        (&json!(0), &json!(8), &json!(13))
    );
    gateway.finish(&answer).await;
    for device in [&mut phone, &mut laptop] {
        assert_eq!(
            device.wait_for_terminal_frame("a1").await["content"],
            "one two three"
        );
    }
}

#[tokio::test]
async fn long_resume_is_complete_and_in_order_through_a_small_queue() {
    let gateway = start(GatewaySettings {
        outbound_queue_bytes: 16 << 10,
        ..settings()
    })
    .await;
    let mut device = gateway.device("alice").await;
    device.drop_connection();
    let filler = "x".repeat(10_000);
    for number in 0..60 {
        gateway
            .answer("alice", &format!("a{number}"), &[&filler])
            .await;
    }
    let welcome = device.connect(gateway.port).await;
    assert_eq!(welcome["recovered"], true);
    device.wait_for_terminal_frames(&["a59"]).await;
    let outcome_order: Vec<String> = device.transcript.outcome_order("default");
    let expected: Vec<String> = (0..60).map(|number| format!("a{number}")).collect();
    assert_eq!(outcome_order, expected);
}

#[tokio::test]
async fn slow_client_receives_combined_deltas_and_every_terminal_frame() {
    let gateway = start(GatewaySettings {
        outbound_queue_bytes: 64 << 10,
        ..settings()
    })
    .await;
    let mut slow = V1Client::new("alice").with_small_receive_buffer();
    gateway.device("alice").await;
    slow.connect(gateway.port).await;
    let filler = "x".repeat(64 << 10);
    let mut last_answer = gateway.begin("alice", "a13").await;
    gateway.stream(&mut last_answer, "first ").await;
    slow.wait_for_text("a13", "first ").await;
    let mut text = String::new();
    // The answers are longer than the kernel buffers for a client that does not read.
    for number in 0..13 {
        let mut answer = gateway.begin("alice", &format!("a{number}")).await;
        for piece in 0..4 {
            text.clear();
            let _ = write!(text, "{piece}{filler}");
            gateway.stream(&mut answer, &text).await;
        }
        gateway.finish(&answer).await;
    }
    for piece in ["second ", "third ", "last"] {
        gateway.stream(&mut last_answer, piece).await;
    }
    slow.wait_for_text("a13", "last").await;
    let message = slow.message("a13");
    assert_eq!(message.text, "first second third last");
    assert_eq!(
        (message.snapshots, message.deltas),
        (0, 2),
        "expected the client's own text and one delta with everything that it missed"
    );
    gateway.finish(&last_answer).await;
    slow.wait_for_terminal_frames(&["a13"]).await;
    assert_eq!(slow.transcript.outcome_order("default").len(), 14);
    assert_eq!(
        slow.transcript.reloads(),
        1,
        "only the first `welcome` may request a reload"
    );
}

#[tokio::test]
async fn client_that_waits_for_welcome_during_a_drain_receives_no_other_frame() {
    let gateway = start(settings()).await;
    gateway.fanout.is_unavailable.store(true, Ordering::SeqCst);
    let mut device = V1Client::new("alice");
    let path = "/ws?token=any-token&userid=alice";
    device.upgrade(gateway.port, path, &[]).await.unwrap();
    wait_until("the gateway reads the mailbox", TEST_TIMEOUT, || async {
        gateway.fanout.reads.load(Ordering::SeqCst) > 0
    })
    .await;
    gateway.drain.cancel();
    assert_eq!(device.expect_close().await, Some(1001));
}
