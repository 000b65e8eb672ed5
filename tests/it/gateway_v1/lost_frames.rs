//! Published frames that are lost, and a fan-out that is unavailable.

use bytes::Bytes;
use chatmesh::fanout::{Channel, FeedEvent};
use tokio::time::Instant;

use super::*;
use crate::support::classic::ClassicClient;

fn settings_with_frequent_checks() -> GatewaySettings {
    GatewaySettings {
        open_check_interval: Duration::from_millis(200),
        ..settings()
    }
}

#[tokio::test]
async fn lost_terminal_frame_is_found_without_a_later_frame() {
    let gateway = start(settings_with_frequent_checks()).await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.stream(&mut answer, "one").await;
    device.wait_for_text("a1", "one").await;
    gateway.fanout.start_losing_frames();
    gateway.finish(&answer).await;
    gateway.fanout.stop_losing_after(1).await;
    assert_eq!(device.wait_for_terminal_frame("a1").await["content"], "one");
    // Afterwards the connection receives live frames again.
    device.send_message("a2", "x").await;
    device.wait_for_accepted("a2").await;
    gateway.answer("alice", "a2", &["two"]).await;
    device.wait_for_terminal_frame("a2").await;
}

#[tokio::test]
async fn lost_delta_is_detected_by_the_next_one_and_repaired_from_where_it_began() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.stream(&mut answer, "one ").await;
    device.wait_for_text("a1", "one ").await;
    gateway.fanout.start_losing_frames();
    gateway.stream(&mut answer, "two ").await;
    gateway.fanout.stop_losing_after(1).await;
    gateway.stream(&mut answer, "three ").await;
    device.wait_for_text("a1", "one two three ").await;
    // The transcript accepts a delta only where its text ends, so the text was not sent again.
    let message = device.message("a1");
    assert_eq!((message.snapshots, message.deltas), (0, 2));
}

#[tokio::test]
async fn lost_end_of_a_part_is_detected_by_the_opening_of_the_next_one() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway
        .open_part(&mut answer, PartKind::Reasoning, Value::Null, "hm ")
        .await;
    device.wait_for_part("a1", "reasoning", "hm ").await;
    gateway.fanout.start_losing_frames();
    gateway.stream(&mut answer, "𝄞").await;
    gateway.fanout.stop_losing_after(1).await;
    gateway
        .open_part(&mut answer, PartKind::Text, Value::Null, "yes")
        .await;
    device.wait_for_text("a1", "yes").await;
    let message = device.message("a1");
    assert_eq!(message.parts()[0].text, "hm 𝄞");
    assert_eq!(message.snapshots, 0);
}

#[tokio::test]
async fn lost_last_delta_is_found_without_a_later_frame() {
    let gateway = start(settings_with_frequent_checks()).await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.stream(&mut answer, "one ").await;
    device.wait_for_text("a1", "one ").await;
    gateway.fanout.start_losing_frames();
    gateway.stream(&mut answer, "two").await;
    gateway.fanout.stop_losing_after(1).await;
    device.wait_for_text("a1", "one two").await;
    assert_eq!(device.message("a1").snapshots, 0);
}

#[tokio::test]
async fn connections_of_a_user_share_one_read_after_a_gap() {
    let gateway = start(settings()).await;
    let mut devices = Vec::new();
    for _ in 0..5 {
        devices.push(gateway.device("alice").await);
    }
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.stream(&mut answer, "one ").await;
    for device in &mut devices {
        device.wait_for_text("a1", "one ").await;
    }
    let reads_before = gateway.fanout.reads.load(Ordering::SeqCst);
    gateway.fanout.start_losing_frames();
    gateway.finish(&answer).await;
    gateway.fanout.stop_losing_after(1).await;
    gateway.fanout.inject(FeedEvent::Gap).await;
    for device in &mut devices {
        device.wait_for_terminal_frame("a1").await;
    }
    let reads = gateway.fanout.reads.load(Ordering::SeqCst) - reads_before;
    assert_eq!(
        reads, 2,
        "one read detects the loss, and all connections share a second one"
    );
}

#[tokio::test]
async fn frame_that_names_another_user_than_its_channel_is_not_delivered() {
    let gateway = start(settings()).await;
    let mut alice = gateway.device("alice").await;
    let mut bob = gateway.device("bob").await;
    for channel in [Channel::Terminal, Channel::Live] {
        for kind in ["response", "delta", "accepted"] {
            let frame = json!({"type": kind, "userid": "alice", "content": "secret",
                "message_id": "m", "conversation_id": "default", "stream": "s.1", "attempt": 1,
                "part": 0, "offset": 0, "end": 6, "kind": "text"});
            gateway
                .fanout
                .inject(FeedEvent::Frame {
                    user: UserId::parse("bob").unwrap(),
                    channel,
                    payload: Bytes::from(frame.to_string()),
                })
                .await;
        }
    }
    gateway.answer("bob", "b1", &["for bob"]).await;
    bob.wait_for_terminal_frames(&["b1"]).await;
    assert!(bob.frames.iter().all(|frame| frame["content"] != "secret"));
    alice.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(alice.next_frame().await["type"], "pong");
}

#[tokio::test]
async fn frames_of_an_original_relay_are_delivered() {
    let gateway = start(GatewaySettings {
        interop: true,
        ..settings()
    })
    .await;
    gateway.device("alice").await;
    let headers = [("sec-websocket-protocol", "chatmesh.v1")];
    let path = format!("/ws?token=t&userid=alice&since={}", position(0));
    // An original worker's frame has no `message_id`, which `V1Client` requires.
    let mut client = ClassicClient::connect_with(gateway.port, &path, &headers, "alice")
        .await
        .unwrap();
    assert_eq!(client.next_frame().await["recovered"], false);
    client.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(client.next_frame().await["type"], "pong");
    let frame = json!({"type": "response", "content": "old", "userid": "alice",
        "timestamp": "2024-01-01T12:00:00Z", "correlation_id": "c"});
    gateway
        .fanout
        .inject(FeedEvent::Frame {
            user: UserId::parse("alice").unwrap(),
            channel: Channel::Terminal,
            payload: Bytes::from(frame.to_string()),
        })
        .await;
    assert_eq!(client.next_frame().await["content"], "old");
}

#[tokio::test]
async fn connection_is_closed_only_when_the_fan_out_stays_unavailable() {
    let gateway = start(GatewaySettings {
        produce_timeout: Duration::from_millis(300),
        ..settings_with_frequent_checks()
    })
    .await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    gateway.fanout.is_unavailable.store(true, Ordering::SeqCst);
    let unavailable_since = Instant::now();
    assert_eq!(device.expect_close().await, Some(4503));
    assert!(unavailable_since.elapsed() >= Duration::from_millis(300));
    gateway.fanout.is_unavailable.store(false, Ordering::SeqCst);
    device.connect_with_retries(&[gateway.port]).await;
    gateway.answer("alice", "a1", &["y"]).await;
    assert_eq!(device.wait_for_terminal_frame("a1").await["content"], "y");
}
