//! Benchmarks of the offset tracker: records finish in order, behind a slow record, and out of
//! order.

use chatmesh::pipeline::offsets::OffsetTracker;
use criterion::{BatchSize, Criterion, Throughput};

/// Number of records of one iteration.
const RECORD_COUNT: i64 = 10_000;

pub(crate) fn run_benchmarks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offsets of 10,000 records");
    group.throughput(Throughput::Elements(RECORD_COUNT as u64));
    group.bench_function("in order", |bencher| {
        bencher.iter(|| {
            let mut tracker = OffsetTracker::new(0);
            for offset in 0..RECORD_COUNT {
                tracker.observe(offset);
                tracker.finish(offset);
            }
            assert_eq!(tracker.next_to_commit(), RECORD_COUNT);
        });
    });
    group.bench_function("behind a slow record", |bencher| {
        bencher.iter(|| {
            let mut tracker = OffsetTracker::new(0);
            tracker.observe(0);
            for offset in 1..RECORD_COUNT {
                tracker.observe(offset);
                tracker.finish(offset);
            }
            assert_eq!(tracker.finish(0), Some(RECORD_COUNT));
        });
    });
    // The offsets are shuffled in groups of 512, as if 512 records at a time were in progress and
    // finished in any order.
    let shuffled_offsets: Vec<i64> = (0..RECORD_COUNT)
        .map(|n| n / 512 * 512 + (n % 512) * 331 % 512)
        .filter(|offset| *offset < RECORD_COUNT)
        .collect();
    group.bench_function("out of order", |bencher| {
        let tracker_with_records = || {
            let mut tracker = OffsetTracker::new(0);
            for offset in 0..RECORD_COUNT {
                tracker.observe(offset);
            }
            tracker
        };
        bencher.iter_batched_ref(
            tracker_with_records,
            |tracker| {
                for offset in &shuffled_offsets {
                    tracker.finish(*offset);
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}
