//! The parts of an answer in flight, as far as the client has received them: the rules of a receiver
//! of `delta`, `snapshot` and `restarted` (protocol.md section 1.2).

use super::events::Event;
use super::parts::{Part, PartDelta};
use crate::protocol::ids::StreamId;
use crate::protocol::parts::{FinishedPart, MAX_PARTS, PartKind, byte_index_of_utf16, utf16_len};
use crate::protocol::wire::v1::{Delta, Snapshot};

#[cfg(test)]
mod tests;

/// A part with the length of its text in UTF-16 code units, in which frames count.
#[derive(Debug)]
struct ReceivedPart {
    part: Part,
    length: u32,
}

/// The current stream of an answer, and the parts that were received of it.
#[derive(Debug, Default)]
pub(super) struct ReceivedParts {
    /// The current stream; `None` before the first frame that names one.
    stream: Option<StreamId>,
    parts: Vec<ReceivedPart>,
    /// Whether a delta of the current stream is missing. Later deltas of this stream are ignored
    /// then, until a frame replaces the parts.
    has_gap: bool,
}

/// The effect of a delta of the current stream.
enum DeltaEffect {
    /// The delta extends the last part, or begins the next part.
    Extended(PartDelta),
    /// The client has the text already.
    Repeated,
    /// The delta does not continue what the client has, so an earlier delta is missing.
    Gap,
}

impl ReceivedParts {
    /// Applies a `delta`. Returns the event to report; `None` if the delta changes nothing.
    pub(super) fn apply_delta(&mut self, frame: Delta) -> Option<Event> {
        let mut has_replaced_parts = false;
        if self.stream.as_ref() != Some(&frame.stream) {
            let begins_stream = frame.kind.is_some() && frame.part == 0 && frame.offset == 0;
            if !begins_stream {
                return None;
            }
            has_replaced_parts = !self.parts.is_empty();
            self.restart(frame.stream.clone());
        }
        if self.has_gap {
            return None;
        }
        match self.extend(frame) {
            DeltaEffect::Extended(_) if has_replaced_parts => {
                Some(Event::Snapshot(self.to_parts()))
            }
            DeltaEffect::Extended(delta) => Some(Event::Delta(delta)),
            DeltaEffect::Repeated => None,
            DeltaEffect::Gap => {
                self.has_gap = true;
                has_replaced_parts.then_some(Event::Restarted)
            }
        }
    }

    /// Replaces the parts by those of a `snapshot`, and returns the event to report.
    pub(super) fn apply_snapshot(&mut self, frame: Snapshot) -> Event {
        self.restart(frame.stream);
        self.parts = frame
            .parts
            .into_iter()
            .map(|part| ReceivedPart {
                length: utf16_len(&part.content),
                part: Part {
                    kind: PartKind::from_name(&part.kind),
                    meta: part.meta,
                    text: part.content,
                },
            })
            .collect();
        Event::Snapshot(self.to_parts())
    }

    /// Discards the parts because a new attempt with this stream begins.
    pub(super) fn restart(&mut self, stream: StreamId) {
        self.stream = Some(stream);
        self.parts.clear();
        self.has_gap = false;
    }

    /// Returns the parts of the ended answer. A terminal frame may have only the length of
    /// reasoning; then the text that was received of it stays.
    pub(super) fn finish(self, content: &str, finished: Option<&[FinishedPart]>) -> Vec<Part> {
        let mut parts = Part::from_finished(content, finished);
        for (part, received) in parts.iter_mut().zip(self.parts) {
            if part.kind == Some(PartKind::Reasoning)
                && part.kind == received.part.kind
                && part.text.is_empty()
            {
                part.text = received.part.text;
            }
        }
        parts
    }

    fn to_parts(&self) -> Vec<Part> {
        let parts = self.parts.iter().map(|received| received.part.clone());
        parts.collect()
    }

    /// Applies a delta of the current stream.
    fn extend(&mut self, frame: Delta) -> DeltaEffect {
        let number = frame.part as usize;
        let count = self.parts.len();
        let previous_length = number
            .checked_sub(1)
            .and_then(|previous| self.parts.get(previous))
            .map(|previous| previous.length);
        let is_opening = frame.kind.is_some();
        if number > count || (is_opening && frame.previous_end != previous_length) {
            return DeltaEffect::Gap;
        }
        if number == count {
            return self.open(frame);
        }
        let received = &mut self.parts[number];
        if frame.end <= received.length {
            return DeltaEffect::Repeated;
        }
        let new_text = received
            .length
            .checked_sub(frame.offset)
            .and_then(|known_length| byte_index_of_utf16(&frame.content, known_length))
            .map(|start| &frame.content[start..]);
        let Some(text) = new_text else {
            return DeltaEffect::Gap;
        };
        // Only the last part grows, and the text has the length that the frame names.
        if number + 1 != count || received.length.checked_add(utf16_len(text)) != Some(frame.end) {
            return DeltaEffect::Gap;
        }
        received.part.text.push_str(text);
        received.length = frame.end;
        DeltaEffect::Extended(PartDelta {
            part: number,
            kind: received.part.kind,
            meta: None,
            text: text.to_owned(),
        })
    }

    /// Begins the next part with its opening.
    fn open(&mut self, frame: Delta) -> DeltaEffect {
        let Some(kind) = frame.kind else {
            return DeltaEffect::Gap;
        };
        let is_whole = frame.offset == 0 && utf16_len(&frame.content) == frame.end;
        if !is_whole || self.parts.len() >= MAX_PARTS {
            return DeltaEffect::Gap;
        }
        let part = Part {
            kind: PartKind::from_name(&kind),
            meta: frame.meta,
            text: frame.content,
        };
        let delta = PartDelta {
            part: self.parts.len(),
            kind: part.kind,
            meta: part.meta.clone(),
            text: part.text.clone(),
        };
        self.parts.push(ReceivedPart {
            part,
            length: frame.end,
        });
        DeltaEffect::Extended(delta)
    }
}
