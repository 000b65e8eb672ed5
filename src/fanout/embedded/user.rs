//! One user's state: what is in memory, and how the rest is found in the store.
//!
//! The rules over it are in `answer` (a message from `admit` to `keep`), `deliver` and `read`. They
//! are deterministic: time and random numbers come in by [`World`].

use std::collections::HashMap;

use bytes::Bytes;
use serde::Serialize;

use super::codec::{Reader, Writer, damaged};
use super::feed::Subscriptions;
use super::keys::{self, Tag};
use super::mailbox::Mailbox;
use super::users::World;
use crate::config::bounds::Bounds;
use crate::fanout::{Channel, MessageRef, Owner, Result, TurnStatus};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::store::{Batch, Table};

/// Entries that are read from the store at once.
const PAGE: usize = 512;

/// Conversations whose last turn's number is remembered.
const CONVERSATIONS: usize = 32;

/// An answer being written. In memory only: after a restart the worker hears "lost" and sends the
/// text again.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: Option<ClientMessageId>,
    pub(super) conversation: ConversationId,
    pub(super) owner: Owner,
    pub(super) attempt: u32,
    /// Index of the next delta.
    pub(super) index: u32,
    pub(super) text: String,
    pub(super) lease_until_ms: i64,
    pub(super) touched_ms: i64,
    /// The message has an outcome.
    pub(super) ended: bool,
    /// What this process put into the history as the message's end, so that `deliver` of the same
    /// need not read it.
    pub(super) told: Option<(String, TurnStatus)>,
    /// Everybody who has begun it.
    pub(super) owners: Vec<Owner>,
}

impl Flight {
    /// Whether this owner, in this attempt, is who writes it.
    pub(super) fn belongs_to(&self, owner: &Owner, attempt: u32) -> bool {
        self.owner == *owner && self.attempt == attempt
    }
}

/// Where a pending message is in the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingEntry {
    pub(super) sequence: u64,
    pub(super) at_ms: i64,
}

/// A conversation's newest turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastTurn {
    /// Its number; 0 where there is none.
    pub(super) sequence: u64,
    /// The state of the history: a random number with each.
    pub(super) state: u64,
}

/// A user's state. Durable parts are copies of what the store holds.
#[derive(Debug)]
pub(super) struct UserState {
    pub(super) user: UserId,
    /// Last use, for letting go.
    pub(super) used_ms: i64,
    /// Number of the last published frame. It begins anew, under another id, whenever the state
    /// does; so it needs no place in the store.
    n: u64,
    n_id: String,
    pub(super) subscriptions: Subscriptions,
    pub(super) flights: HashMap<MessageId, Flight>,
    loaded: bool,
    pub(super) mailbox: Option<Mailbox>,
    pub(super) pending: HashMap<MessageId, PendingEntry>,
    next_pending: u64,
    /// Cancel marks and when they were set.
    pub(super) marks: HashMap<MessageId, i64>,
    /// The newest turn, of conversations used lately.
    pub(super) last_turn: HashMap<ConversationId, LastTurn>,
}

/// Milliseconds of a bound.
pub(super) fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Whether something of `at_ms` that lives for `ttl` is gone.
pub(super) fn expired(at_ms: i64, ttl: std::time::Duration, now_ms: i64) -> bool {
    at_ms.saturating_add(millis(ttl)) <= now_ms
}

impl UserState {
    pub(super) fn new(user: UserId, world: &World<'_>) -> Self {
        Self {
            user,
            used_ms: world.now_ms,
            n: 0,
            n_id: world.random_id(),
            subscriptions: Subscriptions::default(),
            flights: HashMap::new(),
            loaded: false,
            mailbox: None,
            pending: HashMap::new(),
            next_pending: 0,
            marks: HashMap::new(),
            last_turn: HashMap::new(),
        }
    }

    /// Nothing in memory can be believed any more but who has subscribed.
    pub(super) fn distrust(&mut self) {
        self.n = 0;
        self.n_id.clear();
        self.flights.clear();
        self.loaded = false;
        self.mailbox = None;
        self.pending.clear();
        self.marks.clear();
        self.last_turn.clear();
    }

    /// Reads what is kept in memory, once.
    pub(super) fn load(&mut self, world: &World<'_>) -> Result<()> {
        if self.loaded {
            return Ok(());
        }
        self.distrust();
        self.n_id = world.random_id();
        let (mut from, to) = keys::range(&self.user, Tag::Head, Tag::Mark);
        loop {
            let page = world.store.scan(Table::Users, &from, &to, PAGE, false)?;
            for (key, value) in &page {
                let (_, tag, rest) = keys::parse(key).ok_or_else(damaged)?;
                match tag {
                    Tag::Head => self.mailbox = Some(Mailbox::decode(value)?),
                    Tag::Pending => {
                        let sequence = keys::number(rest).ok_or_else(damaged)?;
                        let mut reader = Reader::new(value);
                        let at_ms = reader.number()?;
                        let message = MessageId::parse(reader.text()?).map_err(|_| damaged())?;
                        self.pending
                            .insert(message, PendingEntry { sequence, at_ms });
                        self.next_pending = self.next_pending.max(sequence + 1);
                    }
                    Tag::Mark => {
                        let message = std::str::from_utf8(rest).map_err(|_| damaged())?;
                        let message = MessageId::parse(message).map_err(|_| damaged())?;
                        self.marks.insert(message, Reader::new(value).number()?);
                    }
                    _ => {}
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
        self.loaded = true;
        Ok(())
    }

    /// Whether it can be let go: not used since `before_ms`, and nothing in it is in memory only.
    pub(super) fn is_idle(&self, before_ms: i64) -> bool {
        self.used_ms <= before_ms && self.flights.is_empty() && self.subscriptions.is_empty()
    }

    /// Drops what nobody needs any more from memory.
    pub(super) fn tidy(&mut self, now_ms: i64, bounds: &Bounds) {
        self.flights
            .retain(|_, flight| !expired(flight.touched_ms, bounds.pending_ttl, now_ms));
        self.subscriptions.drop_closed();
    }

    pub(super) fn n(&self) -> (u64, &str) {
        (self.n, &self.n_id)
    }

    /// The answer in flight, if there is one.
    pub(super) fn flight(&self, message: &MessageId, world: &World<'_>) -> Option<&Flight> {
        self.flights
            .get(message)
            .filter(|flight| !expired(flight.touched_ms, world.bounds.pending_ttl, world.now_ms))
    }

    /// Whether the message is pending.
    pub(super) fn is_pending(&self, message: &MessageId, world: &World<'_>) -> bool {
        self.pending
            .get(message)
            .is_some_and(|one| !expired(one.at_ms, world.bounds.pending_ttl, world.now_ms))
    }

    /// Notes a message as pending.
    pub(super) fn put_pending(
        &mut self,
        batch: &mut Batch,
        subject: &MessageRef,
        content: &str,
        world: &World<'_>,
    ) {
        self.remove_pending(batch, &subject.message_id);
        let sequence = self.next_pending;
        self.next_pending += 1;
        let value = Writer::with_capacity(content.len() + 128)
            .number(world.now_ms)
            .text(subject.message_id.as_str())
            .optional(subject.id.as_ref().map(ClientMessageId::as_str))
            .text(subject.conversation.as_str())
            .rest(content);
        batch.put(Table::Users, keys::pending(&self.user, sequence), value);
        let at_ms = world.now_ms;
        self.pending
            .insert(subject.message_id.clone(), PendingEntry { sequence, at_ms });
    }

    /// The message is no longer pending.
    pub(super) fn remove_pending(&mut self, batch: &mut Batch, message: &MessageId) {
        if let Some(entry) = self.pending.remove(message) {
            batch.delete(Table::Users, keys::pending(&self.user, entry.sequence));
        }
    }

    /// Whether the user has cancelled the message.
    pub(super) fn is_marked(&self, message: &MessageId, world: &World<'_>) -> bool {
        self.marks
            .get(message)
            .is_some_and(|at| !expired(*at, world.bounds.dedup_ttl, world.now_ms))
    }

    /// Remembers the number of a conversation's last turn, as another state of the history.
    pub(super) fn note_last_turn(
        &mut self,
        conversation: &ConversationId,
        sequence: u64,
        world: &World<'_>,
    ) -> LastTurn {
        let last = LastTurn {
            sequence,
            state: (world.random)(),
        };
        if let Some(there) = self.last_turn.get_mut(conversation) {
            *there = last;
            return last;
        }
        if self.last_turn.len() >= CONVERSATIONS {
            self.last_turn.clear();
        }
        self.last_turn.insert(conversation.clone(), last);
        last
    }

    /// Publishes a frame with its number, and says how many subscriptions there are.
    pub(super) fn publish(&mut self, channel: Channel, frame: &str) -> u64 {
        self.n += 1;
        let (n, n_id) = (self.n, &self.n_id);
        self.subscriptions
            .publish(&self.user, channel, || numbered(frame, n, n_id))
    }

    /// How many are subscribed to the live channel.
    pub(super) fn live_subscribers(&self) -> u64 {
        self.subscriptions.count(Channel::Live)
    }

    /// Tells whoever writes the answer that it is not wanted any more.
    pub(super) fn publish_cancel(&mut self, message: &MessageId) {
        self.subscriptions.publish(&self.user, Channel::Cancel, || {
            let notice = serde_json::json!({ "message_id": message });
            notice.to_string().into()
        });
    }

    /// Publishes a `delta` (with an index and content) or a `restarted`.
    pub(super) fn publish_live(
        &mut self,
        subject: &MessageRef,
        attempt: u32,
        delta: Option<(u32, &str)>,
    ) {
        self.n += 1;
        let frame = LiveFrame {
            kind: if delta.is_some() {
                "delta"
            } else {
                "restarted"
            },
            userid: &self.user,
            message_id: &subject.message_id,
            id: subject.id.as_ref(),
            conversation_id: &subject.conversation,
            attempt,
            index: delta.map(|(index, _)| index),
            content: delta.map(|(_, content)| content),
            n: self.n,
            n_id: &self.n_id,
        };
        self.subscriptions
            .publish(&self.user, Channel::Live, || frame.to_json());
    }
}

#[derive(Serialize)]
struct LiveFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    userid: &'a UserId,
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    n: u64,
    n_id: &'a str,
}

impl LiveFrame<'_> {
    fn to_json(&self) -> Bytes {
        // Only maps with other keys than strings can fail, and there are none.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// The frame with `n` and `n_id` before its closing brace.
fn numbered(frame: &str, n: u64, n_id: &str) -> Bytes {
    let Some(end) = frame.rfind('}') else {
        return Bytes::copy_from_slice(frame.as_bytes());
    };
    let body = frame[..end].trim_end();
    let comma = if body.ends_with('{') { "" } else { "," };
    format!("{body}{comma}\"n\":{n},\"n_id\":\"{n_id}\"}}").into()
}
