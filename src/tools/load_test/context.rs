//! State that the runner and the clients share.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::stats::Stats;

/// Signals from the runner to all clients, and the progress that clients report to it.
#[derive(Debug)]
pub(super) struct RunState {
    pub(super) started: Instant,
    /// When the schedule of messages starts; `None` while clients are still connecting.
    pub(super) schedule_start: watch::Receiver<Option<Instant>>,
    /// Cancelled when the test ends.
    pub(super) stop: CancellationToken,
    /// The user ended the test.
    pub(super) is_interrupted: AtomicBool,
    /// Clients whose first attempt to connect has succeeded or failed.
    pub(super) attempted: AtomicU64,
    /// Clients whose first attempt to connect has succeeded.
    pub(super) connected: AtomicU64,
    /// Clients that have lost their connection and are reconnecting.
    pub(super) reconnecting: AtomicU64,
    /// Messages.
    pub(super) sent: AtomicU64,
    /// Messages with an outcome.
    pub(super) completed: AtomicU64,
    /// Clients that have nothing more to send and no answer to wait for.
    pub(super) finished: AtomicU64,
}

/// What the clients of one thread share.
pub(super) struct ThreadContext {
    pub(super) plan: Arc<Plan>,
    pub(super) state: Arc<RunState>,
    pub(super) stats: RefCell<Stats>,
    /// Limits how many clients connect at the same time.
    pub(super) connect_permits: Semaphore,
}
