//! Consumer groups: where members start, how they share partitions, and which offsets count.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chatmesh::log::Log;
use chatmesh::log::partitioner::key_for_partition;
use chatmesh::protocol::log_record::NewRecord;

use super::{
    Member, PARTITIONS, append_numbers, create_topic, numbers, poll_both, record, text,
    unique_group,
};

pub(crate) async fn new_group_starts_at_the_earliest_record(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    append_numbers(&log, &topic, "k", 0..3).await;
    let mut member = Member::join(&log, &unique_group(), &topic);
    assert_eq!(numbers(&member.records(3).await), [0, 1, 2]);
    assert_eq!(member.assigned.len(), PARTITIONS as usize);
    assert!(member.assigned.values().all(Option::is_none));
    // The member also receives the records that are appended later.
    append_numbers(&log, &topic, "k", 3..5).await;
    assert_eq!(numbers(&member.records(2).await), [3, 4]);
    member.close().await;
}

pub(crate) async fn next_member_starts_at_the_stored_offset(log: Arc<dyn Log>) {
    let (topic, group) = (create_topic(&log).await, unique_group());
    let last_offset = append_numbers(&log, &topic, "k", 0..6).await;
    let mut first = Member::join(&log, &group, &topic);
    let records = first.records(4).await;
    let stored_offset = records[3].offset + 1;
    first
        .consumer
        .store_offset(last_offset.partition, stored_offset);
    first.close().await;

    let mut second = Member::join(&log, &group, &topic);
    assert_eq!(numbers(&second.records(2).await), [4, 5]);
    assert_eq!(second.assigned[&last_offset.partition], Some(stored_offset));
    second.close().await;
}

pub(crate) async fn record_without_stored_offset_is_delivered_again(log: Arc<dyn Log>) {
    let (topic, group) = (create_topic(&log).await, unique_group());
    let last_offset = append_numbers(&log, &topic, "k", 0..3).await;
    let mut first = Member::join(&log, &group, &topic);
    let records = first.records(3).await;
    first
        .consumer
        .store_offset(last_offset.partition, records[0].offset + 1);
    first.close().await;
    for _ in 0..2 {
        let mut successor = Member::join(&log, &group, &topic);
        let redelivered = successor.records(2).await;
        assert_eq!(numbers(&redelivered), [1, 2]);
        assert_eq!(
            redelivered[0].derived_message_id(),
            records[1].derived_message_id(),
            "reading a record again must give the same message id"
        );
        successor.close().await;
    }
}

pub(crate) async fn each_group_receives_every_record(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    append_numbers(&log, &topic, "k", 0..3).await;
    let mut first = Member::join(&log, &unique_group(), &topic);
    let mut second = Member::join(&log, &unique_group(), &topic);
    assert_eq!(numbers(&first.records(3).await), [0, 1, 2]);
    assert_eq!(numbers(&second.records(3).await), [0, 1, 2]);
    first.close().await;
    second.close().await;
}

pub(crate) async fn two_members_share_partitions_without_overlap(log: Arc<dyn Log>) {
    let (topic, group) = (create_topic(&log).await, unique_group());
    let mut a = Member::join(&log, &group, &topic);
    a.wait_for_partitions(PARTITIONS as usize).await;
    let mut b = Member::join(&log, &group, &topic);
    poll_both(
        &mut a,
        &mut b,
        |_, record| panic!("expected no record, got {record:?}"),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let owners: BTreeSet<_> = a.assigned.keys().chain(b.assigned.keys()).collect();
    assert_eq!(
        owners.len(),
        PARTITIONS as usize,
        "expected each partition to have one owner"
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
    assert_eq!(
        distinct, expected,
        "expected each record to be delivered to one member"
    );
    a.close().await;
    b.close().await;
}

pub(crate) async fn partitions_of_a_closed_member_move_to_the_other(log: Arc<dyn Log>) {
    let (topic, group) = (create_topic(&log).await, unique_group());
    let mut a = Member::join(&log, &group, &topic);
    a.wait_for_partitions(PARTITIONS as usize).await;
    let mut b = Member::join(&log, &group, &topic);
    poll_both(
        &mut a,
        &mut b,
        |_, record| panic!("expected no record, got {record:?}"),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let mut count_of_a = 0;
    for n in 0..40 {
        let record = record(Some(&format!("key{n}")), &n.to_string());
        let appended = log.append(&topic, record).await.unwrap();
        count_of_a += usize::from(a.assigned.contains_key(&appended.partition));
    }
    assert!(count_of_a > 0);
    let records_of_a = a.records(count_of_a).await;
    for record in &records_of_a {
        a.consumer.store_offset(record.partition, record.offset + 1);
    }
    a.close().await;
    let records_of_b = b.records(40 - count_of_a).await;
    b.wait_for_partitions(PARTITIONS as usize).await;
    // A sentinel follows all records of each partition, so redelivered records would precede it.
    for partition in 0..PARTITIONS {
        let sentinel = NewRecord {
            key: Some(key_for_partition(partition, PARTITIONS as usize)),
            value: Bytes::from_static(b"sentinel"),
            ..NewRecord::default()
        };
        log.append(&topic, sentinel).await.unwrap();
    }
    for record in b.records(PARTITIONS as usize).await {
        assert_eq!(
            text(&record),
            "sentinel",
            "expected that a finished record is not redelivered"
        );
    }
    let numbers_of_a: BTreeSet<u32> = numbers(&records_of_a).into_iter().collect();
    let numbers_of_b: BTreeSet<u32> = numbers(&records_of_b).into_iter().collect();
    assert!(numbers_of_a.is_disjoint(&numbers_of_b));
    assert_eq!(numbers_of_a.len() + numbers_of_b.len(), 40);
    b.close().await;
}

pub(crate) async fn storing_an_offset_of_a_revoked_partition_has_no_effect(log: Arc<dyn Log>) {
    let (topic, group) = (create_topic(&log).await, unique_group());
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
        "expected that no offset stored for a revoked partition is committed"
    );
    c.close().await;
}
