//! Decides which tests may use the machine at the same time.
//!
//! Most tests are light and take no permit. A test that starts a whole distributed system takes a
//! share of the machine. A test that asserts an upper bound on wall-clock time, or loads the machine
//! itself, reserves all of it, so that neither a distributed system nor another timed test runs
//! beside it.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Number of distributed systems that run at the same time. They mostly wait, for sessions to
/// expire and leases to run out.
const SHARES: u32 = 2;

static MACHINE: Semaphore = Semaphore::const_new(SHARES as usize);

/// The right to use the machine; released when dropped.
pub(crate) type MachinePermit = SemaphorePermit<'static>;

/// Waits for a share of the machine: for tests that start several processes.
pub(crate) async fn share_machine() -> MachinePermit {
    MACHINE
        .acquire()
        .await
        .expect("the semaphore is never closed")
}

/// Waits for the whole machine: for tests that assert wall-clock bounds or produce heavy load.
pub(crate) async fn reserve_machine() -> MachinePermit {
    MACHINE
        .acquire_many(SHARES)
        .await
        .expect("the semaphore is never closed")
}
