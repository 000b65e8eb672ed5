//! Reads and writes a user's pending messages and cancel marks.

use super::UserState;
use crate::fanout::embedded::codec::{Reader, Writer, damaged_entry_error};
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys;
use crate::fanout::{MessageRef, Result};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId};
use crate::protocol::open_message::PendingMessage;
use crate::store::{Batch, Table};

/// The part of a pending message that is in memory: where it is in the store, and when it was
/// recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingEntry {
    /// Sequence number of the entry in the store.
    sequence: u64,
    /// When the message was recorded, in milliseconds since the Unix epoch.
    at_ms: i64,
}

impl PendingEntry {
    /// Decodes the beginning of the value that [`UserState::put_pending`] writes: when the message
    /// was recorded, and its id.
    pub(super) fn decode(sequence: u64, value: &[u8]) -> Result<(MessageId, Self)> {
        let mut reader = Reader::new(value);
        let at_ms = reader.number()?;
        let message = MessageId::parse(reader.text()?).map_err(|_| damaged_entry_error())?;
        Ok((message, Self { sequence, at_ms }))
    }
}

/// Decodes the whole value that [`UserState::put_pending`] writes.
fn decode_message(value: &[u8]) -> Result<PendingMessage> {
    let mut reader = Reader::new(value);
    reader.number()?;
    let message_id = MessageId::parse(reader.text()?).map_err(|_| damaged_entry_error())?;
    let id = match reader.optional_text()? {
        Some(id) => Some(ClientMessageId::parse(id).map_err(|_| damaged_entry_error())?),
        None => None,
    };
    Ok(PendingMessage {
        message_id,
        id,
        conversation: ConversationId::parse(reader.text()?).map_err(|_| damaged_entry_error())?,
        content: reader.remainder()?.to_owned(),
    })
}

impl UserState {
    /// Whether the message is pending. False once its entry has expired.
    pub(super) fn is_pending(&self, message: &MessageId, context: &StoreContext<'_>) -> bool {
        let ttl = context.bounds.pending_ttl;
        self.pending
            .get(message)
            .is_some_and(|entry| !context.is_expired(entry.at_ms, ttl))
    }

    /// Number of pending messages whose entry has not expired.
    pub(super) fn pending_count(&self, context: &StoreContext<'_>) -> usize {
        let ttl = context.bounds.pending_ttl;
        let entries = self.pending.values();
        entries
            .filter(|entry| !context.is_expired(entry.at_ms, ttl))
            .count()
    }

    /// All pending messages whose entry has not expired, oldest first.
    pub(super) fn pending_messages(
        &self,
        context: &StoreContext<'_>,
    ) -> Result<Vec<PendingMessage>> {
        let ttl = context.bounds.pending_ttl;
        let mut entries: Vec<_> = self
            .pending
            .values()
            .filter(|entry| !context.is_expired(entry.at_ms, ttl))
            .collect();
        entries.sort_by_key(|entry| entry.sequence);
        // Each entry is looked up by its key. A scan would be slower: most entries in the range
        // were removed, and a scan has to pass over them.
        let mut messages = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = keys::pending(&self.user, entry.sequence);
            if let Some(value) = context.store.get(Table::Users, &key)? {
                messages.push(decode_message(&value)?);
            }
        }
        Ok(messages)
    }

    /// Records a message as pending. An existing entry of the message is replaced.
    pub(super) fn put_pending(
        &mut self,
        batch: &mut Batch,
        message: &MessageRef,
        content: &str,
        context: &StoreContext<'_>,
    ) {
        self.remove_pending(batch, &message.message_id);
        let sequence = self.next_pending_sequence;
        self.next_pending_sequence += 1;
        let at_ms = context.now_ms;
        let value = Writer::with_capacity(content.len() + 128)
            .number(at_ms)
            .text(message.message_id.as_str())
            .optional_text(message.id.as_ref().map(ClientMessageId::as_str))
            .text(message.conversation.as_str())
            .finish_with(content);
        batch.put(Table::Users, keys::pending(&self.user, sequence), value);
        self.pending
            .insert(message.message_id.clone(), PendingEntry { sequence, at_ms });
    }

    /// Removes the pending entry of a message, if there is one.
    pub(super) fn remove_pending(&mut self, batch: &mut Batch, message: &MessageId) {
        if let Some(entry) = self.pending.remove(message) {
            batch.delete(Table::Users, keys::pending(&self.user, entry.sequence));
        }
    }

    /// Removes the expired entry with this sequence number from memory.
    pub(super) fn remove_expired_pending(&mut self, sequence: u64) {
        self.pending.retain(|_, entry| entry.sequence != sequence);
    }

    /// Whether the message has a cancel mark that has not expired.
    pub(super) fn is_cancelled(&self, message: &MessageId, context: &StoreContext<'_>) -> bool {
        let ttl = context.bounds.dedup_ttl;
        self.cancel_marks
            .get(message)
            .is_some_and(|at_ms| !context.is_expired(*at_ms, ttl))
    }

    /// Sets the cancel mark of a message.
    pub(super) fn mark_cancelled(
        &mut self,
        message: &MessageId,
        context: &StoreContext<'_>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        let key = keys::cancel_mark(&self.user, message);
        batch.put(Table::Users, key, context.now_ms.to_be_bytes());
        context.store.commit(batch)?;
        self.cancel_marks.insert(message.clone(), context.now_ms);
        Ok(())
    }

    /// Removes the pending entry of a message in a commit of its own.
    pub(in crate::fanout::embedded) fn clear_pending(
        &mut self,
        message: &MessageId,
        context: &StoreContext<'_>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        self.remove_pending(&mut batch, message);
        if !batch.is_empty() {
            context.store.commit(batch)?;
        }
        Ok(())
    }
}
