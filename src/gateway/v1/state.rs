//! The state of one `chatmesh.v1` connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::gateway::outbound::OutboundQueue;

/// One `chatmesh.v1` connection as the user's other tasks see it.
pub(in crate::gateway) struct V1State {
    pub(in crate::gateway) outbound: OutboundQueue,
    /// A random id. The `accepted` frames that this connection causes carry it, so that they are
    /// not sent to it a second time when they are published.
    pub(in crate::gateway) origin: Arc<str>,
    /// Wakes the catch-up task: the connection has to read its mailbox.
    pub(in crate::gateway) catch_up_needed: Notify,
    has_welcome: AtomicBool,
}

impl V1State {
    pub(in crate::gateway) fn new(queue_bytes: usize) -> Self {
        Self {
            outbound: OutboundQueue::new(queue_bytes),
            origin: uuid::Uuid::new_v4().simple().to_string().into(),
            catch_up_needed: Notify::new(),
            has_welcome: AtomicBool::new(false),
        }
    }

    /// Records that `welcome` is in the outbound queue.
    pub(in crate::gateway) fn set_welcomed(&self) {
        self.has_welcome.store(true, Ordering::Relaxed);
    }

    /// Whether `welcome` is in the outbound queue. Nothing is received from the client before.
    pub(in crate::gateway) fn is_welcomed(&self) -> bool {
        self.has_welcome.load(Ordering::Relaxed)
    }
}
