use super::*;
use crate::gateway::classic::duplicates::DEDUP_FRAMES;
use crate::protocol::ids::UserId;
use crate::protocol::position::Epoch;

fn position(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("c", "0", 0),
        offset,
    }
}

fn message_id(id: &str) -> MessageId {
    MessageId::parse(id).unwrap()
}

/// The state of a user with one classic connection to a mailbox that ends at offset 0.
fn with_classic_client() -> UserState {
    let mut state = UserState::default();
    let client = Client::Classic(Arc::new(ClassicState::new(1 << 20)));
    state.add(&client, None);
    state.set_mailbox_start(&position(0));
    state
}

/// Processes the terminal frame of message `id`. Returns whether the frame was delivered, and not
/// deferred or dropped.
fn deliver(state: &mut UserState, id: &str, offset: i64, source: FrameSource) -> bool {
    let user = UserId::parse("alice").unwrap();
    let json = format!(r#"{{"type":"response","content":"x","message_id":"{id}"}}"#);
    let frame = PublishedFrame::parse(json.as_bytes()).unwrap();
    state
        .deliver_terminal(&user, &frame, Some(position(offset)), source)
        .is_delivered()
}

#[test]
fn frame_that_left_the_duplicate_filter_is_never_read_again() {
    let mut state = UserState::default();
    state.set_mailbox_start(&position(0));
    for offset in 1..=1000 {
        let id = offset.to_string();
        assert!(deliver(&mut state, &id, offset, FrameSource::Published));
    }
    assert!(
        state.needs_mailbox_read(),
        "many frames were delivered since the last read"
    );
    assert_eq!(state.duplicates.len(), DEDUP_FRAMES);
    let read_up_to = state.mailbox_read_up_to().unwrap().offset;
    for offset in read_up_to + 1..=1000 {
        let id = offset.to_string();
        let delivered = deliver(&mut state, &id, offset, FrameSource::Mailbox);
        assert!(!delivered, "{offset}");
    }
}

#[test]
fn frame_published_after_a_gap_waits_for_the_mailbox_read() {
    let mut state = with_classic_client();
    state.record_gap();
    assert!(state.begin_mailbox_read());
    assert!(state.begin_pass());
    // m2 is published after the pass has begun and before its result arrives, so m2 is deferred.
    assert!(!deliver(&mut state, "m2", 2, FrameSource::Published));
    assert!(deliver(&mut state, "m1", 1, FrameSource::Mailbox));
    state.set_read_to_end();
    assert!(!state.end_pass(false), "m2 needs another pass");
    let overtakes = deliver(&mut state, "m3", 3, FrameSource::Published);
    assert!(!overtakes, "m2 is missing");
    assert!(state.begin_pass());
    for (id, offset) in [("m2", 2), ("m3", 3)] {
        // The deferred frames are delivered even if a rewind has stored them in the mailbox again.
        assert!(deliver(&mut state, id, offset, FrameSource::Rebuilt));
    }
    state.set_read_to_end();
    assert!(state.end_pass(false));
    assert!(deliver(&mut state, "m4", 4, FrameSource::Published));
    assert!(!state.needs_mailbox_read());
}

#[test]
fn frame_published_after_a_deferred_frame_is_deferred() {
    let mut state = with_classic_client();
    // m2 is admitted by this gateway. m1 is admitted by another gateway and not pending here,
    // because Redis has lost it.
    state.pending.add_ordered(
        message_id("m2"),
        "c-2".into(),
        Some(ConversationId::default_conversation()),
    );
    let delivered = deliver(&mut state, "m1", 1, FrameSource::Published);
    assert!(!delivered, "m2 may be missing");
    let delivered = deliver(&mut state, "m2", 2, FrameSource::Published);
    assert!(!delivered, "m1 is not delivered");
    assert!(state.begin_mailbox_read());
    state.begin_pass();
    assert!(deliver(&mut state, "m1", 1, FrameSource::Mailbox));
    assert!(deliver(&mut state, "m2", 2, FrameSource::Mailbox));
    state.set_read_to_end();
    assert!(state.end_pass(false));
    assert!(deliver(&mut state, "m3", 3, FrameSource::Published));
}

#[test]
fn rebuilt_frame_is_delivered_only_where_its_message_was_admitted_or_published_here() {
    let mut state = with_classic_client();
    let [admitted, elsewhere] = ["admitted", "elsewhere"].map(message_id);
    let conversation = Some(ConversationId::default_conversation());
    // The client has received the frame of `elsewhere` from another gateway. Redis has lost its
    // outcome, so the message is listed as pending again. The rebuilt frame is not delivered, but
    // ends the message.
    state.add_pending(&elsewhere, conversation.as_ref());
    assert!(!deliver(&mut state, "elsewhere", 1, FrameSource::Rebuilt));
    assert!(!state.needs_mailbox_read(), "no answer is pending any more");
    state.add_pending(&elsewhere, conversation.as_ref());
    state
        .pending
        .add_ordered(admitted, "c".into(), conversation);
    let delivered = deliver(&mut state, "published", 9, FrameSource::Published);
    assert!(!delivered, "out of order");
    for (id, offset, expected) in [
        ("elsewhere", 1, false),
        ("admitted", 8, true),
        ("published", 9, true),
    ] {
        let delivered = deliver(&mut state, id, offset, FrameSource::Rebuilt);
        assert_eq!(delivered, expected, "{id}");
    }
    // A frame that its first delivery has stored since the client connected is delivered, although
    // another gateway admitted the message.
    state.add_pending(&message_id("later"), None);
    assert!(deliver(&mut state, "later", 10, FrameSource::Mailbox));
}

#[test]
fn frame_published_by_a_rewind_waits_for_missing_earlier_frames() {
    let mut state = with_classic_client();
    for id in ["m1", "m2"] {
        state.pending.add_ordered(
            message_id(id),
            id.into(),
            Some(ConversationId::default_conversation()),
        );
    }
    let source = FrameSource::PublishedByRewind;
    assert!(!deliver(&mut state, "m2", 2, source), "m1 is missing");
    for (id, offset) in [("m1", 1), ("m2", 2)] {
        assert!(deliver(&mut state, id, offset, FrameSource::Rebuilt));
    }
    assert!(!deliver(&mut state, "old", 3, source), "not pending");
}

#[test]
fn failed_mailbox_read_is_scheduled_again() {
    let mut state = with_classic_client();
    state.record_gap();
    assert!(state.begin_mailbox_read());
    assert!(!state.begin_mailbox_read(), "one at a time");
    assert!(state.begin_pass());
    assert!(!deliver(&mut state, "m1", 1, FrameSource::Published));
    assert!(state.end_pass(true));
    assert!(state.needs_mailbox_read());
    assert!(state.begin_mailbox_read());
}

#[test]
fn pending_answer_is_delivered_once_whatever_its_position() {
    let mut state = UserState::default();
    state.set_mailbox_start(&position(10));
    let id = message_id("m");
    state.pending.add_ordered(id.clone(), "c-1".into(), None);
    assert!(!deliver(&mut state, "other", 4, FrameSource::Rebuilt));
    assert!(!deliver(&mut state, "other", 4, FrameSource::Published));
    assert!(deliver(&mut state, "m", 5, FrameSource::Rebuilt));
    assert!(!deliver(&mut state, "m", 5, FrameSource::Published));
    assert!(!deliver(&mut state, "m", 50, FrameSource::Published));
    assert!(!state.needs_mailbox_read());
    // A user view that was read before still lists the message as pending, but the message is not
    // added again.
    state.add_pending(&id, None);
    assert!(!state.needs_mailbox_read());
}
