//! Consumer groups: where members start, how they share partitions, and which offsets count.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chatmesh::log::Log;
use chatmesh::log::partitioner::key_for_partition;
use chatmesh::protocol::log_record::NewRecord;

use super::{Member, PARTITIONS, append_numbers, group, numbers, poll_both, record, text, topic};

pub(crate) async fn new_group_starts_at_the_earliest_record(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    append_numbers(&log, &topic, "k", 0..3).await;
    let mut member = Member::join(&log, &group(), &topic);
    assert_eq!(numbers(&member.records(3).await), [0, 1, 2]);
    assert_eq!(member.assigned.len(), PARTITIONS as usize);
    assert!(member.assigned.values().all(Option::is_none));
    // It continues with the records that are appended while it waits.
    append_numbers(&log, &topic, "k", 3..5).await;
    assert_eq!(numbers(&member.records(2).await), [3, 4]);
    member.close().await;
}

pub(crate) async fn next_member_starts_at_the_stored_offset(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let last = append_numbers(&log, &topic, "k", 0..6).await;
    let mut first = Member::join(&log, &group, &topic);
    let records = first.records(4).await;
    let next = records[3].offset + 1;
    first.consumer.store_offset(last.partition, next);
    first.close().await;

    let mut second = Member::join(&log, &group, &topic);
    assert_eq!(numbers(&second.records(2).await), [4, 5]);
    assert_eq!(second.assigned[&last.partition], Some(next));
    second.close().await;
}

pub(crate) async fn record_without_stored_offset_is_delivered_again(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let last = append_numbers(&log, &topic, "k", 0..3).await;
    let mut first = Member::join(&log, &group, &topic);
    let records = first.records(3).await;
    first
        .consumer
        .store_offset(last.partition, records[0].offset + 1);
    first.close().await;
    for _ in 0..2 {
        let mut next = Member::join(&log, &group, &topic);
        let again = next.records(2).await;
        assert_eq!(numbers(&again), [1, 2]);
        assert_eq!(
            again[0].derived_message_id(),
            records[1].derived_message_id(),
            "reading a record again must give the same message id"
        );
        next.close().await;
    }
}

pub(crate) async fn each_group_receives_every_record(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    append_numbers(&log, &topic, "k", 0..3).await;
    let mut one = Member::join(&log, &group(), &topic);
    let mut other = Member::join(&log, &group(), &topic);
    assert_eq!(numbers(&one.records(3).await), [0, 1, 2]);
    assert_eq!(numbers(&other.records(3).await), [0, 1, 2]);
    one.close().await;
    other.close().await;
}

pub(crate) async fn two_members_share_partitions_without_overlap(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let mut a = Member::join(&log, &group, &topic);
    a.wait_for_partitions(PARTITIONS as usize).await;
    let mut b = Member::join(&log, &group, &topic);
    poll_both(
        &mut a,
        &mut b,
        |_, record| panic!("unexpected {record:?}"),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let owners: BTreeSet<_> = a.assigned.keys().chain(b.assigned.keys()).collect();
    assert_eq!(
        owners.len(),
        PARTITIONS as usize,
        "a partition has two owners"
    );

    let mut expected = BTreeSet::new();
    for n in 0..40 {
        let value = format!("v{n}");
        log.append(&topic, record(Some(&format!("key{n}")), &value))
            .await
            .unwrap();
        expected.insert(value);
    }
    let received = std::cell::RefCell::new(Vec::new());
    poll_both(
        &mut a,
        &mut b,
        |_, record| received.borrow_mut().push(text(&record)),
        |_, _| received.borrow().len() == 40,
    )
    .await;
    let distinct: BTreeSet<_> = received.borrow().iter().cloned().collect();
    assert_eq!(distinct, expected, "each record is delivered to one member");
    a.close().await;
    b.close().await;
}

pub(crate) async fn partitions_of_a_closed_member_move_to_the_other(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let mut a = Member::join(&log, &group, &topic);
    a.wait_for_partitions(PARTITIONS as usize).await;
    let mut b = Member::join(&log, &group, &topic);
    poll_both(
        &mut a,
        &mut b,
        |_, record| panic!("unexpected {record:?}"),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let mut owned_by_a = 0;
    for n in 0..40 {
        let record = record(Some(&format!("key{n}")), &n.to_string());
        let appended = log.append(&topic, record).await.unwrap();
        owned_by_a += usize::from(a.assigned.contains_key(&appended.partition));
    }
    assert!(owned_by_a > 0);
    let records_of_a = a.records(owned_by_a).await;
    for record in &records_of_a {
        a.consumer.store_offset(record.partition, record.offset + 1);
    }
    a.close().await;
    let records_of_b = b.records(40 - owned_by_a).await;
    b.wait_for_partitions(PARTITIONS as usize).await;
    // Sentinels behind everything that `a` finished: redelivered records would precede them.
    for partition in 0..PARTITIONS {
        let sentinel = NewRecord {
            key: Some(key_for_partition(partition, PARTITIONS as usize)),
            value: Bytes::from_static(b"sentinel"),
            ..NewRecord::default()
        };
        log.append(&topic, sentinel).await.unwrap();
    }
    for record in b.records(PARTITIONS as usize).await {
        assert_eq!(text(&record), "sentinel", "a finished record came again");
    }
    let numbers_of_a: BTreeSet<u32> = numbers(&records_of_a).into_iter().collect();
    let numbers_of_b: BTreeSet<u32> = numbers(&records_of_b).into_iter().collect();
    assert!(numbers_of_a.is_disjoint(&numbers_of_b));
    assert_eq!(numbers_of_a.len() + numbers_of_b.len(), 40);
    b.close().await;
}

pub(crate) async fn storing_an_offset_of_a_revoked_partition_has_no_effect(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let mut a = Member::join(&log, &group, &topic);
    a.wait_for_partitions(PARTITIONS as usize).await;
    for n in 0..40 {
        let _ = log
            .append(&topic, record(Some(&format!("key{n}")), &n.to_string()))
            .await
            .unwrap();
    }
    let records = a.records(40).await;
    let mut b = Member::join(&log, &group, &topic);
    let redelivered = std::cell::RefCell::new(Vec::new());
    poll_both(
        &mut a,
        &mut b,
        |_, record| redelivered.borrow_mut().push(record),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let revoked: BTreeSet<i32> = b.assigned.keys().copied().collect();
    for record in &records {
        if revoked.contains(&record.partition) {
            a.consumer.store_offset(record.partition, record.offset + 1);
        }
    }
    a.close().await;
    b.close().await;
    let mut c = Member::join(&log, &group, &topic);
    assert_eq!(
        c.records(40).await.len(),
        40,
        "an offset stored for a revoked partition was committed"
    );
    c.close().await;
}
