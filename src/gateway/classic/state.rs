//! The state of one classic connection.

use std::sync::OnceLock;

use crate::gateway::outbound::OutboundQueue;
use crate::protocol::position::Position;

/// One classic connection as the user's other tasks see it.
pub(in crate::gateway) struct ClassicState {
    pub(in crate::gateway) outbound: OutboundQueue,
    /// The end of the mailbox at the time of the connection, known once it was read. Frames up to
    /// there are older than the connection and are not sent to it.
    pub(in crate::gateway) mailbox_end: OnceLock<Position>,
}

impl ClassicState {
    pub(in crate::gateway) fn new(queue_bytes: usize) -> Self {
        Self {
            outbound: OutboundQueue::new(queue_bytes),
            mailbox_end: OnceLock::new(),
        }
    }

    /// Whether the frame at `position` was stored before this client connected.
    pub(in crate::gateway) fn is_older_than_connection(&self, position: &Position) -> bool {
        let end = self.mailbox_end.get();
        end.is_some_and(|end| position.is_at_or_before(end))
    }
}
