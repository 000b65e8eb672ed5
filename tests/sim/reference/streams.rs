//! The streams of answers in flight: their parts, the stored pieces of text, and the calls of a
//! worker that generates an answer.

use super::{
    Frame, InFlight, InFlightAnswer, LEASE_MS, Message, Owner, PublishedFrame, Rule, SharedState,
    StoredOutcome, Stream, StreamResponse,
};

/// The parts of an answer: for each unit of a part's text, the model call that it came from.
pub(crate) type Parts = Vec<Vec<u8>>;

/// A piece of the text of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) part: u8,
    pub(crate) offset: u8,
    pub(crate) end: u8,
    /// The model call that the text came from.
    pub(crate) call: u8,
    /// In the opening of a part: the length of the previous part, 0 for the first part.
    pub(crate) opening: Option<u8>,
}

/// The stored pieces of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PieceList {
    pub(crate) message: Message,
    pub(crate) stream: Stream,
    pub(crate) pieces: Vec<Piece>,
}

/// Joins pieces to parts, and drops repeats. Stops at a hole: what follows it is not readable.
pub(super) fn join(pieces: &[Piece], drops_repeats: bool) -> Parts {
    let mut parts = Parts::new();
    for piece in pieces {
        let units = (piece.offset..piece.end).map(|_| piece.call);
        let count = parts.len();
        if let Some(part) = parts.get_mut(usize::from(piece.part)) {
            let length = part.len() as u8;
            if piece.end <= length && drops_repeats {
                continue;
            }
            let is_next = usize::from(piece.part) + 1 == count && piece.offset == length;
            if !is_next && drops_repeats {
                break;
            }
            part.extend(units);
        } else {
            let previous_length = parts.last().map_or(0, |part| part.len() as u8);
            if usize::from(piece.part) != count || piece.opening != Some(previous_length) {
                break;
            }
            parts.push(units.collect());
        }
    }
    parts
}

impl SharedState {
    /// The stream of an owner's attempt.
    pub(crate) fn stream_of(&self, owner: Owner, attempt: u8) -> Stream {
        if self.enforces(Rule::UniqueStreams) {
            u16::from(owner) << 4 | u16::from(attempt)
        } else {
            u16::from(attempt)
        }
    }

    /// The stream under which the pieces of a stream are stored.
    fn list_stream(&self, stream: Stream) -> Stream {
        if self.enforces(Rule::SeparateStreams) {
            stream
        } else {
            0
        }
    }

    fn list(&mut self, message: Message, stream: Stream) -> Option<&mut PieceList> {
        let stream = self.list_stream(stream);
        let mut lists = self.lists.iter_mut();
        lists.find(|list| list.message == message && list.stream == stream)
    }

    /// Removes the pieces of all streams of a message.
    pub(super) fn remove_lists(&mut self, message: Message) {
        self.lists.retain(|list| list.message != message);
    }

    /// The parts that the stored pieces of a stream form.
    pub(crate) fn parts(&self, message: Message, stream: Stream) -> Parts {
        let stream = self.list_stream(stream);
        let mut lists = self.lists.iter();
        let list = lists.find(|list| list.message == message && list.stream == stream);
        let drops_repeats = self.enforces(Rule::RepeatsDropped);
        list.map_or_else(Vec::new, |list| join(&list.pieces, drops_repeats))
    }

    /// The answers in flight with their parts.
    pub(crate) fn in_flight_answers(&self) -> Vec<InFlightAnswer> {
        let messages = self.messages.iter().enumerate();
        let answers = messages.filter_map(|(message, state)| {
            let in_flight = state.in_flight.as_ref()?;
            Some(InFlightAnswer {
                message: message as u8,
                attempt: in_flight.attempt,
                stream: in_flight.stream,
                parts: self.parts(message as u8, in_flight.stream),
            })
        });
        answers.collect()
    }

    /// The answer in flight that this owner and attempt may write to, or why they may not.
    fn writable_answer(
        &mut self,
        message: Message,
        owner: Owner,
        attempt: u8,
        is_fenced: bool,
    ) -> Result<&mut InFlight, StreamResponse> {
        let state = self.message(message);
        match state.outcome {
            Some(StoredOutcome::Forgotten(None)) => return Err(StreamResponse::Cancelled),
            Some(_) => return Err(StreamResponse::Fenced),
            None => {}
        }
        if state.cancel_requested {
            return Err(StreamResponse::Cancelled);
        }
        let in_flight = state.in_flight.as_mut().ok_or(StreamResponse::DataLost)?;
        if is_fenced && (in_flight.owner != owner || in_flight.attempt != attempt) {
            return Err(StreamResponse::Fenced);
        }
        Ok(in_flight)
    }

    pub(crate) fn open_part(
        &mut self,
        message: Message,
        owner: Owner,
        attempt: u8,
        piece: Piece,
    ) -> StreamResponse {
        let is_fenced = self.enforces(Rule::OpeningFenced);
        let (stream, is_open) = match self.writable_answer(message, owner, attempt, is_fenced) {
            Ok(in_flight) if piece.part > in_flight.parts => return StreamResponse::DataLost,
            Ok(in_flight) => {
                let is_open = piece.part < in_flight.parts;
                in_flight.parts = in_flight.parts.max(piece.part + 1);
                (in_flight.stream, is_open)
            }
            Err(response) => return response,
        };
        if !is_open {
            if let Some(list) = self.list(message, stream) {
                list.pieces.push(piece);
            } else {
                self.lists.push(PieceList {
                    message,
                    stream: self.list_stream(stream),
                    pieces: vec![piece],
                });
                // States that differ only in the order of the lists have to be equal.
                self.lists
                    .sort_unstable_by_key(|list| (list.message, list.stream));
            }
            self.publish(Frame::Delta(message, stream, piece));
        }
        StreamResponse::Confirmed(self.piece_count(message, stream))
    }

    fn piece_count(&mut self, message: Message, stream: Stream) -> u8 {
        let list = self.list(message, stream);
        list.map_or(0, |list| list.pieces.len() as u8)
    }

    /// The first command of `append`: adds a piece to the list of a stream, if the list exists.
    /// Returns the number of its pieces.
    pub(crate) fn push_piece(&mut self, message: Message, stream: Stream, piece: Piece) -> u8 {
        if let Some(list) = self.list(message, stream) {
            list.pieces.push(piece);
        }
        self.piece_count(message, stream)
    }

    /// The second command of `append`: publishes the delta, without a sequence number.
    pub(crate) fn publish_piece(&mut self, message: Message, stream: Stream, piece: Piece) {
        self.published.push(PublishedFrame {
            number: None,
            frame: Frame::Delta(message, stream, piece),
        });
    }

    /// `parts` and `last_length` are what the caller knows to be stored.
    pub(crate) fn renew(
        &mut self,
        message: Message,
        owner: Owner,
        attempt: u8,
        parts: u8,
        last_length: u8,
    ) -> StreamResponse {
        let stream = match self.writable_answer(message, owner, attempt, true) {
            Ok(in_flight) => in_flight.stream,
            Err(response) => return response,
        };
        let stored = self.parts(message, stream);
        if parts > 0 {
            let last = stored.get(usize::from(parts) - 1);
            if last.is_none_or(|last| (last.len() as u8) < last_length) {
                return StreamResponse::DataLost;
            }
        }
        if let Some(in_flight) = &mut self.message(message).in_flight {
            in_flight.lease = LEASE_MS;
        }
        StreamResponse::Confirmed(self.piece_count(message, stream))
    }
}
