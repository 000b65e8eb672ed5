//! Background maintenance of the embedded log: a thread commits stored offsets and removes expired
//! records.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use crate::protocol::timestamp::now_ms;

/// Interval between two commits of stored offsets.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Lower bound of the interval between two removals of expired records, which is a tenth of the
/// retention.
const MIN_REMOVAL_INTERVAL: Duration = Duration::from_millis(500);
/// Upper bound of the interval between two removals of expired records.
const MAX_REMOVAL_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of records that are removed in one batch. A batch of this size delays appends by
/// about a millisecond.
const REMOVAL_BATCH_RECORDS: usize = 128;
/// Delay after each round of removals, in which one batch was removed from every partition. It
/// leaves the disk to appends.
const REMOVAL_DELAY: Duration = Duration::from_millis(5);

/// Controls the maintenance thread.
#[derive(Default)]
pub(super) struct Maintenance {
    is_stopped: Mutex<bool>,
    wake: Condvar,
}

impl Maintenance {
    /// Makes the maintenance thread commit once more and then end.
    pub(super) fn stop(&self) {
        *self.is_stopped.lock() = true;
        self.wake.notify_one();
    }

    /// Waits for `time`, or until [`Maintenance::stop`] is called. Returns whether it was called.
    fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.is_stopped.lock();
        self.wake
            .wait_while_for(&mut stopped, |stopped| !*stopped, time);
        *stopped
    }

    /// The body of the maintenance thread. Returns after [`Maintenance::stop`].
    pub(super) fn run(&self, log: &Shared, retention: Duration) {
        let removal_interval = (retention / 10).clamp(MIN_REMOVAL_INTERVAL, MAX_REMOVAL_INTERVAL);
        let mut removed_at = Instant::now();
        loop {
            let is_stopped = self.wait(COMMIT_INTERVAL);
            let mut last_ticket = None;
            for topic in log.all_topics() {
                match topic.commit_offsets(&log.store) {
                    Ok(ticket) => last_ticket = ticket.or(last_ticket),
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            topic = %topic.name,
                            "offsets could not be committed, retrying; check the disk if it stays"
                        );
                    }
                }
            }
            // One disk sync covers the commits of all topics. A failed sync only means that records
            // may be delivered again.
            if let Some(ticket) = last_ticket
                && let Err(error) = log.store.wait_durable_blocking(ticket)
            {
                tracing::warn!(
                    %error,
                    "committed offsets are not on disk yet; if the machine dies, records are \
                     delivered again"
                );
            }
            if is_stopped {
                return;
            }
            if removed_at.elapsed() >= removal_interval && !self.remove_expired(log, retention) {
                removed_at = Instant::now();
            }
        }
    }

    /// Removes expired records, one batch of each partition in turn, until none is left or the next
    /// commit of offsets is due. Returns whether the caller should continue after that commit.
    fn remove_expired(&self, log: &Shared, retention: Duration) -> bool {
        let started = Instant::now();
        let before_ms = now_ms() - i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let mut more = true;
        while more && started.elapsed() < COMMIT_INTERVAL {
            more = false;
            for topic in log.all_topics() {
                for partition in 0..topic.partitions.len() {
                    match topic.remove_expired(
                        &log.store,
                        partition as i32,
                        before_ms,
                        REMOVAL_BATCH_RECORDS,
                    ) {
                        Ok(removed) => more |= removed == REMOVAL_BATCH_RECORDS,
                        Err(error) => {
                            tracing::warn!(
                                %error,
                                topic = %topic.name,
                                "expired records could not be removed, retrying; check the disk \
                                 if it stays"
                            );
                            return false;
                        }
                    }
                }
            }
            if self.wait(REMOVAL_DELAY) {
                return false;
            }
        }
        more
    }
}
