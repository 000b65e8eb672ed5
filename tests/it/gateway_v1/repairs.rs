//! What was lost on its way, and a fan-out that is away.

use bytes::Bytes;
use chatmesh::fanout::{Channel, FeedEvent};
use tokio::time::Instant;

use super::*;
use crate::support::classic::ClassicClient;

fn checking() -> GatewaySettings {
    GatewaySettings {
        open_check: Duration::from_millis(200),
        ..settings()
    }
}

#[tokio::test]
async fn an_end_whose_publish_was_lost_is_found_though_nothing_follows() {
    let gateway = start(checking()).await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.say(&mut answer, "one").await;
    device.wait_for_text("a1", "one").await;
    gateway.fanout.lose();
    gateway.end(&answer).await;
    gateway.fanout.lost(1).await;
    assert_eq!(device.wait_for_end("a1").await["content"], "one");
    // And from there on it follows.
    device.send_message("a2", "x").await;
    device.wait_for_accepted("a2").await;
    gateway.answer("alice", "a2", &["two"]).await;
    device.wait_for_end("a2").await;
}

#[tokio::test]
async fn a_lost_delta_is_seen_by_the_next_and_never_spliced() {
    let gateway = start(settings()).await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.say(&mut answer, "one ").await;
    device.wait_for_text("a1", "one ").await;
    gateway.fanout.lose();
    gateway.say(&mut answer, "two ").await;
    gateway.fanout.lost(1).await;
    gateway.say(&mut answer, "three ").await;
    device.wait_for_text("a1", "one two three ").await;
    assert_eq!(device.message("a1").snapshots, 1);
}

#[tokio::test]
async fn after_a_gap_a_user_is_read_once_however_many_sockets_there_are() {
    let gateway = start(settings()).await;
    let mut devices = Vec::new();
    for _ in 0..5 {
        devices.push(gateway.device("alice").await);
    }
    let mut answer = gateway.begin("alice", "a1").await;
    gateway.say(&mut answer, "one ").await;
    for device in &mut devices {
        device.wait_for_text("a1", "one ").await;
    }
    let before = gateway.fanout.reads.load(Ordering::SeqCst);
    gateway.fanout.lose();
    gateway.end(&answer).await;
    gateway.fanout.lost(1).await;
    gateway.fanout.event(FeedEvent::Gap).await;
    for device in &mut devices {
        device.wait_for_end("a1").await;
    }
    let reads = gateway.fanout.reads.load(Ordering::SeqCst) - before;
    assert_eq!(
        reads, 2,
        "one by which the loss is seen, and one that all share"
    );
}

#[tokio::test]
async fn a_frame_of_another_user_reaches_nobody_whatever_channel_it_came_by() {
    let gateway = start(settings()).await;
    let mut alice = gateway.device("alice").await;
    let mut bob = gateway.device("bob").await;
    for channel in [Channel::Terminal, Channel::Live] {
        for kind in ["response", "delta", "accepted"] {
            let frame = json!({"type": kind, "userid": "alice", "content": "secret",
                "message_id": "m", "conversation_id": "default", "attempt": 1, "index": 0});
            gateway
                .fanout
                .event(FeedEvent::Frame {
                    user: UserId::parse("bob").unwrap(),
                    channel,
                    payload: Bytes::from(frame.to_string()),
                })
                .await;
        }
    }
    gateway.answer("bob", "b1", &["for bob"]).await;
    bob.wait_for_ends(&["b1"]).await;
    assert!(bob.frames.iter().all(|frame| frame["content"] != "secret"));
    alice.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(alice.next_frame().await["type"], "pong");
}

#[tokio::test]
async fn frames_of_an_original_relay_are_delivered_as_they_come() {
    let gateway = start(GatewaySettings {
        interop: true,
        ..settings()
    })
    .await;
    gateway.device("alice").await;
    let headers = [("sec-websocket-protocol", "chatmesh.v1")];
    let path = format!("/ws?token=t&userid=alice&since={}", at(0));
    // What an original worker wrote has no `message_id`, which a good client of ours insists on.
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
        .event(FeedEvent::Frame {
            user: UserId::parse("alice").unwrap(),
            channel: Channel::Terminal,
            payload: Bytes::from(frame.to_string()),
        })
        .await;
    assert_eq!(client.next_frame().await["content"], "old");
}

#[tokio::test]
async fn a_fan_out_that_stays_away_closes_the_socket_and_one_that_returns_does_not() {
    let gateway = start(GatewaySettings {
        produce_timeout: Duration::from_millis(300),
        ..checking()
    })
    .await;
    let mut device = gateway.device("alice").await;
    device.send_message("a1", "x").await;
    device.wait_for_accepted("a1").await;
    gateway.fanout.away.store(true, Ordering::SeqCst);
    let since = Instant::now();
    assert_eq!(device.expect_close().await, Some(4503));
    assert!(since.elapsed() >= Duration::from_millis(300));
    gateway.fanout.away.store(false, Ordering::SeqCst);
    device.connect_with_retries(&[gateway.port]).await;
    gateway.answer("alice", "a1", &["y"]).await;
    assert_eq!(device.wait_for_end("a1").await["content"], "y");
}
