//! The call `forget` on a user's state: removes one conversation, or all conversations of the user,
//! and leaves tombstones of their messages.

use std::collections::BTreeMap;

use super::UserState;
use super::final_state::{FinalState, StoredFinalState};
use super::history::turn_header;
use crate::fanout::Result;
use crate::fanout::embedded::codec::damaged_entry_error;
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys::{self, Tag};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::position::Position;
use crate::store::{Batch, Table};

/// Maximum number of entries per scan of the store.
const PAGE_ENTRIES: usize = 256;

/// Which conversations a `forget` covers.
pub(in crate::fanout::embedded) struct ForgetScope<'a> {
    /// The only conversation that is covered; `None` for all conversations.
    conversation: Option<&'a ConversationId>,
    /// Whether the default conversation is covered. A message without a conversation (answered by a
    /// worker of the original system) belongs to the default conversation.
    includes_default: bool,
}

impl<'a> ForgetScope<'a> {
    pub(in crate::fanout::embedded) fn new(conversation: Option<&'a ConversationId>) -> Self {
        let default = ConversationId::default_conversation();
        Self {
            conversation,
            includes_default: conversation.is_none_or(|conversation| *conversation == default),
        }
    }

    /// Whether messages of this conversation are forgotten. `None` stands for messages without a
    /// conversation.
    pub(super) fn includes(&self, conversation: Option<&ConversationId>) -> bool {
        match (self.conversation, conversation) {
            (_, None) => self.includes_default,
            (None, _) => true,
            (Some(only), Some(conversation)) => only == conversation,
        }
    }
}

/// The messages to forget, with the position of the delivered record; `None` if no record was
/// delivered.
type ForgottenMessages = BTreeMap<MessageId, Option<Position>>;

impl UserState {
    /// See [`crate::fanout::History::forget`].
    ///
    /// The first commit covers the messages in scope that have an outcome or a mailbox frame, are
    /// pending, or are being answered: it deletes their frames and pending entries, and leaves
    /// tombstones. Then one commit per conversation deletes its turns. If a commit fails, calling
    /// this again removes what is left.
    pub(in crate::fanout::embedded) fn forget(
        &mut self,
        scope: &ForgetScope<'_>,
        context: &StoreContext<'_>,
    ) -> Result<bool> {
        let mut batch = Batch::default();
        let mut forgotten = self.messages_with_outcome(scope, context)?;
        let mut cancelled = self.pending_or_in_flight(scope, context)?;
        if let Some(mailbox) = &mut self.mailbox {
            for (message, position) in mailbox.forget(&mut batch, &self.user, scope, context)? {
                let delivered_at = forgotten.entry(message).or_default();
                delivered_at.get_or_insert(position);
            }
        }
        cancelled.retain(|message| {
            let has_outcome = forgotten.contains_key(message);
            forgotten.entry(message.clone()).or_default();
            !has_outcome
        });
        for (message, delivered_at) in &forgotten {
            self.remove_pending(&mut batch, message);
            self.in_flight.remove(message);
            self.put_tombstone(&mut batch, message, delivered_at.as_ref(), context);
        }
        let mut is_found = !forgotten.is_empty();
        if is_found {
            context.store.commit(batch)?;
        }
        for message in &cancelled {
            self.publish_cancel(message);
        }

        let conversations = match scope.conversation {
            Some(conversation) => vec![conversation.clone()],
            None => self.conversation_names(context)?,
        };
        for conversation in conversations {
            is_found |= self.forget_turns(&conversation, &forgotten, context)?;
        }
        Ok(is_found)
    }

    /// Returns the messages in scope that have an outcome.
    fn messages_with_outcome(
        &self,
        scope: &ForgetScope<'_>,
        context: &StoreContext<'_>,
    ) -> Result<ForgottenMessages> {
        let mut found = ForgottenMessages::new();
        let (mut from, to) = keys::tag_range(&self.user, Tag::Outcome, Tag::Outcome);
        loop {
            let page = context
                .store
                .scan(Table::Users, &from, &to, PAGE_ENTRIES, false)?;
            for (key, value) in &page {
                let stored = StoredFinalState::decode(value)?;
                if let FinalState::Outcome(outcome) = stored.state
                    && scope.includes(stored.conversation.as_ref())
                {
                    let (.., suffix) = keys::parse(key).ok_or_else(damaged_entry_error)?;
                    found.insert(keys::parse_message(suffix)?, outcome.delivered_at);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE_ENTRIES => from = keys::successor(key),
                _ => return Ok(found),
            }
        }
    }

    /// Returns the messages in scope that are pending or whose answer is in flight.
    fn pending_or_in_flight(
        &self,
        scope: &ForgetScope<'_>,
        context: &StoreContext<'_>,
    ) -> Result<Vec<MessageId>> {
        let pending = self.pending_messages(context)?.into_iter();
        let mut messages: Vec<_> = pending
            .filter(|message| scope.includes(Some(&message.conversation)))
            .map(|message| message.message_id)
            .collect();
        let in_flight = self.in_flight.iter();
        messages.extend(
            in_flight
                .filter(|(_, answer)| scope.includes(Some(&answer.conversation)))
                .map(|(message, _)| message.clone()),
        );
        messages.sort();
        messages.dedup();
        Ok(messages)
    }

    /// Removes a conversation's turns and leaves tombstones of their messages. The messages in
    /// `forgotten` already have a tombstone. Returns whether the conversation had a turn.
    fn forget_turns(
        &mut self,
        conversation: &ConversationId,
        forgotten: &ForgottenMessages,
        context: &StoreContext<'_>,
    ) -> Result<bool> {
        let mut batch = Batch::default();
        let (mut from, to) = keys::turns(&self.user, conversation);
        loop {
            let page = context
                .store
                .scan(Table::History, &from, &to, PAGE_ENTRIES, false)?;
            for (key, value) in &page {
                let (_, message) = turn_header(value)?;
                batch.delete(Table::History, key.clone());
                let index = keys::turn_index(&self.user, conversation, &message);
                batch.delete(Table::History, index);
                if !forgotten.contains_key(&message) {
                    let state = self.final_state(&message, context)?;
                    let delivered_at = state.and_then(FinalState::delivered_at);
                    self.put_tombstone(&mut batch, &message, delivered_at.as_ref(), context);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE_ENTRIES => from = keys::successor(key),
                _ => break,
            }
        }
        self.history_heads.remove(conversation);
        if batch.is_empty() {
            return Ok(false);
        }
        context.store.commit(batch)?;
        Ok(true)
    }
}
