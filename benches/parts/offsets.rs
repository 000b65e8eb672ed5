//! The offset tracker: finishing records in order, behind a slow one, and out of order.

use chatmesh::pipeline::offsets::OffsetTracker;
use criterion::{BatchSize, Criterion, Throughput};

const RECORDS: i64 = 10_000;

pub(crate) fn all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offsets of 10,000 records");
    group.throughput(Throughput::Elements(RECORDS as u64));
    group.bench_function("in order", |bencher| {
        bencher.iter(|| {
            let mut tracker = OffsetTracker::new(0);
            for offset in 0..RECORDS {
                tracker.observe(offset);
                tracker.finish(offset);
            }
            assert_eq!(tracker.next_to_commit(), RECORDS);
        });
    });
    group.bench_function("behind a slow record", |bencher| {
        bencher.iter(|| {
            let mut tracker = OffsetTracker::new(0);
            tracker.observe(0);
            for offset in 1..RECORDS {
                tracker.observe(offset);
                tracker.finish(offset);
            }
            assert_eq!(tracker.finish(0), Some(RECORDS));
        });
    });
    // 512 records in progress at a time that finish in any order.
    let shuffled: Vec<i64> = (0..RECORDS)
        .map(|n| n / 512 * 512 + (n % 512) * 331 % 512)
        .filter(|offset| *offset < RECORDS)
        .collect();
    group.bench_function("out of order", |bencher| {
        let tracker_with_records = || {
            let mut tracker = OffsetTracker::new(0);
            for offset in 0..RECORDS {
                tracker.observe(offset);
            }
            tracker
        };
        bencher.iter_batched_ref(
            tracker_with_records,
            |tracker| {
                for offset in &shuffled {
                    tracker.finish(*offset);
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}
