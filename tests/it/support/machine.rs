//! Limits which tests run at the same time, so that they do not slow each other down.
//!
//! Most tests need little of the machine and acquire no permit. A test that starts a whole
//! distributed system acquires one permit. A test that asserts an upper bound on wall-clock time,
//! or that loads the machine itself, acquires all permits, so that neither a distributed system nor
//! another such test runs at the same time.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Number of distributed systems that may run at the same time. They need little of the machine,
/// because they mostly wait for sessions and leases to expire.
const PERMITS: u32 = 2;

static MACHINE: Semaphore = Semaphore::const_new(PERMITS as usize);

/// The acquired permits. Drop releases them.
pub(crate) type MachinePermit = SemaphorePermit<'static>;

/// Acquires one permit, for a test that starts several processes.
pub(crate) async fn share_machine() -> MachinePermit {
    MACHINE
        .acquire()
        .await
        .expect("the semaphore is never closed")
}

/// Acquires all permits, for a test that asserts bounds on wall-clock time or produces heavy load.
pub(crate) async fn reserve_machine() -> MachinePermit {
    MACHINE
        .acquire_many(PERMITS)
        .await
        .expect("the semaphore is never closed")
}
