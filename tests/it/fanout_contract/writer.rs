//! The worker's side of one attempt: writes an answer in pieces, and keeps account of the lengths
//! of its parts.

use chatmesh::fanout::{
    AppendRequest, Fanout, MessageRef, OpenPartRequest, Owner, Piece, RenewRequest, Result,
    StreamResponse,
};
use chatmesh::protocol::ids::StreamId;
use chatmesh::protocol::open_message::InFlightPart;
use chatmesh::protocol::parts::PartKind;
use chatmesh::protocol::v1::{DeltaTarget, PartOpening, delta_frame};
use serde_json::value::RawValue;

use super::case::{ALL_PIECES, Case, attempt_number, piece};

/// Writes the stream of one attempt.
#[derive(Clone)]
pub(crate) struct StreamWriter {
    pub(crate) message: MessageRef,
    pub(crate) owner: Owner,
    pub(crate) attempt: u32,
    /// The parts that were written so far.
    pub(crate) parts: Vec<InFlightPart>,
}

impl StreamWriter {
    pub(crate) fn new(message: MessageRef, owner: Owner, attempt: u32) -> Self {
        Self {
            message,
            owner,
            attempt,
            parts: Vec::new(),
        }
    }

    /// Begins a message with a new owner.
    pub(crate) async fn begin(case: &Case<'_>) -> Self {
        let (message, owner) = (case.message(), Owner::random());
        let attempt = attempt_number(&case.begin(&message, &owner, 0).await);
        Self::new(message, owner, attempt)
    }

    /// Begins the message again, with the same owner and no parts.
    pub(crate) async fn begin_again(&mut self, case: &Case<'_>) {
        let response = case.begin(&self.message, &self.owner, self.attempt).await;
        self.attempt = attempt_number(&response);
        self.parts.clear();
    }

    pub(crate) fn stream(&self) -> StreamId {
        self.owner.stream(self.attempt)
    }

    /// The call that opens the next part.
    pub(crate) fn next_opening(
        &self,
        kind: PartKind,
        meta: Option<&str>,
        text: &str,
    ) -> OpenPartRequest {
        OpenPartRequest {
            message: self.message.clone(),
            owner: self.owner.clone(),
            attempt: self.attempt,
            kind,
            meta: meta.map(Into::into),
            previous_end: self.parts.last().map(|part| part.length),
            piece: piece(self.parts.len() as u32, 0, text),
        }
    }

    /// The call that appends a piece to the last part.
    pub(crate) fn next_append(&self, text: &str) -> AppendRequest {
        let last = self.parts.last().expect("a part is open");
        self.append_call(piece(self.parts.len() as u32 - 1, last.length, text))
    }

    pub(crate) fn append_call(&self, piece: Piece) -> AppendRequest {
        AppendRequest {
            message: self.message.clone(),
            owner: self.owner.clone(),
            attempt: self.attempt,
            piece,
        }
    }

    /// The call that renews the lease and names all that was written.
    pub(crate) fn renewal(&self) -> RenewRequest {
        RenewRequest {
            message: self.message.clone(),
            owner: self.owner.clone(),
            attempt: self.attempt,
            parts: self.parts.len() as u32,
            last_length: self.parts.last().map_or(0, |part| part.length),
            pieces: ALL_PIECES,
        }
    }

    /// Records that the call has opened its part.
    pub(crate) fn record_opening(&mut self, call: &OpenPartRequest) {
        self.parts.push(InFlightPart {
            kind: call.kind.as_str().to_owned(),
            meta: call.meta.as_deref().map(str::to_owned),
            length: call.piece.range.end,
            text: call.piece.text.clone(),
        });
    }

    /// Records that the call has appended its piece.
    pub(crate) fn record_append(&mut self, call: &AppendRequest) {
        let last = self.parts.last_mut().expect("a part is open");
        last.text.push_str(&call.piece.text);
        last.length = call.piece.range.end;
    }

    pub(crate) async fn open(
        &mut self,
        fanout: &dyn Fanout,
        kind: PartKind,
        meta: Option<&str>,
        text: &str,
    ) -> Result<StreamResponse> {
        let call = self.next_opening(kind, meta, text);
        let response = fanout.open_part(call.clone()).await?;
        if matches!(response, StreamResponse::Confirmed(_)) {
            self.record_opening(&call);
        }
        Ok(response)
    }

    pub(crate) async fn append(&mut self, fanout: &dyn Fanout, text: &str) -> Result<u64> {
        let call = self.next_append(text);
        let pieces = fanout.append(call.clone()).await?;
        if pieces > 0 {
            self.record_append(&call);
        }
        Ok(pieces)
    }

    pub(crate) async fn renew(&self, fanout: &dyn Fanout) -> Result<StreamResponse> {
        fanout.renew(self.renewal()).await
    }

    /// The published frame of an opening without its sequence number.
    pub(crate) fn opening_frame(&self, call: &OpenPartRequest) -> String {
        let meta = call.meta.as_deref().map(str::to_owned);
        let meta = meta.map(|meta| RawValue::from_string(meta).unwrap());
        let opening = PartOpening {
            kind: call.kind.as_str(),
            meta: meta.as_deref(),
            previous_end: call.previous_end,
        };
        self.frame(&call.piece, Some(opening))
    }

    /// The published frame of a later delta.
    pub(crate) fn delta_frame(&self, call: &AppendRequest) -> String {
        self.frame(&call.piece, None)
    }

    fn frame(&self, piece: &Piece, opening: Option<PartOpening<'_>>) -> String {
        let target = DeltaTarget {
            message_id: &self.message.message_id,
            id: self.message.id.as_ref(),
            conversation: &self.message.conversation,
            stream: &self.stream(),
            attempt: self.attempt,
        };
        delta_frame(target, piece.range, opening, &piece.text)
    }
}
