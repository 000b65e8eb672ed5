//! A reference receiver of one answer: the rules by which every client and gateway builds the parts
//! of an answer from snapshots and published frames (`docs/protocol.md`).

use chatmesh::protocol::open_message::{InFlightAnswer, InFlightPart};
use serde_json::Value;

/// What a receiver did with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reception {
    /// The frame is part of the current stream. It may be a repeat that changed nothing.
    Accepted,
    /// The frame belongs to another stream than the current one.
    OtherStream,
    /// Something before the frame is missing. All deltas are ignored until the next snapshot.
    Incomplete,
}

/// A part as a receiver shows it. Texts are sequences of UTF-16 code units, as in JavaScript.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReceivedPart {
    kind: String,
    meta: Option<Value>,
    text: Vec<u16>,
}

impl From<&InFlightPart> for ReceivedPart {
    fn from(part: &InFlightPart) -> Self {
        let meta = part.meta.as_deref();
        Self {
            kind: part.kind.clone(),
            meta: meta.map(|meta| serde_json::from_str(meta).unwrap()),
            text: part.text.encode_utf16().collect(),
        }
    }
}

/// The parts of a list as a receiver shows them.
pub(crate) fn received_parts(parts: &[InFlightPart]) -> Vec<ReceivedPart> {
    parts.iter().map(ReceivedPart::from).collect()
}

/// Whether these are the first parts of an answer, of which only the last may be incomplete.
pub(crate) fn is_prefix(parts: &[ReceivedPart], answer: &[ReceivedPart]) -> bool {
    let Some((last, complete)) = parts.split_last() else {
        return true;
    };
    answer.starts_with(complete)
        && answer.get(complete.len()).is_some_and(|part| {
            (&part.kind, &part.meta) == (&last.kind, &last.meta)
                && part.text.starts_with(&last.text)
        })
}

/// A receiver of one answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Receiver {
    stream: Option<String>,
    pub(crate) parts: Vec<ReceivedPart>,
    is_incomplete: bool,
}

impl Receiver {
    pub(crate) fn take_snapshot(&mut self, answer: &InFlightAnswer) {
        self.set_stream(answer.stream.as_str());
        self.parts = received_parts(&answer.parts);
    }

    fn set_stream(&mut self, stream: &str) {
        *self = Self {
            stream: Some(stream.to_owned()),
            ..Self::default()
        };
    }

    /// Handles a published `delta` or `restarted`.
    pub(crate) fn receive(&mut self, frame: &Value) -> Reception {
        let stream = frame["stream"].as_str().expect("a stream");
        if frame["type"] == "restarted" {
            self.set_stream(stream);
            return Reception::Accepted;
        }
        assert_eq!(frame["type"], "delta");
        let is_opening = frame["kind"].is_string();
        if self.stream.as_deref() != Some(stream) {
            if !is_opening || frame["part"] != 0 {
                return Reception::OtherStream;
            }
            self.set_stream(stream);
        }
        if self.is_incomplete || !self.accept(frame, is_opening) {
            self.is_incomplete = true;
            return Reception::Incomplete;
        }
        Reception::Accepted
    }

    /// Adds the text of a `delta` of the current stream. Returns false if something is missing.
    fn accept(&mut self, frame: &Value, is_opening: bool) -> bool {
        let number = |name: &str| frame[name].as_u64().map(|number| number as usize);
        let (part, offset) = (number("part").unwrap(), number("offset").unwrap());
        let content = frame["content"].as_str().unwrap();
        let content: Vec<u16> = content.encode_utf16().collect();
        assert_eq!(offset + content.len(), number("end").unwrap(), "{frame}");
        if is_opening {
            let previous_length = part
                .checked_sub(1)
                .map(|previous| self.parts.get(previous).map(|part| part.text.len()));
            if previous_length != number("previous_end").map(Some) {
                return false;
            }
            if part == self.parts.len() {
                self.parts.push(ReceivedPart {
                    kind: frame["kind"].as_str().unwrap().to_owned(),
                    meta: frame.get("meta").cloned(),
                    text: Vec::new(),
                });
            }
        }
        let Some(part) = self.parts.get_mut(part) else {
            return false;
        };
        let Some(known) = part.text.len().checked_sub(offset) else {
            return false;
        };
        part.text.extend(content.iter().skip(known));
        true
    }
}
