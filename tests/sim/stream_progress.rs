//! What a gateway knows about the answers in flight on one connection: the current stream of each,
//! and how much of its parts was sent. It decides which deltas the connection receives.

use crate::reference::{InFlightAnswer, Message, Piece, Rule, SharedState, Stream};

/// What the gateway does with a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeltaDecision {
    Forward,
    Skip,
    /// Something is missing: the gateway reads the user's state.
    Read,
}

/// The stream of one answer, and the length of each of its parts that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SentStream {
    stream: Stream,
    lengths: Vec<u8>,
}

/// The progress of all answers in flight on one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StreamProgress {
    /// By message.
    sent: Vec<Option<SentStream>>,
    /// Streams of which a delta arrived since the last read, without being known.
    unknown: Vec<Stream>,
    /// Streams that a read did not name, or whose message has ended. Their deltas are skipped.
    ignored: Vec<Stream>,
}

impl StreamProgress {
    pub(crate) fn new(messages: usize) -> Self {
        Self {
            sent: vec![None; messages],
            unknown: Vec::new(),
            ignored: Vec::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.sent.len());
    }

    /// Replaces the progress by what a read returned. Streams that were unknown before the read and
    /// that it does not name are ignored from now on.
    pub(crate) fn set_from_view(&mut self, answers: &[InFlightAnswer]) {
        self.sent.fill(None);
        for answer in answers {
            let lengths = answer.parts.iter().map(|part| part.len() as u8).collect();
            self.unknown.retain(|unknown| *unknown != answer.stream);
            self.sent[usize::from(answer.message)] = Some(SentStream {
                stream: answer.stream,
                lengths,
            });
        }
        self.ignored.append(&mut self.unknown);
        self.ignored.sort_unstable();
        self.ignored.dedup();
    }

    /// Makes a stream without parts the current one.
    pub(crate) fn start(&mut self, message: Message, stream: Stream) {
        self.ignored.retain(|ignored| *ignored != stream);
        self.sent[usize::from(message)] = Some(SentStream {
            stream,
            lengths: Vec::new(),
        });
    }

    /// The message has ended: late deltas of its stream are skipped.
    pub(crate) fn end(&mut self, message: Message) {
        if let Some(sent) = self.sent[usize::from(message)].take() {
            self.ignored.push(sent.stream);
            self.ignored.sort_unstable();
            self.ignored.dedup();
        }
    }

    /// Whether the connection has everything of these answers.
    pub(crate) fn covers(&self, answers: &[InFlightAnswer]) -> bool {
        // A stream without parts has nothing to send.
        let mut answers = answers.iter().filter(|answer| !answer.parts.is_empty());
        answers.all(|answer| {
            let sent = self.sent[usize::from(answer.message)].as_ref();
            sent.is_some_and(|sent| {
                let mut parts = answer.parts.iter().enumerate();
                sent.stream == answer.stream
                    && parts.all(|(index, part)| {
                        let length = sent.lengths.get(index);
                        length.is_some_and(|length| usize::from(*length) >= part.len())
                    })
            })
        })
    }

    /// Decides about a delta, and counts it as sent where it is forwarded.
    pub(crate) fn decide(
        &mut self,
        message: Message,
        stream: Stream,
        piece: Piece,
        shared: &SharedState,
    ) -> DeltaDecision {
        let compares_streams = shared.enforces(Rule::OnlyCurrentStreamForwarded);
        let is_current = |sent: &SentStream| !compares_streams || sent.stream == stream;
        let has_current = self.sent[usize::from(message)]
            .as_ref()
            .is_some_and(is_current);
        let opens_stream = piece.part == 0 && piece.opening.is_some();
        if !has_current && opens_stream {
            self.start(message, stream);
        }
        let sent = self.sent[usize::from(message)].as_mut();
        let Some(sent) = sent.filter(|sent| is_current(sent)) else {
            if self.ignored.contains(&stream) {
                return DeltaDecision::Skip;
            }
            if !self.unknown.contains(&stream) {
                self.unknown.push(stream);
                self.unknown.sort_unstable();
            }
            return DeltaDecision::Read;
        };
        let last_length = sent.lengths.last().copied().unwrap_or_default();
        if let Some(length) = sent.lengths.get_mut(usize::from(piece.part)) {
            if piece.end <= *length {
                return DeltaDecision::Skip;
            }
            if piece.offset > *length {
                return DeltaDecision::Read;
            }
            *length = piece.end;
            return DeltaDecision::Forward;
        }
        let is_next = usize::from(piece.part) == sent.lengths.len();
        let checks_end = shared.enforces(Rule::PreviousEndChecked);
        let continues = piece
            .opening
            .is_some_and(|previous_end| !checks_end || previous_end == last_length);
        if !is_next || !continues {
            return DeltaDecision::Read;
        }
        sent.lengths.push(piece.end);
        DeltaDecision::Forward
    }
}
