//! Tracks the messages of one user whose answers are pending, and the order in which the answers
//! must arrive.
//!
//! A pending message may not be in the log: a gateway may have died, or the log may have been
//! unavailable, before the message was appended, and then no answer follows. Nor need it have been
//! sent over a connection of this gateway: a mailbox read also returns the pending messages that
//! other gateways admitted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::protocol::ids::{ConversationId, MessageId};

/// Maximum number of pending messages per user. At this number, the message that was added first is
/// removed when another message is added.
const MAX_PENDING: usize = 256;

/// Time after which a pending message is removed, because its answer is not expected any more. By
/// default, a worker answers `expired` to a message of this age (`MESSAGE_MAX_AGE`).
const MAX_PENDING_AGE: Duration = Duration::from_secs(12 * 3600);

/// Whether answers are pending, and whether they are certain to come. A draining gateway waits for
/// the answers before it closes a classic connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum PendingStatus {
    /// No answer is pending.
    None,
    /// Answers are pending only for messages that may never have reached the log.
    Unconfirmed {
        /// When the last of these messages was added.
        newest_added_at: Instant,
    },
    /// The answer of a message that is in the log is pending, so the answer will come.
    InLog,
}

/// A message whose answer is pending.
struct PendingAnswer {
    /// When the message was added here.
    added_at: Instant,
    /// The correlation id of the message; empty where it is unknown.
    correlation_id: Arc<str>,
    conversation: Option<ConversationId>,
    is_in_log: bool,
    /// Whether the terminal frame is sent even if a rewind stored or published it again: the
    /// message was admitted here, or its frame was published to connections here. The frame of any
    /// other message may have reached the client through another gateway before Redis lost its
    /// data.
    must_send: bool,
    /// Whether the message was added when this gateway admitted it, so that `added_at` orders it
    /// among the other messages of this kind. The place of any other message is unknown.
    is_ordered: bool,
    /// Whether a mailbox read returned the terminal frame of a later message, and had not returned
    /// the terminal frame of this message before. No other frame waits for this message then.
    is_overtaken: bool,
}

/// The pending answers of one user.
#[derive(Default)]
pub(in crate::gateway) struct PendingAnswers {
    messages: HashMap<MessageId, PendingAnswer>,
    /// Publishes the status to the receivers of [`Self::watch`]; `None` before the first call.
    status: Option<watch::Sender<PendingStatus>>,
}

impl PendingAnswers {
    pub(in crate::gateway) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(in crate::gateway) fn contains(&self, id: &MessageId) -> bool {
        self.messages.contains_key(id)
    }

    /// The ids of all pending messages in the order in which the messages were added.
    pub(in crate::gateway) fn ids_by_age(&self) -> Vec<MessageId> {
        let mut messages: Vec<_> = self.messages.iter().collect();
        messages.sort_by_key(|(_, message)| message.added_at);
        messages.into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// The ids of up to four pending messages, for a log line.
    pub(in crate::gateway) fn sample_ids(&self) -> Vec<&MessageId> {
        self.messages.keys().take(4).collect()
    }

    /// Returns a receiver of the current status and of every change.
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
        let added_at = self.messages.values().map(|message| message.added_at);
        match added_at.max() {
            Some(newest_added_at) => PendingStatus::Unconfirmed { newest_added_at },
            None => PendingStatus::None,
        }
    }

    fn notify_watchers(&self) {
        if let Some(sender) = &self.status {
            let now = self.current_status();
            sender.send_if_modified(|status| std::mem::replace(status, now) != now);
        }
    }

    /// Adds a message that this gateway admitted, after all other messages that it admitted.
    /// Whether the message reaches the log is not known yet.
    pub(in crate::gateway) fn add_ordered(
        &mut self,
        id: MessageId,
        correlation_id: Arc<str>,
        conversation: Option<ConversationId>,
    ) {
        self.add(id, correlation_id, conversation, true);
    }

    /// Adds a message that another gateway admitted, or that was admitted before it was sent again.
    /// Its place among the messages that this gateway admitted is unknown.
    pub(in crate::gateway) fn add_unordered(
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
            && let Some((oldest_id, _)) = self.messages.iter().min_by_key(|(_, m)| m.added_at)
        {
            let oldest_id = oldest_id.clone();
            self.messages.remove(&oldest_id);
        }
        self.messages.insert(
            id,
            PendingAnswer {
                added_at: Instant::now(),
                correlation_id,
                conversation,
                is_in_log: false,
                must_send: is_ordered,
                is_ordered,
                is_overtaken: false,
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
    /// read. The frame must then be sent even if a rewind has stored it in the mailbox again.
    pub(in crate::gateway) fn set_must_send(&mut self, id: &MessageId) {
        if let Some(message) = self.messages.get_mut(id) {
            message.must_send = true;
        }
    }

    /// Whether the message is pending, and its terminal frame must be sent even if a rewind stored
    /// or published it again.
    pub(in crate::gateway) fn must_send(&self, id: &MessageId) -> bool {
        self.messages
            .get(id)
            .is_some_and(|message| message.must_send)
    }

    /// Removes a message whose terminal frame was processed or will never come.
    pub(in crate::gateway) fn remove(&mut self, id: &MessageId) {
        self.messages.remove(id);
        self.notify_watchers();
    }

    /// Removes the messages that have reached [`MAX_PENDING_AGE`].
    pub(in crate::gateway) fn remove_expired(&mut self) {
        self.messages
            .retain(|_, message| message.added_at.elapsed() < MAX_PENDING_AGE);
        self.notify_watchers();
    }

    /// Finds a message by its correlation id, which is unique per message in this process. An
    /// original worker identifies a message only by its correlation id.
    pub(in crate::gateway) fn find_by_correlation_id(
        &self,
        correlation_id: &str,
    ) -> Option<&MessageId> {
        let mut messages = self.messages.iter();
        let found = messages.find(|(_, message)| &*message.correlation_id == correlation_id);
        found.map(|(id, _)| id)
    }

    /// The correlation id of a pending message; empty where it is unknown.
    pub(in crate::gateway) fn correlation_id(&self, id: &MessageId) -> Arc<str> {
        let message = self.messages.get(id);
        message.map_or_else(|| "".into(), |message| message.correlation_id.clone())
    }

    /// Whether the terminal frame of message `id` may be out of order: another message of the
    /// conversation is pending and not known to follow message `id`. This gateway may have missed
    /// the terminal frame of that message, which may have to be sent first.
    pub(in crate::gateway) fn is_out_of_order(
        &self,
        id: &MessageId,
        conversation: &ConversationId,
    ) -> bool {
        let message = self.messages.get(id).filter(|message| message.is_ordered);
        let added_at = message.map(|message| message.added_at);
        let is_known_to_follow = |other: &PendingAnswer| {
            other.is_ordered && added_at.is_some_and(|added_at| added_at < other.added_at)
        };
        self.messages.iter().any(|(other_id, other)| {
            other_id != id
                && !other.is_overtaken
                && other.conversation.as_ref() == Some(conversation)
                && !is_known_to_follow(other)
        })
    }

    /// Records that the terminal frame of message `id` was read from the mailbox, which returns
    /// frames in order. Earlier messages of its conversation that are still pending have no earlier
    /// frame in the mailbox, so no other frame waits for them any more.
    pub(in crate::gateway) fn record_mailbox_read(&mut self, id: &MessageId) {
        let Some(read) = self.messages.get(id).filter(|message| message.is_ordered) else {
            return;
        };
        let (added_at, conversation) = (read.added_at, read.conversation.clone());
        for other in self.messages.values_mut() {
            other.is_overtaken |= other.added_at < added_at && other.conversation == conversation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MessageId {
        MessageId::parse(text).unwrap()
    }

    /// The pending answers of messages that this gateway admitted to one conversation, in the order
    /// of `ids`.
    fn admitted_in_order(ids: &[&str]) -> PendingAnswers {
        let mut pending = PendingAnswers::default();
        let mut added_at = Instant::now();
        for text in ids {
            let conversation = Some(ConversationId::default_conversation());
            pending.add_ordered(id(text), "c".into(), conversation);
            // The times are set explicitly, because a clock with a coarse resolution would return
            // the same time twice.
            added_at += Duration::from_millis(1);
            pending.messages.get_mut(&id(text)).unwrap().added_at = added_at;
        }
        pending
    }

    #[test]
    fn number_of_pending_answers_is_bounded() {
        let mut pending = PendingAnswers::default();
        for number in 0..2 * MAX_PENDING {
            pending.add_ordered(id(&number.to_string()), "c".into(), None);
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
        // The mailbox has returned m2's frame and none for m1 before it, so no frame waits for m1
        // any more.
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
        pending.add_unordered(id("m1"), "c".into(), Some(default.clone()));
        assert!(pending.is_out_of_order(&id("m1"), &default));
        assert!(
            pending.is_out_of_order(&id("m2"), &default),
            "although m1 became known later"
        );
        // Reading m1's frame does not release m2, because m2 may precede or follow m1.
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
        let newest_added_at = pending.messages[&id("m2")].added_at;
        let unconfirmed = PendingStatus::Unconfirmed { newest_added_at };
        let status = pending.watch();
        assert_eq!(*status.borrow(), unconfirmed);
        pending.set_in_log(&id("m1"));
        assert_eq!(*status.borrow(), PendingStatus::InLog);
        pending.remove(&id("m1"));
        assert_eq!(*status.borrow(), unconfirmed);
        pending.remove(&id("m2"));
        assert_eq!(*status.borrow(), PendingStatus::None);
    }
}
