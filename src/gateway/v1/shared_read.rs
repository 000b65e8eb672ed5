//! Lets several `chatmesh.v1` connections of a user use the result of one mailbox read.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

use super::logical_time::LogicalTime;
use crate::fanout::UserView;
use crate::protocol::position::Position;

/// The result of one connection's mailbox read, for other connections of the user that need the
/// same read.
pub(super) struct ReadResult {
    /// The position after which the mailbox was read.
    pub(super) after: Option<Position>,
    /// When the read began. A connection that uses the result receives the frames that were
    /// published since then from the buffer.
    pub(super) buffered_since: LogicalTime,
    pub(super) view: Arc<UserView>,
}

/// Lets at most one `chatmesh.v1` connection of a user read the mailbox at a time, and keeps the
/// result of the last read while other connections wait for their turn. After a gap all connections
/// of a user need a read, and mostly from the same position.
#[derive(Default)]
pub(in crate::gateway) struct SharedRead(Mutex<Option<ReadResult>>);

impl SharedRead {
    pub(super) async fn lock(&self) -> MutexGuard<'_, Option<ReadResult>> {
        self.0.lock().await
    }
}
