//! Reads and writes the final states of messages: outcomes, and tombstones of forgotten messages.

use super::UserState;
use crate::fanout::embedded::codec::{Reader, Writer, damaged_entry_error};
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys;
use crate::fanout::{DeliveredOutcome, Result, StoredOutcome};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::position::Position;
use crate::store::{Batch, Table};

/// The final state of a message: it has an outcome, or it was forgotten.
#[derive(Debug)]
pub(super) enum FinalState {
    /// The message has an outcome.
    Outcome(StoredOutcome),
    /// The message was forgotten, and nothing else of it is stored. Contains the position of the
    /// delivered record; `None` if no outcome was delivered yet.
    Tombstone(Option<Position>),
}

impl FinalState {
    /// Position of the delivered record; `None` if no outcome was delivered yet.
    pub(super) fn delivered_at(self) -> Option<Position> {
        match self {
            Self::Outcome(outcome) => outcome.delivered_at,
            Self::Tombstone(delivered_at) => delivered_at,
        }
    }
}

/// A final state as it is stored. The frame of an outcome is its last field; a tombstone has an
/// empty frame.
pub(super) struct StoredFinalState {
    /// When the final state was stored, in milliseconds since the Unix epoch.
    pub(super) at_ms: i64,
    /// The message's conversation; `None` for a tombstone or if the record names no conversation.
    pub(super) conversation: Option<ConversationId>,
    pub(super) state: FinalState,
}

impl StoredFinalState {
    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(value);
        let at_ms = reader.number()?;
        let delivered_at = match reader.optional_text()? {
            Some(position) => Some(position.parse().map_err(|_| damaged_entry_error())?),
            None => None,
        };
        let conversation = reader.conversation()?;
        let state = match reader.remainder()? {
            "" => FinalState::Tombstone(delivered_at),
            frame => FinalState::Outcome(StoredOutcome {
                frame: frame.to_owned(),
                delivered_at,
            }),
        };
        Ok(Self {
            at_ms,
            conversation,
            state,
        })
    }
}

impl UserState {
    /// The final state of a message; `None` if it has none yet or the final state has expired.
    pub(super) fn final_state(
        &self,
        message: &MessageId,
        context: &StoreContext<'_>,
    ) -> Result<Option<FinalState>> {
        let key = keys::outcome(&self.user, message);
        let Some(value) = context.store.get(Table::Users, &key)? else {
            return Ok(None);
        };
        let stored = StoredFinalState::decode(&value)?;
        let is_expired = context.is_expired(stored.at_ms, context.bounds.dedup_ttl);
        Ok((!is_expired).then_some(stored.state))
    }

    pub(in crate::fanout::embedded) fn delivered_outcomes(
        &self,
        messages: &[MessageId],
        context: &StoreContext<'_>,
    ) -> Result<Vec<DeliveredOutcome>> {
        let mut found = Vec::new();
        for message in messages {
            let (position, frame) = match self.final_state(message, context)? {
                Some(FinalState::Outcome(outcome)) => (outcome.delivered_at, Some(outcome.frame)),
                Some(FinalState::Tombstone(position)) => (position, None),
                None => (None, None),
            };
            if let Some(position) = position {
                found.push(DeliveredOutcome {
                    message_id: message.clone(),
                    position,
                    frame,
                });
            }
        }
        Ok(found)
    }

    pub(super) fn put_outcome(
        &self,
        batch: &mut Batch,
        message: &MessageId,
        conversation: Option<&ConversationId>,
        delivered_at: Option<&Position>,
        frame: &str,
        context: &StoreContext<'_>,
    ) {
        let delivered_at = delivered_at.map(ToString::to_string);
        let value = Writer::with_capacity(frame.len() + 160)
            .number(context.now_ms)
            .optional_text(delivered_at.as_deref())
            .optional_text(conversation.map(ConversationId::as_str))
            .finish_with(frame);
        batch.put(Table::Users, keys::outcome(&self.user, message), value);
    }

    pub(super) fn put_tombstone(
        &self,
        batch: &mut Batch,
        message: &MessageId,
        delivered_at: Option<&Position>,
        context: &StoreContext<'_>,
    ) {
        self.put_outcome(batch, message, None, delivered_at, "", context);
    }
}
