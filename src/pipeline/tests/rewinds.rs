//! Tests which records a pipeline reads again in a rewind, which begins with an assignment, a loss
//! or a request, and when the rewind is reported as complete.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::harness::{ScriptedHandler, start};
use crate::pipeline::{Delivery, RewindPolicy, RewindRequest, Verdict};

/// A rewind policy that rewinds every partition to the same offset.
struct FixedRewind {
    offset: i64,
    completed_rewinds: AtomicUsize,
}

impl FixedRewind {
    fn new(offset: i64) -> Arc<Self> {
        Arc::new(Self {
            offset,
            completed_rewinds: AtomicUsize::new(0),
        })
    }

    /// Number of rewinds that the pipeline has reported as complete.
    fn completed_rewinds(&self) -> usize {
        self.completed_rewinds.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl RewindPolicy for FixedRewind {
    async fn start_offset(&self, _partition: i32, committed: i64, _oldest: Option<i64>) -> i64 {
        self.offset.min(committed)
    }

    async fn on_rewound(&self, _partition: i32) {
        self.completed_rewinds.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn an_assignment_rewinds_and_marks_finished_records() {
    let handler = ScriptedHandler::new(|_| async { Verdict::Done });
    let policy = FixedRewind::new(4);
    let pipeline = start(Arc::clone(&handler) as _, 1, Some(Arc::clone(&policy) as _));
    for _ in 0..10 {
        pipeline.topic.append(0, "a", 10);
    }
    pipeline.assign(0, Some(7));
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(10)
        })
        .await;
    let expected: Vec<_> = (4..10).map(|offset| (0, offset, offset < 7)).collect();
    assert_eq!(handler.deliveries(), expected);
    pipeline
        .wait_until("the end of the rewind", || policy.completed_rewinds() == 1)
        .await;
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_rewind_without_records_completes_at_once() {
    let handler = ScriptedHandler::new(|_| async { Verdict::Done });
    let policy = FixedRewind::new(7);
    let pipeline = start(handler, 1, Some(Arc::clone(&policy) as _));
    pipeline.assign(0, Some(7));
    pipeline.assign(1, None);
    pipeline
        .wait_until("the end of both rewinds", || {
            policy.completed_rewinds() == 2
        })
        .await;
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_rewind_during_processing_delivers_no_finished_record_as_new() {
    let will_lose_data = Arc::new(Mutex::new(true));
    let handler = ScriptedHandler::new(move |delivery: Delivery| {
        let loses_data =
            delivery.record.offset == 8 && std::mem::take(&mut *will_lose_data.lock().unwrap());
        async move {
            if loses_data {
                Verdict::Rewind
            } else {
                Verdict::Done
            }
        }
    });
    let policy = FixedRewind::new(5);
    let pipeline = start(Arc::clone(&handler) as _, 1, Some(Arc::clone(&policy) as _));
    for _ in 0..10 {
        pipeline.topic.append(0, "a", 10);
    }
    pipeline.assign(0, Some(5));
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(10)
        })
        .await;
    let deliveries = handler.deliveries();
    let new: Vec<i64> = deliveries
        .iter()
        .filter(|(_, _, already_finished)| !already_finished)
        .map(|(_, o, _)| *o)
        .collect();
    assert_eq!(new, [5, 6, 7, 8, 8, 9]);
    let repeated: Vec<i64> = deliveries
        .iter()
        .filter(|(_, _, already_finished)| *already_finished)
        .map(|(_, o, _)| *o)
        .collect();
    assert_eq!(repeated, [5, 6, 7]);
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_rewind_request_waits_for_records_in_progress() {
    let gate = Arc::new(Semaphore::new(0));
    let handler_gate = Arc::clone(&gate);
    let handler = ScriptedHandler::new(move |delivery: Delivery| {
        let gate = Arc::clone(&handler_gate);
        async move {
            if delivery.record.offset == 3 {
                gate.acquire().await.unwrap().forget();
            }
            Verdict::Done
        }
    });
    let policy = FixedRewind::new(0);
    let pipeline = start(Arc::clone(&handler) as _, 1, Some(Arc::clone(&policy) as _));
    for _ in 0..4 {
        pipeline.topic.append(0, "a", 10);
    }
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the last record in progress", || {
            handler.deliveries().len() == 4
        })
        .await;
    pipeline
        .rewind_requests
        .send(RewindRequest::AllPartitions)
        .await
        .unwrap();
    pipeline
        .wait_until("all records again", || handler.deliveries().len() == 8)
        .await;
    gate.add_permits(10);
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(4)
        })
        .await;
    let repeated: Vec<_> = handler.deliveries().split_off(4);
    assert_eq!(
        repeated,
        [(0, 0, true), (0, 1, true), (0, 2, true), (0, 3, false)]
    );
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn silence_while_paused_does_not_complete_a_rewind() {
    let gate = Arc::new(Semaphore::new(0));
    let handler_gate = Arc::clone(&gate);
    let handler = ScriptedHandler::new(move |delivery: Delivery| {
        let gate = Arc::clone(&handler_gate);
        async move {
            if delivery.record.partition == 0 {
                gate.acquire().await.unwrap().forget();
            }
            Verdict::Done
        }
    });
    let policy = FixedRewind::new(0);
    let pipeline = start(Arc::clone(&handler) as _, 4, Some(Arc::clone(&policy) as _));
    pipeline.topic.append(0, "a", 70 << 10);
    for _ in 0..5 {
        pipeline.topic.append(1, "b", 10);
    }
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the pause", || *pipeline.topic.is_paused.lock().unwrap())
        .await;
    // No record exists at offset 5, just below the committed offset 6, so that only silence can
    // complete the rewind of partition 1.
    pipeline.assign(1, Some(6));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        policy.completed_rewinds(),
        1,
        "only partition 0 is complete"
    );
    gate.add_permits(1);
    pipeline
        .wait_until("all deliveries", || handler.deliveries().len() == 6)
        .await;
    assert_eq!(policy.completed_rewinds(), 1);
    pipeline
        .wait_until("the end of the rewind", || policy.completed_rewinds() == 2)
        .await;
    pipeline.drain().await;
}

/// A rewind policy whose `on_rewound` waits until the gate has a permit.
struct BlockingPolicy {
    gate: Semaphore,
    /// Number of calls of `on_rewound` that have started.
    started_calls: AtomicUsize,
    /// Number of calls of `on_rewound` that have returned.
    ended_calls: AtomicUsize,
}

#[async_trait]
impl RewindPolicy for BlockingPolicy {
    async fn start_offset(&self, _: i32, committed: i64, _: Option<i64>) -> i64 {
        committed
    }

    async fn on_rewound(&self, _: i32) {
        self.started_calls.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.ended_calls.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_rewound_again_is_not_reported_as_rewound() {
    let policy = Arc::new(BlockingPolicy {
        gate: Semaphore::new(0),
        started_calls: AtomicUsize::new(0),
        ended_calls: AtomicUsize::new(0),
    });
    let handler = ScriptedHandler::new(|_| async { Verdict::Done });
    let pipeline = start(handler, 1, Some(Arc::clone(&policy) as _));
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the first report", || {
            policy.started_calls.load(Ordering::SeqCst) == 1
        })
        .await;
    pipeline
        .rewind_requests
        .send(RewindRequest::AllPartitions)
        .await
        .unwrap();
    pipeline
        .wait_until("the second report", || {
            policy.started_calls.load(Ordering::SeqCst) == 2
        })
        .await;
    policy.gate.add_permits(10);
    pipeline
        .wait_until("the end of a report", || {
            policy.ended_calls.load(Ordering::SeqCst) == 1
        })
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(policy.ended_calls.load(Ordering::SeqCst), 1);
    pipeline.drain().await;
}
