//! Decides what happens to one terminal frame for a user's classic connections: it is delivered,
//! deferred or dropped. `delivery` calls it for published and for stored frames.

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
    /// The frame was published when a relay delivered it for the first time.
    Published,
    /// The frame was published again by a relay's rewind. It is delivered only where
    /// [`PendingAnswers::must_send`] returns true.
    ///
    /// [`PendingAnswers::must_send`]: crate::gateway::classic::pending::PendingAnswers::must_send
    PublishedByRewind,
    /// The frame was read from the mailbox, where a relay stored it when it delivered it for the
    /// first time.
    Mailbox,
    /// The frame was read from the mailbox, where a rewind stored it again, or was requested by its
    /// message id. It is delivered only where `PendingAnswers::must_send` returns true.
    Rebuilt,
}

impl FrameSource {
    fn is_published(self) -> bool {
        matches!(self, Self::Published | Self::PublishedByRewind)
    }
}

/// What was decided about a terminal frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::gateway) enum Decision {
    /// The frame was new to this gateway, and was queued for the user's classic connections, if
    /// there are any.
    Delivered,
    /// The frame was not sent. A mailbox read delivers it, because an earlier frame may be missing.
    Deferred {
        /// Whether the caller has to request a mailbox read at once, because none was requested for
        /// an earlier deferred frame.
        needs_read: bool,
    },
    /// The frame was not sent, because it is a duplicate or no connection here needs it.
    #[default]
    Dropped,
}

/// The result of processing one frame for one user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::gateway) struct Delivery {
    pub(in crate::gateway) decision: Decision,
    /// The message that was pending here and that the frame has ended; `None` where there is none.
    pub(in crate::gateway) answered_message: Option<MessageId>,
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
    /// Delivers a terminal frame to the user's classic connections, or defers or drops it. Removes
    /// its message from the pending messages unless the frame is deferred.
    pub(in crate::gateway) fn deliver_terminal(
        &mut self,
        user: &UserId,
        frame: &PublishedFrame<'_>,
        position: Option<Position>,
        source: FrameSource,
    ) -> Delivery {
        let answered_message = self.pending_message(frame);
        let key = FrameKey::new(frame, position.as_ref());
        let is_duplicate = key
            .as_ref()
            .is_some_and(|key| self.duplicates.contains(key));
        let should_deliver = !is_duplicate
            && match (source, &position) {
                (FrameSource::Published, Some(position)) => {
                    answered_message.is_some() || self.duplicates.is_newer(position)
                }
                (FrameSource::Published, None) | (FrameSource::Mailbox, _) => true,
                (FrameSource::PublishedByRewind | FrameSource::Rebuilt, _) => answered_message
                    .as_ref()
                    .is_some_and(|id| self.pending.must_send(id)),
            };
        if should_deliver {
            // A frame without a position is not in the mailbox, so no mailbox read could deliver
            // it.
            if source.is_published() && position.is_some() && self.defer_if_out_of_order(frame) {
                let needs_read = self.mailbox_read.request_immediate();
                return Delivery {
                    decision: Decision::Deferred { needs_read },
                    answered_message: None,
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
        if let Some(id) = &answered_message {
            if !source.is_published() {
                self.pending.record_mailbox_read(id);
            }
            self.pending.remove(id);
        }
        let decision = if should_deliver {
            Decision::Delivered
        } else {
            Decision::Dropped
        };
        Delivery {
            decision,
            answered_message,
        }
    }

    /// Defers a published frame to a mailbox read if an earlier frame may be missing. Returns
    /// whether the frame was deferred. Its message becomes pending, so that the read delivers the
    /// frame even if a rewind has stored it in the mailbox again.
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

    /// Queues a frame for the classic connections, except those that began after the frame was
    /// stored. Returns false where the classic protocol has no frame of this type.
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
