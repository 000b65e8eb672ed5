//! The state of one user in the embedded fan-out, and the calls that read and change it.
//!
//! [`UserState`] holds what is kept in memory. Outcomes, the frames of the mailbox and the history
//! are read from the store when a call needs them. Each file of this folder has an `impl UserState`
//! with one group of calls. The calls are deterministic: time and random numbers come from the
//! [`StoreContext`].

use std::collections::HashMap;

use super::codec::{Reader, damaged_entry_error};
use super::context::{StoreContext, is_expired};
use super::keys::{self, Tag};
use super::subscriptions::Subscriptions;
use crate::config::bounds::Bounds;
use crate::fanout::Result;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::store::Table;

mod admission;
mod answer;
mod cost;
mod delivery;
mod expiry;
mod final_state;
mod forget;
mod history;
mod limits;
mod listing;
mod mailbox;
mod pending;
mod publication;
mod read;
mod stream;

use answer::AnswerInFlight;
pub(super) use expiry::needs_expiry;
pub(super) use forget::ForgetScope;
use history::HistoryHead;
pub(super) use history::turn_header;
use mailbox::Mailbox;
use pending::PendingEntry;

/// Maximum number of entries per scan of the store.
const PAGE_ENTRIES: usize = 512;

/// The part of a user's state that is in memory. Guarded by the user's lock.
#[derive(Debug)]
pub(super) struct UserState {
    user: UserId,
    /// When a call last used the state, in milliseconds since the Unix epoch.
    pub(super) last_used_ms: i64,
    /// Whether a call is running. Still set at the next call if the call before panicked.
    pub(super) is_in_call: bool,
    /// Sequence number of the last published frame.
    n: u64,
    /// Random id of the sequence counter.
    n_id: String,
    pub(super) subscriptions: Subscriptions,
    /// Answers in flight, by message. They exist only in memory: after a restart their workers get
    /// `DataLost` and open all parts again.
    in_flight: HashMap<MessageId, AnswerInFlight>,
    /// Whether the fields below were loaded and have the same content as the store.
    is_loaded: bool,
    mailbox: Option<Mailbox>,
    /// Pending messages, including expired entries. Their content is only in the store.
    pending: HashMap<MessageId, PendingEntry>,
    /// Sequence number of the next pending entry.
    next_pending_sequence: u64,
    /// Cancel marks: for each message when it was cancelled, in milliseconds since the Unix epoch.
    pub(super) cancel_marks: HashMap<MessageId, i64>,
    /// Newest turn and version of the history of recently used conversations.
    history_heads: HashMap<ConversationId, HistoryHead>,
}

impl UserState {
    pub(super) fn new(user: UserId, context: &StoreContext<'_>) -> Self {
        Self {
            user,
            last_used_ms: context.now_ms,
            is_in_call: false,
            n: 0,
            n_id: context.random_id(),
            subscriptions: Subscriptions::default(),
            in_flight: HashMap::new(),
            is_loaded: false,
            mailbox: None,
            pending: HashMap::new(),
            next_pending_sequence: 0,
            cancel_marks: HashMap::new(),
            history_heads: HashMap::new(),
        }
    }

    /// Discards everything in memory but the subscriptions, because it may differ from the store.
    /// The next [`UserState::load`] loads it again.
    pub(super) fn reset(&mut self) {
        self.n = 0;
        self.n_id.clear();
        self.in_flight.clear();
        self.is_loaded = false;
        self.mailbox = None;
        self.pending.clear();
        self.cancel_marks.clear();
        self.history_heads.clear();
    }

    /// Loads the mailbox's head, the pending messages and the cancel marks from the store, unless
    /// they are loaded already.
    pub(super) fn load(&mut self, context: &StoreContext<'_>) -> Result<()> {
        if self.is_loaded {
            return Ok(());
        }
        self.reset();
        self.n_id = context.random_id();
        let (mut from, to) = keys::tag_range(&self.user, Tag::MailboxHead, Tag::CancelMark);
        loop {
            let page = context
                .store
                .scan(Table::Users, &from, &to, PAGE_ENTRIES, false)?;
            for (key, value) in &page {
                let (_, tag, suffix) = keys::parse(key).ok_or_else(damaged_entry_error)?;
                match tag {
                    Tag::MailboxHead => self.mailbox = Some(Mailbox::decode(value)?),
                    Tag::Pending => {
                        let sequence =
                            keys::parse_number(suffix).ok_or_else(damaged_entry_error)?;
                        let (message, entry) = PendingEntry::decode(sequence, value)?;
                        self.pending.insert(message, entry);
                        self.next_pending_sequence = self.next_pending_sequence.max(sequence + 1);
                    }
                    Tag::CancelMark => {
                        let at_ms = Reader::new(value).number()?;
                        self.cancel_marks
                            .insert(keys::parse_message(suffix)?, at_ms);
                    }
                    _ => {}
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE_ENTRIES => from = keys::successor(key),
                _ => break,
            }
        }
        self.is_loaded = true;
        Ok(())
    }

    /// Whether the state can be evicted: no call has used it since `before_ms`, and it has no
    /// answers in flight and no subscriptions, which exist only in memory.
    pub(super) fn is_idle(&self, before_ms: i64) -> bool {
        self.last_used_ms <= before_ms && self.in_flight.is_empty() && self.subscriptions.is_empty()
    }

    /// Removes expired answers in flight, and subscriptions of dropped feeds.
    pub(super) fn remove_expired(&mut self, now_ms: i64, bounds: &Bounds) {
        self.in_flight
            .retain(|_, answer| !is_expired(answer.lease_renewed_ms, bounds.pending_ttl, now_ms));
        self.subscriptions.remove_closed();
    }
}
