//! The thread that commits offsets in the background and removes what nobody needs any more.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Core;
use crate::protocol::timestamp::now_ms;

/// How often stored offsets are committed.
const COMMIT: Duration = Duration::from_millis(500);
/// How often old records are looked for, at most and at least.
const REMOVE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Records removed at once: a batch keeps appends waiting for about a millisecond.
const BATCH: usize = 128;
/// Between two batches, so that removing takes no more than its share of the disk.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(super) struct Keeper {
    stopped: Mutex<bool>,
    wake: Condvar,
}

impl Keeper {
    pub(super) fn stop(&self) {
        *self.stopped.lock() = true;
        self.wake.notify_one();
    }

    /// True when told to stop, at the latest after `time`.
    fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        self.wake
            .wait_while_for(&mut stopped, |stopped| !*stopped, time);
        *stopped
    }

    /// The thread.
    pub(super) fn run(&self, core: &Core, retention: Duration) {
        let every = (retention / 10).clamp(REMOVE.0, REMOVE.1);
        let mut removed_at = Instant::now();
        loop {
            let stop = self.wait(COMMIT);
            let mut last = None;
            for topic in core.all() {
                match topic.commit_offsets(&core.store) {
                    Ok(ticket) => last = ticket.or(last),
                    Err(error) => {
                        tracing::warn!(%error, topic = %topic.name, "offsets could not be committed, trying again");
                    }
                }
            }
            // One wait for the disk for all of them. Where it fails, nothing is lost that a
            // redelivery would not bring again.
            if let Some(ticket) = last
                && let Err(error) = core.store.synced_blocking(ticket)
            {
                tracing::warn!(%error, "committed offsets may be lost if the machine dies");
            }
            if stop {
                return;
            }
            if removed_at.elapsed() >= every && !self.remove_old(core, retention) {
                removed_at = Instant::now();
            }
        }
    }

    /// One batch of each partition at a time, round and round until nothing is left to remove or
    /// offsets want to be committed again. True where something is left.
    fn remove_old(&self, core: &Core, retention: Duration) -> bool {
        let begun = Instant::now();
        let before_ms = now_ms() - i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let mut more = true;
        while more && begun.elapsed() < COMMIT {
            more = false;
            for topic in core.all() {
                for partition in 0..topic.partitions.len() {
                    match topic.remove_old(&core.store, partition as i32, before_ms, BATCH) {
                        Ok(removed) => more |= removed == BATCH,
                        Err(error) => {
                            tracing::warn!(%error, topic = %topic.name, "old records could not be removed");
                            return false;
                        }
                    }
                }
            }
            if self.wait(PAUSE) {
                return false;
            }
        }
        more
    }
}
