//! The calls `conversations` and `history` on a user's state, with which a gateway shows the
//! history to the user.

use super::UserState;
use super::history::{PAGE_TURNS, decode_turn, turn_header};
use crate::fanout::embedded::codec::damaged_entry_error;
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys;
use crate::fanout::{ConversationEntry, Result, Turn};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::store::Table;

impl UserState {
    /// The names of all conversations that have turns in the store, including expired turns.
    pub(super) fn conversation_names(
        &self,
        context: &StoreContext<'_>,
    ) -> Result<Vec<ConversationId>> {
        let mut names: Vec<ConversationId> = Vec::new();
        loop {
            let (from, to) = keys::conversations(&self.user, names.last());
            let first = context.store.scan(Table::History, &from, &to, 1, false)?;
            match first.first() {
                Some((key, _)) => {
                    names.push(keys::parse_conversation(key).ok_or_else(damaged_entry_error)?);
                }
                None => return Ok(names),
            }
        }
    }

    /// See [`crate::fanout::History::conversations`].
    pub(in crate::fanout::embedded) fn conversations(
        &self,
        after: Option<&ConversationId>,
        limit: usize,
        context: &StoreContext<'_>,
    ) -> Result<Vec<ConversationEntry>> {
        let mut entries = Vec::new();
        for name in self.conversation_names(context)? {
            entries.extend(self.conversation_entry(name, context)?);
        }
        entries.sort_by(|left, right| {
            let key = |entry: &ConversationEntry| (entry.updated_ms, entry.conversation.clone());
            key(right).cmp(&key(left))
        });
        let start = match after {
            None => 0,
            Some(after) => {
                let mut conversations = entries.iter().map(|entry| &entry.conversation);
                let index = conversations.position(|conversation| conversation == after);
                index.map_or(entries.len(), |index| index + 1)
            }
        };
        Ok(entries.into_iter().skip(start).take(limit).collect())
    }

    /// The list entry of a conversation; `None` if it has no turns or all of its turns have
    /// expired.
    fn conversation_entry(
        &self,
        conversation: ConversationId,
        context: &StoreContext<'_>,
    ) -> Result<Option<ConversationEntry>> {
        let (mut from, to) = keys::turns(&self.user, &conversation);
        let newest = context.store.scan(Table::History, &from, &to, 1, true)?;
        let Some((key, value)) = newest.first() else {
            return Ok(None);
        };
        let last = keys::parse_turn(key).ok_or_else(damaged_entry_error)?.2;
        let updated_ms = turn_header(value)?.0;
        // Sequence numbers have no gaps, so the number of turns follows from the sequence numbers
        // of the newest turn and of the oldest turn that has not expired.
        loop {
            let page = context
                .store
                .scan(Table::History, &from, &to, PAGE_TURNS, false)?;
            for (key, value) in &page {
                let at_ms = turn_header(value)?.0;
                if !context.is_expired(at_ms, context.bounds.history_ttl) {
                    let first = keys::parse_turn(key).ok_or_else(damaged_entry_error)?.2;
                    return Ok(Some(ConversationEntry {
                        conversation,
                        turns: last - first + 1,
                        updated_ms,
                    }));
                }
            }
            let Some((key, _)) = page.last() else {
                return Ok(None);
            };
            from = keys::successor(key);
        }
    }

    /// See [`crate::fanout::History::history`].
    pub(in crate::fanout::embedded) fn history(
        &self,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
        context: &StoreContext<'_>,
    ) -> Result<Option<Vec<Turn>>> {
        let ttl = context.bounds.history_ttl;
        let (from, mut to) = keys::turns(&self.user, conversation);
        if let Some(before) = before {
            match self.turn(conversation, before, context)? {
                Some((sequence, turn)) if !context.is_expired(turn.at_ms, ttl) => {
                    to = keys::turn(&self.user, conversation, sequence);
                }
                _ => return Ok(None),
            }
        }
        let mut turns = Vec::new();
        let limit = limit.min(context.bounds.history_turns);
        while turns.len() < limit {
            let count = PAGE_TURNS.min(limit - turns.len());
            let page = context
                .store
                .scan(Table::History, &from, &to, count, true)?;
            for (_, value) in &page {
                let turn = decode_turn(value)?;
                if context.is_expired(turn.at_ms, ttl) {
                    return Ok(Some(turns));
                }
                turns.push(turn);
            }
            match page.last() {
                Some((key, _)) => to.clone_from(key),
                None => break,
            }
        }
        Ok(Some(turns))
    }
}
