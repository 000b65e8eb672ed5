//! How messages have ended: outcomes, and the note that one was forgotten.

use super::codec::{Reader, Writer, damaged};
use super::keys;
use super::user::{UserState, expired};
use super::users::World;
use crate::fanout::{DeliveredOutcome, Result, StoredOutcome};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::position::Position;
use crate::store::{Batch, Table};

/// What is known of a message that has ended.
#[derive(Debug)]
pub(super) enum End {
    Outcome(StoredOutcome),
    /// It was forgotten, and leaves nothing behind. Where an end was delivered; without, its user
    /// is still to be told that it is cancelled.
    Forgotten(Option<Position>),
}

impl End {
    /// Where it was delivered.
    pub(super) fn delivered(self) -> Option<Position> {
        match self {
            Self::Outcome(outcome) => outcome.delivered_at,
            Self::Forgotten(delivered) => delivered,
        }
    }
}

/// An end as it is stored: an outcome with its frame, a forgotten message without.
pub(super) struct StoredEnd {
    pub(super) at_ms: i64,
    pub(super) conversation: Option<ConversationId>,
    pub(super) end: End,
}

impl StoredEnd {
    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(value);
        let at_ms = reader.number()?;
        let delivered = match reader.optional()? {
            Some(position) => Some(position.parse().map_err(|_| damaged())?),
            None => None,
        };
        let conversation = reader.conversation()?;
        let end = match reader.rest()? {
            "" => End::Forgotten(delivered),
            frame => End::Outcome(StoredOutcome {
                frame: frame.to_owned(),
                delivered_at: delivered,
            }),
        };
        Ok(Self {
            at_ms,
            conversation,
            end,
        })
    }
}

impl UserState {
    /// How the message has ended, if it has.
    pub(super) fn end(&self, message: &MessageId, world: &World<'_>) -> Result<Option<End>> {
        let key = keys::outcome(&self.user, message);
        let Some(value) = world.store.get(Table::Users, &key)? else {
            return Ok(None);
        };
        let stored = StoredEnd::decode(&value)?;
        Ok((!expired(stored.at_ms, world.bounds.dedup_ttl, world.now_ms)).then_some(stored.end))
    }

    /// Those that were delivered.
    pub(super) fn delivered(
        &self,
        messages: &[MessageId],
        world: &World<'_>,
    ) -> Result<Vec<DeliveredOutcome>> {
        let mut found = Vec::new();
        for message in messages {
            let (position, frame) = match self.end(message, world)? {
                Some(End::Outcome(outcome)) => (outcome.delivered_at, Some(outcome.frame)),
                Some(End::Forgotten(position)) => (position, None),
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

    /// Notes an outcome.
    pub(super) fn put_outcome(
        &self,
        batch: &mut Batch,
        message: &MessageId,
        conversation: Option<&ConversationId>,
        delivered: Option<&Position>,
        frame: &str,
        world: &World<'_>,
    ) {
        let delivered = delivered.map(ToString::to_string);
        let value = Writer::with_capacity(frame.len() + 160)
            .number(world.now_ms)
            .optional(delivered.as_deref())
            .optional(conversation.map(ConversationId::as_str))
            .rest(frame);
        batch.put(Table::Users, keys::outcome(&self.user, message), value);
    }

    /// Notes that the message is forgotten.
    pub(super) fn put_forgotten(
        &self,
        batch: &mut Batch,
        message: &MessageId,
        delivered: Option<&Position>,
        world: &World<'_>,
    ) {
        self.put_outcome(batch, message, None, delivered, "", world);
    }
}
