//! Forgetting: no data of a forgotten message remains. It is never answered, and it still ends
//! exactly once.

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{
    AdmissionDecision, Channel, DeliverResponse, MessageRef, Owner, StreamResponse,
};
use chatmesh::protocol::ids::ConversationId;
use chatmesh::protocol::open_message::CancelResult;
use tokio::sync::mpsc::Receiver;

use super::case::{
    Backend, Case, attempt_number, ended_outcome, is_published, piece, stored_outcome,
    terminal_frame,
};
use super::feeds::next_frame;

fn other_conversation() -> ConversationId {
    ConversationId::parse("other:one").unwrap()
}

impl Case<'_> {
    async fn forget(&self, conversation: Option<&ConversationId>) -> bool {
        let forgotten = self.fanout.forget(&self.user, conversation);
        forgotten.await.unwrap()
    }

    async fn turn_count(&self, conversation: &ConversationId) -> usize {
        let turns = self.fanout.history(&self.user, conversation, None, 100);
        turns.await.unwrap().unwrap().len()
    }

    /// Asserts that nothing of the message is stored or returned by any call.
    async fn assert_forgotten(&self, message: &MessageRef) {
        let view = self.read(None).await;
        assert!(
            view.in_flight
                .iter()
                .all(|answer| answer.message_id != message.message_id)
        );
        assert!(
            view.pending
                .iter()
                .all(|pending| pending.message_id != message.message_id)
        );
        let turns = self
            .fanout
            .history(&self.user, &message.conversation, None, 100)
            .await
            .unwrap()
            .unwrap();
        assert!(
            turns
                .iter()
                .all(|turn| turn.message_id != message.message_id)
        );
        assert!(!self.backend.contains(&self.user, "secret").await);
    }

    /// All frames of the mailbox, with their offsets.
    async fn whole_mailbox(&self) -> Vec<(i64, String)> {
        let request = chatmesh::fanout::ReadRequest {
            user: self.user.clone(),
            after: None,
            from_start: true,
            max_bytes: 1 << 20,
        };
        let view = self.fanout.read(request).await.unwrap();
        let frames = view.frames.into_iter();
        frames
            .map(|(position, frame)| (position.offset, frame))
            .collect()
    }
}

pub(crate) async fn forgotten_conversation_leaves_nothing(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (forgotten, remaining) = (case.message(), case.message_in(&other_conversation()));
    for (offset, message) in [(3, &forgotten), (4, &remaining)] {
        let text = if offset == 3 { "secret" } else { "text" };
        case.fanout.admit(message, text).await.unwrap();
        case.answer(message, text).await;
        case.deliver(message, offset, text).await;
    }
    assert!(case.backend.contains(&case.user, "secret").await);
    let pending_message = case.message_in(&other_conversation());
    case.admit(&pending_message).await;

    assert!(case.forget(Some(&forgotten.conversation)).await);
    case.assert_forgotten(&forgotten).await;
    assert_eq!(case.whole_mailbox().await, [(4, terminal_frame("text"))]);
    assert_eq!(case.turn_count(&other_conversation()).await, 1);
    assert_eq!(case.read(None).await.pending.len(), 1);
    let listed = case
        .fanout
        .conversations(&case.user, None, 9)
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].conversation, other_conversation());
    let decision = case.admit(&remaining).await;
    assert_eq!(
        decision,
        AdmissionDecision::Delivered(terminal_frame("text"), case.position(4))
    );

    assert!(
        !case.forget(Some(&forgotten.conversation)).await,
        "expected nothing left to forget"
    );
    let unknown_conversation = ConversationId::parse("never").unwrap();
    assert!(!case.forget(Some(&unknown_conversation)).await);
}

pub(crate) async fn forgetting_everything_spares_other_users(backend: &dyn Backend) {
    let (case, other_case) = (Case::new(backend).await, Case::new(backend).await);
    let mut messages = Vec::new();
    for (offset, name) in ["default", "a", "a:b", "z"].into_iter().enumerate() {
        let message = case.message_in(&ConversationId::parse(name).unwrap());
        case.answer(&message, "secret").await;
        case.deliver(&message, offset as i64, "secret").await;
        messages.push(message);
    }
    let mut delivery_without_conversation =
        case.delivery(&case.message(), 9, "secret, by an original worker");
    delivery_without_conversation.conversation = None;
    case.deliver_call(delivery_without_conversation).await;
    messages.push(case.message());
    case.fanout.admit(&messages[4], "secret").await.unwrap();
    let other_message = other_case.message();
    other_case.answer(&other_message, "theirs").await;
    other_case.deliver(&other_message, 1, "theirs").await;

    assert!(case.forget(None).await);
    for message in &messages {
        case.assert_forgotten(message).await;
    }
    assert!(case.whole_mailbox().await.is_empty());
    let listed = case
        .fanout
        .conversations(&case.user, None, 9)
        .await
        .unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    assert_eq!(case.read(None).await.end, case.position(9));
    assert!(!case.forget(None).await, "expected nothing left to forget");

    assert_eq!(other_case.turn_count(&other_message.conversation).await, 1);
    assert_eq!(
        other_case.whole_mailbox().await,
        [(1, terminal_frame("theirs"))]
    );
}

pub(crate) async fn forgetting_does_not_raise_the_floor(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 4,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let empty_position = case.read(None).await.end;
    for offset in 0..4 {
        let conversation = if offset % 2 == 0 {
            other_conversation()
        } else {
            ConversationId::default_conversation()
        };
        let message = case.message_in(&conversation);
        case.deliver(&message, offset, &format!("{offset}")).await;
    }
    case.forget(Some(&other_conversation())).await;
    let frames = case.frames_after(&empty_position).await.unwrap();
    assert_eq!(frames, [(1, terminal_frame("1")), (3, terminal_frame("3"))]);
    let frames = case.frames_after(&case.position(2)).await.unwrap();
    assert_eq!(frames, [(3, terminal_frame("3"))]);
    // Forgotten frames no longer count: four frames fit before one is trimmed.
    case.deliver(&case.message(), 4, "4").await;
    case.deliver(&case.message(), 5, "5").await;
    assert_eq!(case.frames_after(&empty_position).await.unwrap().len(), 4);
    case.deliver(&case.message(), 6, "6").await;
    assert_eq!(case.frames_after(&empty_position).await, None);
    assert_eq!(case.frames_after(&case.position(1)).await.unwrap().len(), 4);
}

pub(crate) async fn message_forgotten_while_streaming_ends_once_and_is_not_stored(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(100).await.unwrap();
    for channel in [Channel::Terminal, Channel::Cancel] {
        feed.subscribe(&case.user, channel).await.unwrap();
    }
    let message = case.message();
    case.fanout.admit(&message, "secret").await.unwrap();
    let owner = Owner::random();
    let number = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, number, "secret").await;

    assert!(case.forget(Some(&message.conversation)).await);
    case.assert_forgotten(&message).await;
    assert_cancel_notice(&case, &mut events, &message).await;
    let late = case.append(&message, &owner, number, piece(0, 6, "s"));
    assert_eq!(late.await, 0);
    let response = case.open_text(&message, &owner, number, "secret").await;
    assert_eq!(response, StreamResponse::Cancelled);
    let response = case.renew(&message, &owner, number, (1, 6)).await;
    assert_eq!(response, StreamResponse::Cancelled);
    let stored = stored_outcome(case.keep(&message, &owner, number, "secret").await);
    assert_eq!(
        (stored.frame, stored.delivered_at),
        (terminal_frame("stopped"), None)
    );
    case.assert_forgotten(&message).await;
    // A worker that takes over from a crashed one gets the outcome of a cancelled message, too.
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(
        (stored.frame, stored.delivered_at),
        (terminal_frame("stopped early"), None)
    );

    case.deliver(&case.message_in(&other_conversation()), 4, "before")
        .await;
    next_frame(&case, &mut events).await;
    assert!(is_published(case.deliver(&message, 5, "stopped").await));
    let (channel, frame) = next_frame(&case, &mut events).await;
    assert_eq!(
        (channel, &frame["content"]),
        (Channel::Terminal, &"stopped".into())
    );
    for offset in [5, 6] {
        let repeated = case.deliver(&message, offset, "stopped").await;
        assert_eq!(repeated, DeliverResponse::AlreadyDelivered);
    }
    case.assert_forgotten(&message).await;
    let view = case.read(Some(&case.position(4))).await;
    assert!(view.recovered && view.frames.is_empty());
    assert_eq!(view.end, case.position(6));
    let stored = ended_outcome(case.begin(&message, &owner, number).await);
    assert_eq!(stored.delivered_at, Some(case.position(5)));
    let response = case.renew(&message, &owner, number, (1, 6)).await;
    assert_eq!(response, StreamResponse::Fenced);
}

async fn assert_cancel_notice(
    case: &Case<'_>,
    events: &mut Receiver<chatmesh::fanout::FeedEvent>,
    message: &MessageRef,
) {
    let (channel, notice) = next_frame(case, events).await;
    assert_eq!(channel, Channel::Cancel);
    let expected = serde_json::json!({ "message_id": message.message_id });
    assert_eq!(notice, expected);
}

pub(crate) async fn message_forgotten_before_begin_is_never_answered(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(100).await.unwrap();
    for channel in [Channel::Cancel, Channel::Live] {
        feed.subscribe(&case.user, channel).await.unwrap();
    }
    let message = case.message();
    case.fanout.admit(&message, "secret").await.unwrap();
    assert!(case.forget(Some(&message.conversation)).await);
    assert_cancel_notice(&case, &mut events, &message).await;
    // `accept` publishes nothing about a forgotten message.
    case.fanout
        .accept(&message, r#"{"type":"accepted"}"#.into())
        .await
        .unwrap();
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::AlreadyDone);
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(
        (stored.frame, stored.delivered_at),
        (terminal_frame("stopped early"), None)
    );
    let mut delivery = case.delivery(&message, 1, "stopped early");
    delivery.is_rewind = true;
    assert!(is_published(case.deliver_call(delivery).await));
    let (_, frame) = next_frame(&case, &mut events).await;
    assert_eq!(frame["content"], "stopped early");
    case.assert_forgotten(&message).await;
    assert!(case.whole_mailbox().await.is_empty());
}

pub(crate) async fn message_forgotten_between_keep_and_deliver_is_published_and_not_stored(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.fanout.admit(&message, "secret").await.unwrap();
    case.answer(&message, "secret").await;
    assert!(case.forget(None).await);
    case.assert_forgotten(&message).await;
    assert!(is_published(case.deliver(&message, 1, "secret").await));
    case.assert_forgotten(&message).await;
    assert!(case.whole_mailbox().await.is_empty());
    assert_eq!(
        case.deliver(&message, 2, "secret").await,
        DeliverResponse::AlreadyDelivered
    );
}

pub(crate) async fn rewind_restores_nothing_forgotten(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.answer(&message, "secret").await;
    case.deliver(&message, 3, "secret").await;
    case.forget(Some(&message.conversation)).await;
    for offset in [3, 7] {
        let mut rewind_delivery = case.delivery(&message, offset, "secret");
        rewind_delivery.is_rewind = true;
        assert_eq!(
            case.deliver_call(rewind_delivery).await,
            DeliverResponse::AlreadyDelivered
        );
    }
    case.assert_forgotten(&message).await;
    assert!(case.whole_mailbox().await.is_empty());
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(stored.delivered_at, Some(case.position(3)));
    assert_eq!(stored.frame, terminal_frame("stopped early"));
}

pub(crate) async fn forgotten_message_is_never_answered_when_resent(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (delivered, open) = (case.message(), case.message());
    case.answer(&delivered, "secret").await;
    case.deliver(&delivered, 0, "secret").await;
    case.fanout.admit(&open, "secret").await.unwrap();
    case.forget(Some(&delivered.conversation)).await;
    assert_eq!(case.admit(&delivered).await, AdmissionDecision::Forgotten);
    // The log may not have the open message, because no outcome of it was delivered. So the message
    // is admitted, and its record ends it.
    let resent = case.fanout.admit(&open, "secret").await.unwrap();
    assert_eq!(resent.decision, AdmissionDecision::New);
    case.assert_forgotten(&open).await;
    let stored = ended_outcome(case.begin(&open, &Owner::random(), 0).await);
    assert_eq!(stored.delivered_at, None);
    assert!(is_published(case.deliver(&open, 1, "stopped early").await));
    assert_eq!(case.admit(&open).await, AdmissionDecision::Forgotten);
    case.assert_forgotten(&delivered).await;
    case.assert_forgotten(&open).await;
}

pub(crate) async fn messages_trimmed_from_the_history_are_forgotten_too(backend: &dyn Backend) {
    let bounds = Bounds {
        history_turns: 2,
        mailbox_frames: 1,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let messages = [
        case.message(),
        case.message(),
        case.message(),
        case.message(),
    ];
    for (offset, message) in messages.iter().enumerate() {
        case.answer(message, "secret").await;
        case.deliver(message, offset as i64, "secret").await;
    }
    assert!(case.forget(Some(&messages[0].conversation)).await);
    for message in &messages {
        assert_eq!(case.admit(message).await, AdmissionDecision::Forgotten);
    }
}

pub(crate) async fn forgotten_conversation_can_be_started_again(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    for offset in 0..3 {
        let message = case.message();
        case.answer(&message, "old").await;
        case.deliver(&message, offset, "old").await;
    }
    case.forget(None).await;
    let message = case.message();
    assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    case.answer(&message, "new").await;
    let mut delivery = case.delivery(&message, 3, "new");
    delivery.known_end = Some(case.position(2));
    assert!(is_published(case.deliver_call(delivery).await));
    assert_eq!(case.turn_count(&message.conversation).await, 1);
    assert_eq!(case.whole_mailbox().await, [(3, terminal_frame("new"))]);
    let listed = case
        .fanout
        .conversations(&case.user, None, 9)
        .await
        .unwrap();
    assert_eq!(listed[0].turns, 1);
}

pub(crate) async fn large_history_is_forgotten_completely(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let mut last_messages = Vec::new();
    for (name, turns) in [("a", 600), ("b", 500), ("c", 1), ("d", 1)] {
        let conversation = ConversationId::parse(name).unwrap();
        for number in 0..turns {
            let message = case.message_in(&conversation);
            // `deliver` alone stores the turn, as when a relay rebuilds the history.
            case.deliver(
                &message,
                last_messages.len() as i64 * 1000 + number,
                "secret",
            )
            .await;
            if number + 1 == turns {
                last_messages.push(message);
            }
        }
    }
    assert!(case.forget(None).await);
    for message in &last_messages {
        case.assert_forgotten(message).await;
        assert_eq!(case.admit(message).await, AdmissionDecision::Forgotten);
    }
    let listed = case.fanout.conversations(&case.user, None, 9).await;
    assert!(listed.unwrap().is_empty());
}
