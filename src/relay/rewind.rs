//! Decides when partitions of `responses` are rewound, and from which offset they are read again.
//! The pipeline asks for the offsets; the handler asks whether a record needs a rewind first.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};

use crate::backoff::Backoff;
use crate::config::settings::RelaySettings;
use crate::fanout::Deliveries;
use crate::log::Log;
use crate::pipeline::{RewindPolicy, RewindRequest};
use crate::protocol::position::Epoch;
use crate::protocol::timestamp::now_ms;

/// Time between two checks of the markers (docs/consistency.md, "Rewind after a loss").
const MARKER_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Delay before the first retry of a failed call to the log or the fan-out.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay before a further retry.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// The last rewind of one partition, in progress or complete.
#[derive(Debug, Clone)]
struct PartitionRewind {
    /// Log time from which records were read again, in milliseconds since the Unix epoch.
    from_ms: i64,
    /// How far the partition was rewound: `RELAY_REWIND_SECONDS`, or `RELAY_REBUILD_SECONDS` where
    /// the marker was missing.
    window: Duration,
    /// The fan-out's disruption count when the rewind started.
    disruptions: u64,
    /// Random token that the fan-out stores in place of a missing marker until the rewind is
    /// complete. Empty where nothing was rewound, because the group had never read the partition.
    token: String,
    /// Whether every record that was read again is finished, and the fan-out has written the marker
    /// or refused to. Only then is the marker checked.
    is_complete: bool,
}

/// The relay's [`RewindPolicy`]: computes start offsets, maintains the markers of partitions in the
/// fan-out, and requests rewinds after disruptions and when a marker is missing.
pub(super) struct RewindController {
    log: Arc<dyn Log>,
    fanout: Arc<dyn Deliveries>,
    cluster: String,
    log_epoch: String,
    topic: String,
    rewind_window: Duration,
    rebuild_window: Duration,
    /// The fan-out's disruption count.
    disruptions: watch::Receiver<u64>,
    /// The last rewind of each partition.
    rewinds: Mutex<HashMap<i32, PartitionRewind>>,
}

impl RewindController {
    pub(super) fn new(
        log: Arc<dyn Log>,
        fanout: Arc<dyn Deliveries>,
        cluster: String,
        settings: &RelaySettings,
    ) -> Self {
        Self {
            disruptions: fanout.disruptions(),
            log,
            fanout,
            cluster,
            log_epoch: settings.log_epoch.clone(),
            topic: settings.pipeline.topic.clone(),
            rewind_window: settings.rewind_window,
            rebuild_window: settings.rebuild_window,
            rewinds: Mutex::default(),
        }
    }

    fn epoch(&self, partition: i32) -> Epoch {
        Epoch::new(&self.cluster, &self.log_epoch, partition)
    }

    fn rewinds(&self) -> MutexGuard<'_, HashMap<i32, PartitionRewind>> {
        self.rewinds.lock()
    }

    /// Whether an undelivered record with this log timestamp shows that the partition's rewind
    /// started too late. The fan-out may have lost the records within one window before that
    /// record, so the rewind must start at least one window before the record.
    pub(super) fn needs_earlier_start(&self, partition: i32, timestamp_ms: i64) -> bool {
        self.rewinds().get(&partition).is_some_and(|rewind| {
            timestamp_ms - (rewind.window.as_millis() as i64) < rewind.from_ms
        })
    }

    /// Whether the fan-out reconnected or failed over since the partition's last rewind started.
    pub(super) fn has_new_disruption(&self, partition: i32) -> bool {
        let disruptions = *self.disruptions.borrow();
        self.rewinds()
            .get(&partition)
            .is_some_and(|rewind| rewind.disruptions != disruptions)
    }

    /// Requests rewinds until the pipeline ends: of all partitions after a disruption, and of each
    /// partition whose marker is missing.
    pub(super) async fn watch(self: Arc<Self>, requests: mpsc::Sender<RewindRequest>) {
        let mut disruptions = self.fanout.disruptions();
        let mut check = tokio::time::interval(MARKER_CHECK_INTERVAL);
        loop {
            tokio::select! {
                // The embedded fan-out never changes its count, so this branch runs with Redis
                // only.
                Ok(()) = disruptions.changed() => {
                    tracing::warn!(
                        "the fan-out recovered or failed over: rewinding all partitions to deliver \
                         recent answers again, no action is needed"
                    );
                    if requests.send(RewindRequest::AllPartitions).await.is_err() {
                        return;
                    }
                }
                _ = check.tick() => {
                    let partitions = self.partitions_without_marker().await;
                    if !partitions.is_empty() {
                        tracing::warn!(
                            ?partitions,
                            "the fan-out lost its data (markers are missing): rebuilding it from \
                             the log, no action is needed"
                        );
                    }
                    for partition in partitions {
                        let request = RewindRequest::Partition(partition);
                        if requests.send(request).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The partitions whose last rewind is complete.
    fn complete_partitions(&self) -> Vec<i32> {
        self.rewinds()
            .iter()
            .filter(|(_, rewind)| rewind.is_complete)
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// The partitions whose last rewind is complete and whose marker is missing.
    async fn partitions_without_marker(&self) -> Vec<i32> {
        let mut partitions = Vec::new();
        for partition in self.complete_partitions() {
            let has_marker = self.fanout.has_marker(&self.epoch(partition)).await;
            // An error does not show whether the marker is missing, so it requests no rewind.
            if matches!(has_marker, Ok(false)) {
                partitions.push(partition);
            }
        }
        partitions
    }
}

/// Repeats `call` until it succeeds. There is no limit, because the pipeline drops the caller's
/// future when the partition is revoked or rewound again.
async fn retry<T, E, F, Fut>(operation: &str, mut call: F) -> T
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::new(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => tracing::debug!(operation, %error, "operation failed, it is retried"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

#[async_trait]
impl RewindPolicy for RewindController {
    async fn start_offset(
        &self,
        partition: i32,
        committed: i64,
        oldest_unfinished_ms: Option<i64>,
    ) -> i64 {
        // While this rewind waits for the log or the fan-out, the partition's marker must not be
        // checked: each check would find it missing and request the same rewind again.
        if let Some(rewind) = self.rewinds().get_mut(&partition) {
            rewind.is_complete = false;
        }
        let epoch = self.epoch(partition);
        // The count is read before the marker, so that `has_new_disruption` detects a disruption
        // between reading the count and reading the marker.
        let disruptions = *self.disruptions.borrow();
        let token = uuid::Uuid::new_v4().simple().to_string();
        let has_marker = retry("begin rebuild", || {
            self.fanout.begin_rebuild(&epoch, &token)
        })
        .await;
        let window = if has_marker {
            self.rewind_window
        } else {
            self.rebuild_window
        };
        let latest_ms = oldest_unfinished_ms.unwrap_or(i64::MAX).min(now_ms());
        let from_ms = latest_ms - window.as_millis() as i64;
        let offset = retry("find offset by time", || {
            self.log.offset_at(&self.topic, partition, from_ms)
        })
        .await;
        self.rewinds().insert(
            partition,
            PartitionRewind {
                from_ms,
                window,
                disruptions,
                token,
                is_complete: false,
            },
        );
        offset.unwrap_or(committed).min(committed)
    }

    async fn on_rewound(&self, partition: i32) {
        let epoch = self.epoch(partition);
        let token = self
            .rewinds()
            .get(&partition)
            .map(|rewind| rewind.token.clone())
            .filter(|token| !token.is_empty());
        match token {
            Some(token) => {
                // If a server of the fan-out has neither marker nor token, it gets no marker. The
                // next check then finds the marker missing, and the partition is rewound by the
                // longer window.
                let is_written = retry("complete rebuild", || {
                    self.fanout.complete_rebuild(&epoch, &token)
                })
                .await;
                if !is_written {
                    tracing::warn!(
                        partition,
                        "the fan-out lost its data during a rewind: the partition is rewound \
                         again, no action is needed"
                    );
                }
            }
            None => retry("set marker", || self.fanout.set_marker(&epoch)).await,
        }
        let mut rewinds = self.rewinds();
        // There is no entry where nothing was rewound, because the group had never read the
        // partition.
        let rewind = rewinds.entry(partition).or_insert(PartitionRewind {
            from_ms: i64::MIN,
            window: self.rewind_window,
            disruptions: *self.disruptions.borrow(),
            token: String::new(),
            is_complete: true,
        });
        rewind.is_complete = true;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::config::bounds::Bounds;
    use crate::config::settings::PipelineSettings;
    use crate::fanout::embedded::EmbeddedFanout;
    use crate::log::{AppendError, Consumer, LogError, LogOffset, TopicSpec};
    use crate::protocol::log_record::NewRecord;
    use crate::store::Store;

    /// A log whose `offset_at` never returns.
    pub(in crate::relay) struct StalledLog;

    #[async_trait]
    impl Log for StalledLog {
        fn append(
            &self,
            _: &str,
            _: NewRecord,
        ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
            Box::pin(std::future::pending())
        }

        fn consumer(&self, _: &str, _: &str) -> Result<Box<dyn Consumer>, LogError> {
            Err(LogError::Configuration("not in this test".into()))
        }

        async fn ensure_topics(&self, _: &[TopicSpec]) -> Result<Vec<String>, LogError> {
            Ok(vec![])
        }

        async fn offset_at(&self, _: &str, _: i32, _: i64) -> Result<Option<i64>, LogError> {
            std::future::pending().await
        }

        async fn cluster_id(&self) -> Result<String, LogError> {
            Ok("stalled".into())
        }

        async fn check(&self) -> Result<(), LogError> {
            Ok(())
        }

        async fn flush(&self) {}
    }

    pub(in crate::relay) fn settings() -> RelaySettings {
        RelaySettings {
            pipeline: PipelineSettings {
                topic: "responses".into(),
                dead_letter_topic: "responses.dlq".into(),
                group: "group".into(),
                max_workers: 1,
                max_deliveries: 1,
                read_ahead_bytes: 1,
                drain_timeout: Duration::from_secs(1),
            },
            rewind_window: Duration::from_secs(60),
            rebuild_window: Duration::from_secs(600),
            log_epoch: "0".into(),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_is_being_rewound_is_not_rewound_again() {
        let fanout = Arc::new(EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap());
        let controller =
            RewindController::new(Arc::new(StalledLog), fanout, "c".into(), &settings());
        let controller = Arc::new(controller);
        controller.on_rewound(0).await;
        assert_eq!(controller.complete_partitions(), [0]);
        let rewinding = Arc::clone(&controller);
        let rewinding = tokio::spawn(async move { rewinding.start_offset(0, 7, None).await });
        tokio::time::sleep(MARKER_CHECK_INTERVAL * 2).await;
        assert!(controller.complete_partitions().is_empty());
        rewinding.abort();
    }
}
