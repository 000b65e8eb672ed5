//! The history as its user sees it: conversations, and their turns from the newest back.

use super::codec::damaged;
use super::history::{age_and_message, decode};
use super::keys;
use super::user::{UserState, expired};
use super::users::World;
use crate::fanout::{ConversationEntry, Result, Turn};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::store::Table;

/// Turns that are read from the store at once.
const PAGE: usize = 32;

impl UserState {
    /// The names of all conversations with turns, however old.
    pub(super) fn conversation_names(&self, world: &World<'_>) -> Result<Vec<ConversationId>> {
        let mut names: Vec<ConversationId> = Vec::new();
        loop {
            let (from, to) = keys::conversations(&self.user, names.last());
            let first = world.store.scan(Table::History, &from, &to, 1, false)?;
            match first.first() {
                Some((key, _)) => names.push(keys::conversation_of(key).ok_or_else(damaged)?),
                None => return Ok(names),
            }
        }
    }

    /// See [`crate::fanout::Fanout::conversations`].
    pub(super) fn conversations(
        &self,
        after: Option<&ConversationId>,
        limit: usize,
        world: &World<'_>,
    ) -> Result<Vec<ConversationEntry>> {
        let mut entries = Vec::new();
        for name in self.conversation_names(world)? {
            entries.extend(self.entry(name, world)?);
        }
        entries.sort_by(|one, other| {
            let key = |entry: &ConversationEntry| (entry.updated_ms, entry.conversation.clone());
            key(other).cmp(&key(one))
        });
        let start = match after {
            None => 0,
            Some(after) => {
                let place = entries.iter().position(|one| one.conversation == *after);
                place.map_or(entries.len(), |place| place + 1)
            }
        };
        Ok(entries.into_iter().skip(start).take(limit).collect())
    }

    /// A conversation as it is listed, unless all of it is too old.
    fn entry(
        &self,
        conversation: ConversationId,
        world: &World<'_>,
    ) -> Result<Option<ConversationEntry>> {
        let (mut from, to) = keys::turns(&self.user, &conversation);
        let newest = world.store.scan(Table::History, &from, &to, 1, true)?;
        let Some((key, value)) = newest.first() else {
            return Ok(None);
        };
        let last = keys::parse_turn(key).ok_or_else(damaged)?.2;
        let updated_ms = age_and_message(value)?.0;
        // Numbers have no gaps, so the first that is not too old says how many there are.
        loop {
            let page = world.store.scan(Table::History, &from, &to, PAGE, false)?;
            for (key, value) in &page {
                if !expired(
                    age_and_message(value)?.0,
                    world.bounds.history_ttl,
                    world.now_ms,
                ) {
                    let first = keys::parse_turn(key).ok_or_else(damaged)?.2;
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
            from.clone_from(key);
            from.push(0);
        }
    }

    /// See [`crate::fanout::Fanout::history`].
    pub(super) fn history(
        &self,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
        world: &World<'_>,
    ) -> Result<Option<Vec<Turn>>> {
        let too_old = |at_ms| expired(at_ms, world.bounds.history_ttl, world.now_ms);
        let (from, mut to) = keys::turns(&self.user, conversation);
        if let Some(before) = before {
            match self.turn(conversation, before, world)? {
                Some((sequence, turn)) if !too_old(turn.at_ms) => {
                    to = keys::turn(&self.user, conversation, sequence);
                }
                _ => return Ok(None),
            }
        }
        let mut turns = Vec::new();
        let limit = limit.min(world.bounds.history_turns);
        while turns.len() < limit {
            let page = world.store.scan(
                Table::History,
                &from,
                &to,
                PAGE.min(limit - turns.len()),
                true,
            )?;
            for (_, value) in &page {
                let turn = decode(value)?;
                if too_old(turn.at_ms) {
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
