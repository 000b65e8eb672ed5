//! Decides when a user's stream reads begin. A stream read is a mailbox read that a `delta`
//! requires, because text before it is missing or its stream is unknown. Remembers the streams that
//! have ended: their deltas require no read.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::logical_time::LogicalTime;
use super::stream_key::StreamKey;
use crate::fanout::UserView;
use crate::protocol::open_message::InFlightAnswer;
use crate::protocol::sequence_number::SequenceNumber;

/// Minimum time from one stream read of a user to the next. Without it, every `delta` of an unknown
/// stream would cause a read.
pub(super) const MIN_READ_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of streams of one user that are ignored, and of those that wait for a read. Above
/// it, the oldest is forgotten, and its next delta requires a read.
pub(super) const MAX_STREAMS: usize = 64;

/// A stream that has ended, because its answer has ended or has another stream.
struct IgnoredStream {
    stream: StreamKey,
    /// The number of the terminal frame that ended the answer, or of the user view that did not
    /// name the stream.
    ended_by: SequenceNumber,
}

/// The state of one user's stream reads, which the user's connections share.
#[derive(Default)]
pub(super) struct StreamReads {
    /// When the last stream read began; `None` before the first one.
    last_begun_at: Option<Instant>,
    /// The unknown streams that deltas have named, each with the time of its first delta, oldest
    /// first.
    unknown: VecDeque<(StreamKey, LogicalTime)>,
    /// The ignored streams, oldest first.
    ignored: VecDeque<IgnoredStream>,
}

impl StreamReads {
    /// The time from which the next stream read may begin.
    pub(super) fn next_at(&self, now: Instant) -> Instant {
        let earliest = self.last_begun_at.map(|begun| begun + MIN_READ_INTERVAL);
        earliest.unwrap_or(now)
    }

    /// Records that a stream read begins, if it may begin now. Returns whether it may.
    pub(super) fn try_begin(&mut self, now: Instant) -> bool {
        let may_begin = self.next_at(now) <= now;
        if may_begin {
            self.last_begun_at = Some(now);
        }
        may_begin
    }

    /// Whether the deltas of a stream are ignored.
    pub(super) fn is_ignored(&self, message_id: &str, stream: &str) -> bool {
        self.ignored
            .iter()
            .any(|ignored| ignored.stream.is(message_id, stream))
    }

    /// Records that a `delta` named a stream that is not known, at the time `now`.
    pub(super) fn record_unknown(&mut self, message_id: &str, stream: &str, now: LogicalTime) {
        let mut unknown = self.unknown.iter();
        if unknown.any(|(unknown, _)| unknown.is(message_id, stream)) {
            return;
        }
        if self.unknown.len() >= MAX_STREAMS {
            self.unknown.pop_front();
        }
        self.unknown
            .push_back((StreamKey::new(message_id, stream), now));
    }

    /// Records that an opening or `restarted` named a stream, so that its deltas are not ignored.
    pub(super) fn record_current(&mut self, stream: &StreamKey) {
        self.remove(stream);
    }

    /// Removes a stream from the ignored and the unknown ones.
    fn remove(&mut self, stream: &StreamKey) {
        self.ignored.retain(|ignored| ignored.stream != *stream);
        self.unknown.retain(|(unknown, _)| unknown != stream);
    }

    /// Ignores the deltas of a stream from now on. `ended_by` is the number of the terminal frame
    /// that ended the answer, or of the user view that did not name the stream.
    pub(super) fn ignore(&mut self, stream: StreamKey, ended_by: &SequenceNumber) {
        self.remove(&stream);
        if self.ignored.len() >= MAX_STREAMS {
            self.ignored.pop_front();
        }
        let ended_by = ended_by.clone();
        self.ignored.push_back(IgnoredStream { stream, ended_by });
    }

    /// Whether the stream of an answer of the user view with this number has ended after that view.
    pub(super) fn has_ended_since(&self, answer: &InFlightAnswer, view: &SequenceNumber) -> bool {
        self.ignored.iter().any(|ignored| {
            is_of_answer(&ignored.stream, answer) && is_after(&ignored.ended_by, view)
        })
    }

    /// Decides, by the user view of a read that began at `began_at`, which streams are ignored from
    /// now on: those that the view does not name, of the streams in `known_before`, which the
    /// connection knew before the read, and of the unknown streams that a delta named before the
    /// read.
    pub(super) fn finish_read(
        &mut self,
        view: &UserView,
        began_at: LogicalTime,
        known_before: impl Iterator<Item = StreamKey>,
    ) {
        self.ignored.retain(|ignored| {
            let mut answers = view.in_flight.iter();
            !answers.any(|answer| is_of_answer(&ignored.stream, answer))
                || is_after(&ignored.ended_by, &view.number)
        });
        let mut candidates: Vec<StreamKey> = known_before.collect();
        self.unknown.retain(|(stream, named_at)| {
            let is_decided = *named_at <= began_at;
            if is_decided {
                candidates.push(stream.clone());
            }
            !is_decided
        });
        for stream in candidates {
            let mut answers = view.in_flight.iter();
            if !answers.any(|answer| is_of_answer(&stream, answer))
                && !self.is_ignored(&stream.message_id, &stream.stream)
            {
                self.ignore(stream, &view.number);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.unknown.len().max(self.ignored.len())
    }
}

fn is_of_answer(stream: &StreamKey, answer: &InFlightAnswer) -> bool {
    stream.is(answer.message_id.as_str(), answer.stream.as_str())
}

/// Whether `number` follows `other` in the same counter.
fn is_after(number: &SequenceNumber, other: &SequenceNumber) -> bool {
    number.counter == other.counter && number.n > other.n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::{ConversationId, MessageId, StreamId};
    use crate::protocol::position::{Epoch, Position};

    fn number(n: u64) -> SequenceNumber {
        SequenceNumber::new("a", n)
    }

    /// A user view with this number in which `stream` of message `m` is in flight.
    fn view(number: SequenceNumber, stream: &str) -> UserView {
        let answer = InFlightAnswer {
            message_id: MessageId::parse("m").unwrap(),
            id: None,
            conversation: ConversationId::default_conversation(),
            attempt: 1,
            stream: StreamId::parse(stream).unwrap(),
            parts: Vec::new(),
        };
        UserView {
            number,
            end: Position {
                epoch: Epoch::new("c", "0", 0),
                offset: 0,
            },
            recovered: true,
            frames: Vec::new(),
            has_more: false,
            rebuilt_up_to: None,
            in_flight: vec![answer],
            pending: Vec::new(),
        }
    }

    fn finish_read(reads: &mut StreamReads, view: &UserView) {
        reads.finish_read(view, LogicalTime::default(), std::iter::empty());
    }

    #[test]
    fn only_a_view_after_the_end_of_a_stream_ends_the_ignoring() {
        let mut reads = StreamReads::default();
        reads.ignore(StreamKey::new("m", "s.1"), &number(5));
        let before = view(number(4), "s.1");
        assert!(reads.has_ended_since(&before.in_flight[0], &before.number));
        finish_read(&mut reads, &before);
        finish_read(&mut reads, &view(number(6), "t.2"));
        assert!(reads.is_ignored("m", "s.1"));
        let after = view(number(5), "s.1");
        assert!(!reads.has_ended_since(&after.in_flight[0], &after.number));
        finish_read(&mut reads, &after);
        assert!(!reads.is_ignored("m", "s.1"));
        // The fan-out lost its data, so the numbers can't be compared.
        reads.ignore(StreamKey::new("m", "s.1"), &number(5));
        finish_read(&mut reads, &view(SequenceNumber::new("b", 1), "s.1"));
        assert!(!reads.is_ignored("m", "s.1"));
    }

    #[test]
    fn stream_is_named_by_its_message_too() {
        let mut reads = StreamReads::default();
        reads.ignore(StreamKey::new("other", "s.1"), &number(5));
        assert!(!reads.is_ignored("m", "s.1"));
        finish_read(&mut reads, &view(number(5), "s.1"));
        assert!(reads.is_ignored("other", "s.1"));
    }

    #[test]
    fn oldest_streams_are_forgotten_above_the_bound() {
        let mut reads = StreamReads::default();
        let name = |index: usize| format!("s.{index}");
        for index in 0..=MAX_STREAMS {
            reads.record_unknown("m", &name(index), LogicalTime::default());
            reads.record_unknown("m", &name(index), LogicalTime::default());
        }
        assert_eq!(reads.len(), MAX_STREAMS);
        finish_read(&mut reads, &view(number(1), "t.1"));
        assert_eq!(reads.len(), MAX_STREAMS);
        assert!(!reads.is_ignored("m", &name(0)));
        assert!(reads.is_ignored("m", &name(1)));
        reads.ignore(StreamKey::new("m", "u.1"), &number(2));
        assert_eq!(reads.len(), MAX_STREAMS);
        assert!(!reads.is_ignored("m", &name(1)));
        assert!(reads.is_ignored("m", "u.1"));
    }
}
