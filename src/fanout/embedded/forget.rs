//! A user has a conversation, or everything, forgotten.

use std::collections::BTreeMap;

use super::codec::damaged;
use super::end::{End, StoredEnd};
use super::history::age_and_message;
use super::keys::{self, Tag};
use super::user::UserState;
use super::users::World;
use crate::fanout::Result;
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::position::Position;
use crate::store::{Batch, Table};

/// Entries that are read from the store at once.
const PAGE: usize = 256;

/// What is to be forgotten.
pub(super) struct Which<'a> {
    /// This conversation; `None` for everything.
    only: Option<&'a ConversationId>,
    /// A message without a conversation (an original worker's answer) belongs to the default one.
    default: bool,
}

impl<'a> Which<'a> {
    pub(super) fn of(only: Option<&'a ConversationId>) -> Self {
        Self {
            only,
            default: only.is_none_or(|only| *only == ConversationId::default_conversation()),
        }
    }

    /// Whether what is of this conversation goes.
    pub(super) fn has(&self, conversation: Option<&ConversationId>) -> bool {
        match (self.only, conversation) {
            (_, None) => self.default,
            (None, _) => true,
            (Some(only), Some(conversation)) => only == conversation,
        }
    }
}

/// Messages, and where their end was delivered as far as is known.
type Gone = BTreeMap<MessageId, Option<Position>>;

impl UserState {
    /// See [`crate::fanout::Fanout::forget`]. The first commit ends what is open; each of the
    /// others removes one conversation. A repeat finds what is left after a failure.
    pub(super) fn forget(&mut self, which: &Which<'_>, world: &World<'_>) -> Result<bool> {
        let mut batch = Batch::default();
        let mut gone = self.ended(which, world)?;
        let mut open = self.open(which, world)?;
        if let Some(mailbox) = &mut self.mailbox {
            for (message, position) in mailbox.forget(&mut batch, &self.user, which, world)? {
                gone.entry(message).or_default().get_or_insert(position);
            }
        }
        open.retain(|message| {
            let ended = gone.contains_key(message);
            gone.entry(message.clone()).or_default();
            !ended
        });
        for (message, delivered) in &gone {
            self.remove_pending(&mut batch, message);
            self.flights.remove(message);
            self.put_forgotten(&mut batch, message, delivered.as_ref(), world);
        }
        let mut found = !gone.is_empty();
        if found {
            world.store.commit(batch)?;
        }
        for message in &open {
            self.publish_cancel(message);
        }

        let conversations = match which.only {
            Some(only) => vec![only.clone()],
            None => self.conversation_names(world)?,
        };
        for conversation in conversations {
            found |= self.forget_turns(&conversation, &gone, world)?;
        }
        Ok(found)
    }

    /// Messages whose outcome is kept.
    fn ended(&self, which: &Which<'_>, world: &World<'_>) -> Result<Gone> {
        let mut gone = Gone::new();
        let (mut from, to) = keys::range(&self.user, Tag::Outcome, Tag::Outcome);
        loop {
            let page = world.store.scan(Table::Users, &from, &to, PAGE, false)?;
            for (key, value) in &page {
                let stored = StoredEnd::decode(value)?;
                if let End::Outcome(outcome) = stored.end
                    && which.has(stored.conversation.as_ref())
                {
                    let (.., rest) = keys::parse(key).ok_or_else(damaged)?;
                    let message = std::str::from_utf8(rest).map_err(|_| damaged())?;
                    let message = MessageId::parse(message).map_err(|_| damaged())?;
                    gone.insert(message, outcome.delivered_at);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => {
                    from.clone_from(key);
                    from.push(0);
                }
                _ => return Ok(gone),
            }
        }
    }

    /// Messages that are pending or in flight.
    fn open(&self, which: &Which<'_>, world: &World<'_>) -> Result<Vec<MessageId>> {
        let pending = self.pending(world)?.into_iter();
        let mut open: Vec<_> = pending
            .filter(|one| which.has(Some(&one.conversation)))
            .map(|one| one.message_id)
            .collect();
        let flights = self.flights.iter();
        open.extend(
            flights
                .filter(|(_, flight)| which.has(Some(&flight.conversation)))
                .map(|(message, _)| message.clone()),
        );
        open.sort();
        open.dedup();
        Ok(open)
    }

    /// Removes a conversation's turns, and remembers their messages as forgotten; those of `done`
    /// are.
    fn forget_turns(
        &mut self,
        conversation: &ConversationId,
        done: &Gone,
        world: &World<'_>,
    ) -> Result<bool> {
        let mut batch = Batch::default();
        let (mut from, to) = keys::turns(&self.user, conversation);
        loop {
            let page = world.store.scan(Table::History, &from, &to, PAGE, false)?;
            for (key, value) in &page {
                let (_, message) = age_and_message(value)?;
                batch.delete(Table::History, key.clone());
                let index = keys::turn_of(&self.user, conversation, &message);
                batch.delete(Table::History, index);
                if !done.contains_key(&message) {
                    let delivered = self.end(&message, world)?.and_then(End::delivered);
                    self.put_forgotten(&mut batch, &message, delivered.as_ref(), world);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => {
                    from.clone_from(key);
                    from.push(0);
                }
                _ => break,
            }
        }
        self.last_turn.remove(conversation);
        if batch.is_empty() {
            return Ok(false);
        }
        world.store.commit(batch)?;
        Ok(true)
    }
}
