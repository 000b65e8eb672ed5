//! The messages whose answers a user's sockets here wait for.
//!
//! Not all of them are known to be in the log: a gateway may have died, or the log been away,
//! before the message came there, and then no answer comes. Nor are they all of this gateway's
//! sockets: a look at the user names what others left open.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::protocol::ids::{ConversationId, MessageId};

/// Messages of a user; the oldest give way.
const MOST: usize = 256;

/// After that the worker answers `expired`, or has answered long ago (`MESSAGE_MAX_AGE`).
const AGE: Duration = Duration::from_secs(12 * 3600);

/// What a socket that is to be closed may still wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    No,
    /// Messages that may never have come to the log, the newest of them known since then.
    Maybe(Instant),
    /// The answer of a message that is in the log.
    Answer,
}

struct Message {
    since: Instant,
    correlation_id: Arc<str>,
    /// Where that is known.
    conversation: Option<ConversationId>,
    in_log: bool,
    /// Its end is told wherever it is found, also among what a rewind has brought back: it was asked for
    /// here, or published to sockets here. Of others a socket may have had the end by another
    /// gateway, before Redis lost that.
    owed: bool,
    /// Admitted here, so that `since` tells its place among the others that are. Of what another
    /// gateway admitted, or a frame told of, that is not known.
    in_order: bool,
    /// The end of a later message was read from the mailbox, and this one's was not before it: it
    /// comes after that one, or never.
    passed: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Awaited {
    messages: HashMap<MessageId, Message>,
    /// Once somebody follows it.
    wait: Option<watch::Sender<Wait>>,
}

impl Awaited {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn has(&self, id: &MessageId) -> bool {
        self.messages.contains_key(id)
    }

    /// All of them, the one that is waited for longest first.
    pub(super) fn in_turn(&self) -> Vec<MessageId> {
        let mut all: Vec<_> = self.messages.iter().collect();
        all.sort_by_key(|(_, message)| message.since);
        all.into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// Some of them, for a log.
    pub(super) fn some(&self) -> Vec<&MessageId> {
        self.messages.keys().take(4).collect()
    }

    /// What is waited for from now on.
    pub(super) fn wait(&mut self) -> watch::Receiver<Wait> {
        let now = self.now();
        self.wait
            .get_or_insert_with(|| watch::Sender::new(now))
            .subscribe()
    }

    fn now(&self) -> Wait {
        if self.messages.values().any(|message| message.in_log) {
            return Wait::Answer;
        }
        let newest = self.messages.values().map(|message| message.since).max();
        newest.map_or(Wait::No, Wait::Maybe)
    }

    fn changed(&self) {
        if let Some(wait) = &self.wait {
            let now = self.now();
            wait.send_if_modified(|wait| std::mem::replace(wait, now) != now);
        }
    }

    /// It was admitted here, after all others that were; whether it comes to the log is not known yet.
    pub(super) fn admitted(
        &mut self,
        id: MessageId,
        correlation_id: Arc<str>,
        conversation: Option<ConversationId>,
    ) {
        self.add(id, correlation_id, conversation, true);
    }

    /// It was admitted at some time, somewhere.
    pub(super) fn open(
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
        in_order: bool,
    ) {
        if self.messages.len() >= MOST
            && let Some((oldest, _)) = self.messages.iter().min_by_key(|(_, one)| one.since)
        {
            let oldest = oldest.clone();
            self.messages.remove(&oldest);
        }
        self.messages.insert(
            id,
            Message {
                since: Instant::now(),
                correlation_id,
                conversation,
                in_log: false,
                owed: in_order,
                in_order,
                passed: false,
            },
        );
        self.changed();
    }

    /// It is in the log: its answer comes.
    pub(super) fn is_in_log(&mut self, id: &MessageId) {
        if let Some(message) = self.messages.get_mut(id).filter(|one| !one.in_log) {
            message.in_log = true;
            self.changed();
        }
    }

    /// Its end was published to sockets here, and is told by a reading of the mailbox.
    pub(super) fn is_owed_too(&mut self, id: &MessageId) {
        if let Some(message) = self.messages.get_mut(id) {
            message.owed = true;
        }
    }

    pub(super) fn is_owed(&self, id: &MessageId) -> bool {
        self.messages.get(id).is_some_and(|one| one.owed)
    }

    /// It has ended, or never will.
    pub(super) fn remove(&mut self, id: &MessageId) {
        self.messages.remove(id);
        self.changed();
    }

    pub(super) fn forget_old(&mut self) {
        self.messages.retain(|_, one| one.since.elapsed() < AGE);
        self.changed();
    }

    /// An original worker knows only the correlation id, which is unique per message here.
    pub(super) fn by_correlation(&self, correlation_id: &str) -> Option<&MessageId> {
        let mut messages = self.messages.iter();
        let found = messages.find(|(_, message)| &*message.correlation_id == correlation_id);
        found.map(|(id, _)| id)
    }

    /// By which its logs are followed; empty where that is not known.
    pub(super) fn correlation_id(&self, id: &MessageId) -> Arc<str> {
        let message = self.messages.get(id);
        message.map_or_else(|| "".into(), |one| one.correlation_id.clone())
    }

    /// Whether the end of `id` may have come too early: another message of its conversation has not
    /// ended here, and is not known to come after it, so its own end may have been missed.
    pub(super) fn is_early(&self, id: &MessageId, conversation: &ConversationId) -> bool {
        let ordered = |message: &&Message| message.in_order;
        let since = self.messages.get(id).filter(ordered).map(|one| one.since);
        let after = |other: &Message| other.in_order && since.is_some_and(|at| at < other.since);
        self.messages.iter().any(|(other, message)| {
            other != id
                && !message.passed
                && message.conversation.as_ref() == Some(conversation)
                && !after(message)
        })
    }

    /// The end of `id` was read from the mailbox, after all ends that come before it.
    pub(super) fn was_read(&mut self, id: &MessageId) {
        let Some(read) = self.messages.get(id).filter(|one| one.in_order) else {
            return;
        };
        let (since, conversation) = (read.since, read.conversation.clone());
        for message in self.messages.values_mut() {
            message.passed |= message.since < since && message.conversation == conversation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MessageId {
        MessageId::parse(text).unwrap()
    }

    fn with(ids: &[&str]) -> Awaited {
        let mut awaited = Awaited::default();
        let mut since = Instant::now();
        for one in ids {
            let conversation = Some(ConversationId::default_conversation());
            awaited.admitted(id(one), "c".into(), conversation);
            // Two of them never come at the same moment.
            since += Duration::from_millis(1);
            awaited.messages.get_mut(&id(one)).unwrap().since = since;
        }
        awaited
    }

    #[test]
    fn they_are_bounded() {
        let mut awaited = Awaited::default();
        for number in 0..2 * MOST {
            awaited.admitted(id(&number.to_string()), "c".into(), None);
        }
        assert_eq!(awaited.messages.len(), MOST);
    }

    #[test]
    fn an_end_is_early_while_an_earlier_message_of_its_conversation_has_not_ended() {
        let mut awaited = with(&["m1", "m2", "m3"]);
        let default = ConversationId::default_conversation();
        let other = ConversationId::parse("other").unwrap();
        assert!(!awaited.is_early(&id("m1"), &default));
        assert!(awaited.is_early(&id("m2"), &default));
        assert!(!awaited.is_early(&id("m2"), &other));
        assert!(awaited.is_early(&id("unknown"), &default));
        // m1 is not in the mailbox before m2: nothing is to be held up for it any more.
        awaited.was_read(&id("m2"));
        assert!(!awaited.is_early(&id("m2"), &default));
        assert!(awaited.is_early(&id("m3"), &default), "m2 itself");
        awaited.remove(&id("m2"));
        assert!(!awaited.is_early(&id("m3"), &default));
    }

    #[test]
    fn an_end_is_early_while_the_place_of_another_message_is_not_known() {
        let mut awaited = with(&["m2"]);
        let default = ConversationId::default_conversation();
        awaited.open(id("m1"), "c".into(), Some(default.clone()));
        assert!(awaited.is_early(&id("m1"), &default));
        assert!(
            awaited.is_early(&id("m2"), &default),
            "though m1 came later"
        );
        // That says nothing of m2, which may come before or after it.
        awaited.was_read(&id("m1"));
        awaited.remove(&id("m1"));
        assert!(awaited.is_early(&id("m3"), &default), "m2 may be missing");
        assert!(!awaited.is_early(&id("m2"), &default));
    }

    #[test]
    fn what_may_not_be_in_the_log_is_told_apart() {
        let mut awaited = with(&["m1", "m2"]);
        let newest = awaited.messages[&id("m2")].since;
        let wait = awaited.wait();
        assert_eq!(*wait.borrow(), Wait::Maybe(newest));
        awaited.is_in_log(&id("m1"));
        assert_eq!(*wait.borrow(), Wait::Answer);
        awaited.remove(&id("m1"));
        assert_eq!(*wait.borrow(), Wait::Maybe(newest));
        awaited.remove(&id("m2"));
        assert_eq!(*wait.borrow(), Wait::No);
    }
}
