//! Delivery of terminal frames: to which user, how often, in which order, and after a loss.

use chatmesh::fanout::FeedEvent;

use super::fakes::terminal_frame;
use super::*;

fn frequent_check_settings() -> GatewaySettings {
    GatewaySettings {
        open_check_interval: Duration::from_millis(100),
        ..settings()
    }
}

/// The `message_id` and `correlation_id` of the produced record with this index, from 0.
async fn produced_ids(gateway: &Gateway, index: usize) -> (String, String) {
    let records = gateway.log.records(index + 1).await;
    let value: Value = serde_json::from_slice(&records[index].1.value).unwrap();
    let text = |name: &str| value[name].as_str().unwrap().to_owned();
    (text("message_id"), text("correlation_id"))
}

#[tokio::test]
async fn frame_reaches_all_connections_of_its_user_once_and_no_other_user() {
    let gateway = start(settings()).await;
    let mut phone = gateway.connect("alice").await;
    let mut laptop = gateway.connect("alice").await;
    let mut other = gateway.connect("bob").await;
    assert_eq!(gateway.fanout.subscriptions(), 2);
    gateway.fanout.deliver("alice", "m1", 1, "hi").await;
    for client in [&mut phone, &mut laptop] {
        let frame = client.next_json().await;
        assert_eq!(frame["content"], "hi");
        assert_eq!(frame["message_id"], "m1");
        let fields = frame.as_object().unwrap();
        assert_eq!(fields.len(), 7, "{frame}");
        client.expect_no_frame().await;
    }
    // A frame on bob's channel that names alice is delivered to neither of them.
    gateway
        .fanout
        .publish("bob", &terminal_frame("alice", "m2", 2, "secret"))
        .await;
    gateway.fanout.publish("bob", "not json").await;
    gateway.fanout.deliver("bob", "m3", 3, "for bob").await;
    assert_eq!(other.next_json().await["content"], "for bob");
}

#[tokio::test]
async fn last_connection_ends_the_subscription_and_the_next_renews_it() {
    let gateway = start(settings()).await;
    let mut first = gateway.connect("alice").await;
    let mut second = gateway.connect("alice").await;
    first.stream.close(None).await.unwrap();
    while gateway.health().await["total_connections"] != 1 {}
    assert!(gateway.fanout.is_subscribed("alice"));
    second.stream.close(None).await.unwrap();
    while gateway.fanout.is_subscribed("alice") {
        gateway.health().await;
    }
    let mut third = gateway.connect("alice").await;
    assert_eq!(gateway.fanout.subscriptions(), 2);
    gateway.fanout.deliver("alice", "m1", 1, "hi").await;
    assert_eq!(third.next_json().await["content"], "hi");
}

#[tokio::test]
async fn concurrent_connects_and_closes_leave_a_correct_subscription() {
    let gateway = Arc::new(start(settings()).await);
    gateway.connect("other").await;
    let clients = (0..40).map(|_| {
        let gateway = gateway.clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                let query = "?token=t&userid=alice";
                let mut client = gateway.upgrade(query, &[]).await.unwrap();
                client.stream.close(None).await.unwrap();
                while let Some(Ok(_)) = client.stream.next().await {}
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        timeout(TEST_TIMEOUT, client).await.unwrap().unwrap();
    }
    let mut last = gateway.connect("alice").await;
    gateway.fanout.deliver("alice", "m1", 1, "hi").await;
    assert_eq!(last.next_json().await["content"], "hi");
    last.stream.close(None).await.unwrap();
    while gateway.health().await["active_users"] != 0 {}
    assert!(!gateway.fanout.is_subscribed("alice"));
}

#[tokio::test]
async fn frame_at_or_below_the_last_position_is_not_sent_again() {
    let gateway = start(settings()).await;
    gateway
        .fanout
        .store_frame("alice", 5, &terminal_frame("alice", "m5", 5, "old"));
    let mut client = gateway.connect("alice").await;
    for (id, offset, content) in [
        ("m5", 5, "before the connection"),
        ("m7", 7, "new"),
        ("m7", 7, "again"),
        ("m7", 8, "again at another offset"),
        ("m6", 6, "below"),
        ("m9", 9, "next"),
    ] {
        gateway
            .fanout
            .publish("alice", &terminal_frame("alice", id, offset, content))
            .await;
    }
    assert_eq!(client.next_json().await["content"], "new");
    assert_eq!(client.next_json().await["content"], "next");
    // Positions of different epochs can't be compared.
    let frame = terminal_frame("alice", "m1", 1, "recreated").replace("fake~0~0", "fake~1~0");
    gateway.fanout.publish("alice", &frame).await;
    assert_eq!(client.next_json().await["content"], "recreated");
}

#[tokio::test]
async fn lost_publication_is_read_from_the_mailbox_before_the_next_answer() {
    // The default check interval is long, so only the second frame can cause the read.
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    client.send_message("one").await;
    client.send_message("two").await;
    let (first_id, _) = produced_ids(&gateway, 0).await;
    let (second_id, _) = produced_ids(&gateway, 1).await;
    // The first publication is lost; the second arrives with a later position.
    let lost_frame = terminal_frame("alice", &first_id, 3, "first");
    gateway.fanout.store_frame("alice", 3, &lost_frame);
    gateway
        .fanout
        .deliver("alice", &second_id, 4, "second")
        .await;
    assert_eq!(client.next_json().await["content"], "first");
    assert_eq!(client.next_json().await["content"], "second");
    // The delayed publication is not sent again.
    gateway.fanout.publish("alice", &lost_frame).await;
    gateway.fanout.deliver("alice", "m9", 9, "next").await;
    assert_eq!(client.next_json().await["content"], "next");
    client.expect_no_frame().await;
}

#[tokio::test]
async fn lost_outcome_of_a_forgotten_message_is_sent_as_cancelled_in_order() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    for question in ["one", "two", "three", "four"] {
        client.send_message(question).await;
    }
    let (first_id, _) = produced_ids(&gateway, 0).await;
    let (second_id, _) = produced_ids(&gateway, 1).await;
    let (third_id, correlation) = produced_ids(&gateway, 2).await;
    let (fourth_id, _) = produced_ids(&gateway, 3).await;
    gateway.fanout.forget_outcome("alice", &first_id, 3);
    gateway.fanout.forget_outcome("alice", &third_id, 5);
    // Answers for another device fill more than one page of the mailbox.
    for (id, offset) in [(&*second_id, 4), ("a", 6), ("b", 7)] {
        let frame = terminal_frame("alice", id, offset, id);
        gateway.fanout.store_frame("alice", offset, &frame);
    }
    gateway.fanout.deliver("alice", &fourth_id, 8, "last").await;
    assert_eq!(client.next_json().await["code"], "cancelled");
    assert_eq!(client.next_json().await["content"], *second_id);
    let cancelled_frame = client.next_json().await;
    assert_eq!(cancelled_frame["code"], "cancelled");
    assert_eq!(cancelled_frame["correlation_id"], *correlation);
    assert_eq!(cancelled_frame["userid"], "alice");
    for content in ["a", "b", "last"] {
        assert_eq!(client.next_json().await["content"], content);
    }
    client.expect_no_frame().await;
}

#[tokio::test]
async fn outcome_of_a_forgotten_message_is_looked_up_after_a_gap() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    client.send_message("question").await;
    let (id, _) = produced_ids(&gateway, 0).await;
    gateway.fanout.forget_outcome("alice", &id, 3);
    gateway.fanout.send_event(FeedEvent::Gap).await;
    assert_eq!(client.next_json().await["code"], "cancelled");
    client.expect_no_frame().await;
}

#[tokio::test]
async fn answer_lost_when_its_user_moved_partitions_is_sent_in_order() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    for question in ["one", "two", "three"] {
        client.send_message(question).await;
    }
    let (first_id, _) = produced_ids(&gateway, 0).await;
    let (second_id, _) = produced_ids(&gateway, 1).await;
    let (third_id, _) = produced_ids(&gateway, 2).await;
    // Two publications are lost, and then the move removes their frames from the mailbox.
    for (id, offset, content) in [(&first_id, 3, "first"), (&second_id, 4, "second")] {
        let frame = terminal_frame("alice", id, offset, content);
        gateway.fanout.store_frame("alice", offset, &frame);
    }
    gateway.fanout.reset_mailbox("alice", 4);
    gateway.fanout.deliver("alice", &third_id, 5, "third").await;
    for content in ["first", "second", "third"] {
        assert_eq!(client.next_json().await["content"], content);
    }
    client.expect_no_frame().await;
}

#[tokio::test]
async fn only_pending_answers_are_sent_after_a_rebuild() {
    let gateway = start(frequent_check_settings()).await;
    gateway
        .fanout
        .store_frame("alice", 5, &terminal_frame("alice", "m5", 5, "old"));
    let mut client = gateway.connect("alice").await;
    client.send_message("question").await;
    let (id, _) = produced_ids(&gateway, 0).await;
    // The fan-out loses its data, and frames after the client's position are rebuilt without being
    // published.
    gateway.fanout.rebuild("alice", 10, 15);
    for (id, offset, content) in [
        ("a", 11, "old"),
        ("b", 12, "old"),
        ("c", 13, "old"),
        (&*id, 14, "answer"),
        ("d", 15, "old"),
    ] {
        gateway.fanout.store_frame(
            "alice",
            offset,
            &terminal_frame("alice", id, offset, content),
        );
    }
    assert_eq!(client.next_json().await["content"], "answer");
    gateway.fanout.deliver("alice", "e", 16, "live").await;
    assert_eq!(client.next_json().await["content"], "live");
    client.expect_no_frame().await;
}

#[tokio::test]
async fn answer_pending_from_a_closed_connection_is_sent() {
    let gateway = start(frequent_check_settings()).await;
    let mut first = gateway.connect("alice").await;
    first.send_message("question").await;
    let (id, _) = produced_ids(&gateway, 0).await;
    drop(first);
    while gateway.health().await["active_users"] != 0 {}
    let mut second = gateway.connect("alice").await;
    gateway
        .fanout
        .store_frame("alice", 1, &terminal_frame("alice", &id, 1, "answer"));
    assert_eq!(second.next_json().await["content"], "answer");
}

#[tokio::test]
async fn answer_that_another_connection_may_have_received_before_data_loss_is_not_repeated() {
    let gateway = start(settings()).await;
    let mut first = gateway.connect("alice").await;
    first.send_message("question").await;
    let (id, _) = produced_ids(&gateway, 0).await;
    drop(first);
    while gateway.health().await["active_users"] != 0 {}
    let mut second = gateway.connect("alice").await;
    gateway.fanout.rebuild("alice", 10, 11);
    gateway.fanout.store_frame(
        "alice",
        11,
        &terminal_frame("alice", &id, 11, "possibly received"),
    );
    // The gateway reads the mailbox before it sends this frame, because an earlier one may be
    // missing.
    gateway.fanout.deliver("alice", "later", 12, "live").await;
    assert_eq!(second.next_json().await["content"], "live");
    second.expect_no_frame().await;
}

#[tokio::test]
async fn every_user_receives_lost_frames_after_a_gap() {
    let gateway = start(settings()).await;
    let mut alice = gateway.connect("alice").await;
    let mut bob = gateway.connect("bob").await;
    for name in ["alice", "bob"] {
        gateway.fanout.deliver(name, "m1", 1, "one").await;
    }
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.next_json().await["content"], "one");
    }
    // A mailbox read gives each connection a position.
    gateway.fanout.send_event(FeedEvent::Gap).await;
    let mut reads = gateway.fanout.reads.subscribe();
    timeout(TEST_TIMEOUT, reads.wait_for(|n| *n >= 4))
        .await
        .unwrap()
        .unwrap();
    for name in ["alice", "bob"] {
        for number in 2..8 {
            let id = format!("m{number}");
            let frame = terminal_frame(name, &id, number, &format!("{number} for {name}"));
            gateway.fanout.store_frame(name, number, &frame);
        }
    }
    gateway.fanout.send_event(FeedEvent::Gap).await;
    for (client, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
        for number in 2..8 {
            assert_eq!(
                client.next_json().await["content"],
                format!("{number} for {name}")
            );
        }
        client.expect_no_frame().await;
    }
}

#[tokio::test]
async fn answer_of_an_original_worker_is_matched_by_correlation_id() {
    let gateway = start(GatewaySettings {
        interop: true,
        ..settings()
    })
    .await;
    let mut client = gateway.connect("alice").await;
    client.send_message("one").await;
    client.send_message("two").await;
    produced_ids(&gateway, 0).await;
    let (id, correlation_id) = produced_ids(&gateway, 1).await;
    let frame = serde_json::json!({"type": "response", "content": "plain", "userid": "alice",
        "timestamp": "2024-01-01T12:00:00Z", "processing_time_ms": 1.5,
        "correlation_id": correlation_id});
    gateway.fanout.publish("alice", &frame.to_string()).await;
    assert_eq!(client.next_json().await, frame);
    let mut cleared = gateway.fanout.cleared.subscribe();
    let cleared = timeout(TEST_TIMEOUT, cleared.wait_for(|all| !all.is_empty()));
    let cleared = cleared.await.unwrap().unwrap().clone();
    assert_eq!(cleared.len(), 1);
    assert_eq!(cleared[0].as_str(), id);
}
