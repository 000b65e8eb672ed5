//! The part of a `chatmesh.v1` connection's state that tasks outside of the connection use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::gateway::outbound::OutboundQueue;

/// The state of one `chatmesh.v1` connection that all tasks which send to it share.
pub(in crate::gateway) struct V1State {
    pub(in crate::gateway) outbound: OutboundQueue,
    /// A random id of this connection. A published `accepted` frame carries the id of the
    /// connection that sent the message (`origin`), which has received its own `accepted` already.
    pub(in crate::gateway) connection_id: Arc<str>,
    /// Wakes the connection's catch-up, because the connection has become stale.
    pub(in crate::gateway) catch_up_needed: Notify,
    is_welcomed: AtomicBool,
}

impl V1State {
    pub(in crate::gateway) fn new(queue_bytes: usize) -> Self {
        Self {
            outbound: OutboundQueue::new(queue_bytes),
            connection_id: uuid::Uuid::new_v4().simple().to_string().into(),
            catch_up_needed: Notify::new(),
            is_welcomed: AtomicBool::new(false),
        }
    }

    /// Records that `welcome` was put into the outbound queue.
    pub(in crate::gateway) fn set_welcomed(&self) {
        self.is_welcomed.store(true, Ordering::Relaxed);
    }

    /// Whether `welcome` was put into the outbound queue. No frame of the client is read before.
    pub(in crate::gateway) fn is_welcomed(&self) -> bool {
        self.is_welcomed.load(Ordering::Relaxed)
    }
}
