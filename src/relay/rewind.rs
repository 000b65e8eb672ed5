//! Where a partition of `responses` goes back to, and when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::backoff::Backoff;
use crate::config::settings::RelaySettings;
use crate::fanout::Deliveries;
use crate::log::Log;
use crate::pipeline::GoBack;
use crate::pipeline::driver::Command;
use crate::protocol::position::Epoch;
use crate::protocol::timestamp::now_ms;

/// "Every few seconds" of protocol.md section 3.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How far a partition has come.
#[derive(Debug, Clone)]
struct Progress {
    /// Read back from this moment of the log on.
    from_ms: i64,
    window: Duration,
    /// How often the fan-out had been disrupted by then.
    disruptions: u64,
    /// Left in the marker's place where that was gone.
    token: String,
    /// The marker was written since.
    settled: bool,
}

/// Decides where partitions begin again, and watches for reasons to.
pub(super) struct Rewind {
    log: Arc<dyn Log>,
    fanout: Arc<dyn Deliveries>,
    cluster: String,
    log_epoch: String,
    topic: String,
    rewind: Duration,
    rebuild: Duration,
    disruptions: watch::Receiver<u64>,
    progress: Mutex<HashMap<i32, Progress>>,
}

impl Rewind {
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
            rewind: settings.rewind,
            rebuild: settings.rebuild,
            progress: Mutex::default(),
        }
    }

    pub(super) fn epoch(&self, partition: i32) -> Epoch {
        Epoch::new(&self.cluster, &self.log_epoch, partition)
    }

    fn progress(&self) -> parking_lot::MutexGuard<'_, HashMap<i32, Progress>> {
        self.progress.lock()
    }

    /// Whether a record of this age, which was never delivered, shows that the partition did not
    /// go back far enough: deliveries ended long ago, and what was lost is from before that.
    pub(super) fn is_too_near(&self, partition: i32, timestamp_ms: i64) -> bool {
        self.progress().get(&partition).is_some_and(|progress| {
            timestamp_ms - (progress.window.as_millis() as i64) < progress.from_ms
        })
    }

    /// Whether the fan-out was away or failed over since the partition went back.
    pub(super) fn is_disrupted(&self, partition: i32) -> bool {
        let now = *self.disruptions.borrow();
        self.progress()
            .get(&partition)
            .is_some_and(|progress| progress.disruptions != now)
    }

    /// Orders partitions back after a reconnect or failover, and when their marker is gone.
    pub(super) async fn watch(self: Arc<Self>, commands: mpsc::Sender<Command>) {
        let mut disruptions = self.fanout.disruptions();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                // A fan-out that never loses its connection has nothing to say here.
                Ok(()) = disruptions.changed() => {
                    tracing::warn!("the fan-out was away or failed over: partitions go back");
                    if commands.send(Command::AllGoBack).await.is_err() {
                        return;
                    }
                }
                _ = look.tick() => {
                    let mut lost = Vec::new();
                    for partition in self.settled() {
                        if self.lost_marker(partition).await {
                            lost.push(partition);
                        }
                    }
                    if !lost.is_empty() {
                        tracing::warn!(
                            partitions = ?lost,
                            "the fan-out's markers are gone: it lost its data and is rebuilt"
                        );
                    }
                    for partition in lost {
                        if commands.send(Command::GoesBack(partition)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn settled(&self) -> Vec<i32> {
        let progress = self.progress();
        progress
            .iter()
            .filter(|(_, p)| p.settled)
            .map(|(partition, _)| *partition)
            .collect()
    }

    async fn lost_marker(&self, partition: i32) -> bool {
        matches!(
            self.fanout.has_marker(&self.epoch(partition)).await,
            Ok(false)
        )
    }
}

/// Repeats `call` until it succeeds. The caller is dropped when its partition is taken away.
async fn until<T, E, F, Fut>(what: &str, mut call: F) -> T
where
    E: std::fmt::Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => tracing::debug!(what, %error, "waiting"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

#[async_trait]
impl GoBack for Rewind {
    async fn start(&self, partition: i32, committed: i64, oldest_open_ms: Option<i64>) -> i64 {
        // From now on its marker is not watched: that would order it back again and again while
        // the log or the fan-out takes its time to answer here.
        if let Some(progress) = self.progress().get_mut(&partition) {
            progress.settled = false;
        }
        let epoch = self.epoch(partition);
        let disruptions = *self.disruptions.borrow();
        let token = uuid::Uuid::new_v4().simple().to_string();
        let present = until("marker", || self.fanout.begin_marker(&epoch, &token)).await;
        let window = if present { self.rewind } else { self.rebuild };
        let base = oldest_open_ms.unwrap_or(i64::MAX).min(now_ms());
        let from_ms = base - window.as_millis() as i64;
        let found = until("offset by time", || {
            self.log.offset_at(&self.topic, partition, from_ms)
        })
        .await;
        self.progress().insert(
            partition,
            Progress {
                from_ms,
                window,
                disruptions,
                token,
                settled: false,
            },
        );
        found.unwrap_or(committed).min(committed)
    }

    async fn reached(&self, partition: i32) {
        let epoch = self.epoch(partition);
        let begun = self.progress().get(&partition).map(|it| it.token.clone());
        // Without a token no way back was begun: the group has never read there.
        let begun = begun.filter(|token| !token.is_empty());
        match begun {
            Some(token) => {
                // Where it is refused the marker is missed at the next look, and the partition goes
                // back for longer.
                if !until("marker", || self.fanout.complete_marker(&epoch, &token)).await {
                    tracing::warn!(partition, "the fan-out lost its data while it was rebuilt");
                }
            }
            None => until("marker", || self.fanout.set_marker(&epoch)).await,
        }
        let mut progress = self.progress();
        let entry = progress.entry(partition).or_insert(Progress {
            from_ms: i64::MIN,
            window: self.rewind,
            disruptions: *self.disruptions.borrow(),
            token: String::new(),
            settled: true,
        });
        entry.settled = true;
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

    /// A log that takes for ever to find an offset.
    pub(in crate::relay) struct SlowLog;

    #[async_trait]
    impl Log for SlowLog {
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
            Ok("slow".into())
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
            rewind: Duration::from_secs(60),
            rebuild: Duration::from_secs(600),
            log_epoch: "0".into(),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_on_its_way_back_is_not_ordered_back_again() {
        let fanout = EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
        let rewind = Rewind::new(Arc::new(SlowLog), Arc::new(fanout), "c".into(), &settings());
        let rewind = Arc::new(rewind);
        rewind.reached(0).await;
        assert_eq!(rewind.settled(), [0]);
        let going = Arc::clone(&rewind);
        let going = tokio::spawn(async move { going.start(0, 7, None).await });
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(rewind.settled().is_empty());
        going.abort();
    }
}
