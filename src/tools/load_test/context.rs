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
    /// When the test started. The ramp-up counts from this time.
    pub(super) started: Instant,
    /// When the schedule of messages starts; `None` while clients are still connecting.
    pub(super) schedule_start: watch::Receiver<Option<Instant>>,
    /// Cancelled when the test ends.
    pub(super) stop: CancellationToken,
    /// Whether the user ended the test.
    pub(super) is_interrupted: AtomicBool,
    /// Number of clients whose first attempt to connect has succeeded or failed.
    pub(super) attempted_clients: AtomicU64,
    /// Number of clients whose first attempt to connect has succeeded.
    pub(super) connected_clients: AtomicU64,
    /// Number of clients that have lost their connection and have not reconnected.
    pub(super) reconnecting_clients: AtomicU64,
    /// Number of messages that were sent, each counted once.
    pub(super) sent_messages: AtomicU64,
    /// Number of outcomes that were received, including duplicates.
    pub(super) received_outcomes: AtomicU64,
    /// Number of clients that have nothing more to send and no answer to wait for.
    pub(super) finished_clients: AtomicU64,
}

/// State that the clients of one thread share.
pub(super) struct ThreadContext {
    pub(super) plan: Arc<Plan>,
    pub(super) state: Arc<RunState>,
    pub(super) stats: RefCell<Stats>,
    /// Limits how many clients of the thread connect at the same time.
    pub(super) connect_permits: Semaphore,
}
