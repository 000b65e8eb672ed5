//! Catch-up of clients that connect in the middle of an answer, resume, or are slow.

use std::fmt::Write as _;

use super::*;
use crate::support::{TEST_TIMEOUT, wait_until};

#[tokio::test]
async fn reconnecting_at_any_point_gives_the_same_transcript() {
    let gateway = start(settings()).await;
    let pieces = ["one ", "two ", "three ", "four"];
    let last_step = pieces.len() + 2;
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
        for piece in pieces {
            gateway.stream(&mut answer, piece).await;
            reconnect_at_cut(&mut device).await;
        }
        gateway.finish(&answer).await;
        reconnect_at_cut(&mut device).await;
        let terminal_frame = device.wait_for_terminal_frame("a1").await;
        assert_eq!(terminal_frame["content"], "one two three four");
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
    assert_eq!(
        (&snapshot["type"], &snapshot["index"]),
        (&json!("snapshot"), &json!(2))
    );
    assert_eq!(snapshot["content"], "one two ");
    gateway.stream(&mut answer, "three").await;
    let delta = laptop.next_frame().await;
    assert_eq!(
        (&delta["type"], &delta["index"]),
        (&json!("delta"), &json!(2))
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
async fn slow_client_receives_snapshots_and_every_terminal_frame() {
    let gateway = start(GatewaySettings {
        outbound_queue_bytes: 64 << 10,
        ..settings()
    })
    .await;
    let mut slow = V1Client::new("alice").with_small_receive_buffer();
    gateway.device("alice").await;
    slow.connect(gateway.port).await;
    let filler = "x".repeat(64 << 10);
    let mut text = String::new();
    // The answers are longer than the kernel buffers for a client that does not read.
    for number in 0..14 {
        let mut answer = gateway.begin("alice", &format!("a{number}")).await;
        for piece in 0..4 {
            text.clear();
            let _ = write!(text, "{piece}{filler}");
            gateway.stream(&mut answer, &text).await;
        }
        if number != 13 {
            gateway.finish(&answer).await;
            continue;
        }
        slow.wait_for_text("a13", "3x").await;
        assert!(
            slow.message("a13").snapshots > 0,
            "the client must have been too slow for the deltas"
        );
        gateway.finish(&answer).await;
    }
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
