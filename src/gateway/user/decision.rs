//! What happens to one terminal frame for a user's classic connections: deliver, defer or drop.

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::UserState;
use crate::gateway::classic::duplicates::FrameKey;
use crate::gateway::classic::encoder::ClassicEncoder;
use crate::gateway::encoder::Encoder as _;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::Position;
use crate::protocol::published::PublishedFrame;

/// How a terminal frame reached this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum FrameSource {
    /// Published when it was first delivered.
    Published,
    /// Published again by a relay's rewind: delivered only where [`PendingAnswers::must_send`]
    /// holds.
    ///
    /// [`PendingAnswers::must_send`]: crate::gateway::classic::pending::PendingAnswers::must_send
    PublishedByRewind,
    /// Read from the mailbox, where it was stored when it was first delivered.
    Mailbox,
    /// Stored in the mailbox again by a rewind, or looked up by its message id: delivered only
    /// where `must_send` holds.
    Rebuilt,
}

impl FrameSource {
    fn is_published(self) -> bool {
        matches!(self, Self::Published | Self::PublishedByRewind)
    }
}

/// What happened to a terminal frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::gateway) enum Decision {
    /// It was new to this user's connections here, and queued for the classic ones among them.
    Delivered,
    /// A mailbox read delivers the frame, because an earlier one may be missing.
    Deferred {
        /// No read has been requested for a deferred frame yet, so the caller requests one.
        needs_read: bool,
    },
    /// A duplicate, or a frame that no connection here needs.
    #[default]
    Dropped,
}

/// The result of processing one frame for one user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::gateway) struct Delivery {
    pub(in crate::gateway) decision: Decision,
    /// The pending message that the frame answered.
    pub(in crate::gateway) answered: Option<MessageId>,
}

impl Delivery {
    pub(in crate::gateway) fn is_delivered(&self) -> bool {
        self.decision == Decision::Delivered
    }

    pub(in crate::gateway) fn needs_read(&self) -> bool {
        self.decision == Decision::Deferred { needs_read: true }
    }
}

impl UserState {
    /// Delivers a terminal frame to the classic connections that have not received it, and removes
    /// its message from the pending ones.
    pub(in crate::gateway) fn deliver_terminal(
        &mut self,
        user: &UserId,
        frame: &PublishedFrame<'_>,
        position: Option<Position>,
        source: FrameSource,
    ) -> Delivery {
        let answered = self.pending_message(frame);
        let key = FrameKey::new(frame, position.as_ref());
        let is_duplicate = key
            .as_ref()
            .is_some_and(|key| self.duplicates.contains(key));
        let is_wanted = !is_duplicate
            && match (source, &position) {
                (FrameSource::Published, Some(position)) => {
                    answered.is_some() || self.duplicates.is_newer(position)
                }
                (FrameSource::Published, None) | (FrameSource::Mailbox, _) => true,
                (FrameSource::PublishedByRewind | FrameSource::Rebuilt, _) => answered
                    .as_ref()
                    .is_some_and(|id| self.pending.must_send(id)),
            };
        if is_wanted {
            // A frame without a position is not in the mailbox, so it can't be deferred to it.
            if source.is_published() && position.is_some() && self.defer_if_out_of_order(frame) {
                let needs_read = self.mailbox_read.request_immediate();
                return Delivery {
                    decision: Decision::Deferred { needs_read },
                    answered: None,
                };
            }
            if !self.push_to_classic(user, frame, position.as_ref()) {
                return Delivery::default();
            }
            if let Some(key) = key
                && self.duplicates.insert(key, position)
            {
                self.mailbox_read.schedule();
            }
        }
        if let Some(id) = &answered {
            if !source.is_published() {
                self.pending.record_mailbox_read(id);
            }
            self.pending.remove(id);
        }
        let decision = if is_wanted {
            Decision::Delivered
        } else {
            Decision::Dropped
        };
        Delivery { decision, answered }
    }

    /// Defers a published frame to a mailbox read where an earlier frame may be missing; returns
    /// whether it did. The message becomes pending, so that the read delivers its frame even from a
    /// rebuilt mailbox.
    fn defer_if_out_of_order(&mut self, frame: &PublishedFrame<'_>) -> bool {
        let (Some(id), false) = (&frame.message_id, self.classic.is_empty()) else {
            return false;
        };
        if !self.has_gap && self.pending.is_empty() {
            return false;
        }
        let conversation = frame.conversation();
        let is_out_of_order =
            |conversation: &ConversationId| self.pending.is_out_of_order(id, conversation);
        if !self.has_gap && !conversation.as_ref().is_some_and(is_out_of_order) {
            return false;
        }
        self.add_pending(id, conversation.as_ref());
        self.pending.set_in_log(id);
        self.pending.set_must_send(id);
        true
    }

    /// Queues a frame for the classic clients that were connected when it was stored. Returns false
    /// where classic clients don't know frames of this type.
    fn push_to_classic(
        &self,
        user: &UserId,
        frame: &PublishedFrame<'_>,
        position: Option<&Position>,
    ) -> bool {
        if self.classic.is_empty() {
            return true;
        }
        let Some(text) = ClassicEncoder.encode_published(frame, user) else {
            return false;
        };
        let text = Utf8Bytes::from(text);
        let trace = frame.trace();
        for client in &self.classic {
            if !position.is_some_and(|position| client.is_older_than_connection(position)) {
                client.outbound.push_traced(text.clone(), trace.as_ref());
            }
        }
        true
    }
}
