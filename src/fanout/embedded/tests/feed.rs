//! What subscribers get.

use super::*;
use crate::fanout::Channel;

#[tokio::test]
async fn frames_come_numbered_in_order_by_their_channel() {
    let bench = Bench::new(Bounds::default());
    let (feed, mut events) = bench.fanout.open_feed(16).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live, Channel::Live] {
        feed.subscribe(&user(), channel).await.unwrap();
    }
    let owner = Owner::random();
    bench.attempt("m", &owner, 0).await;
    bench.live("m", &owner, 1, 0).await;
    bench.attempt("m", &owner, 1).await;
    assert_eq!(bench.deliver("m", 0, None).await, Delivered::Published(1));
    let rewound = Deliver {
        rewind: true,
        ..delivery("r", at(1), None)
    };
    bench.fanout.deliver(rewound).await.unwrap();
    let look = bench.read(None).await;

    let expected = [
        (Channel::Live, "delta"),
        (Channel::Live, "restarted"),
        (Channel::Terminal, "response"),
        (Channel::Live, "response"),
    ];
    for (n, expected) in (1..).zip(expected) {
        let Some(FeedEvent::Frame {
            channel, payload, ..
        }) = events.recv().await
        else {
            panic!("no frame");
        };
        let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((channel, frame["type"].as_str().unwrap()), expected);
        assert_eq!(frame["n"], n);
        assert_eq!(frame["n_id"], look.n_id);
    }
    assert_eq!(look.n, 4);

    feed.unsubscribe(&user(), Channel::Terminal).await.unwrap();
    assert_eq!(bench.deliver("s", 2, None).await, Delivered::Published(0));
    drop(feed);
    bench
        .fanout
        .deliver(Deliver {
            rewind: true,
            ..delivery("t", at(3), None)
        })
        .await
        .unwrap();
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_told_of_the_gap_after_what_it_has() {
    let bench = Bench::new(Bounds::default());
    let (feed, mut events) = bench.fanout.open_feed(2).await.unwrap();
    feed.subscribe(&user(), Channel::Terminal).await.unwrap();
    for offset in 0..5 {
        bench.deliver(&format!("m{offset}"), offset, None).await;
    }
    // Nothing more is published: the gap has to come by itself.
    for _ in 0..2 {
        assert!(matches!(events.recv().await, Some(FeedEvent::Frame { .. })));
    }
    assert!(matches!(events.recv().await, Some(FeedEvent::Gap)));
    bench.deliver("m5", 5, None).await;
    assert!(matches!(events.recv().await, Some(FeedEvent::Frame { .. })));
    assert!(events.try_recv().is_err());
}
