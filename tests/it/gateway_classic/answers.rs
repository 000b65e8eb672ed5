//! What clients get: to whom, how often, and after what was lost.

use chatmesh::fanout::FeedEvent;

use super::fakes::answer;
use super::*;

fn checking() -> GatewaySettings {
    GatewaySettings {
        open_check: Duration::from_millis(100),
        ..settings()
    }
}

/// The `message_id` of the record that was produced as number `index`, from 0.
async fn produced(gateway: &Gateway, index: usize) -> (String, String) {
    let records = gateway.log.records(index + 1).await;
    let value: Value = serde_json::from_slice(&records[index].1.value).unwrap();
    let text = |name: &str| value[name].as_str().unwrap().to_owned();
    (text("message_id"), text("correlation_id"))
}

#[tokio::test]
async fn all_sockets_of_a_user_get_a_frame_once_and_nobody_else() {
    let gateway = start(settings()).await;
    let mut phone = gateway.connect("alice").await;
    let mut laptop = gateway.connect("alice").await;
    let mut other = gateway.connect("bob").await;
    assert_eq!(gateway.fanout.subscriptions(), 2);
    gateway.fanout.deliver("alice", "m1", 1, "hi").await;
    for client in [&mut phone, &mut laptop] {
        let frame = client.json().await;
        assert_eq!(frame["content"], "hi");
        assert_eq!(frame["message_id"], "m1");
        let fields = frame.as_object().unwrap();
        assert_eq!(fields.len(), 7, "{frame}");
        client.expect_no_frame().await;
    }
    // On the wrong channel, but it names its user: nobody gets it.
    gateway
        .fanout
        .publish("bob", &answer("alice", "m2", 2, "secret"))
        .await;
    gateway.fanout.publish("bob", "not json").await;
    gateway.fanout.deliver("bob", "m3", 3, "for bob").await;
    assert_eq!(other.json().await["content"], "for bob");
}

#[tokio::test]
async fn the_last_socket_ends_the_subscription_and_the_next_makes_a_new_one() {
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
    assert_eq!(third.json().await["content"], "hi");
}

#[tokio::test]
async fn sockets_that_come_and_go_at_once_leave_the_subscription_right() {
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
        timeout(PATIENCE, client).await.unwrap().unwrap();
    }
    let mut last = gateway.connect("alice").await;
    gateway.fanout.deliver("alice", "m1", 1, "hi").await;
    assert_eq!(last.json().await["content"], "hi");
    last.stream.close(None).await.unwrap();
    while gateway.health().await["active_users"] != 0 {}
    assert!(!gateway.fanout.is_subscribed("alice"));
}

#[tokio::test]
async fn a_position_is_told_once_and_one_below_it_not_at_all() {
    let gateway = start(settings()).await;
    gateway
        .fanout
        .keep_only("alice", 5, &answer("alice", "m5", 5, "old"));
    let mut client = gateway.connect("alice").await;
    for (id, offset, content) in [
        ("m5", 5, "before it came"),
        ("m7", 7, "new"),
        ("m7", 7, "again"),
        ("m7", 8, "again, elsewhere"),
        ("m6", 6, "below"),
        ("m9", 9, "next"),
    ] {
        gateway
            .fanout
            .publish("alice", &answer("alice", id, offset, content))
            .await;
    }
    assert_eq!(client.json().await["content"], "new");
    assert_eq!(client.json().await["content"], "next");
    // Another epoch can't be compared.
    let frame = answer("alice", "m1", 1, "recreated").replace("fake~0~0", "fake~1~0");
    gateway.fanout.publish("alice", &frame).await;
    assert_eq!(client.json().await["content"], "recreated");
}

#[tokio::test]
async fn an_answer_whose_publication_was_lost_is_found_before_the_next_is_told() {
    // Long before the next check: the second frame brings it.
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    client.ask("one").await;
    client.ask("two").await;
    let (one, _) = produced(&gateway, 0).await;
    let (two, _) = produced(&gateway, 1).await;
    // The first is lost, the second comes and stands above it.
    let lost = answer("alice", &one, 3, "first");
    gateway.fanout.keep_only("alice", 3, &lost);
    gateway.fanout.deliver("alice", &two, 4, "second").await;
    assert_eq!(client.json().await["content"], "first");
    assert_eq!(client.json().await["content"], "second");
    // And when it comes after all, it is not told again.
    gateway.fanout.publish("alice", &lost).await;
    gateway.fanout.deliver("alice", "m9", 9, "next").await;
    assert_eq!(client.json().await["content"], "next");
    client.expect_no_frame().await;
}

#[tokio::test]
async fn a_lost_end_of_a_forgotten_message_is_told_as_cancelled_and_in_order() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    for question in ["one", "two", "three", "four"] {
        client.ask(question).await;
    }
    let (one, _) = produced(&gateway, 0).await;
    let (two, _) = produced(&gateway, 1).await;
    let (three, correlation) = produced(&gateway, 2).await;
    let (four, _) = produced(&gateway, 3).await;
    gateway.fanout.forget_end("alice", &one, 3);
    gateway.fanout.forget_end("alice", &three, 5);
    // Others, of another device, make more pages than one of the mailbox.
    for (id, offset) in [(&*two, 4), ("a", 6), ("b", 7)] {
        let frame = answer("alice", id, offset, id);
        gateway.fanout.keep_only("alice", offset, &frame);
    }
    gateway.fanout.deliver("alice", &four, 8, "last").await;
    assert_eq!(client.json().await["code"], "cancelled");
    assert_eq!(client.json().await["content"], *two);
    let end = client.json().await;
    assert_eq!(end["code"], "cancelled");
    assert_eq!(end["correlation_id"], *correlation);
    assert_eq!(end["userid"], "alice");
    for content in ["a", "b", "last"] {
        assert_eq!(client.json().await["content"], content);
    }
    client.expect_no_frame().await;
}

#[tokio::test]
async fn after_a_gap_the_end_of_a_forgotten_message_is_looked_for() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    client.ask("question").await;
    let (id, _) = produced(&gateway, 0).await;
    gateway.fanout.forget_end("alice", &id, 3);
    gateway.fanout.event(FeedEvent::Gap).await;
    assert_eq!(client.json().await["code"], "cancelled");
    client.expect_no_frame().await;
}

#[tokio::test]
async fn an_answer_that_the_mailbox_lost_when_its_user_moved_is_told_in_order() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    for question in ["one", "two", "three"] {
        client.ask(question).await;
    }
    let (one, _) = produced(&gateway, 0).await;
    let (two, _) = produced(&gateway, 1).await;
    let (three, _) = produced(&gateway, 2).await;
    // Two publications are lost, and then the frames.
    for (id, offset, content) in [(&one, 3, "first"), (&two, 4, "second")] {
        let frame = answer("alice", id, offset, content);
        gateway.fanout.keep_only("alice", offset, &frame);
    }
    gateway.fanout.begin_anew("alice", 4);
    gateway.fanout.deliver("alice", &three, 5, "third").await;
    for content in ["first", "second", "third"] {
        assert_eq!(client.json().await["content"], content);
    }
    client.expect_no_frame().await;
}

#[tokio::test]
async fn after_a_rebuild_only_what_is_waited_for_is_told() {
    let gateway = start(checking()).await;
    gateway
        .fanout
        .keep_only("alice", 5, &answer("alice", "m5", 5, "old"));
    let mut client = gateway.connect("alice").await;
    client.ask("question").await;
    let (id, _) = produced(&gateway, 0).await;
    // Lost, and rebuilt from above the client's position; nothing of it is published.
    gateway.fanout.rebuild("alice", 10, 15);
    for (id, offset, content) in [
        ("a", 11, "old"),
        ("b", 12, "old"),
        ("c", 13, "old"),
        (&*id, 14, "answer"),
        ("d", 15, "old"),
    ] {
        gateway
            .fanout
            .keep_only("alice", offset, &answer("alice", id, offset, content));
    }
    assert_eq!(client.json().await["content"], "answer");
    gateway.fanout.deliver("alice", "e", 16, "live").await;
    assert_eq!(client.json().await["content"], "live");
    client.expect_no_frame().await;
}

#[tokio::test]
async fn what_another_connection_left_pending_is_waited_for() {
    let gateway = start(checking()).await;
    let mut first = gateway.connect("alice").await;
    first.ask("question").await;
    let (id, _) = produced(&gateway, 0).await;
    drop(first);
    while gateway.health().await["active_users"] != 0 {}
    let mut second = gateway.connect("alice").await;
    gateway
        .fanout
        .keep_only("alice", 1, &answer("alice", &id, 1, "answer"));
    assert_eq!(second.json().await["content"], "answer");
}

#[tokio::test]
async fn what_another_connection_may_have_had_before_a_loss_is_not_told_again() {
    let gateway = start(settings()).await;
    let mut first = gateway.connect("alice").await;
    first.ask("question").await;
    let (id, _) = produced(&gateway, 0).await;
    drop(first);
    while gateway.health().await["active_users"] != 0 {}
    let mut second = gateway.connect("alice").await;
    gateway.fanout.rebuild("alice", 10, 11);
    gateway
        .fanout
        .keep_only("alice", 11, &answer("alice", &id, 11, "had"));
    // It could come too early: so it is read, with what is before it.
    gateway.fanout.deliver("alice", "later", 12, "live").await;
    assert_eq!(second.json().await["content"], "live");
    second.expect_no_frame().await;
}

#[tokio::test]
async fn after_a_gap_every_user_gets_what_was_lost() {
    let gateway = start(settings()).await;
    let mut alice = gateway.connect("alice").await;
    let mut bob = gateway.connect("bob").await;
    for name in ["alice", "bob"] {
        gateway.fanout.deliver(name, "m1", 1, "one").await;
    }
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.json().await["content"], "one");
    }
    // A read, so that a position of the log is known.
    gateway.fanout.event(FeedEvent::Gap).await;
    let mut reads = gateway.fanout.reads.subscribe();
    timeout(PATIENCE, reads.wait_for(|n| *n >= 4))
        .await
        .unwrap()
        .unwrap();
    for name in ["alice", "bob"] {
        for number in 2..8 {
            let id = format!("m{number}");
            let frame = answer(name, &id, number, &format!("{number} for {name}"));
            gateway.fanout.keep_only(name, number, &frame);
        }
    }
    gateway.fanout.event(FeedEvent::Gap).await;
    for (client, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
        for number in 2..8 {
            assert_eq!(
                client.json().await["content"],
                format!("{number} for {name}")
            );
        }
        client.expect_no_frame().await;
    }
}

#[tokio::test]
async fn an_answer_of_an_original_worker_is_matched_by_its_correlation_id() {
    let gateway = start(GatewaySettings {
        interop: true,
        ..settings()
    })
    .await;
    let mut client = gateway.connect("alice").await;
    client.ask("one").await;
    client.ask("two").await;
    produced(&gateway, 0).await;
    let (id, correlation_id) = produced(&gateway, 1).await;
    let frame = serde_json::json!({"type": "response", "content": "plain", "userid": "alice",
        "timestamp": "2024-01-01T12:00:00Z", "processing_time_ms": 1.5,
        "correlation_id": correlation_id});
    gateway.fanout.publish("alice", &frame.to_string()).await;
    assert_eq!(client.json().await, frame);
    let mut cleared = gateway.fanout.cleared.subscribe();
    let cleared = timeout(PATIENCE, cleared.wait_for(|all| !all.is_empty()));
    let cleared = cleared.await.unwrap().unwrap().clone();
    assert_eq!(cleared.len(), 1);
    assert_eq!(cleared[0].as_str(), id);
}
