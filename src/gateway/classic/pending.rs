//! The messages of one user whose answers are pending, and the order in which these must arrive.
//!
//! Not every message in here is known to be in the log: a gateway may have died, or the log been
//! unavailable, before the message was appended, and then no answer follows. Nor does every message
//! belong to a connection of this gateway: a mailbox read also returns what other gateways
//! admitted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::protocol::ids::{ConversationId, MessageId};

/// Pending messages remembered per user; above it the oldest is dropped.
const MAX_PENDING: usize = 256;

/// After this time no answer is expected any more: the worker answers `expired` to a message of
/// that age (`MESSAGE_MAX_AGE`), or has answered it long ago.
const MAX_AGE: Duration = Duration::from_secs(12 * 3600);

/// Whether answers are pending that a connection should receive before it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum PendingStatus {
    /// No answer is pending.
    None,
    /// Only messages that may never have reached the log are pending.
    Unconfirmed {
        /// When the newest of them became known.
        newest: Instant,
    },
    /// A message that is in the log is pending, so its answer will come.
    InLog,
}

struct PendingAnswer {
    /// When the message became known here.
    known_since: Instant,
    /// Empty where it is not known.
    correlation_id: Arc<str>,
    conversation: Option<ConversationId>,
    is_in_log: bool,
    /// The terminal frame is sent wherever it is found, also among frames that a rewind stored
    /// again: the message was admitted here, or its frame was published to connections here. For
    /// other messages a client may have received it from another gateway before Redis lost its
    /// data.
    must_send: bool,
    /// Admitted by this gateway, so that `known_since` orders it among the others that were. The
    /// place of a message that another gateway admitted is unknown.
    is_ordered: bool,
    /// A mailbox read returned the terminal frame of a later message and no earlier one for this
    /// message. This message's terminal frame follows later, or never.
    successor_sent: bool,
}

/// The pending answers of one user.
#[derive(Default)]
pub(in crate::gateway) struct PendingAnswers {
    messages: HashMap<MessageId, PendingAnswer>,
    /// Created by the first [`Self::watch`].
    status: Option<watch::Sender<PendingStatus>>,
}

impl PendingAnswers {
    pub(in crate::gateway) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(in crate::gateway) fn contains(&self, id: &MessageId) -> bool {
        self.messages.contains_key(id)
    }

    /// The ids of all pending messages, the one that became known first at the front.
    pub(in crate::gateway) fn ids_by_age(&self) -> Vec<MessageId> {
        let mut all: Vec<_> = self.messages.iter().collect();
        all.sort_by_key(|(_, message)| message.known_since);
        all.into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// A few of the pending messages, for a log line.
    pub(in crate::gateway) fn sample(&self) -> Vec<&MessageId> {
        self.messages.keys().take(4).collect()
    }

    /// The status from now on.
    pub(in crate::gateway) fn watch(&mut self) -> watch::Receiver<PendingStatus> {
        let now = self.current_status();
        self.status
            .get_or_insert_with(|| watch::Sender::new(now))
            .subscribe()
    }

    fn current_status(&self) -> PendingStatus {
        if self.messages.values().any(|message| message.is_in_log) {
            return PendingStatus::InLog;
        }
        let newest = self
            .messages
            .values()
            .map(|message| message.known_since)
            .max();
        newest.map_or(PendingStatus::None, |newest| PendingStatus::Unconfirmed {
            newest,
        })
    }

    fn notify_watchers(&self) {
        if let Some(sender) = &self.status {
            let now = self.current_status();
            sender.send_if_modified(|status| std::mem::replace(status, now) != now);
        }
    }

    /// Adds a message that this gateway admitted, after all others that it admitted. Whether the
    /// message reaches the log is not known yet.
    pub(in crate::gateway) fn add_admitted_here(
        &mut self,
        id: MessageId,
        correlation_id: Arc<str>,
        conversation: Option<ConversationId>,
    ) {
        self.add(id, correlation_id, conversation, true);
    }

    /// Adds a message that some gateway admitted. Its order relative to the messages admitted here
    /// is unknown.
    pub(in crate::gateway) fn add_admitted_elsewhere(
        &mut self,
        id: MessageId,
        correlation_id: Arc<str>,
        conversation: Option<ConversationId>,
    ) {
        self.add(id, correlation_id, conversation, false);
    }

    fn add(
        &mut self,
        id: MessageId,
        correlation_id: Arc<str>,
        conversation: Option<ConversationId>,
        is_ordered: bool,
    ) {
        if self.messages.len() >= MAX_PENDING
            && let Some((oldest, _)) = self.messages.iter().min_by_key(|(_, m)| m.known_since)
        {
            let oldest = oldest.clone();
            self.messages.remove(&oldest);
        }
        self.messages.insert(
            id,
            PendingAnswer {
                known_since: Instant::now(),
                correlation_id,
                conversation,
                is_in_log: false,
                must_send: is_ordered,
                is_ordered,
                successor_sent: false,
            },
        );
        self.notify_watchers();
    }

    /// Records that the message is in the log, so that its answer will come.
    pub(in crate::gateway) fn set_in_log(&mut self, id: &MessageId) {
        if let Some(message) = self.messages.get_mut(id).filter(|m| !m.is_in_log) {
            message.is_in_log = true;
            self.notify_watchers();
        }
    }

    /// Records that the terminal frame was published to connections here and deferred to a mailbox
    /// read. The read must send the frame even if it returns it as a rebuilt one.
    pub(in crate::gateway) fn set_must_send(&mut self, id: &MessageId) {
        if let Some(message) = self.messages.get_mut(id) {
            message.must_send = true;
        }
    }

    pub(in crate::gateway) fn must_send(&self, id: &MessageId) -> bool {
        self.messages
            .get(id)
            .is_some_and(|message| message.must_send)
    }

    /// Removes a message whose terminal frame was processed, or that will never have one.
    pub(in crate::gateway) fn remove(&mut self, id: &MessageId) {
        self.messages.remove(id);
        self.notify_watchers();
    }

    pub(in crate::gateway) fn remove_expired(&mut self) {
        self.messages
            .retain(|_, message| message.known_since.elapsed() < MAX_AGE);
        self.notify_watchers();
    }

    /// Finds a message by its correlation id, which is unique per message in this process. Original
    /// workers identify a message by nothing else.
    pub(in crate::gateway) fn find_by_correlation_id(
        &self,
        correlation_id: &str,
    ) -> Option<&MessageId> {
        let mut messages = self.messages.iter();
        let found = messages.find(|(_, message)| &*message.correlation_id == correlation_id);
        found.map(|(id, _)| id)
    }

    /// The correlation id of a pending message; empty where it is not known.
    pub(in crate::gateway) fn correlation_id(&self, id: &MessageId) -> Arc<str> {
        let message = self.messages.get(id);
        message.map_or_else(|| "".into(), |message| message.correlation_id.clone())
    }

    /// Whether the terminal frame of `id` may be out of order: another message of its conversation
    /// is pending and not known to follow it, so that message's terminal frame may have been
    /// missed.
    pub(in crate::gateway) fn is_out_of_order(
        &self,
        id: &MessageId,
        conversation: &ConversationId,
    ) -> bool {
        let message = self.messages.get(id).filter(|message| message.is_ordered);
        let since = message.map(|message| message.known_since);
        let follows = |other: &PendingAnswer| {
            other.is_ordered && since.is_some_and(|at| at < other.known_since)
        };
        self.messages.iter().any(|(other, message)| {
            other != id
                && !message.successor_sent
                && message.conversation.as_ref() == Some(conversation)
                && !follows(message)
        })
    }

    /// Records that the terminal frame of `id` was read from the mailbox, after all frames that
    /// precede it there: no later frame of its conversation waits for an earlier message any more.
    pub(in crate::gateway) fn record_mailbox_read(&mut self, id: &MessageId) {
        let Some(read) = self.messages.get(id).filter(|message| message.is_ordered) else {
            return;
        };
        let (since, conversation) = (read.known_since, read.conversation.clone());
        for message in self.messages.values_mut() {
            message.successor_sent |=
                message.known_since < since && message.conversation == conversation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MessageId {
        MessageId::parse(text).unwrap()
    }

    fn admitted_in_order(ids: &[&str]) -> PendingAnswers {
        let mut pending = PendingAnswers::default();
        let mut since = Instant::now();
        for text in ids {
            let conversation = Some(ConversationId::default_conversation());
            pending.add_admitted_here(id(text), "c".into(), conversation);
            // Distinct times, which a clock with a coarse resolution would not give.
            since += Duration::from_millis(1);
            pending.messages.get_mut(&id(text)).unwrap().known_since = since;
        }
        pending
    }

    #[test]
    fn number_of_pending_answers_is_bounded() {
        let mut pending = PendingAnswers::default();
        for number in 0..2 * MAX_PENDING {
            pending.add_admitted_here(id(&number.to_string()), "c".into(), None);
        }
        assert_eq!(pending.messages.len(), MAX_PENDING);
    }

    #[test]
    fn answer_is_out_of_order_while_an_earlier_one_of_its_conversation_is_pending() {
        let mut pending = admitted_in_order(&["m1", "m2", "m3"]);
        let default = ConversationId::default_conversation();
        let other = ConversationId::parse("other").unwrap();
        assert!(!pending.is_out_of_order(&id("m1"), &default));
        assert!(pending.is_out_of_order(&id("m2"), &default));
        assert!(!pending.is_out_of_order(&id("m2"), &other));
        assert!(pending.is_out_of_order(&id("unknown"), &default));
        // The mailbox has no m1 before m2, so nothing waits for m1 any more.
        pending.record_mailbox_read(&id("m2"));
        assert!(!pending.is_out_of_order(&id("m2"), &default));
        assert!(
            pending.is_out_of_order(&id("m3"), &default),
            "m2 is still pending"
        );
        pending.remove(&id("m2"));
        assert!(!pending.is_out_of_order(&id("m3"), &default));
    }

    #[test]
    fn answer_is_out_of_order_while_the_place_of_another_message_is_unknown() {
        let mut pending = admitted_in_order(&["m2"]);
        let default = ConversationId::default_conversation();
        pending.add_admitted_elsewhere(id("m1"), "c".into(), Some(default.clone()));
        assert!(pending.is_out_of_order(&id("m1"), &default));
        assert!(
            pending.is_out_of_order(&id("m2"), &default),
            "although m1 became known later"
        );
        // Reading m1 says nothing about m2, which may precede or follow it.
        pending.record_mailbox_read(&id("m1"));
        pending.remove(&id("m1"));
        assert!(
            pending.is_out_of_order(&id("m3"), &default),
            "m2 may be missing"
        );
        assert!(!pending.is_out_of_order(&id("m2"), &default));
    }

    #[test]
    fn status_distinguishes_messages_in_the_log_from_unconfirmed_ones() {
        let mut pending = admitted_in_order(&["m1", "m2"]);
        let newest = pending.messages[&id("m2")].known_since;
        let status = pending.watch();
        assert_eq!(*status.borrow(), PendingStatus::Unconfirmed { newest });
        pending.set_in_log(&id("m1"));
        assert_eq!(*status.borrow(), PendingStatus::InLog);
        pending.remove(&id("m1"));
        assert_eq!(*status.borrow(), PendingStatus::Unconfirmed { newest });
        pending.remove(&id("m2"));
        assert_eq!(*status.borrow(), PendingStatus::None);
    }
}
