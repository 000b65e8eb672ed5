//! Tracks which text of the answers in flight one `chatmesh.v1` connection was sent: for each
//! answer the current stream, and the length of each of its parts. The rules are those of a
//! receiver (protocol.md section 1.2), so that the connection is sent exactly the pieces that its
//! client can append.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::stream_key::StreamKey;
use crate::protocol::open_message::InFlightAnswer;
use crate::protocol::parts::TextRange;
use crate::protocol::v1::DeltaHead;

/// The current stream of one answer in flight, and the text of it that was sent.
#[derive(Debug)]
struct AnswerProgress {
    stream: Arc<str>,
    /// The length of each part that was sent, in UTF-16 code units.
    lengths: Vec<u32>,
    /// The number of the frame or of the user view that made the stream the current one. It belongs
    /// to the counter of the connection's last number.
    current_since: u64,
}

/// How a piece of text relates to the text that was sent.
#[derive(Debug)]
pub(super) enum Continuity<T> {
    /// The piece continues the text that was sent.
    Next(T),
    /// The text that was sent contains the piece.
    Repeat,
    /// Text before the piece was not sent.
    Gap,
    /// The stream is not the current one of the answer, or no stream of the answer is known.
    UnknownStream,
}

/// The answers in flight of which one connection was sent something. There are at most as many as
/// the user has answers in flight, because a terminal frame, and each user view, remove those that
/// have ended.
#[derive(Debug, Default)]
pub(super) struct StreamProgress {
    /// The progress by message id.
    answers: HashMap<Arc<str>, AnswerProgress>,
}

impl StreamProgress {
    /// The progress of a connection that was sent exactly these answers of a user view with the
    /// number `number`.
    pub(super) fn from_view(in_flight: &[InFlightAnswer], number: u64) -> Self {
        let answers = in_flight.iter().map(|answer| {
            let progress = AnswerProgress {
                stream: answer.stream.as_str().into(),
                lengths: answer.parts.iter().map(|part| part.length).collect(),
                current_since: number,
            };
            (answer.message_id.as_str().into(), progress)
        });
        Self {
            answers: answers.collect(),
        }
    }

    /// Compares a `delta` that is no opening with the text that was sent. The result for the next
    /// piece contains the length of its part, which the caller sets to the end of the piece once
    /// the piece is sent.
    pub(super) fn check_delta(&mut self, head: &DeltaHead<'_>) -> Continuity<&mut u32> {
        match self.answers.get_mut(head.message_id) {
            Some(answer) if *answer.stream == *head.stream => {
                check_piece(&mut answer.lengths, head.range)
            }
            _ => Continuity::UnknownStream,
        }
    }

    /// Compares the opening of a part with the text that was sent. The caller calls
    /// [`Self::record_opening`] once the opening of a next part is sent.
    pub(super) fn check_opening(
        &self,
        stream: &StreamKey,
        range: TextRange,
        previous_end: Option<u32>,
    ) -> Continuity<()> {
        let Some(answer) = self
            .answers
            .get(&stream.message_id)
            .filter(|answer| answer.stream == stream.stream)
        else {
            // Openings arrive in the order of their numbers, so the stream is newer than the one
            // that is known.
            return match (range.part, range.offset) {
                (0, 0) => Continuity::Next(()),
                _ => Continuity::UnknownStream,
            };
        };
        if let Some(length) = answer.lengths.get(range.part as usize) {
            return if range.end <= *length {
                Continuity::Repeat
            } else {
                Continuity::Gap
            };
        }
        let is_next = answer.lengths.len() == range.part as usize && range.offset == 0;
        let is_previous_complete = match answer.lengths.last() {
            Some(length) => previous_end == Some(*length),
            None => true,
        };
        if is_next && is_previous_complete {
            Continuity::Next(())
        } else {
            Continuity::Gap
        }
    }

    /// Records that the opening of the next part was sent. `number` is the number of its frame.
    pub(super) fn record_opening(&mut self, stream: &StreamKey, range: TextRange, number: u64) {
        let is_current = |answer: &AnswerProgress| answer.stream == stream.stream;
        if !self.answers.get(&stream.message_id).is_some_and(is_current) {
            self.restart(stream, number);
        }
        if let Some(answer) = self.answers.get_mut(&stream.message_id) {
            answer.lengths.push(range.end);
        }
    }

    /// Records that a stream without parts is the current one of its answer since the frame with
    /// the number `number`.
    pub(super) fn restart(&mut self, stream: &StreamKey, number: u64) {
        let progress = AnswerProgress {
            stream: stream.stream.clone(),
            lengths: Vec::new(),
            current_since: number,
        };
        match self.answers.entry(stream.message_id.clone()) {
            Entry::Occupied(mut entry) => *entry.get_mut() = progress,
            Entry::Vacant(entry) => {
                entry.insert(progress);
            }
        }
    }

    /// Removes an answer that has ended, and returns its stream.
    pub(super) fn end(&mut self, message_id: &str) -> Option<StreamKey> {
        let (message_id, answer) = self.answers.remove_entry(message_id)?;
        if self.answers.is_empty() {
            // Most connections have no answer in flight most of the time.
            self.answers = HashMap::new();
        }
        Some(StreamKey {
            message_id,
            stream: answer.stream,
        })
    }

    /// The current streams of all answers.
    pub(super) fn into_streams(self) -> impl Iterator<Item = StreamKey> {
        self.answers
            .into_iter()
            .map(|(message_id, answer)| StreamKey {
                message_id,
                stream: answer.stream,
            })
    }

    /// The length of each part that was sent of this answer; `None` if its stream is not the
    /// current one.
    pub(super) fn sent_lengths(&self, answer: &InFlightAnswer) -> Option<&[u32]> {
        let progress = self.answers.get(answer.message_id.as_str())?;
        let is_current = *progress.stream == *answer.stream.as_str();
        is_current.then_some(&progress.lengths)
    }

    /// Whether an answer of the user view with the number `number` has text that was not sent, or
    /// another stream. False where the stream became the current one after that view.
    pub(super) fn lacks(&self, answer: &InFlightAnswer, number: u64) -> bool {
        let Some(progress) = self.answers.get(answer.message_id.as_str()) else {
            return !answer.parts.is_empty();
        };
        if *progress.stream != *answer.stream.as_str() {
            return progress.current_since <= number;
        }
        let mut sent = progress.lengths.iter();
        !answer
            .parts
            .iter()
            .all(|part| sent.next().is_some_and(|length| *length >= part.length))
    }
}

/// Compares a piece of the current stream with the lengths of the parts that were sent. Only the
/// last part grows.
fn check_piece(lengths: &mut [u32], range: TextRange) -> Continuity<&mut u32> {
    let is_last_part = lengths.len() == range.part as usize + 1;
    match lengths.get_mut(range.part as usize) {
        Some(length) if range.end <= *length => Continuity::Repeat,
        Some(length) if is_last_part && range.offset <= *length => Continuity::Next(length),
        _ => Continuity::Gap,
    }
}
