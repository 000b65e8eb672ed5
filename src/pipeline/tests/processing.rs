//! Tests how a pipeline processes records: order, concurrency, backpressure, dead letters,
//! revocation and drain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::harness::{ScriptedHandler, start};
use crate::pipeline::{Delivery, Handler, StopRequested, Verdict, WorkSlot};
use crate::protocol::log_record::{NewRecord, Record};

/// Returns a future that never completes, as the processing of a record that does not end.
async fn never() -> Verdict {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_slow_lane_blocks_no_other_lane_and_no_commit_passes_it() {
    let gate = Arc::new(Semaphore::new(0));
    let handler_gate = Arc::clone(&gate);
    let handler = ScriptedHandler::new(move |delivery: Delivery| {
        let gate = Arc::clone(&handler_gate);
        async move {
            if delivery.record.offset == 1 {
                gate.acquire().await.unwrap().forget();
            }
            Verdict::Done
        }
    });
    let pipeline = start(Arc::clone(&handler) as _, 4, None);
    for n in 0..50 {
        pipeline
            .topic
            .append(0, if n % 2 == 1 { "slow" } else { "fast" }, 10);
    }
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("25 fast records and the slow one", || {
            handler.deliveries().len() == 26
        })
        .await;
    assert_eq!(pipeline.topic.stored_offset(0), Some(1));
    gate.add_permits(1);
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(50)
        })
        .await;
    let slow: Vec<i64> = handler
        .deliveries()
        .iter()
        .map(|(_, offset, _)| *offset)
        .filter(|o| o % 2 == 1)
        .collect();
    assert!(slow.is_sorted(), "{slow:?}");
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_max_workers_records_are_processed_concurrently() {
    let handler = ScriptedHandler::new(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Verdict::Done
    });
    let pipeline = start(Arc::clone(&handler) as _, 3, None);
    for n in 0..60 {
        pipeline.topic.append(n % 2, &format!("lane {n}"), 10);
    }
    pipeline.assign(0, None);
    pipeline.assign(1, None);
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(30)
                && pipeline.topic.stored_offset(1) == Some(30)
        })
        .await;
    assert_eq!(handler.max_active.load(Ordering::SeqCst), 3);
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn the_consumer_is_paused_above_the_backlog_limit_and_resumed_below_it() {
    let gate = Arc::new(Semaphore::new(0));
    let handler_gate = Arc::clone(&gate);
    let handler = ScriptedHandler::new(move |_| {
        let gate = Arc::clone(&handler_gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Verdict::Done
        }
    });
    let pipeline = start(Arc::clone(&handler) as _, 2, None);
    for n in 0..200 {
        pipeline.topic.append(0, &format!("lane {n}"), 1024);
    }
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the pause", || *pipeline.topic.is_paused.lock().unwrap())
        .await;
    gate.add_permits(1000);
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(200)
        })
        .await;
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_record_becomes_a_dead_letter_and_the_next_is_processed() {
    let handler = ScriptedHandler::new(|delivery: Delivery| async move {
        assert!(delivery.record.offset != 1, "this record panics");
        if delivery.record.offset == 0 {
            Verdict::Failed("bad".into())
        } else {
            Verdict::Done
        }
    });
    let pipeline = start(Arc::clone(&handler) as _, 2, None);
    for _ in 0..3 {
        pipeline.topic.append(0, "same", 10);
    }
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(3)
        })
        .await;
    let delivery_count = |offset| {
        handler
            .deliveries()
            .iter()
            .filter(|(_, o, _)| *o == offset)
            .count()
    };
    assert_eq!(
        (delivery_count(0), delivery_count(1), delivery_count(2)),
        (3, 3, 1)
    );
    let topic = pipeline.drain().await;
    let dead_letters = topic.dead_letters.lock().unwrap();
    assert_eq!(dead_letters.len(), 2);
    let header = |record: &NewRecord, name: &str| {
        let found = record.headers.iter().find(|(key, _)| key == name).unwrap();
        String::from_utf8(found.1.to_vec()).unwrap()
    };
    assert_eq!(header(&dead_letters[0], "dlq.reason"), "bad");
    assert_eq!(header(&dead_letters[0], "dlq.attempts"), "3");
    assert_eq!(header(&dead_letters[1], "dlq.offset"), "1");
    assert_eq!(dead_letters[0].key.as_deref(), Some(&b"same"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_task_started_before_a_revocation_stores_no_offset() {
    let gate = Arc::new(Semaphore::new(0));
    let handler_gate = Arc::clone(&gate);
    let handler = ScriptedHandler::new(move |_| {
        let gate = Arc::clone(&handler_gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Verdict::Done
        }
    });
    let pipeline = start(Arc::clone(&handler) as _, 2, None);
    pipeline.topic.append(0, "a", 10);
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the first delivery", || handler.deliveries().len() == 1)
        .await;
    pipeline.revoke(0);
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the second delivery", || handler.deliveries().len() == 2)
        .await;
    assert_eq!(pipeline.topic.stored_offset(0), None);
    gate.add_permits(1);
    pipeline
        .wait_until("the commit of the second delivery", || {
            pipeline.topic.stored_offset(0) == Some(1)
        })
        .await;
    pipeline.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_starts_no_further_records() {
    let handler = ScriptedHandler::new(|delivery: Delivery| async move {
        if delivery.record.offset == 0 {
            Verdict::Done
        } else {
            never().await
        }
    });
    let pipeline = start(Arc::clone(&handler) as _, 1, None);
    for _ in 0..5 {
        pipeline.topic.append(0, "a", 10);
    }
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the second delivery", || handler.deliveries().len() == 2)
        .await;
    let topic = pipeline.drain().await;
    assert!(*topic.is_closed.lock().unwrap());
    assert_eq!(topic.stored_offset(0), Some(1));
    assert_eq!(handler.deliveries().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_record_too_large_for_the_dead_letter_topic_blocks_no_other() {
    let handler = ScriptedHandler::new(|delivery: Delivery| async move {
        if delivery.record.offset == 0 {
            Verdict::DeadLetter("unreadable".into())
        } else {
            Verdict::Done
        }
    });
    let pipeline = start(Arc::clone(&handler) as _, 1, None);
    *pipeline.topic.max_dead_letter_bytes.lock().unwrap() = Some(100);
    pipeline.topic.append(0, "a", 101);
    pipeline.topic.append(0, "a", 10);
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(2)
        })
        .await;
    let topic = pipeline.drain().await;
    let dead_letters = topic.dead_letters.lock().unwrap();
    assert_eq!((dead_letters.len(), dead_letters[0].value.len()), (1, 0));
    let left_out = dead_letters[0]
        .headers
        .iter()
        .find(|(key, _)| key == "dlq.value_left_out");
    assert_eq!(left_out.unwrap().1, "101");
}

/// A handler that panics on offset 0, both in `handle` and in `report_failure`.
struct PanickingHandler;

#[async_trait]
impl Handler for PanickingHandler {
    fn lane(&self, _: &Record) -> String {
        String::new()
    }

    async fn handle(&self, delivery: &Delivery, _: &mut WorkSlot) -> Verdict {
        assert!(delivery.record.offset != 0, "this record panics");
        Verdict::Done
    }

    async fn report_failure(
        &self,
        _: &Delivery,
        _: &str,
        _: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        panic!("the report panics too")
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_failure_report_panics_becomes_a_dead_letter() {
    let pipeline = start(Arc::new(PanickingHandler), 1, None);
    pipeline.topic.append(0, "a", 10);
    pipeline.topic.append(0, "a", 10);
    pipeline.assign(0, Some(0));
    pipeline
        .wait_until("the last commit", || {
            pipeline.topic.stored_offset(0) == Some(2)
        })
        .await;
    assert_eq!(pipeline.drain().await.dead_letters.lock().unwrap().len(), 1);
}
