//! Tests of the events that a feed receives.

use super::*;
use crate::fanout::Channel;

#[tokio::test]
async fn frames_are_published_on_their_channel_in_sequence_order() {
    let system = TestFanout::new(Bounds::default());
    let (feed, mut events) = system.fanout.open_feed(16).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live, Channel::Live] {
        feed.subscribe(&user(), channel).await.unwrap();
    }
    let owner = Owner::random();
    system.attempt("m", &owner, 0).await;
    system.open("m", &owner, 1, "a").await;
    system.append("m", &owner, 1, 1, "b").await;
    system.attempt("m", &owner, 1).await;
    assert_eq!(
        system.deliver("m", 0, None).await,
        DeliverResponse::Published(1)
    );
    let rewound = DeliverRequest {
        is_rewind: true,
        ..delivery("r", position_at(1), None)
    };
    system.fanout.deliver(rewound).await.unwrap();
    let view = system.read(None).await;

    let expected = [
        (Channel::Live, "delta", Some(1)),
        (Channel::Live, "delta", None),
        (Channel::Live, "restarted", Some(2)),
        (Channel::Terminal, "response", Some(3)),
        (Channel::Live, "response", Some(4)),
    ];
    for expected in expected {
        let Some(FeedEvent::Frame {
            channel, payload, ..
        }) = events.recv().await
        else {
            panic!("no frame");
        };
        let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let n = frame.get("n").and_then(serde_json::Value::as_u64);
        assert_eq!((channel, frame["type"].as_str().unwrap(), n), expected);
        let counter = frame.get("n_id").and_then(serde_json::Value::as_str);
        assert_eq!(counter, n.map(|_| &*view.number.counter));
    }
    assert_eq!(view.number.n, 4);

    feed.unsubscribe(&user(), Channel::Terminal).await.unwrap();
    assert_eq!(
        system.deliver("s", 2, None).await,
        DeliverResponse::Published(0)
    );
    drop(feed);
    system
        .fanout
        .deliver(DeliverRequest {
            is_rewind: true,
            ..delivery("t", position_at(3), None)
        })
        .await
        .unwrap();
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn overflowing_feed_delivers_queued_frames_then_a_gap() {
    let system = TestFanout::new(Bounds::default());
    let (feed, mut events) = system.fanout.open_feed(2).await.unwrap();
    feed.subscribe(&user(), Channel::Terminal).await.unwrap();
    for offset in 0..5 {
        system.deliver(&format!("m{offset}"), offset, None).await;
    }
    // The queue has room for two frames. The gap follows them, although no other frame is
    // published.
    for _ in 0..2 {
        assert!(matches!(events.recv().await, Some(FeedEvent::Frame { .. })));
    }
    assert!(matches!(events.recv().await, Some(FeedEvent::Gap)));
    system.deliver("m5", 5, None).await;
    assert!(matches!(events.recv().await, Some(FeedEvent::Frame { .. })));
    assert!(events.try_recv().is_err());
}
