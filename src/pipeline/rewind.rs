//! Rewinds partitions: asks the role's [`RewindPolicy`] for the start offset, and reports to it
//! when every record that was read again is finished.
//!
//! [`RewindState`] lists the phases of one partition's rewind. The driver performs the seek itself,
//! because it owns the consumer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::partition::{Partition, RewindState};
use crate::log::LogError;

/// Time without a record after which a rewind ends although its last record has not arrived.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before a failed seek is repeated.
const SEEK_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Decides from which offset a partition is read again. Only the relay has a rewind policy.
#[async_trait]
pub trait RewindPolicy: Send + Sync + 'static {
    /// Returns the offset from which to read; an offset above `committed`, the offset to commit,
    /// counts as `committed`. Waits for its dependencies without a time limit; the call is dropped
    /// when the partition is revoked or rewound again. `oldest_unfinished_ms` is the log timestamp
    /// of the oldest record that was read and is not finished, in milliseconds since the Unix
    /// epoch.
    async fn start_offset(
        &self,
        partition: i32,
        committed: i64,
        oldest_unfinished_ms: Option<i64>,
    ) -> i64;

    /// Called when the rewind of the partition is complete: every record that was read again is
    /// finished.
    async fn on_rewound(&self, partition: i32);
}

/// A request, from the role to its pipeline, to rewind partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewindRequest {
    /// Rewind every assigned partition.
    AllPartitions,
    /// Rewind the partition with this number, if it is assigned.
    Partition(i32),
}

/// The offset from which a partition is to be read again.
pub(super) struct RewindTarget {
    partition: i32,
    /// The generation of the partition that the rewind began. In a later generation the target is
    /// out of date.
    generation: u64,
    offset: i64,
}

/// Statistics of a period in which at least one partition is being rewound.
struct RewindStatistics {
    /// When the first rewind of the period began.
    started_at: Instant,
    /// Number of records that were read again and processed again.
    records: u64,
}

/// Runs the asynchronous steps of all rewinds of one pipeline.
pub(super) struct Rewinder {
    policy: Arc<dyn RewindPolicy>,
    topic: String,
    /// Tasks that determine the start offset of one partition each. A task returns `None` if its
    /// partition was revoked or rewound again first.
    target_tasks: JoinSet<Option<RewindTarget>>,
    /// Tasks that call [`RewindPolicy::on_rewound`] for one partition each.
    notification_tasks: JoinSet<()>,
    /// `None` while no partition is being rewound.
    statistics: Option<RewindStatistics>,
}

impl Rewinder {
    pub(super) fn new(policy: Arc<dyn RewindPolicy>, topic: String) -> Self {
        Self {
            policy,
            topic,
            target_tasks: JoinSet::new(),
            notification_tasks: JoinSet::new(),
            statistics: None,
        }
    }

    /// Starts the rewind of the partition `number`. The driver has just given the partition a new
    /// generation.
    pub(super) fn start(&mut self, number: i32, partition: &mut Partition) {
        let Some(offsets) = &partition.offsets else {
            // The group has committed no offset of this partition and read no record of it, so
            // there is nothing to read again: the rewind is complete.
            self.notify(number, partition);
            return;
        };
        let committed = offsets.next_to_commit();
        let oldest_unfinished_ms = partition.oldest_unfinished_ms();
        partition.rewind = RewindState::Preparing;
        self.statistics.get_or_insert_with(|| RewindStatistics {
            started_at: Instant::now(),
            records: 0,
        });
        let policy = Arc::clone(&self.policy);
        let (stop, generation) = (partition.stop.clone(), partition.generation);
        self.target_tasks.spawn(async move {
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

    /// Waits until a task of a rewind has ended. Returns the start offset that it determined;
    /// `None` if the task was cancelled or called `on_rewound`. Never returns while no task is
    /// running. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<RewindTarget> {
        tokio::select! {
            Some(target) = self.target_tasks.join_next() => target.ok().flatten(),
            Some(_) = self.notification_tasks.join_next() => None,
            else => std::future::pending().await,
        }
    }

    /// Handles the result of the driver's seek to `offset`: after a success the partition is being
    /// read again, and a failed seek is repeated after `SEEK_RETRY_DELAY`.
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
            self.target_tasks.spawn(async move {
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
            .map_or(offset, super::offsets::OffsetTracker::next_to_commit);
        tracing::info!(
            topic = %self.topic, partition = number, from = offset, until,
            "partition is read again from an earlier offset, as after every assignment and after a \
             loss of the fan-out's data"
        );
        partition.rewind = RewindState::Reading {
            until,
            unfinished: 0,
            is_end_reached: offset >= until,
            last_record_at: Instant::now(),
        };
    }

    /// Counts a record that was read again and processed again, for the summary in the log.
    pub(super) fn count_record(&mut self) {
        if let Some(statistics) = &mut self.statistics {
            statistics.records += 1;
        }
    }

    /// Ends the rewind of a partition and reports it to the policy, if the rewind is complete.
    /// While the consumer is paused, no record can arrive, so silence does not end the rewind.
    pub(super) fn end_if_complete(
        &mut self,
        number: i32,
        partition: &mut Partition,
        is_consumer_paused: bool,
    ) {
        let silence = if is_consumer_paused {
            Duration::MAX
        } else {
            SILENCE_TIMEOUT
        };
        if partition.end_rewind_if_complete(silence) {
            tracing::info!(topic = %self.topic, partition = number, "rewind of the partition complete");
            self.notify(number, partition);
        }
    }

    /// Starts a task that calls [`RewindPolicy::on_rewound`]. The call is dropped if the partition
    /// is revoked or rewound again before it returns, because the fan-out may have lost data again.
    fn notify(&mut self, number: i32, partition: &Partition) {
        let (policy, stop) = (Arc::clone(&self.policy), partition.stop.clone());
        self.notification_tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = policy.on_rewound(number) => {}
            }
        });
    }

    /// Logs one summary when the last rewind is complete and reported: at debug level if no record
    /// was read again, otherwise at info level. Does nothing if no partition was being rewound, or
    /// if one still is.
    pub(super) fn log_if_all_complete<'a>(
        &mut self,
        mut partitions: impl ExactSizeIterator<Item = &'a Partition>,
    ) {
        if self.statistics.is_none() || !self.notification_tasks.is_empty() {
            return;
        }
        let count = partitions.len();
        if partitions.any(|partition| partition.rewind != RewindState::Idle) {
            return;
        }
        if let Some(statistics) = self.statistics.take() {
            if statistics.records == 0 {
                tracing::debug!(topic = %self.topic, "rewind of all partitions complete: no records");
                return;
            }
            let seconds = statistics.started_at.elapsed().as_secs_f64();
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
    /// Schedules the seek, unless the partition was assigned or rewound again since the rewind
    /// began.
    pub(super) fn apply(&self, partition: &mut Partition) {
        if partition.generation == self.generation {
            partition.rewind = RewindState::Seeking(self.offset);
        }
    }

    pub(super) fn partition(&self) -> i32 {
        self.partition
    }
}
