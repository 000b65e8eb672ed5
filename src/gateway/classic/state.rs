//! The part of a classic connection's state that tasks outside of the connection use.

use std::sync::OnceLock;

use crate::gateway::outbound::OutboundQueue;
use crate::protocol::position::Position;

/// The state of one classic connection that all tasks which send to it share.
pub(in crate::gateway) struct ClassicState {
    pub(in crate::gateway) outbound: OutboundQueue,
    /// The position at which the mailbox ended when the client connected; unset until the mailbox
    /// was read for the first time. Frames up to this position are older than the connection and
    /// are not sent to it.
    pub(in crate::gateway) mailbox_end_at_start: OnceLock<Position>,
}

impl ClassicState {
    pub(in crate::gateway) fn new(queue_bytes: usize) -> Self {
        Self {
            outbound: OutboundQueue::new(queue_bytes),
            mailbox_end_at_start: OnceLock::new(),
        }
    }

    /// Whether the frame at `position` was stored in the mailbox before this client connected.
    /// False where that is unknown.
    pub(in crate::gateway) fn is_older_than_connection(&self, position: &Position) -> bool {
        let end = self.mailbox_end_at_start.get();
        end.is_some_and(|end| position.is_at_or_before(end))
    }
}
