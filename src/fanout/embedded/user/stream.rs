//! The calls `open_part`, `append` and `renew` on a user's state: the parts of an answer while its
//! worker generates them. `docs/consistency.md` specifies the order of their checks.

use std::cmp::Ordering;

use serde_json::value::RawValue;

use super::UserState;
use super::final_state::FinalState;
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::{
    AppendRequest, OpenPartRequest, Owner, Piece, RenewRequest, Result, StreamResponse,
};
use crate::protocol::ids::MessageId;
use crate::protocol::open_message::InFlightPart;
use crate::protocol::parts::PartKind;
use crate::protocol::v1::PartOpening;

/// The parts of the current attempt of an answer in flight.
#[derive(Debug, Default)]
pub(super) struct StreamParts {
    parts: Vec<InFlightPart>,
    /// Number of pieces of which the parts consist, empty pieces included.
    pieces: u64,
}

impl StreamParts {
    /// The parts so far, in order.
    pub(super) fn as_slice(&self) -> &[InFlightPart] {
        &self.parts
    }

    /// Opens the next part with its first piece.
    fn open(&mut self, kind: PartKind, meta: Option<&RawValue>, piece: &Piece) {
        self.parts.push(InFlightPart {
            kind: kind.as_str().to_owned(),
            meta: meta.map(|meta| meta.get().to_owned()),
            length: piece.range.end,
            text: piece.text.clone(),
        });
        self.pieces += 1;
    }

    /// Appends a piece if it continues the last part, and returns whether it does. Any other piece
    /// is a repeat, or the text before it is missing.
    fn append(&mut self, piece: &Piece) -> bool {
        let range = piece.range;
        if (range.part as usize).checked_add(1) != Some(self.parts.len()) {
            return false;
        }
        match self.parts.last_mut() {
            Some(last) if last.length == range.offset => {
                last.text.push_str(&piece.text);
                last.length = range.end;
                self.pieces += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether there are at least `count` parts, and the last of these is at least `length` UTF-16
    /// code units long.
    fn contains(&self, count: u32, length: u32) -> bool {
        match (count as usize).checked_sub(1) {
            Some(last) => self
                .parts
                .get(last)
                .is_some_and(|part| part.length >= length),
            None => true,
        }
    }
}

impl UserState {
    pub(in crate::fanout::embedded) fn open_part(
        &mut self,
        call: &OpenPartRequest,
        context: &StoreContext<'_>,
    ) -> Result<StreamResponse> {
        let message = &call.message.message_id;
        if let Some(refusal) = self.stream_refusal(message, &call.owner, call.attempt, context)? {
            return Ok(refusal);
        }
        let Some(answer) = self.in_flight.get_mut(message) else {
            return Ok(StreamResponse::DataLost);
        };
        let stream = &mut answer.stream;
        let range = call.piece.range;
        match (range.part as usize).cmp(&stream.parts.len()) {
            Ordering::Less => return Ok(StreamResponse::Confirmed(stream.pieces)),
            Ordering::Greater => return Ok(StreamResponse::DataLost),
            Ordering::Equal => {}
        }
        // Properties that are not JSON are left out, because frames could not be decoded with them.
        let meta = call.meta.as_deref();
        let meta = meta.and_then(|meta| serde_json::from_str::<&RawValue>(meta).ok());
        stream.open(call.kind, meta, &call.piece);
        let pieces = stream.pieces;
        let opening = PartOpening {
            kind: call.kind.as_str(),
            meta,
            previous_end: call.previous_end,
        };
        self.publish_opening(
            &call.message,
            &call.owner,
            call.attempt,
            opening,
            &call.piece,
        );
        Ok(StreamResponse::Confirmed(pieces))
    }

    pub(in crate::fanout::embedded) fn append(
        &mut self,
        call: &AppendRequest,
        context: &StoreContext<'_>,
    ) -> u64 {
        let message = &call.message.message_id;
        let is_current = self
            .in_flight(message, context)
            .is_some_and(|answer| answer.is_owned_by(&call.owner, call.attempt));
        if !is_current {
            return 0;
        }
        let Some(answer) = self.in_flight.get_mut(message) else {
            return 0;
        };
        let is_appended = answer.stream.append(&call.piece);
        let pieces = answer.stream.pieces;
        if is_appended {
            self.publish_delta(&call.message, &call.owner, call.attempt, &call.piece);
        }
        pieces
    }

    pub(in crate::fanout::embedded) fn renew(
        &mut self,
        call: &RenewRequest,
        context: &StoreContext<'_>,
    ) -> Result<StreamResponse> {
        let message = &call.message.message_id;
        if let Some(refusal) = self.stream_refusal(message, &call.owner, call.attempt, context)? {
            return Ok(refusal);
        }
        let stream = self.in_flight.get(message).map(|answer| &answer.stream);
        let Some(stream) = stream.filter(|stream| stream.contains(call.parts, call.last_length))
        else {
            return Ok(StreamResponse::DataLost);
        };
        let pieces = stream.pieces;
        self.renew_lease(message, context);
        Ok(StreamResponse::Confirmed(pieces))
    }

    /// The response to an attempt that may not open parts or renew its lease; `None` if it may.
    fn stream_refusal(
        &self,
        message: &MessageId,
        owner: &Owner,
        attempt: u32,
        context: &StoreContext<'_>,
    ) -> Result<Option<StreamResponse>> {
        let answer = self.in_flight(message, context);
        // For an answer in flight, `has_outcome` shows whether an outcome is stored:
        // `store_outcome` sets it, and `deliver` and `forget` remove the answer from `in_flight`.
        // So the store has to be read only for an answer that is not in flight.
        match answer {
            Some(answer) if answer.has_outcome => return Ok(Some(StreamResponse::Fenced)),
            Some(_) => {}
            None => match self.final_state(message, context)? {
                Some(FinalState::Tombstone(None)) => return Ok(Some(StreamResponse::Cancelled)),
                Some(_) => return Ok(Some(StreamResponse::Fenced)),
                None => {}
            },
        }
        if self.is_cancelled(message, context) {
            return Ok(Some(StreamResponse::Cancelled));
        }
        Ok(match answer {
            None => Some(StreamResponse::DataLost),
            Some(answer) if !answer.is_owned_by(owner, attempt) => Some(StreamResponse::Fenced),
            Some(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::parts::{TextRange, utf16_len};

    /// Cuts a text into pieces between its characters, each of at most `size` characters.
    fn pieces(part: u32, text: &str, size: usize) -> Vec<Piece> {
        let characters: Vec<char> = text.chars().collect();
        let mut offset = 0;
        let mut pieces: Vec<_> = characters
            .chunks(size)
            .map(|chunk| {
                let text: String = chunk.iter().collect();
                let end = offset + utf16_len(&text);
                let range = TextRange { part, offset, end };
                offset = end;
                Piece { range, text }
            })
            .collect();
        if pieces.is_empty() {
            let (offset, end) = (0, 0);
            let range = TextRange { part, offset, end };
            let text = String::new();
            pieces.push(Piece { range, text });
        }
        pieces
    }

    proptest! {
        #[test]
        fn repeated_pieces_change_nothing(
            texts in prop::collection::vec(any::<String>(), 1..5),
            size in 1_usize..4,
            repeats in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let mut stream = StreamParts::default();
            let mut repeats = repeats.into_iter();
            let mut sent: Vec<Piece> = Vec::new();
            for (part, text) in (0..).zip(&texts) {
                for piece in pieces(part, text, size) {
                    if piece.range.offset == 0 {
                        stream.open(PartKind::Text, None, &piece);
                    } else {
                        prop_assert!(stream.append(&piece));
                    }
                    sent.push(piece);
                    let Some(index) = repeats.next() else { continue };
                    let repeat = &sent[index.index(sent.len())];
                    if !repeat.text.is_empty() {
                        prop_assert!(!stream.append(repeat));
                    }
                }
            }
            let stored: Vec<_> = stream.as_slice().iter().map(|part| &part.text).collect();
            prop_assert_eq!(stored, texts.iter().collect::<Vec<_>>());
            for part in stream.as_slice() {
                prop_assert_eq!(part.length, utf16_len(&part.text));
            }
            prop_assert_eq!(stream.pieces, sent.len() as u64);
        }
    }

    #[test]
    fn piece_beyond_the_text_is_not_appended() {
        let mut stream = StreamParts::default();
        let all = pieces(0, "abcd", 1);
        assert!(!stream.append(&all[1]), "no part is open");
        stream.open(PartKind::Text, None, &all[0]);
        assert!(!stream.append(&all[2]), "the piece before is missing");
        assert!(!stream.append(&pieces(1, "a", 1)[0]), "part 1 is not open");
        assert!(stream.append(&all[1]));
        assert_eq!(stream.as_slice()[0].text, "ab");
    }

    #[test]
    fn shorter_or_missing_part_is_noticed() {
        let mut stream = StreamParts::default();
        assert!(stream.contains(0, 0));
        assert!(!stream.contains(1, 0));
        stream.open(PartKind::Reasoning, None, &pieces(0, "abc", 3)[0]);
        stream.open(PartKind::Text, None, &pieces(1, "", 1)[0]);
        assert!(stream.contains(1, 3) && stream.contains(2, 0));
        assert!(!stream.contains(1, 4));
        assert!(!stream.contains(2, 1));
        assert!(!stream.contains(3, 0));
    }
}
