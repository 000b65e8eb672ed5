//! What is published, and that it arrives.

use std::time::Duration;

use chatmesh::fanout::{Channel, FeedEvent, Owner};
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use super::case::{Backend, Case, attempt, kept};

const LIMIT: Duration = Duration::from_secs(20);

/// The next event of a feed, which must come.
pub(crate) async fn next_event(events: &mut Receiver<FeedEvent>) -> FeedEvent {
    tokio::time::timeout(LIMIT, events.recv())
        .await
        .expect("nothing comes through the feed")
        .expect("the feed has ended")
}

/// The next frame of this user; a gap before it is an error of the test's quiet server.
async fn next_frame(case: &Case<'_>, events: &mut Receiver<FeedEvent>) -> (Channel, Value) {
    match next_event(events).await {
        FeedEvent::Frame {
            user,
            channel,
            payload,
        } => {
            assert_eq!(user, case.user);
            (channel, serde_json::from_slice(&payload).unwrap())
        }
        FeedEvent::Gap => panic!("a gap without a reason"),
    }
}

pub(crate) async fn frames_arrive_in_order_and_numbered_over_both_channels(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.feed(100).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live, Channel::Live] {
        feed.subscribe(&case.user, channel).await.unwrap();
    }
    let n_id = case.read(None).await.n_id;
    let message = case.message();
    let owner = Owner::random();
    let first = attempt(&case.begin(&message, &owner, 0).await);
    case.live(&message, &owner, first, Some((0, "a\"b"))).await;
    let second = attempt(&case.begin(&message, &owner, first).await);
    case.live(&message, &owner, second, Some((0, "c"))).await;
    kept(case.keep(&message, &owner, second, "c").await);
    case.deliver(&message, 0, "c").await;

    let expected = [
        (Channel::Live, "delta"),
        (Channel::Live, "restarted"),
        (Channel::Live, "delta"),
        (Channel::Terminal, "response"),
    ];
    let mut frames = Vec::new();
    for (index, (channel, kind)) in expected.into_iter().enumerate() {
        let (by, frame) = next_frame(&case, &mut events).await;
        assert_eq!((by, frame["type"].as_str()), (channel, Some(kind)));
        assert_eq!(frame["n"], index as u64 + 1);
        assert_eq!(frame["n_id"], n_id.as_str());
        frames.push(frame);
    }
    let delta = &frames[0];
    assert_eq!(delta["userid"], case.user.as_str());
    assert_eq!(delta["message_id"], message.message_id.as_str());
    assert_eq!(delta["conversation_id"], message.conversation.as_str());
    assert_eq!((&delta["attempt"], &delta["index"]), (&1.into(), &0.into()));
    assert_eq!(delta["content"], "a\"b");
    assert!(delta.get("id").is_none());
    assert_eq!(frames[1]["attempt"], second);
    assert_eq!(case.read(None).await.n, 4);
}

pub(crate) async fn a_rewind_stays_off_the_terminal_channel(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.feed(100).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live] {
        feed.subscribe(&case.user, channel).await.unwrap();
    }
    let mut rewound = case.delivery(&case.message(), 0, "old");
    rewound.rewind = true;
    case.deliver_call(rewound).await;
    case.deliver(&case.message(), 1, "new").await;
    let (channel, frame) = next_frame(&case, &mut events).await;
    assert_eq!(
        (channel, frame["content"].as_str()),
        (Channel::Live, Some("old"))
    );
    let (channel, frame) = next_frame(&case, &mut events).await;
    assert_eq!(
        (channel, frame["content"].as_str()),
        (Channel::Terminal, Some("new"))
    );
}

pub(crate) async fn a_subscription_ends(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.feed(100).await.unwrap();
    feed.subscribe(&case.user, Channel::Terminal).await.unwrap();
    feed.subscribe(&case.user, Channel::Live).await.unwrap();
    case.deliver(&case.message(), 0, "a").await;
    let (channel, _) = next_frame(&case, &mut events).await;
    assert_eq!(channel, Channel::Terminal);
    feed.unsubscribe(&case.user, Channel::Terminal)
        .await
        .unwrap();
    // Confirms everything before it on the same connections.
    feed.subscribe(&case.user, Channel::Live).await.unwrap();
    case.deliver(&case.message(), 1, "b").await;
    let mut rewound = case.delivery(&case.message(), 2, "c");
    rewound.rewind = true;
    case.deliver_call(rewound).await;
    let (channel, frame) = next_frame(&case, &mut events).await;
    assert_eq!(
        (channel, frame["content"].as_str()),
        (Channel::Live, Some("c"))
    );
}

pub(crate) async fn a_reader_that_falls_behind_gets_a_gap(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.feed(4).await.unwrap();
    feed.subscribe(&case.user, Channel::Terminal).await.unwrap();
    for offset in 0..20 {
        case.deliver(&case.message(), offset, "x").await;
    }
    let mut frames = 0;
    while matches!(next_event(&mut events).await, FeedEvent::Frame { .. }) {
        frames += 1;
        assert!(frames <= 4, "more than the feed may hold");
    }
    // What was dropped can be read, and it goes on afterwards.
    assert_eq!(case.read(None).await.n, 20);
    loop {
        let offset = case.read(None).await.end.offset + 1;
        case.deliver(&case.message(), offset, "again").await;
        match next_event(&mut events).await {
            FeedEvent::Frame { payload, .. } => {
                let frame: Value = serde_json::from_slice(&payload).unwrap();
                if frame["content"] == "again" {
                    break;
                }
            }
            FeedEvent::Gap => {}
        }
    }
}

pub(crate) async fn s11_a_counter_made_anew_has_another_id(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 0, "a").await;
    let before = case.read(None).await;
    case.lose().await;
    case.deliver(&case.message(), 1, "b").await;
    let after = case.read(None).await;
    assert_eq!(after.n, before.n, "the same number");
    assert_ne!(after.n_id, before.n_id);
}
