//! Publication and subscriptions.

use std::sync::Arc;
use std::time::Duration;

use chatmesh::fanout::{
    AdmissionDecision, Channel, DeliverResponse, Feed, FeedEvent, Owner, StreamResponse,
};
use chatmesh::protocol::open_message::CancelResult;
use chatmesh::protocol::sequence_number::SequenceNumber;
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use super::case::{Backend, Case, attempt_number, piece, stored_outcome, terminal_frame};

/// The time within which an event must arrive.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits for the next event of a feed. Panics if none arrives in time.
pub(crate) async fn next_event(events: &mut Receiver<FeedEvent>) -> FeedEvent {
    tokio::time::timeout(EVENT_TIMEOUT, events.recv())
        .await
        .expect("an event arrives in time")
        .expect("the feed has not ended")
}

/// Waits for the next frame of the test's user. Panics at a gap, because no frame is lost.
pub(crate) async fn next_frame(
    case: &Case<'_>,
    events: &mut Receiver<FeedEvent>,
) -> (Channel, Value) {
    match next_event(events).await {
        FeedEvent::Frame {
            user,
            channel,
            payload,
        } => {
            assert_eq!(user, case.user);
            (channel, serde_json::from_slice(&payload).unwrap())
        }
        FeedEvent::Gap => panic!("expected a frame, got a gap"),
    }
}

pub(crate) async fn frames_arrive_in_order_and_numbered_across_both_channels(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(100).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live, Channel::Live] {
        feed.subscribe(&case.user, channel).await.unwrap();
    }
    let counter = case.read(None).await.number.counter;
    let message = case.message();
    let owner = Owner::random();
    let first = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, first, "a\"b").await;
    let second = attempt_number(&case.begin(&message, &owner, first).await);
    case.open_text(&message, &owner, second, "c").await;
    stored_outcome(case.keep(&message, &owner, second, "c").await);
    case.deliver(&message, 0, "c").await;

    let expected = [
        (Channel::Live, "delta"),
        (Channel::Live, "restarted"),
        (Channel::Live, "delta"),
        (Channel::Terminal, "response"),
    ];
    let mut frames = Vec::new();
    for (index, (channel, kind)) in expected.into_iter().enumerate() {
        let (actual_channel, frame) = next_frame(&case, &mut events).await;
        assert_eq!(
            (actual_channel, frame["type"].as_str()),
            (channel, Some(kind))
        );
        assert_eq!(frame["n"], index as u64 + 1);
        assert_eq!(frame["n_id"], *counter);
        frames.push(frame);
    }
    let delta = &frames[0];
    assert_eq!(delta["message_id"], message.message_id.as_str());
    assert_eq!(delta["conversation_id"], message.conversation.as_str());
    assert_eq!((&delta["part"], &delta["offset"]), (&0.into(), &0.into()));
    assert_eq!((&delta["attempt"], &delta["end"]), (&1.into(), &3.into()));
    assert_eq!(delta["stream"], owner.stream(first).as_str());
    assert_eq!(delta["content"], "a\"b");
    assert!(delta.get("id").is_none());
    let restarted = &frames[1];
    assert_eq!(restarted["userid"], case.user.as_str());
    assert_eq!(restarted["attempt"], second);
    assert_eq!(restarted["stream"], owner.stream(second).as_str());
    assert_eq!(frames[2]["stream"], owner.stream(second).as_str());
    assert_eq!(case.read(None).await.number.n, 4);
}

pub(crate) async fn rewind_publishes_on_the_live_channel_only(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(100).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live] {
        feed.subscribe(&case.user, channel).await.unwrap();
    }
    let mut rewind_delivery = case.delivery(&case.message(), 0, "old");
    rewind_delivery.is_rewind = true;
    case.deliver_call(rewind_delivery).await;
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

pub(crate) async fn unsubscribed_channel_delivers_nothing_more(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(100).await.unwrap();
    feed.subscribe(&case.user, Channel::Terminal).await.unwrap();
    feed.subscribe(&case.user, Channel::Live).await.unwrap();
    case.deliver(&case.message(), 0, "a").await;
    let (channel, _) = next_frame(&case, &mut events).await;
    assert_eq!(channel, Channel::Terminal);
    feed.unsubscribe(&case.user, Channel::Terminal)
        .await
        .unwrap();
    // Once this subscription is confirmed, the unsubscription has taken effect, because the server
    // processes the requests of one connection in order.
    feed.subscribe(&case.user, Channel::Live).await.unwrap();
    case.deliver(&case.message(), 1, "b").await;
    let mut rewind_delivery = case.delivery(&case.message(), 2, "c");
    rewind_delivery.is_rewind = true;
    case.deliver_call(rewind_delivery).await;
    let (channel, frame) = next_frame(&case, &mut events).await;
    assert_eq!(
        (channel, frame["content"].as_str()),
        (Channel::Live, Some("c"))
    );
}

pub(crate) async fn slow_reader_gets_a_gap(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(4).await.unwrap();
    feed.subscribe(&case.user, Channel::Terminal).await.unwrap();
    for offset in 0..20 {
        case.deliver(&case.message(), offset, "x").await;
    }
    let mut frames = 0;
    while matches!(next_event(&mut events).await, FeedEvent::Frame { .. }) {
        frames += 1;
        assert!(
            frames <= 4,
            "expected at most 4 frames, the capacity of the queue"
        );
    }
    // The dropped frames can be read from the mailbox, and later ones reach the feed again.
    assert_eq!(case.read(None).await.number.n, 20);
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

pub(crate) async fn scenario_11_recreated_counter_has_another_id(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 0, "a").await;
    let before = case.read(None).await;
    case.lose_data().await;
    case.deliver(&case.message(), 1, "b").await;
    let after = case.read(None).await;
    assert_eq!(
        after.number.n, before.number.n,
        "expected the same number from another counter"
    );
    assert_ne!(after.number.counter, before.number.counter);
}

pub(crate) async fn scenario_4_text_after_data_loss_is_another_stream(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let (first, second) = (Owner::random(), Owner::random());
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    case.begin(&message, &first, 0).await;
    case.open_text(&message, &first, 1, "old").await;
    let (_, earlier_frame) = next_frame(&case, &mut events).await;
    case.lose_data().await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    // The attempt has the same number again. Only the stream shows that the text starts over, and
    // only the counter's id that the earlier sequence numbers are void.
    assert_eq!(attempt_number(&case.begin(&message, &second, 0).await), 1);
    let unopened = case.append(&message, &second, 1, piece(0, 3, "er")).await;
    assert_eq!(unopened, 0);
    let response = case.open_text(&message, &second, 1, "new").await;
    assert_eq!(response, StreamResponse::Confirmed(1));
    let frame = loop {
        let (_, frame) = next_frame(&case, &mut events).await;
        if frame["kind"].is_string() {
            break frame;
        }
    };
    assert_eq!(
        (&frame["attempt"], &frame["offset"]),
        (&1.into(), &0.into())
    );
    assert_eq!(frame["content"], "new");
    assert_ne!(frame["stream"], earlier_frame["stream"]);
    assert_ne!(frame["n_id"], earlier_frame["n_id"]);
}

pub(crate) async fn scenario_8_message_resent_while_its_frame_is_in_transit_gets_the_same_outcome(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Terminal]).await;
    let message = case.message();
    let before = case.read(None).await.end;
    case.admit(&message).await;
    case.answer(&message, "text").await;
    case.deliver(&message, 7, "text").await;
    // The test has not received the published frame yet. The connection is at position `before`, so
    // the position in the response shows that the same frame follows, published or by a `read`.
    let resent = case.admit(&message).await;
    assert_eq!(
        resent,
        AdmissionDecision::Delivered(terminal_frame("text"), case.position(7))
    );
    assert_eq!(
        case.frames_after(&before).await,
        Some(vec![(7, terminal_frame("text"))])
    );
    let (_, frame) = next_frame(&case, &mut events).await;
    assert_eq!(frame["content"], "text");
    assert_eq!(
        case.read(None).await.number.n,
        1,
        "expected no publication of a resend"
    );
}

pub(crate) async fn scenario_10_lost_publication_is_found_by_a_read(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    let before = case.read(None).await;
    assert_eq!(before.pending.len(), 1);
    case.answer(&message, "text").await;
    // The user has no subscriber.
    assert_eq!(
        case.deliver(&message, 0, "text").await,
        DeliverResponse::Published(0)
    );
    let view = case.read(Some(&before.end)).await;
    assert!(view.recovered && view.pending.is_empty() && view.in_flight.is_empty());
    assert_eq!(view.frames, [(case.position(0), terminal_frame("text"))]);
    assert_eq!(
        view.number,
        SequenceNumber::new(&before.number.counter, before.number.n + 1)
    );
}

pub(crate) async fn accepted_is_published_until_the_message_has_an_outcome(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    let message = case.message();
    case.admit(&message).await;
    let accepted = r#"{"type":"accepted","content":"a\"}"}"#;
    for n in 1..=2 {
        case.fanout.accept(&message, accepted.into()).await.unwrap();
        let (channel, frame) = next_frame(&case, &mut events).await;
        assert_eq!(
            (channel, &frame["type"]),
            (Channel::Live, &"accepted".into())
        );
        assert_eq!(frame["content"], "a\"}");
        assert_eq!(frame["n"], n);
        assert!(frame["n_id"].is_string());
    }
    case.answer(&message, "text").await;
    case.fanout.accept(&message, accepted.into()).await.unwrap();
    case.deliver(&message, 0, "text").await;
    case.fanout.accept(&message, accepted.into()).await.unwrap();
    assert_eq!(case.read(None).await.number.n, 3);
    let other_message = case.message();
    case.fanout
        .accept(&other_message, accepted.into())
        .await
        .unwrap();
    let (_, frame) = next_frame(&case, &mut events).await;
    assert_eq!(
        frame["n"], 4,
        "expected no publication of `accepted` after the outcome"
    );
}

pub(crate) async fn cancel_notifies_the_worker(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = open_subscribed_feed(&case, &[Channel::Cancel, Channel::Live]).await;
    let message = case.message();
    // The answer is in flight and the message is not pending, as after the loss of the entry.
    case.begin(&message, &Owner::random(), 0).await;
    for _ in 0..2 {
        let result = case.fanout.cancel(&case.user, &message.message_id).await;
        assert_eq!(result.unwrap(), CancelResult::Cancelling);
        let (channel, notice) = next_frame(&case, &mut events).await;
        assert_eq!(channel, Channel::Cancel);
        assert_eq!(
            notice,
            serde_json::json!({ "message_id": message.message_id })
        );
    }
    assert_eq!(
        case.read(None).await.number.n,
        0,
        "expected no sequence number for a notice"
    );
    feed.unsubscribe(&case.user, Channel::Cancel).await.unwrap();
    // Once this subscription is confirmed, the unsubscription has taken effect, because the server
    // processes the requests of one connection in order.
    feed.subscribe(&case.user, Channel::Live).await.unwrap();
    case.fanout
        .cancel(&case.user, &message.message_id)
        .await
        .unwrap();
    case.fanout
        .accept(&message, r#"{"type":"accepted"}"#.into())
        .await
        .unwrap();
    assert_eq!(next_frame(&case, &mut events).await.0, Channel::Live);
}

/// Opens a feed with subscriptions to the user's channels.
pub(super) async fn open_subscribed_feed(
    case: &Case<'_>,
    channels: &[Channel],
) -> (Arc<dyn Feed>, Receiver<FeedEvent>) {
    let (feed, events) = case.fanout.open_feed(100).await.unwrap();
    for channel in channels {
        feed.subscribe(&case.user, *channel).await.unwrap();
    }
    (feed, events)
}
