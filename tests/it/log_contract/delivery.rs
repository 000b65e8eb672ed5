//! Control of the delivery: seek, pause, resume, and cancelled calls.

use std::sync::Arc;
use std::time::Duration;

use chatmesh::log::Log;
use tokio::time::{Instant, timeout};

use super::{Member, PARTITIONS, TIMEOUT, append_numbers, create_topic, numbers, unique_group};

pub(crate) async fn seek_delivers_only_records_from_its_offset_on(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    let last_offset = append_numbers(&log, &topic, "k", 0..200).await;
    let mut member = Member::join(&log, &unique_group(), &topic);
    let records = member.records(100).await;
    // The first seek goes back. The second one goes forward across records that were certainly
    // prefetched, and the third one goes back to the first record.
    for (distance, expected) in [(10, 10..60), (150, 150..200), (0, 0..200)] {
        timeout(
            TIMEOUT,
            member
                .consumer
                .seek(last_offset.partition, records[0].offset + distance),
        )
        .await
        .expect("seek returns in time")
        .expect("seek succeeds");
        let count = expected.len();
        assert_eq!(
            numbers(&member.records(count).await),
            expected.collect::<Vec<_>>()
        );
    }
    member.close().await;
}

pub(crate) async fn seek_does_not_move_the_committed_offset_back(log: Arc<dyn Log>) {
    let (topic, group) = (create_topic(&log).await, unique_group());
    let last_offset = append_numbers(&log, &topic, "k", 0..6).await;
    let mut member = Member::join(&log, &group, &topic);
    let records = member.records(6).await;
    member
        .consumer
        .store_offset(last_offset.partition, records[4].offset + 1);
    member
        .consumer
        .seek(last_offset.partition, records[0].offset)
        .await
        .unwrap();
    assert_eq!(numbers(&member.records(2).await), [0, 1]);
    member.close().await;
    let mut successor = Member::join(&log, &group, &topic);
    assert_eq!(numbers(&successor.records(1).await), [5]);
    assert_eq!(
        successor.assigned[&last_offset.partition],
        Some(records[4].offset + 1)
    );
    successor.close().await;
}

pub(crate) async fn resume_after_pause_loses_no_record(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    let mut member = Member::join(&log, &unique_group(), &topic);
    member.wait_for_partitions(PARTITIONS as usize).await;
    append_numbers(&log, &topic, "k", 0..100).await;
    let mut received = member.records(10).await;
    member.consumer.pause();
    // A few records that were fetched before may still be delivered.
    received.extend(member.records_until_quiet().await);
    append_numbers(&log, &topic, "k", 100..110).await;
    let paused = member.records_until_quiet().await;
    assert!(
        paused.is_empty(),
        "expected no record while paused, got {}",
        paused.len()
    );
    member.consumer.resume();
    received.extend(member.records(110 - received.len()).await);
    assert_eq!(numbers(&received), (0..110).collect::<Vec<_>>());
    member.close().await;
}

pub(crate) async fn cancelled_call_of_next_loses_no_record(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    let mut member = Member::join(&log, &unique_group(), &topic);
    member.wait_for_partitions(PARTITIONS as usize).await;
    let append_task = tokio::spawn({
        let (log, topic) = (Arc::clone(&log), topic.clone());
        async move {
            for n in 0..100 {
                append_numbers(&log, &topic, "k", n..n + 1).await;
            }
        }
    });
    let deadline = Instant::now() + TIMEOUT;
    let mut received = Vec::new();
    while received.len() < 100 {
        assert!(
            Instant::now() < deadline,
            "received only {} of 100 records in time",
            received.len()
        );
        if let Some(event) = member.poll(Duration::from_micros(200)).await {
            received.extend(event);
        }
    }
    append_task.await.unwrap();
    assert_eq!(numbers(&received), (0..100).collect::<Vec<_>>());
    member.close().await;
}
