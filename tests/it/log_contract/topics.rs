//! Topics: looking up offsets by time, and keeping existing topics.

use std::sync::Arc;
use std::time::Duration;

use chatmesh::log::Log;

use super::{Member, append_numbers, create_topic, ensure_topic, numbers, unique_group};

pub(crate) async fn offset_at_finds_the_first_record_of_a_time(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    for n in 0..5 {
        append_numbers(&log, &topic, "k", n..n + 1).await;
        // The pause gives the records different timestamps. Equal ones would only weaken the test.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let mut member = Member::join(&log, &unique_group(), &topic);
    let records = member.records(5).await;
    let partition = records[0].partition;
    assert!(
        records.is_sorted_by_key(|record| record.timestamp_ms),
        "expected timestamps in ascending order within a partition"
    );
    for record in &records {
        let first = records
            .iter()
            .find(|other| other.timestamp_ms >= record.timestamp_ms)
            .unwrap();
        let offset = log
            .offset_at(&topic, partition, record.timestamp_ms)
            .await
            .unwrap();
        assert_eq!(offset, Some(first.offset));
    }
    let early = log.offset_at(&topic, partition, 0).await.unwrap();
    assert_eq!(early, Some(records[0].offset));
    let late = records[4].timestamp_ms + 60_000;
    assert_eq!(log.offset_at(&topic, partition, late).await.unwrap(), None);
    member.close().await;
}

pub(crate) async fn existing_topic_is_kept(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    append_numbers(&log, &topic, "k", 0..2).await;
    ensure_topic(&log, &topic).await;
    let mut member = Member::join(&log, &unique_group(), &topic);
    assert_eq!(numbers(&member.records(2).await), [0, 1]);
    member.close().await;
    log.check().await.expect("the check succeeds");
    let id = log.cluster_id().await.expect("the cluster has an id");
    assert!(!id.is_empty());
    assert_eq!(log.cluster_id().await.unwrap(), id);
    log.flush().await;
}
