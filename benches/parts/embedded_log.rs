//! Benchmarks of the embedded log in memory and on disk: appending records at once until all are
//! acknowledged, and reading them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatmesh::config::bounds::Bounds;
use chatmesh::config::settings::EmbeddedSettings;
use chatmesh::log::embedded::EmbeddedLog;
use chatmesh::log::{ConsumerEvent, Log, TopicSpec};
use chatmesh::protocol::log_record::NewRecord;
use chatmesh::store::Store;
use criterion::{Criterion, Throughput};
use futures_util::future::join_all;
use tokio::runtime::Runtime;

/// Number of records that one iteration appends or reads.
const RECORD_COUNT: usize = 1_000;

fn open(store: Store) -> Arc<EmbeddedLog> {
    let settings = EmbeddedSettings {
        data_dir: None,
        partitions: 4,
        retention: Duration::from_secs(3600),
        min_free_disk: 0,
        bounds: Bounds::default(),
    };
    Arc::new(EmbeddedLog::open(store, &settings, Duration::from_secs(10)).unwrap())
}

/// Appends all records at once, and waits until the log has acknowledged all of them.
async fn append(log: &EmbeddedLog) {
    let appends = (0..RECORD_COUNT).map(|n| {
        let record = NewRecord {
            key: Some(Bytes::from(format!("user{}", n % 100))),
            value: Bytes::from_static(&[b'x'; 230]),
            ..NewRecord::default()
        };
        log.append("topic", record)
    });
    for result in join_all(appends).await {
        result.unwrap();
    }
}

/// Reads as many records as one iteration appends, as a new consumer group.
async fn read(log: &EmbeddedLog) {
    let group = uuid::Uuid::new_v4().to_string();
    let mut consumer = log.consumer(&group, "topic").unwrap();
    let mut remaining = RECORD_COUNT;
    while remaining > 0 {
        if let ConsumerEvent::Record(_) = consumer.next().await {
            remaining -= 1;
        }
    }
    consumer.close().await;
}

pub(crate) fn run_benchmarks(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("embedded log");
    group.throughput(Throughput::Elements(RECORD_COUNT as u64));
    group.sample_size(20);
    let directory = tempfile::tempdir().unwrap();
    for (name, store) in [
        ("memory", Store::in_memory()),
        ("disk", Store::open(directory.path(), 0).unwrap()),
    ] {
        let log = {
            let _entered = runtime.enter();
            open(store)
        };
        let topic = TopicSpec {
            name: "topic".to_owned(),
            partitions: 4,
            replication: 1,
        };
        runtime.block_on(log.ensure_topics(&[topic])).unwrap();
        group.bench_function(format!("append 1,000, {name}"), |bencher| {
            bencher.to_async(&runtime).iter(|| append(&log));
        });
        group.bench_function(format!("read 1,000, {name}"), |bencher| {
            bencher.to_async(&runtime).iter(|| read(&log));
        });
    }
    group.finish();
}
