//! A pipeline over a fake log in memory, with which the tests of single behaviours control every
//! assignment, revocation and verdict.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::settings::PipelineSettings;
use crate::log::{
    AppendError, Assignment, Consumer, ConsumerEvent, Log, LogError, LogOffset, TopicSpec,
};
use crate::pipeline::driver::{self, Dependencies};
use crate::pipeline::metrics::PipelineMetrics;
use crate::pipeline::{
    DeadLetterWriter, Delivery, Handler, RewindPolicy, RewindRequest, StopRequested, Verdict,
    WorkSlot,
};
use crate::protocol::log_record::{NewRecord, Record};

/// The state of a fake topic, and of its only consumer as the consumer's calls have set it.
#[derive(Default)]
pub(super) struct FakeTopic {
    records: Mutex<Vec<Record>>,
    /// The offset that the pipeline has stored last, by partition.
    stored_offsets: Mutex<HashMap<i32, i64>>,
    /// The records that the pipeline has written to the dead-letter topic.
    pub(super) dead_letters: Mutex<Vec<NewRecord>>,
    pub(super) is_paused: Mutex<bool>,
    pub(super) is_closed: Mutex<bool>,
    /// Maximum size in bytes of a dead letter's value. Larger dead letters are refused.
    pub(super) max_dead_letter_bytes: Mutex<Option<usize>>,
    /// Wakes the consumer when there may be a new event.
    changed: Notify,
}

impl FakeTopic {
    /// Appends a record of `size` bytes with the lane as its key.
    pub(super) fn append(&self, partition: i32, lane: &str, size: usize) {
        let mut records = self.records.lock().unwrap();
        let offset = records
            .iter()
            .filter(|record| record.partition == partition)
            .count() as i64;
        records.push(Record {
            topic: "topic".into(),
            partition,
            offset,
            timestamp_ms: offset,
            key: Some(Bytes::from(lane.to_owned())),
            value: Bytes::from(vec![b'x'; size]),
            null_value: false,
            headers: vec![],
        });
        self.changed.notify_waiters();
    }

    /// The offset that the pipeline has stored for the partition. `None` if it has stored no
    /// offset.
    pub(super) fn stored_offset(&self, partition: i32) -> Option<i64> {
        self.stored_offsets.lock().unwrap().get(&partition).copied()
    }
}

/// The consumer of the fake topic. Returns assignments and revocations that the test sends, and
/// then records.
struct FakeConsumer {
    topic: Arc<FakeTopic>,
    events: mpsc::UnboundedReceiver<ConsumerEvent>,
    /// The offset that is read next, for each assigned partition.
    next_offsets: HashMap<i32, i64>,
}

impl FakeConsumer {
    /// Reads a record of any assigned partition. `None` if the consumer is paused or has read all
    /// records.
    fn next_record(&mut self) -> Option<Record> {
        if *self.topic.is_paused.lock().unwrap() {
            return None;
        }
        let records = self.topic.records.lock().unwrap();
        let record = records.iter().find(|record| {
            self.next_offsets
                .get(&record.partition)
                .is_some_and(|next_offset| record.offset == *next_offset)
        })?;
        self.next_offsets
            .insert(record.partition, record.offset + 1);
        Some(record.clone())
    }
}

#[async_trait]
impl Consumer for FakeConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            let topic = Arc::clone(&self.topic);
            let changed = topic.changed.notified();
            if let Ok(event) = self.events.try_recv() {
                match &event {
                    ConsumerEvent::Assigned(assigned) => self.next_offsets.extend(
                        assigned
                            .iter()
                            .map(|a| (a.partition, a.committed_offset.unwrap_or(0))),
                    ),
                    ConsumerEvent::Revoked(revoked) => {
                        self.next_offsets.retain(|p, _| !revoked.contains(p));
                    }
                    ConsumerEvent::Record(_) => {}
                }
                return event;
            }
            if let Some(record) = self.next_record() {
                return ConsumerEvent::Record(record);
            }
            changed.await;
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        let before = self
            .topic
            .stored_offsets
            .lock()
            .unwrap()
            .insert(partition, next_offset);
        assert!(
            before.is_none_or(|before| before < next_offset),
            "a stored offset decreased"
        );
    }

    fn pause(&mut self) {
        *self.topic.is_paused.lock().unwrap() = true;
    }

    fn resume(&mut self) {
        *self.topic.is_paused.lock().unwrap() = false;
        self.topic.changed.notify_waiters();
    }

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        self.next_offsets.insert(partition, offset);
        Ok(())
    }

    async fn close(self: Box<Self>) {
        *self.topic.is_closed.lock().unwrap() = true;
    }
}

/// A log that accepts dead letters only: it adds every appended record to the topic's dead letters.
pub(super) struct FakeLog(pub(super) Arc<FakeTopic>);

#[async_trait]
impl Log for FakeLog {
    fn append(
        &self,
        _topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let max = *self.0.max_dead_letter_bytes.lock().unwrap();
        if max.is_some_and(|max| record.value.len() > max) {
            return Box::pin(async { Err(AppendError::Refused("too large".into())) });
        }
        self.0.dead_letters.lock().unwrap().push(record);
        Box::pin(async {
            Ok(LogOffset {
                partition: 0,
                offset: 0,
            })
        })
    }

    fn consumer(&self, _group: &str, _topic: &str) -> Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Configuration("not in this test".into()))
    }

    async fn ensure_topics(&self, _topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(vec![])
    }

    async fn offset_at(&self, _: &str, _: i32, _: i64) -> Result<Option<i64>, LogError> {
        Ok(None)
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        Ok("fake".into())
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }

    async fn flush(&self) {}
}

/// A handler that records its deliveries, and returns the verdict of the test's function for each.
pub(super) struct ScriptedHandler<F> {
    /// See [`ScriptedHandler::deliveries`].
    deliveries: Mutex<Vec<(i32, i64, bool)>>,
    /// Number of records that are being processed.
    active: AtomicUsize,
    /// The highest value that `active` has had.
    pub(super) max_active: AtomicUsize,
    verdict: F,
}

impl<F> ScriptedHandler<F> {
    pub(super) fn new(verdict: F) -> Arc<Self> {
        Arc::new(Self {
            deliveries: Mutex::default(),
            active: AtomicUsize::new(0),
            max_active: AtomicUsize::new(0),
            verdict,
        })
    }

    /// Partition, offset and `already_finished` of each delivery, in order.
    pub(super) fn deliveries(&self) -> Vec<(i32, i64, bool)> {
        self.deliveries.lock().unwrap().clone()
    }
}

#[async_trait]
impl<F, Fut> Handler for ScriptedHandler<F>
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    fn lane(&self, record: &Record) -> String {
        String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()
    }

    async fn handle(&self, delivery: &Delivery, slot: &mut WorkSlot) -> Verdict {
        let record = &delivery.record;
        self.deliveries.lock().unwrap().push((
            record.partition,
            record.offset,
            delivery.already_finished,
        ));
        let active = self.active.fetch_add(1, Ordering::SeqCst) + 1;
        self.max_active.fetch_max(active, Ordering::SeqCst);
        let verdict = tokio::select! {
            verdict = (self.verdict)(delivery.clone()) => verdict,
            () = slot.stop_token().cancelled() => Verdict::Unfinished,
        };
        self.active.fetch_sub(1, Ordering::SeqCst);
        verdict
    }

    async fn report_failure(
        &self,
        _: &Delivery,
        _: &str,
        _: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        Ok(())
    }
}

/// A running pipeline, and the test's means to control it.
pub(super) struct TestPipeline {
    pub(super) topic: Arc<FakeTopic>,
    events: mpsc::UnboundedSender<ConsumerEvent>,
    pub(super) rewind_requests: mpsc::Sender<RewindRequest>,
    drain: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts a pipeline that tries a failing record 3 times and pauses its consumer at a backlog of
/// 64 KiB.
pub(super) fn start(
    handler: Arc<dyn Handler>,
    max_workers: usize,
    rewind_policy: Option<Arc<dyn RewindPolicy>>,
) -> TestPipeline {
    let topic = Arc::new(FakeTopic::default());
    let (events, receiver) = mpsc::unbounded_channel();
    let (rewind_requests, requests) = mpsc::channel(4);
    let consumer = FakeConsumer {
        topic: Arc::clone(&topic),
        events: receiver,
        next_offsets: HashMap::new(),
    };
    let drain = CancellationToken::new();
    let dependencies = Dependencies {
        consumer: Box::new(consumer),
        handler,
        rewind_policy,
        rewind_requests: Some(requests),
        dead_letters: DeadLetterWriter::new(
            Arc::new(FakeLog(Arc::clone(&topic))),
            "topic.dlq".into(),
        ),
        settings: PipelineSettings {
            topic: "topic".into(),
            dead_letter_topic: "topic.dlq".into(),
            group: "group".into(),
            max_workers,
            max_deliveries: 3,
            read_ahead_bytes: 64 << 10,
            drain_timeout: Duration::from_secs(5),
        },
        metrics: PipelineMetrics::for_relay("group", "topic"),
    };
    let task = tokio::spawn(driver::run(dependencies, drain.clone()));
    TestPipeline {
        topic,
        events,
        rewind_requests,
        drain,
        task,
    }
}

impl TestPipeline {
    pub(super) fn assign(&self, partition: i32, committed: Option<i64>) {
        self.events
            .send(ConsumerEvent::Assigned(vec![Assignment {
                partition,
                committed_offset: committed,
            }]))
            .unwrap();
        self.topic.changed.notify_waiters();
    }

    pub(super) fn revoke(&self, partition: i32) {
        self.events
            .send(ConsumerEvent::Revoked(vec![partition]))
            .unwrap();
        self.topic.changed.notify_waiters();
    }

    /// Waits until `is_met` returns true. `condition` describes it in the failure after 10 minutes.
    pub(super) async fn wait_until(&self, condition: &str, mut is_met: impl FnMut() -> bool) {
        let waiting = async {
            while !is_met() {
                // With paused time, a sleep takes no real time: it only lets the other tasks run.
                tokio::time::sleep(Duration::from_millis(10)).await;
                self.topic.changed.notify_waiters();
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(600), waiting).await;
        assert!(result.is_ok(), "timed out waiting for {condition}");
    }

    /// Drains the pipeline, waits until it has ended, and returns the topic.
    pub(super) async fn drain(self) -> Arc<FakeTopic> {
        self.drain.cancel();
        self.topic.changed.notify_waiters();
        tokio::time::timeout(Duration::from_secs(60), self.task)
            .await
            .unwrap()
            .unwrap();
        self.topic
    }
}
