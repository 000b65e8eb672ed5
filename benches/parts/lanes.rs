//! Benchmarks of the lane scheduler with a handler that does nothing, from consumed records to
//! stored offsets.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chatmesh::config::bounds::Bounds;
use chatmesh::config::settings::{EmbeddedSettings, PipelineSettings};
use chatmesh::log::embedded::EmbeddedLog;
use chatmesh::log::{Assignment, Consumer, ConsumerEvent, LogError};
use chatmesh::pipeline::driver::{self, Dependencies};
use chatmesh::pipeline::metrics::PipelineMetrics;
use chatmesh::pipeline::{DeadLetterWriter, Delivery, Handler, StopRequested, Verdict, WorkSlot};
use chatmesh::protocol::log_record::Record;
use chatmesh::store::Store;
use criterion::{BatchSize, Criterion, Throughput};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Number of records of one iteration.
const RECORD_COUNT: i64 = 5_000;

/// A consumer that returns prepared records, and stops the pipeline when the last record is
/// finished.
struct PreparedConsumer {
    /// Records that have not been returned, the next record last.
    records: Vec<Record>,
    is_assigned: bool,
    /// Cancelled to stop the pipeline.
    drain: CancellationToken,
}

#[async_trait]
impl Consumer for PreparedConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        if !self.is_assigned {
            self.is_assigned = true;
            return ConsumerEvent::Assigned(vec![Assignment {
                partition: 0,
                committed_offset: Some(0),
            }]);
        }
        match self.records.pop() {
            Some(record) => ConsumerEvent::Record(record),
            None => std::future::pending().await,
        }
    }

    fn store_offset(&mut self, _partition: i32, next_offset: i64) {
        if next_offset == RECORD_COUNT {
            self.drain.cancel();
        }
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}

    async fn seek(&mut self, _partition: i32, _offset: i64) -> Result<(), LogError> {
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

struct NoopHandler;

#[async_trait]
impl Handler for NoopHandler {
    fn lane(&self, record: &Record) -> String {
        let key = record.key.as_deref().unwrap_or_default();
        String::from_utf8_lossy(key).into_owned()
    }

    async fn handle(&self, _delivery: &Delivery, _work: &mut WorkSlot) -> Verdict {
        Verdict::Done
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

/// Returns the parts of a pipeline whose records belong to this number of users, each of which is
/// one lane.
fn dependencies(user_count: i64, drain: &CancellationToken) -> Dependencies {
    let topic: Arc<str> = "topic".into();
    let record = |offset: i64| Record {
        topic: Arc::clone(&topic),
        partition: 0,
        offset,
        timestamp_ms: 0,
        key: Some(Bytes::from(format!("user{}", offset % user_count))),
        value: Bytes::from_static(&[b'x'; 200]),
        null_value: false,
        headers: Vec::new(),
    };
    let settings = EmbeddedSettings {
        data_dir: None,
        partitions: 1,
        retention: Duration::from_secs(3600),
        min_free_disk: 0,
        bounds: Bounds::default(),
    };
    let log = EmbeddedLog::open(Store::in_memory(), &settings, Duration::from_secs(1)).unwrap();
    Dependencies {
        consumer: Box::new(PreparedConsumer {
            records: (0..RECORD_COUNT).rev().map(record).collect(),
            is_assigned: false,
            drain: drain.clone(),
        }),
        handler: Arc::new(NoopHandler),
        rewind_policy: None,
        rewind_requests: None,
        dead_letters: DeadLetterWriter::new(Arc::new(log), "topic.dlq".to_owned()),
        settings: PipelineSettings {
            topic: "topic".to_owned(),
            dead_letter_topic: "topic.dlq".to_owned(),
            group: "group".to_owned(),
            max_workers: 512,
            max_deliveries: 5,
            read_ahead_bytes: 1 << 30,
            drain_timeout: Duration::from_secs(5),
        },
        metrics: PipelineMetrics::for_worker("topic"),
    }
}

pub(crate) fn run_benchmarks(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("lanes of 5,000 records");
    group.throughput(Throughput::Elements(RECORD_COUNT as u64));
    group.sample_size(20);
    for user_count in [1, 100, RECORD_COUNT] {
        group.bench_function(format!("{user_count} lanes"), |bencher| {
            bencher.to_async(&runtime).iter_batched(
                || {
                    let drain = CancellationToken::new();
                    // Opening the embedded log for dead letters needs a runtime.
                    let _entered = runtime.enter();
                    (dependencies(user_count, &drain), drain)
                },
                |(dependencies, drain)| driver::run(dependencies, drain),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}
