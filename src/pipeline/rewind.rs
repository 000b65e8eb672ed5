//! Rewinds partitions: determines a start offset, and reports when every record that was read again
//! is finished.
//!
//! The phases of one partition are in [`RewindState`]. The driver performs the seek itself, because
//! it owns the consumer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::partition::{Partition, RewindState};
use crate::log::LogError;

/// A rewind ends after this long without a record, even if its last record never arrived.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before a failed seek is repeated.
const SEEK_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Decides where partitions are read again from. Only the relay has one.
#[async_trait]
pub trait RewindPolicy: Send + Sync + 'static {
    /// The offset to read from, at most `committed`. Waits for its dependencies without a time
    /// limit; the call is dropped when the partition is revoked or rewound again.
    /// `oldest_unfinished_ms` is the log timestamp of the oldest record that was read and is not
    /// finished.
    async fn start_offset(
        &self,
        partition: i32,
        committed: i64,
        oldest_unfinished_ms: Option<i64>,
    ) -> i64;

    /// Called when every record that was read again is finished.
    async fn on_rewound(&self, partition: i32);
}

/// A request of the role to rewind partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewindRequest {
    /// Rewind every assigned partition.
    AllPartitions,
    /// Rewind this partition, if it is assigned.
    Partition(i32),
}

/// The start offset that was determined for a partition.
pub(super) struct RewindTarget {
    partition: i32,
    generation: u64,
    offset: i64,
}

/// Statistics of a period in which at least one partition is being rewound.
struct RewindStatistics {
    started: Instant,
    /// Records that were read again and finished.
    records: u64,
}

/// Runs the asynchronous steps of all rewinds of one pipeline.
pub(super) struct Rewinder {
    policy: Arc<dyn RewindPolicy>,
    topic: String,
    /// Start offsets that are being determined. `None` where the partition was revoked before.
    targets: JoinSet<Option<RewindTarget>>,
    /// Calls of [`RewindPolicy::on_rewound`].
    notifications: JoinSet<()>,
    statistics: Option<RewindStatistics>,
}

impl Rewinder {
    pub(super) fn new(policy: Arc<dyn RewindPolicy>, topic: String) -> Self {
        Self {
            policy,
            topic,
            targets: JoinSet::new(),
            notifications: JoinSet::new(),
            statistics: None,
        }
    }

    /// Starts the rewind of a partition whose generation has just been increased.
    pub(super) fn start(&mut self, number: i32, partition: &mut Partition) {
        let Some(offsets) = &partition.offsets else {
            // The group has never read here, so there is nothing to read again.
            self.notify(number, partition);
            return;
        };
        let committed = offsets.next();
        let oldest_unfinished_ms = partition.oldest_unfinished_ms();
        partition.rewind = RewindState::Preparing;
        self.statistics.get_or_insert_with(|| RewindStatistics {
            started: Instant::now(),
            records: 0,
        });
        let policy = Arc::clone(&self.policy);
        let (stop, generation) = (partition.stop.clone(), partition.generation);
        self.targets.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => None,
                offset = policy.start_offset(number, committed, oldest_unfinished_ms) => {
                    Some(RewindTarget {
                        partition: number,
                        generation,
                        offset: offset.min(committed),
                    })
                }
            }
        });
    }

    /// Waits for the next step: `Some` when a start offset was determined, `None` when another step
    /// ended. Never returns while there is nothing to wait for. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<RewindTarget> {
        tokio::select! {
            Some(target) = self.targets.join_next() => target.ok().flatten(),
            Some(_) = self.notifications.join_next() => None,
            else => std::future::pending().await,
        }
    }

    /// Handles the result of the seek to `offset`.
    pub(super) fn on_seek(
        &mut self,
        number: i32,
        partition: &mut Partition,
        offset: i64,
        result: Result<(), LogError>,
    ) {
        if let Err(error) = result {
            tracing::debug!(partition = number, %error, "seek failed, it is retried");
            partition.rewind = RewindState::Preparing;
            let generation = partition.generation;
            self.targets.spawn(async move {
                tokio::time::sleep(SEEK_RETRY_DELAY).await;
                Some(RewindTarget {
                    partition: number,
                    generation,
                    offset,
                })
            });
            return;
        }
        let until = partition
            .offsets
            .as_ref()
            .map_or(offset, super::offsets::OffsetTracker::next);
        tracing::info!(
            topic = %self.topic, partition = number, from = offset, until,
            "partition rewound: records that the fan-out may have lost are read again"
        );
        partition.rewind = RewindState::Reading {
            until,
            unfinished: 0,
            end_reached: offset >= until,
            last_record: Instant::now(),
        };
    }

    /// Counts a record that was read again and is finished.
    pub(super) fn count_record(&mut self) {
        if let Some(statistics) = &mut self.statistics {
            statistics.records += 1;
        }
    }

    /// Ends the rewind of a partition if all its records are finished. While the consumer is
    /// paused, silence does not count as the end.
    pub(super) fn end_if_complete(
        &mut self,
        number: i32,
        partition: &mut Partition,
        consumer_paused: bool,
    ) {
        let silence = if consumer_paused {
            Duration::MAX
        } else {
            SILENCE_TIMEOUT
        };
        if partition.end_rewind_if_complete(silence) {
            tracing::info!(topic = %self.topic, partition = number, "rewind of the partition complete");
            self.notify(number, partition);
        }
    }

    /// Calls [`RewindPolicy::on_rewound`], unless the partition is revoked or rewound again before:
    /// the fan-out may have lost data again by then.
    fn notify(&mut self, number: i32, partition: &Partition) {
        let (policy, stop) = (Arc::clone(&self.policy), partition.stop.clone());
        self.notifications.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = policy.on_rewound(number) => {}
            }
        });
    }

    /// Logs one summary when no partition is being rewound any more.
    pub(super) fn log_if_all_complete<'a>(
        &mut self,
        mut partitions: impl ExactSizeIterator<Item = &'a Partition>,
    ) {
        if self.statistics.is_none() || !self.notifications.is_empty() {
            return;
        }
        let count = partitions.len();
        if partitions.any(|partition| partition.rewind != RewindState::Idle) {
            return;
        }
        if let Some(statistics) = self.statistics.take() {
            let seconds = statistics.started.elapsed().as_secs_f64();
            tracing::info!(
                topic = %self.topic,
                partitions = count,
                records = statistics.records,
                seconds = (seconds * 10.0).round() / 10.0,
                per_second = (statistics.records as f64 / seconds.max(0.001)) as u64,
                "rewind of all partitions complete: the records were delivered again"
            );
        }
    }
}

impl RewindTarget {
    /// Schedules the seek, unless the partition was reassigned or rewound again since.
    pub(super) fn apply(&self, partition: &mut Partition) {
        if partition.generation == self.generation {
            partition.rewind = RewindState::Seeking(self.offset);
        }
    }

    pub(super) fn partition(&self) -> i32 {
        self.partition
    }
}
