//! One `chatmesh.v1` connection among its user's subscribers.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::live_frame::LiveFrame;
use super::received::ReceivedPositions;
use super::state::V1State;
use crate::protocol::ids::MessageId;
use crate::protocol::sequence_number::SequenceNumber;

/// Bytes of terminal frames that wait for one connection's next read because it resent their
/// messages.
const RESENT_BYTES: usize = 1 << 20;

/// Whether a connection receives live frames. The events are those of the user's
/// [`Subscribers`](super::subscribers::Subscribers).
#[derive(Debug)]
pub(super) enum SubscriberState {
    /// The connection has a gap and has to read the mailbox.
    Stale { since_event: u64 },
    /// A read is in progress; live frames published after this event are buffered.
    Reading { since_event: u64 },
    /// The connection has received every live frame up to this one.
    Live(SequenceNumber),
}

/// A resent message's terminal frame that the connection has not received.
struct ResendReply {
    /// The event at which the message was resent.
    since_event: u64,
    text: Utf8Bytes,
}

/// One connection's place in the stream of live frames, and its position in the mailbox.
pub(super) struct Subscriber {
    pub(super) client: Arc<V1State>,
    pub(super) state: SubscriberState,
    pub(super) received: ReceivedPositions,
    /// Answers of messages that the client sent again before it had received them.
    resent: HashMap<MessageId, ResendReply>,
}

impl Subscriber {
    pub(super) fn new(client: Arc<V1State>, received: ReceivedPositions, event: u64) -> Self {
        Self {
            client,
            state: SubscriberState::Stale { since_event: event },
            received,
            resent: HashMap::new(),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, SubscriberState::Live(_))
    }

    pub(super) fn is_stale(&self) -> bool {
        matches!(self.state, SubscriberState::Stale { .. })
    }

    pub(super) fn is_reading(&self) -> bool {
        matches!(self.state, SubscriberState::Reading { .. })
    }

    /// The last live frame that the connection received; `None` unless it is live.
    pub(super) fn last_received(&self) -> Option<&SequenceNumber> {
        match &self.state {
            SubscriberState::Live(number) => Some(number),
            _ => None,
        }
    }

    /// Makes the connection read the mailbox.
    pub(super) fn mark_stale(&mut self, event: u64) {
        self.state = SubscriberState::Stale { since_event: event };
        self.client.catch_up_needed.notify_one();
    }

    /// Offers the next live frame to a connection that is live. Returns false where a frame is
    /// missing before it, or the queue has no room: the connection has to read then.
    pub(super) fn receive(&mut self, frame: &LiveFrame) -> bool {
        let SubscriberState::Live(last) = &mut self.state else {
            return true;
        };
        if let Some(number) = &frame.number {
            if last.counter != number.counter || number.n > last.n + 1 {
                return false;
            }
            if number.n <= last.n {
                // The snapshot already contained it.
                return true;
            }
            last.n = number.n;
        }
        self.push(frame)
    }

    /// Queues a frame; false where the queue has no room.
    fn push(&mut self, frame: &LiveFrame) -> bool {
        let Some(text) = &frame.text else {
            return true;
        };
        let outbound = &self.client.outbound;
        if !frame.is_terminal {
            let is_own = frame.origin.as_ref() == Some(&self.client.origin);
            return is_own || outbound.try_push(text.clone());
        }
        let position = frame.position.as_ref();
        if position.is_some_and(|position| self.received.contains(position)) {
            return true;
        }
        if !outbound.try_push_traced(text.clone(), frame.trace.as_ref()) {
            return false;
        }
        if let Some(position) = position {
            self.received.advance(position.clone());
        }
        if let Some(id) = &frame.message_id {
            self.resent.remove(id);
        }
        true
    }

    /// Adds the answer of a resent message. Returns false where too many bytes wait already.
    pub(super) fn add_resent(&mut self, id: MessageId, text: Utf8Bytes, event: u64) -> bool {
        let waiting = self.resent.values();
        let bytes: usize = waiting.map(|reply| reply.text.as_str().len()).sum();
        if bytes > RESENT_BYTES {
            return false;
        }
        self.resent.insert(
            id,
            ResendReply {
                since_event: event,
                text,
            },
        );
        true
    }

    pub(super) fn remove_resent(&mut self, id: &MessageId) {
        self.resent.remove(id);
    }

    /// Removes the answers of messages that were resent up to `event`: the read that began then
    /// would have returned them if the mailbox still had them.
    pub(super) fn take_resend_replies_up_to(&mut self, event: u64) -> Vec<Utf8Bytes> {
        let mut texts = Vec::new();
        self.resent.retain(|_, reply| {
            let is_later = reply.since_event > event;
            if !is_later {
                texts.push(reply.text.clone());
            }
            is_later
        });
        texts
    }

    pub(super) fn has_resent(&self) -> bool {
        !self.resent.is_empty()
    }
}
