//! Tests of the rules by which connections receive the streams of answers.

use std::time::Duration;

use tokio::time::advance;

use super::tests::{
    QUEUE_BYTES, accepted, client, live_client, message_id, number, position, view,
};
use super::*;
use crate::gateway::v1::stream_key::StreamKey;
use crate::gateway::v1::stream_reads::MAX_STREAMS;
use crate::protocol::ids::{ConversationId, StreamId};
use crate::protocol::open_message::InFlightPart;
use crate::protocol::parts::{TextRange, utf16_len};
use crate::protocol::v1::{DeltaTarget, delta_frame};

/// The frame of a piece of message `m` that is no opening, as it is published.
fn delta_text(stream: &str, part: u32, offset: u32, content: &str) -> String {
    let target = DeltaTarget {
        message_id: &message_id("m"),
        id: None,
        conversation: &ConversationId::default_conversation(),
        stream: &StreamId::parse(stream).unwrap(),
        attempt: 1,
    };
    let end = offset + utf16_len(content);
    delta_frame(target, TextRange { part, offset, end }, None, content)
}

/// Publishes a piece of message `m` that is no opening.
fn publish_delta(subscribers: &mut Subscribers, stream: &str, part: u32, offset: u32, text: &str) {
    let frame = Utf8Bytes::from(delta_text(stream, part, offset, text));
    let head = DeltaHead::parse(frame.as_str()).unwrap();
    subscribers.publish_delta(&head, &frame);
}

/// The opening of a part of message `m` whose first piece has this length. Its text is `o` and the
/// number of the part.
fn opening(n: u64, stream: &str, part: u32, length: u32, previous_end: Option<u32>) -> LiveFrame {
    LiveFrame {
        kind: LiveFrameKind::Opening {
            stream: StreamKey::new("m", stream),
            range: TextRange {
                part,
                offset: 0,
                end: length,
            },
            previous_end,
        },
        text: Some(format!("o{part}").into()),
        ..accepted(n)
    }
}

fn restarted(n: u64, stream: &str) -> LiveFrame {
    LiveFrame {
        kind: LiveFrameKind::Restarted {
            stream: StreamKey::new("m", stream),
        },
        text: Some("r".into()),
        ..accepted(n)
    }
}

/// The terminal frame of message `m`.
fn terminal(n: u64) -> LiveFrame {
    LiveFrame {
        kind: LiveFrameKind::Terminal,
        message_id: Some(message_id("m")),
        position: Some(position(n as i64)),
        text: Some("t".into()),
        ..accepted(n)
    }
}

/// A user view in which message `m` is in flight with parts of these lengths.
fn view_of(n: u64, stream: &str, lengths: &[u32]) -> UserView {
    let part = |length: &u32| InFlightPart {
        kind: "text".into(),
        meta: None,
        length: *length,
        text: "x".repeat(*length as usize),
    };
    let answer = InFlightAnswer {
        message_id: message_id("m"),
        id: None,
        conversation: ConversationId::default_conversation(),
        attempt: 1,
        stream: StreamId::parse(stream).unwrap(),
        parts: lengths.iter().map(part).collect(),
    };
    UserView {
        in_flight: vec![answer],
        ..view(number(n))
    }
}

/// The queued frames of the connection; a delta by its part, offset and content.
fn received(client: &V1State) -> Vec<String> {
    let describe = |text: String| match DeltaHead::parse(&text) {
        Some(head) => {
            let content = text.rsplit_once(r#""content":"#).unwrap().1;
            let content = content.trim_end_matches('}').trim_matches('"');
            format!("{}.{}:{content}", head.range.part, head.range.offset)
        }
        None => text,
    };
    client.outbound.queued().into_iter().map(describe).collect()
}

/// Reads for the connection with a view that `view` returns. Returns false where it is not stale.
fn read(subscribers: &mut Subscribers, client: &Arc<V1State>, view: &UserView) -> bool {
    if subscribers.next_catch_up(client) != NextCatchUp::Now {
        return false;
    }
    subscribers.begin_read(client);
    subscribers.finish_read(client, view);
    true
}

#[test]
fn deltas_that_continue_the_text_are_sent_as_they_were_published() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    publish_delta(&mut subscribers, "s.1", 0, 2, "𝄞");
    publish_delta(&mut subscribers, "s.1", 0, 4, "e\u{301}");
    subscribers.publish(opening(2, "s.1", 1, 0, Some(6)));
    subscribers.publish(opening(3, "s.1", 2, 1, Some(0)));
    publish_delta(&mut subscribers, "s.1", 2, 1, "x");
    assert_eq!(
        received(&client),
        ["o0", "0.2:𝄞", "0.4:e\u{301}", "o1", "o2", "2.1:x"]
    );
    assert_eq!(
        client.outbound.queued()[1],
        delta_text("s.1", 0, 2, "𝄞"),
        "the bytes are those that were published"
    );
    assert_eq!(
        subscribers.next_catch_up(&client),
        NextCatchUp::NotNeeded,
        "nothing is missing"
    );
}

#[test]
fn repeated_delta_is_not_sent_and_partly_new_delta_is_sent() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    publish_delta(&mut subscribers, "s.1", 0, 2, "ab");
    publish_delta(&mut subscribers, "s.1", 0, 2, "ab");
    publish_delta(&mut subscribers, "s.1", 0, 0, "xx");
    publish_delta(&mut subscribers, "s.1", 0, 3, "bc");
    publish_delta(&mut subscribers, "s.1", 0, 3, "bc");
    publish_delta(&mut subscribers, "s.1", 0, 5, "d");
    assert_eq!(received(&client), ["o0", "0.2:ab", "0.3:bc", "0.5:d"]);
    assert_eq!(subscribers.next_catch_up(&client), NextCatchUp::NotNeeded);
}

#[test]
fn delta_lost_in_the_middle_of_a_part_leads_to_a_read_of_the_missing_text() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    publish_delta(&mut subscribers, "s.1", 0, 4, "ef");
    assert!(subscribers.is_stale(&client));
    assert_eq!(received(&client), ["o0"]);
    subscribers.begin_read(&client);
    publish_delta(&mut subscribers, "s.1", 0, 6, "gh");
    let view = view_of(1, "s.1", &[6]);
    let answer = &view.in_flight[0];
    assert_eq!(subscribers.sent_lengths(&client, answer), Some(vec![2]));
    subscribers.finish_read(&client, &view);
    publish_delta(&mut subscribers, "s.1", 0, 8, "i");
    assert_eq!(received(&client), ["o0", "0.6:gh", "0.8:i"]);
}

#[test]
fn delta_that_extends_an_earlier_part_is_not_sent() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    subscribers.publish(opening(2, "s.1", 1, 2, Some(2)));
    publish_delta(&mut subscribers, "s.1", 0, 2, "ab");
    assert_eq!(received(&client), ["o0", "o1"]);
    assert!(subscribers.is_stale(&client));
}

#[test]
fn delta_lost_at_the_end_of_a_part_is_noticed_by_the_next_opening() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    subscribers.publish(opening(2, "s.1", 1, 1, Some(4)));
    assert!(subscribers.is_stale(&client));
    assert_eq!(received(&client), ["o0"]);
    assert!(read(&mut subscribers, &client, &view_of(2, "s.1", &[4, 1])));
    publish_delta(&mut subscribers, "s.1", 1, 1, "x");
    assert_eq!(received(&client), ["o0", "1.1:x"]);
}

#[test]
fn lost_last_delta_is_noticed_by_the_check_of_open_messages() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    for (lengths, has_received) in [
        (&[2][..], true),
        (&[1], true),
        (&[3], false),
        (&[2, 0], false),
    ] {
        let view = view_of(1, "s.1", lengths);
        assert_eq!(
            subscribers.have_received(&view),
            has_received,
            "{lengths:?}"
        );
    }
    subscribers.mark_stale_behind(&view_of(1, "s.1", &[2]));
    assert!(!subscribers.is_stale(&client));
    subscribers.mark_stale_behind(&view_of(1, "s.1", &[3]));
    assert!(subscribers.is_stale(&client));
}

#[test]
fn check_of_open_messages_compares_streams() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    assert!(!subscribers.have_received(&view_of(0, "s.1", &[0])));
    assert!(
        subscribers.have_received(&view_of(0, "s.1", &[])),
        "an unknown stream without parts has nothing to send"
    );
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    assert!(!subscribers.have_received(&view_of(1, "t.2", &[])));
    subscribers.publish(restarted(2, "t.2"));
    assert!(
        subscribers.have_received(&view_of(1, "s.1", &[5])),
        "the view is older than restarted"
    );
    subscribers.publish(opening(3, "t.2", 0, 2, None));
    subscribers.publish(terminal(4));
    assert!(
        subscribers.have_received(&view_of(3, "t.2", &[5])),
        "the view is older than the terminal frame"
    );
    assert!(!subscribers.have_received(&view_of(4, "t.2", &[5])));
    assert!(!subscribers.is_stale(&client));
}

#[test]
fn lost_opening_or_restarted_leads_to_a_read_and_never_to_a_mixture() {
    for lost_frames in [1, 2] {
        let mut subscribers = Subscribers::default();
        let client = live_client(&mut subscribers, 0);
        subscribers.publish(opening(1, "s.1", 0, 2, None));
        // `restarted` has the number 2, and the opening of the new stream the number 3.
        if lost_frames == 1 {
            subscribers.publish(restarted(2, "t.2"));
        }
        publish_delta(&mut subscribers, "t.2", 0, 2, "cd");
        assert!(subscribers.is_stale(&client));
        let view = view_of(3, "t.2", &[4]);
        let lengths = subscribers.sent_lengths(&client, &view.in_flight[0]);
        let expected = (lost_frames == 1).then(Vec::new);
        assert_eq!(lengths, expected, "unless restarted arrived, a snapshot");
        assert!(read(&mut subscribers, &client, &view));
        publish_delta(&mut subscribers, "t.2", 0, 4, "ef");
        assert_eq!(received(&client).last().unwrap(), "0.4:ef");
    }
}

#[test]
fn restarted_and_the_first_opening_of_another_stream_replace_the_text() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    subscribers.publish(restarted(2, "t.2"));
    subscribers.publish(opening(3, "t.2", 0, 1, None));
    publish_delta(&mut subscribers, "t.2", 0, 1, "x");
    subscribers.publish(opening(4, "u.3", 0, 0, None));
    publish_delta(&mut subscribers, "u.3", 0, 0, "y");
    assert_eq!(received(&client), ["o0", "r", "o0", "0.1:x", "o0", "0.0:y"]);
    // The worker of an earlier attempt wakes up.
    publish_delta(&mut subscribers, "s.1", 0, 2, "late");
    assert_eq!(received(&client).len(), 6);
    assert!(
        subscribers.is_stale(&client),
        "the stream may be a later one"
    );
    assert!(read(&mut subscribers, &client, &view_of(4, "u.3", &[1])));
    publish_delta(&mut subscribers, "s.1", 0, 6, "late");
    publish_delta(&mut subscribers, "u.3", 0, 1, "z");
    assert_eq!(received(&client).last().unwrap(), "0.1:z");
    assert_eq!(subscribers.next_catch_up(&client), NextCatchUp::NotNeeded);
}

#[test]
fn delta_after_the_terminal_frame_is_ignored() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    subscribers.publish(terminal(2));
    publish_delta(&mut subscribers, "s.1", 0, 2, "late");
    publish_delta(&mut subscribers, "s.1", 1, 0, "late");
    assert_eq!(received(&client), ["o0", "t"]);
    assert_eq!(subscribers.next_catch_up(&client), NextCatchUp::NotNeeded);
}

#[test]
fn opening_of_an_ignored_stream_makes_it_current() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    publish_delta(&mut subscribers, "s.1", 0, 2, "x");
    assert!(read(&mut subscribers, &client, &view(number(0))));
    publish_delta(&mut subscribers, "s.1", 0, 3, "x");
    assert_eq!(
        subscribers.next_catch_up(&client),
        NextCatchUp::NotNeeded,
        "the stream is ignored"
    );
    subscribers.publish(opening(1, "s.1", 0, 1, None));
    publish_delta(&mut subscribers, "s.1", 0, 1, "y");
    assert_eq!(received(&client), ["o0", "0.1:y"]);
    assert!(!subscribers.stream_reads.is_ignored("m", "s.1"));
}

#[test]
fn user_view_that_names_an_ignored_stream_ends_the_ignoring() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    publish_delta(&mut subscribers, "s.1", 0, 2, "x");
    assert!(read(&mut subscribers, &client, &view(number(0))));
    let view = view_of(0, "s.1", &[3]);
    assert!(!subscribers.have_received(&view));
    subscribers.mark_stale_behind(&view);
    assert!(read(&mut subscribers, &client, &view));
    publish_delta(&mut subscribers, "s.1", 0, 3, "y");
    assert_eq!(received(&client), ["0.3:y"]);
    assert!(!subscribers.stream_reads.is_ignored("m", "s.1"));
}

#[test]
fn older_user_view_does_not_end_the_ignoring_of_an_ended_stream() {
    let mut subscribers = Subscribers::default();
    let (first, second) = (
        live_client(&mut subscribers, 0),
        live_client(&mut subscribers, 0),
    );
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    subscribers.mark_stale(&second);
    subscribers.begin_read(&second);
    subscribers.publish(terminal(2));
    subscribers.finish_read(&second, &view_of(1, "s.1", &[2]));
    for client in [&first, &second] {
        assert_eq!(received(client), ["o0", "t"]);
    }
    publish_delta(&mut subscribers, "s.1", 0, 2, "late");
    for client in [&first, &second] {
        assert_eq!(subscribers.next_catch_up(client), NextCatchUp::NotNeeded);
    }
}

#[test]
fn stream_that_a_delta_named_only_after_the_read_began_is_not_ignored() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.mark_stale(&client);
    subscribers.begin_read(&client);
    publish_delta(&mut subscribers, "s.1", 0, 2, "x");
    subscribers.finish_read(&client, &view(number(0)));
    assert!(!subscribers.stream_reads.is_ignored("m", "s.1"));
    assert!(
        read(&mut subscribers, &client, &view(number(0))),
        "another read is needed"
    );
    assert!(subscribers.stream_reads.is_ignored("m", "s.1"));
}

#[test]
fn read_of_another_connection_decides_only_about_earlier_deltas() {
    let mut subscribers = Subscribers::default();
    let (first, second) = (
        live_client(&mut subscribers, 0),
        live_client(&mut subscribers, 0),
    );
    publish_delta(&mut subscribers, "early.1", 0, 2, "x");
    assert!(read(&mut subscribers, &first, &view(number(0))));
    subscribers.begin_read(&second);
    publish_delta(&mut subscribers, "late.1", 0, 2, "x");
    subscribers.finish_read(&second, &view(number(0)));
    assert!(subscribers.stream_reads.is_ignored("m", "early.1"));
    assert!(!subscribers.stream_reads.is_ignored("m", "late.1"));
    for client in [&first, &second] {
        let next = subscribers.next_catch_up(client);
        assert!(matches!(next, NextCatchUp::At(_)), "{next:?}");
    }
}

#[test]
fn buffered_deltas_are_sent_for_answers_of_the_view_and_of_later_openings() {
    let mut subscribers = Subscribers::default();
    let client = client();
    subscribers.add(client.clone(), None);
    subscribers.begin_read(&client);
    publish_delta(&mut subscribers, "s.1", 0, 2, "in the view");
    publish_delta(&mut subscribers, "s.1", 0, 13, "A");
    subscribers.publish(opening(1, "t.1", 0, 1, None));
    publish_delta(&mut subscribers, "t.1", 0, 1, "B");
    publish_delta(&mut subscribers, "s.1", 0, 14, "late");
    subscribers.finish_read(&client, &view_of(0, "s.1", &[13]));
    assert_eq!(received(&client), ["0.13:A", "o0", "0.1:B"]);
}

#[tokio::test(start_paused = true)]
async fn stale_deltas_cause_at_most_one_read_a_second() {
    for streams in [1, 100] {
        let mut subscribers = Subscribers::default();
        let clients = [
            live_client(&mut subscribers, 0),
            live_client(&mut subscribers, 0),
        ];
        let mut reads = Vec::new();
        for index in 0..100 {
            let stream = format!("s.{}", index % streams);
            publish_delta(&mut subscribers, &stream, 0, index, "x");
            let read_count = clients
                .iter()
                .filter(|client| read(&mut subscribers, client, &view(number(0))))
                .count();
            assert!(matches!(read_count, 0 | 2), "connections share a read");
            if read_count > 0 {
                reads.push(index);
            }
            advance(Duration::from_millis(30)).await;
        }
        let expected = if streams == 1 {
            vec![0]
        } else {
            vec![0, 34, 68]
        };
        assert_eq!(reads, expected, "{streams} streams");
        assert!(subscribers.stream_reads.len() <= MAX_STREAMS);
        assert_eq!(subscribers.buffer.bytes(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn request_within_the_second_is_scheduled_for_its_end() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    let begun_at = Instant::now();
    publish_delta(&mut subscribers, "s.1", 0, 2, "x");
    assert!(read(&mut subscribers, &client, &view(number(0))));
    advance(Duration::from_millis(400)).await;
    publish_delta(&mut subscribers, "t.1", 0, 2, "x");
    let due = begun_at + Duration::from_secs(1);
    assert_eq!(subscribers.next_catch_up(&client), NextCatchUp::At(due));
    // Until then the connection receives everything else.
    subscribers.publish(accepted(1));
    subscribers.publish(opening(2, "u.1", 0, 2, None));
    publish_delta(&mut subscribers, "u.1", 0, 2, "y");
    assert_eq!(received(&client), ["a1", "o0", "0.2:y"]);
    advance(Duration::from_millis(600)).await;
    assert_eq!(subscribers.next_catch_up(&client), NextCatchUp::Now);
    assert!(subscribers.is_stale(&client));
}

#[test]
fn full_queue_makes_the_connection_stale_and_keeps_its_progress() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 0, None));
    let piece = "x".repeat(QUEUE_BYTES / 4);
    let mut offset = 0;
    while !subscribers.is_stale(&client) {
        publish_delta(&mut subscribers, "s.1", 0, offset, &piece);
        offset += utf16_len(&piece);
    }
    publish_delta(&mut subscribers, "s.1", 0, offset, &piece);
    let sent = client.outbound.queued().len() as u32 - 1;
    let view = view_of(1, "s.1", &[offset]);
    assert_eq!(
        subscribers.sent_lengths(&client, &view.in_flight[0]),
        Some(vec![sent * utf16_len(&piece)])
    );
    assert_eq!(client.outbound.close_reason(), None);
}

#[test]
fn ended_and_lost_answers_leave_no_progress() {
    let mut subscribers = Subscribers::default();
    let client = live_client(&mut subscribers, 0);
    subscribers.publish(opening(1, "s.1", 0, 2, None));
    let answer = &view_of(1, "s.1", &[2]).in_flight[0];
    assert!(subscribers.sent_lengths(&client, answer).is_some());
    // The terminal frame is lost; the read that its successor causes does not name the answer.
    subscribers.publish(accepted(3));
    assert!(read(&mut subscribers, &client, &view(number(3))));
    assert!(subscribers.sent_lengths(&client, answer).is_none());
    publish_delta(&mut subscribers, "s.1", 0, 2, "late");
    assert_eq!(received(&client), ["o0"]);
    assert_eq!(subscribers.next_catch_up(&client), NextCatchUp::NotNeeded);
}
