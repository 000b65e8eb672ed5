use super::*;
use crate::gateway::v1::live_buffer::MAX_BUFFERED_BYTES;
use crate::protocol::position::Epoch;

pub(super) const QUEUE_BYTES: usize = 4096;

pub(super) fn client() -> Arc<V1State> {
    Arc::new(V1State::new(QUEUE_BYTES))
}

pub(super) fn position(offset: i64) -> Position {
    let epoch = Epoch::new("c", "0", 0);
    Position { epoch, offset }
}

pub(super) fn message_id(text: &str) -> MessageId {
    MessageId::parse(text).unwrap()
}

pub(super) fn number(n: u64) -> SequenceNumber {
    SequenceNumber::new("a", n)
}

/// A user view with this number and without answers in flight.
pub(super) fn view(number: SequenceNumber) -> UserView {
    UserView {
        number,
        end: position(0),
        recovered: true,
        frames: Vec::new(),
        has_more: false,
        rebuilt_up_to: None,
        in_flight: Vec::new(),
        pending: Vec::new(),
    }
}

/// A frame that changes no answer in flight.
pub(super) fn accepted(n: u64) -> LiveFrame {
    LiveFrame {
        number: Some(number(n)),
        kind: LiveFrameKind::Other,
        message_id: MessageId::parse("m").ok(),
        position: None,
        sender_connection: None,
        text: Some(format!("a{n}").into()),
        trace: None,
    }
}

fn terminal(n: u64, offset: i64) -> LiveFrame {
    LiveFrame {
        kind: LiveFrameKind::Terminal,
        message_id: MessageId::parse(&offset.to_string()).ok(),
        position: Some(position(offset)),
        text: Some(format!("t{offset}").into()),
        ..accepted(n)
    }
}

/// The same frame with the number `n` of a new counter, as after the fan-out lost its data.
fn with_new_counter(n: u64, frame: LiveFrame) -> LiveFrame {
    LiveFrame {
        number: Some(SequenceNumber::new("b", n)),
        ..frame
    }
}

/// Adds a live connection that has received every frame up to number `n` and up to position 0.
pub(super) fn live_client(subscribers: &mut Subscribers, n: u64) -> Arc<V1State> {
    let client = client();
    subscribers.add(client.clone(), Some(position(0)));
    assert!(subscribers.is_stale(&client));
    subscribers.begin_read(&client);
    subscribers.finish_read(&client, &view(number(n)));
    client
}

#[test]
fn buffered_frames_that_the_user_view_lacks_are_replayed_in_order() {
    let mut subscribers = Subscribers::default();
    let client = client();
    subscribers.add(client.clone(), None);
    subscribers.begin_read(&client);
    for n in 1..=4 {
        subscribers.publish(accepted(n));
    }
    assert!(
        client.outbound.queued().is_empty(),
        "the frames are buffered until the read is finished"
    );
    subscribers.finish_read(&client, &view(number(2)));
    subscribers.publish(accepted(5));
    assert_eq!(client.outbound.queued(), ["a3", "a4", "a5"]);
}

#[test]
fn frame_without_the_next_number_makes_the_connection_read() {
    for unexpected in [
        accepted(7),
        accepted(5),
        accepted(2),
        with_new_counter(6, accepted(6)),
    ] {
        let mut subscribers = Subscribers::default();
        let client = live_client(&mut subscribers, 4);
        subscribers.publish(accepted(5));
        assert!(!subscribers.is_stale(&client));
        subscribers.publish(unexpected);
        assert!(subscribers.is_stale(&client));
        assert_eq!(client.outbound.queued(), ["a5"], "only a5 was sent");
    }
}

#[test]
fn terminal_frame_up_to_the_position_is_never_sent() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(terminal(1, 5));
    subscribers.publish(terminal(2, 5));
    subscribers.publish(terminal(3, 4));
    subscribers.publish(terminal(4, 6));
    assert_eq!(client.outbound.queued(), ["t5", "t6"]);
    assert_eq!(subscribers.begin_read(&client).after, Some(position(6)));
}

#[test]
fn rebuild_of_an_emptied_mailbox_repeats_no_frame() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(terminal(1, 5));
    subscribers.mark_all_stale();
    subscribers.begin_read(&client);
    let empty = Position {
        epoch: Epoch::for_empty_mailbox("x"),
        offset: 0,
    };
    assert_eq!(
        subscribers.skip_to_mailbox_end(&client, &empty),
        position(5)
    );
    subscribers.finish_read(&client, &view(SequenceNumber::new("b", 0)));
    subscribers.publish(with_new_counter(1, terminal(1, 4)));
    subscribers.publish(with_new_counter(2, terminal(2, 5)));
    subscribers.publish(with_new_counter(3, terminal(3, 6)));
    assert_eq!(client.outbound.queued(), ["t5", "t6"]);
}

#[test]
fn frame_received_before_the_user_moved_to_another_partition_is_not_repeated() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    let new_position = |offset| Position {
        epoch: Epoch::new("c", "0", 1),
        offset,
    };
    let in_new_partition = |n, offset| LiveFrame {
        position: Some(new_position(offset)),
        text: Some(format!("m{offset}").into()),
        ..terminal(n, offset)
    };
    subscribers.publish(terminal(1, 5));
    subscribers.publish(in_new_partition(2, 0));
    // The old partition has one more new frame, at offset 6. Then a rewind publishes frames of both
    // partitions again; of these, only the frame at offset 1 of the new partition is new.
    subscribers.publish(terminal(3, 6));
    subscribers.publish(terminal(4, 5));
    subscribers.publish(in_new_partition(5, 0));
    subscribers.publish(in_new_partition(6, 1));
    subscribers.publish(terminal(7, 6));
    assert_eq!(client.outbound.queued(), ["t5", "m0", "t6", "m1"]);
    // Redis is emptied and the old partition is rebuilt first, so the mailbox ends at its offset 2.
    subscribers.mark_all_stale();
    let start = subscribers.begin_read(&client);
    assert_eq!(start.after, Some(new_position(1)));
    assert_eq!(
        subscribers.skip_to_mailbox_end(&client, &position(2)),
        position(6)
    );
    subscribers.finish_read(&client, &view(SequenceNumber::new("b", 0)));
    subscribers.publish(with_new_counter(1, terminal(1, 3)));
    subscribers.publish(with_new_counter(2, in_new_partition(2, 1)));
    subscribers.publish(with_new_counter(3, in_new_partition(3, 2)));
    assert_eq!(client.outbound.queued(), ["t5", "m0", "t6", "m1", "m2"]);
}

#[test]
fn full_queue_drops_frames_and_keeps_the_position() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    let mut n = 0;
    while !subscribers.is_stale(&client) {
        n += 1;
        subscribers.publish(accepted(n));
    }
    assert_eq!(client.outbound.queued().len() as u64, n - 1);
    subscribers.publish(terminal(n + 1, 5));
    assert_eq!(client.outbound.close_reason(), None);
    let start = subscribers.begin_read(&client);
    assert_eq!(start.after, Some(position(0)), "the terminal frame is read");
}

#[test]
fn buffer_is_bounded_and_its_overflow_makes_the_connection_read_again() {
    let mut subscribers = Subscribers::default();
    let client = client();
    subscribers.add(client.clone(), None);
    subscribers.begin_read(&client);
    let large = |n| LiveFrame {
        text: Some("x".repeat(MAX_BUFFERED_BYTES / 2).into()),
        ..accepted(n)
    };
    for n in 1..=3 {
        subscribers.publish(large(n));
        assert!(subscribers.buffer.bytes() <= MAX_BUFFERED_BYTES);
    }
    subscribers.finish_read(&client, &view(number(0)));
    assert!(subscribers.is_stale(&client));
    assert!(client.outbound.queued().is_empty());
}

#[test]
fn one_read_serves_all_connections_that_were_stale_before_it() {
    let mut subscribers = Subscribers::default();
    let (first, second) = (
        live_client(&mut subscribers, 4),
        live_client(&mut subscribers, 4),
    );
    subscribers.publish(accepted(6));
    let first_start = subscribers.begin_read(&first);
    subscribers.publish(accepted(7));
    let second_start = subscribers.begin_read(&second);
    assert!(first_start.buffered_since >= second_start.stale_since);
    assert!(subscribers.is_buffered_since(first_start.buffered_since));
    subscribers.join_read(&second, first_start.buffered_since);
    for client in [&first, &second] {
        subscribers.finish_read(client, &view(number(6)));
        assert_eq!(client.outbound.queued(), ["a7"]);
    }
}

#[test]
fn answer_of_a_resent_message_is_sent_once_by_the_read_or_after_it() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    for id in ["5", "9"] {
        let text = format!("t{id}").into();
        assert!(subscribers.send_after_read(&client, message_id(id), text));
    }
    assert!(subscribers.is_stale(&client));
    subscribers.begin_read(&client);
    subscribers.record_received(&client, position(5), Some(&message_id("5")));
    assert_eq!(subscribers.finish_read(&client, &view(number(1))), ["t9"]);
    assert!(!subscribers.is_stale(&client));
}
