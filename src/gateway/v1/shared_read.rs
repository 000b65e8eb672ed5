//! One mailbox read for several `chatmesh.v1` connections of a user.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

use crate::fanout::UserView;
use crate::protocol::position::Position;

/// The result of a read, for further connections of the user that need the same one.
pub(super) struct ReadResult {
    /// The position after which the mailbox was read.
    pub(super) after: Option<Position>,
    /// The event after which live frames are buffered for those that use the result.
    pub(super) buffered_since: u64,
    pub(super) view: Arc<UserView>,
}

/// Lets at most one `chatmesh.v1` connection of a user read the mailbox at a time, and keeps the
/// result while others wait for their turn. After a gap all connections of a user need a read, and
/// mostly the same one.
#[derive(Default)]
pub(in crate::gateway) struct SharedRead(Mutex<Option<ReadResult>>);

impl SharedRead {
    pub(super) async fn lock(&self) -> MutexGuard<'_, Option<ReadResult>> {
        self.0.lock().await
    }
}
