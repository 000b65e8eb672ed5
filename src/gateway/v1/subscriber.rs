//! One `chatmesh.v1` connection among its user's subscribers: whether it receives live frames, and
//! up to which position it has received terminal frames.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::live_frame::LiveFrame;
use super::logical_time::LogicalTime;
use super::received::ReceivedPositions;
use super::state::V1State;
use crate::protocol::ids::MessageId;
use crate::protocol::sequence_number::SequenceNumber;

/// Size in bytes of the resend replies that wait for one connection's next read. When they exceed
/// it, no further reply is added.
const MAX_RESEND_REPLY_BYTES: usize = 1 << 20;

/// Whether a connection receives live frames.
#[derive(Debug)]
pub(super) enum SubscriberState {
    /// The connection has a gap since this time, and has to read the mailbox.
    Stale { since: LogicalTime },
    /// A read for the connection is in progress. Live frames that were published after this time
    /// are buffered.
    Reading { buffered_since: LogicalTime },
    /// The connection has received every published frame up to this number.
    Live(SequenceNumber),
}

/// The terminal frame of a message that the client sent again before it had received the frame.
struct ResendReply {
    /// When the client sent the message again.
    resent_at: LogicalTime,
    text: Utf8Bytes,
}

/// One connection's place in the stream of live frames, and its position in the mailbox.
pub(super) struct Subscriber {
    pub(super) client: Arc<V1State>,
    pub(super) state: SubscriberState,
    pub(super) received: ReceivedPositions,
    /// The resend replies that are sent after the next read unless that read returns their frames.
    resend_replies: HashMap<MessageId, ResendReply>,
}

impl Subscriber {
    /// A stale subscriber: `now` is the time at which the connection was added.
    pub(super) fn new(client: Arc<V1State>, received: ReceivedPositions, now: LogicalTime) -> Self {
        Self {
            client,
            state: SubscriberState::Stale { since: now },
            received,
            resend_replies: HashMap::new(),
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

    /// The number of the last frame that a live connection received; `None` for a connection that
    /// is not live.
    pub(super) fn last_received(&self) -> Option<&SequenceNumber> {
        match &self.state {
            SubscriberState::Live(number) => Some(number),
            _ => None,
        }
    }

    /// Marks the connection stale since `now`, and wakes its catch-up, which reads the mailbox.
    pub(super) fn mark_stale(&mut self, now: LogicalTime) {
        self.state = SubscriberState::Stale { since: now };
        self.client.catch_up_needed.notify_one();
    }

    /// Sends the next published frame to the connection if it is live and needs the frame. Returns
    /// false where an earlier frame is missing or the queue has no room, so that the connection has
    /// to read the mailbox.
    pub(super) fn receive(&mut self, frame: &LiveFrame) -> bool {
        let SubscriberState::Live(last) = &mut self.state else {
            return true;
        };
        if let Some(number) = &frame.number {
            if last.counter != number.counter || number.n > last.n + 1 {
                return false;
            }
            if number.n <= last.n {
                // The user view that the connection has read contains this frame.
                return true;
            }
            last.n = number.n;
        }
        self.push(frame)
    }

    /// Queues a frame, except the `accepted` frame of a message that the connection itself sent,
    /// and a terminal frame that the connection has received. Returns false where the queue has no
    /// room.
    fn push(&mut self, frame: &LiveFrame) -> bool {
        let Some(text) = &frame.text else {
            return true;
        };
        let outbound = &self.client.outbound;
        if !frame.is_terminal {
            let is_sender = frame.sender_connection.as_ref() == Some(&self.client.connection_id);
            return is_sender || outbound.try_push(text.clone());
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
            self.resend_replies.remove(id);
        }
        true
    }

    /// Adds the terminal frame `text` of a message that the client sent again at `resent_at`.
    /// Returns false where the replies that wait already exceed [`MAX_RESEND_REPLY_BYTES`].
    pub(super) fn add_resend_reply(
        &mut self,
        id: MessageId,
        text: Utf8Bytes,
        resent_at: LogicalTime,
    ) -> bool {
        let replies = self.resend_replies.values();
        let bytes: usize = replies.map(|reply| reply.text.as_str().len()).sum();
        if bytes > MAX_RESEND_REPLY_BYTES {
            return false;
        }
        self.resend_replies
            .insert(id, ResendReply { resent_at, text });
        true
    }

    /// Removes the reply to a resent message, because the connection has received its frame.
    pub(super) fn remove_resend_reply(&mut self, id: &MessageId) {
        self.resend_replies.remove(id);
    }

    /// Removes and returns the replies to messages that were resent up to `read_began_at`. The read
    /// that began then did not return their frames, so the mailbox no longer has them.
    pub(super) fn take_resend_replies_up_to(
        &mut self,
        read_began_at: LogicalTime,
    ) -> Vec<Utf8Bytes> {
        let mut texts = Vec::new();
        self.resend_replies.retain(|_, reply| {
            let is_later = reply.resent_at > read_began_at;
            if !is_later {
                texts.push(reply.text.clone());
            }
            is_later
        });
        texts
    }

    pub(super) fn has_resend_replies(&self) -> bool {
        !self.resend_replies.is_empty()
    }
}
