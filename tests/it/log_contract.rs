//! What every log promises (`chatmesh::log`), as tests over any of them.
//!
//! A backend names an async function that gives a log and a guard that is held for the test:
//! `log_contract!(backend);` makes a module's worth of tests of it. Topics and groups are named
//! at random, so a shared server will do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatmesh::log::{AppendError, Consumer, ConsumerEvent, Log, LogOffset, TopicSpec};
use chatmesh::protocol::log_record::{NewRecord, Record};
use tokio::time::{Instant, timeout};

/// How many partitions a backend must give the topics of this suite.
pub(crate) const PARTITIONS: i32 = 4;
/// A group join on a real server may take this long.
const JOIN: Duration = Duration::from_secs(20);
/// Long enough for a record that should not come to show itself.
const QUIET: Duration = Duration::from_millis(700);

macro_rules! log_contract {
    ($backend:path) => {
        $crate::log_contract::log_contract!($backend;
            order_per_key_holds_though_acknowledgements_are_awaited_in_any_order,
            keys_are_placed_as_java_places_them,
            a_new_group_begins_at_the_earliest_record,
            a_stored_offset_is_where_the_next_member_begins,
            a_record_that_was_not_stored_comes_again,
            groups_do_not_take_records_from_each_other,
            two_members_share_the_partitions_and_never_both_own_one,
            a_member_that_leaves_hands_over,
            storing_for_a_partition_that_was_lost_does_nothing,
            a_seek_replays_and_nothing_from_before_it_comes_after,
            a_seek_does_not_move_the_commit_back,
            pause_stops_and_resume_goes_on_without_loss,
            a_call_of_next_that_is_given_up_loses_nothing,
            bytes_come_out_as_they_went_in,
            a_record_over_the_limit_is_refused_and_harms_nothing,
            a_time_finds_its_first_record,
            topics_that_are_there_are_kept,
        );
    };
    ($backend:path; $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (log, _guard) = $backend().await;
                $crate::log_contract::$name(log).await;
            }
        )*
    };
}
pub(crate) use log_contract;

async fn topic(log: &Arc<dyn Log>) -> String {
    let name = format!("contract-{}", uuid::Uuid::new_v4().simple());
    ensure(log, &name).await;
    name
}

async fn ensure(log: &Arc<dyn Log>, name: &str) {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: PARTITIONS,
        replication: 1,
    };
    timeout(JOIN, log.ensure_topics(std::slice::from_ref(&spec)))
        .await
        .expect("ensure_topics in time")
        .expect("ensure_topics");
}

fn group() -> String {
    format!("group-{}", uuid::Uuid::new_v4().simple())
}

fn record(key: Option<&str>, value: &str) -> NewRecord {
    NewRecord {
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        value: Bytes::copy_from_slice(value.as_bytes()),
        null_value: false,
        headers: Vec::new(),
    }
}

/// Appends `0..count` as values under one key.
async fn fill(
    log: &Arc<dyn Log>,
    topic: &str,
    key: &str,
    values: std::ops::Range<u32>,
) -> LogOffset {
    let futures: Vec<_> = values
        .map(|n| log.append(topic, record(Some(key), &n.to_string())))
        .collect();
    let mut last = None;
    for future in futures {
        last = Some(future.await.expect("append"));
    }
    last.expect("a record")
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.to_vec()).expect("text")
}

fn numbers(records: &[Record]) -> Vec<u32> {
    records.iter().map(|r| text(r).parse().unwrap()).collect()
}

/// A consumer that checks what holds of every event.
struct Member {
    consumer: Box<dyn Consumer>,
    /// Assigned partitions, with the committed offset that they came with.
    assigned: BTreeMap<i32, Option<i64>>,
}

impl Member {
    fn join(log: &Arc<dyn Log>, group: &str, topic: &str) -> Self {
        Self {
            consumer: log.consumer(group, topic).expect("consumer"),
            assigned: BTreeMap::new(),
        }
    }

    /// One event within `wait`, and the record if it was one.
    async fn step(&mut self, wait: Duration) -> Option<Option<Record>> {
        match timeout(wait, self.consumer.next()).await.ok()? {
            ConsumerEvent::Assigned(assignments) => {
                for assignment in assignments {
                    let before = self
                        .assigned
                        .insert(assignment.partition, assignment.committed);
                    assert_eq!(before, None, "assigned twice: {assignment:?}");
                }
                Some(None)
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    assert!(
                        self.assigned.remove(&partition).is_some(),
                        "revoked without having been assigned: {partition}"
                    );
                }
                Some(None)
            }
            ConsumerEvent::Record(record) => {
                assert!(
                    self.assigned.contains_key(&record.partition),
                    "a record of a partition that is another's: {record:?}"
                );
                Some(Some(record))
            }
        }
    }

    /// The next `count` records.
    async fn records(&mut self, count: usize) -> Vec<Record> {
        let end = Instant::now() + JOIN;
        let mut records = Vec::new();
        while records.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            match self.step(left).await {
                Some(found) => records.extend(found),
                None => panic!("{} of {count} records came in time", records.len()),
            }
        }
        records
    }

    /// All records that come until `quiet` has passed without an event.
    async fn drain(&mut self, quiet: Duration) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(found) = self.step(quiet).await {
            records.extend(found);
        }
        records
    }

    /// Waits until this many partitions are this member's. No record may be on its way.
    async fn owns(&mut self, count: usize) {
        let end = Instant::now() + JOIN;
        while self.assigned.len() != count {
            let left = end.saturating_duration_since(Instant::now());
            match self.step(left).await {
                Some(None) => {}
                Some(Some(record)) => panic!("unexpected {record:?}"),
                None => panic!("{} partitions instead of {count}", self.assigned.len()),
            }
        }
    }

    async fn close(self) {
        self.consumer.close().await;
    }
}

/// Steps two members, since membership hangs on calling, until `done` or the time is over.
async fn step_both(
    a: &mut Member,
    b: &mut Member,
    mut found: impl FnMut(usize, Record),
    done: impl Fn(&Member, &Member) -> bool,
) {
    let end = Instant::now() + JOIN;
    while !done(a, b) {
        assert!(
            Instant::now() < end,
            "not in time: {:?} and {:?}",
            a.assigned,
            b.assigned
        );
        for (index, member) in [&mut *a, &mut *b].into_iter().enumerate() {
            if let Some(Some(record)) = member.step(Duration::from_millis(20)).await {
                found(index, record);
            }
        }
    }
}

pub(crate) async fn order_per_key_holds_though_acknowledgements_are_awaited_in_any_order(
    log: Arc<dyn Log>,
) {
    let topic = topic(&log).await;
    let mut futures = Vec::new();
    for n in 0..50 {
        for key in ["a", "b", "c", "d", "e"] {
            futures.push((
                key,
                log.append(&topic, record(Some(key), &format!("{key}{n}"))),
            ));
        }
    }
    let mut places: BTreeMap<&str, Vec<LogOffset>> = BTreeMap::new();
    for (key, future) in futures.into_iter().rev() {
        places
            .entry(key)
            .or_default()
            .insert(0, future.await.expect("append"));
    }
    for (key, places) in &places {
        assert!(
            places.is_sorted_by(|a, b| a.partition == b.partition && a.offset < b.offset),
            "{key}: {places:?}"
        );
    }
    let mut member = Member::join(&log, &group(), &topic);
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in member.records(250).await {
        let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
        let place = places[key.as_str()][seen.get(&key).map_or(0, Vec::len)];
        assert_eq!(
            (record.partition, record.offset),
            (place.partition, place.offset)
        );
        seen.entry(key).or_default().push(text(&record));
    }
    for (key, values) in seen {
        let expected: Vec<_> = (0..50).map(|n| format!("{key}{n}")).collect();
        assert_eq!(values, expected);
    }
    member.close().await;
}

pub(crate) async fn keys_are_placed_as_java_places_them(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    // The hashes of Kafka's own test of its `murmur2`.
    for (key, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ] {
        for _ in 0..2 {
            let place = log.append(&topic, record(Some(key), "v")).await.unwrap();
            assert_eq!(place.partition, (hash & 0x7fff_ffff) % PARTITIONS, "{key}");
        }
    }
}

pub(crate) async fn a_new_group_begins_at_the_earliest_record(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    fill(&log, &topic, "k", 0..3).await;
    let mut member = Member::join(&log, &group(), &topic);
    assert_eq!(numbers(&member.records(3).await), [0, 1, 2]);
    assert_eq!(member.assigned.len(), PARTITIONS as usize);
    assert!(member.assigned.values().all(Option::is_none));
    // And goes on with what is appended while it waits.
    fill(&log, &topic, "k", 3..5).await;
    assert_eq!(numbers(&member.records(2).await), [3, 4]);
    member.close().await;
}

pub(crate) async fn a_stored_offset_is_where_the_next_member_begins(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let last = fill(&log, &topic, "k", 0..6).await;
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

pub(crate) async fn a_record_that_was_not_stored_comes_again(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let place = fill(&log, &topic, "k", 0..3).await;
    let mut first = Member::join(&log, &group, &topic);
    let records = first.records(3).await;
    first
        .consumer
        .store_offset(place.partition, records[0].offset + 1);
    first.close().await;
    for _ in 0..2 {
        let mut next = Member::join(&log, &group, &topic);
        let again = next.records(2).await;
        assert_eq!(numbers(&again), [1, 2]);
        assert_eq!(
            again[0].derived_message_id(),
            records[1].derived_message_id(),
            "a record read again is another"
        );
        next.close().await;
    }
}

pub(crate) async fn groups_do_not_take_records_from_each_other(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    fill(&log, &topic, "k", 0..3).await;
    let mut one = Member::join(&log, &group(), &topic);
    let mut other = Member::join(&log, &group(), &topic);
    assert_eq!(numbers(&one.records(3).await), [0, 1, 2]);
    assert_eq!(numbers(&other.records(3).await), [0, 1, 2]);
    one.close().await;
    other.close().await;
}

pub(crate) async fn two_members_share_the_partitions_and_never_both_own_one(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let mut a = Member::join(&log, &group, &topic);
    a.owns(PARTITIONS as usize).await;
    let mut b = Member::join(&log, &group, &topic);
    step_both(
        &mut a,
        &mut b,
        |_, record| panic!("unexpected {record:?}"),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let owners: BTreeSet<_> = a.assigned.keys().chain(b.assigned.keys()).collect();
    assert_eq!(owners.len(), PARTITIONS as usize, "one has two owners");

    let mut expected = BTreeSet::new();
    for n in 0..40 {
        let value = format!("v{n}");
        log.append(&topic, record(Some(&format!("key{n}")), &value))
            .await
            .unwrap();
        expected.insert(value);
    }
    let seen = std::cell::RefCell::new(Vec::new());
    step_both(
        &mut a,
        &mut b,
        |_, record| seen.borrow_mut().push(text(&record)),
        |_, _| seen.borrow().len() == 40,
    )
    .await;
    let distinct: BTreeSet<_> = seen.borrow().iter().cloned().collect();
    assert_eq!(distinct, expected, "each record comes to one member, once");
    a.close().await;
    b.close().await;
}

pub(crate) async fn a_member_that_leaves_hands_over(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let mut a = Member::join(&log, &group, &topic);
    a.owns(PARTITIONS as usize).await;
    let mut b = Member::join(&log, &group, &topic);
    step_both(
        &mut a,
        &mut b,
        |_, record| panic!("unexpected {record:?}"),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    // Every partition has one record; `a` finishes its own.
    for n in 0..40 {
        let _ = log
            .append(&topic, record(Some(&format!("key{n}")), &n.to_string()))
            .await
            .unwrap();
    }
    let of_a = a.drain(QUIET).await;
    assert!(!of_a.is_empty());
    for record in &of_a {
        a.consumer.store_offset(record.partition, record.offset + 1);
    }
    let left: BTreeSet<u32> = numbers(&of_a).into_iter().collect();
    a.close().await;
    let rest = b.records(40 - of_a.len()).await;
    b.owns(PARTITIONS as usize).await;
    assert!(b.drain(QUIET).await.is_empty(), "finished work came again");
    let of_b: BTreeSet<u32> = numbers(&rest).into_iter().collect();
    assert!(left.is_disjoint(&of_b));
    assert_eq!(left.len() + of_b.len(), 40);
    b.close().await;
}

pub(crate) async fn storing_for_a_partition_that_was_lost_does_nothing(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let mut a = Member::join(&log, &group, &topic);
    a.owns(PARTITIONS as usize).await;
    for n in 0..40 {
        let _ = log
            .append(&topic, record(Some(&format!("key{n}")), &n.to_string()))
            .await
            .unwrap();
    }
    let records = a.records(40).await;
    let mut b = Member::join(&log, &group, &topic);
    let again = std::cell::RefCell::new(Vec::new());
    step_both(
        &mut a,
        &mut b,
        |_, record| again.borrow_mut().push(record),
        |a, b| a.assigned.len() == 2 && b.assigned.len() == 2,
    )
    .await;
    let lost: BTreeSet<i32> = b.assigned.keys().copied().collect();
    for record in &records {
        if lost.contains(&record.partition) {
            a.consumer.store_offset(record.partition, record.offset + 1);
        }
    }
    a.close().await;
    b.close().await;
    let mut c = Member::join(&log, &group, &topic);
    assert_eq!(
        c.records(40).await.len(),
        40,
        "a store of a lost partition counted"
    );
    c.close().await;
}

pub(crate) async fn a_seek_replays_and_nothing_from_before_it_comes_after(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    let place = fill(&log, &topic, "k", 0..200).await;
    let mut member = Member::join(&log, &group(), &topic);
    let first = member.records(100).await;
    // Back, then forward over what was surely read ahead.
    for (to, expected) in [(10, 10..60), (150, 150..200), (0, 0..200)] {
        timeout(
            JOIN,
            member.consumer.seek(place.partition, first[0].offset + to),
        )
        .await
        .expect("seek in time")
        .expect("seek");
        let count = expected.len();
        assert_eq!(
            numbers(&member.records(count).await),
            expected.collect::<Vec<_>>()
        );
    }
    member.close().await;
}

pub(crate) async fn a_seek_does_not_move_the_commit_back(log: Arc<dyn Log>) {
    let (topic, group) = (topic(&log).await, group());
    let place = fill(&log, &topic, "k", 0..6).await;
    let mut member = Member::join(&log, &group, &topic);
    let records = member.records(6).await;
    member
        .consumer
        .store_offset(place.partition, records[4].offset + 1);
    member
        .consumer
        .seek(place.partition, records[0].offset)
        .await
        .unwrap();
    assert_eq!(numbers(&member.records(2).await), [0, 1]);
    member.close().await;
    let mut next = Member::join(&log, &group, &topic);
    assert_eq!(numbers(&next.records(1).await), [5]);
    assert_eq!(next.assigned[&place.partition], Some(records[4].offset + 1));
    next.close().await;
}

pub(crate) async fn pause_stops_and_resume_goes_on_without_loss(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    let mut member = Member::join(&log, &group(), &topic);
    member.owns(PARTITIONS as usize).await;
    fill(&log, &topic, "k", 0..100).await;
    let mut seen = member.records(10).await;
    member.consumer.pause();
    // A few that were fetched already may still come.
    seen.extend(member.drain(QUIET).await);
    fill(&log, &topic, "k", 100..110).await;
    let paused = member.drain(QUIET).await;
    assert!(paused.is_empty(), "{} records while paused", paused.len());
    member.consumer.resume();
    seen.extend(member.records(110 - seen.len()).await);
    assert_eq!(numbers(&seen), (0..110).collect::<Vec<_>>());
    member.close().await;
}

pub(crate) async fn a_call_of_next_that_is_given_up_loses_nothing(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    let mut member = Member::join(&log, &group(), &topic);
    member.owns(PARTITIONS as usize).await;
    let appending = tokio::spawn({
        let (log, topic) = (Arc::clone(&log), topic.clone());
        async move {
            for n in 0..100 {
                fill(&log, &topic, "k", n..n + 1).await;
            }
        }
    });
    let end = Instant::now() + JOIN;
    let mut seen = Vec::new();
    while seen.len() < 100 {
        assert!(Instant::now() < end, "{} of 100 records", seen.len());
        if let Some(found) = member.step(Duration::from_micros(200)).await {
            seen.extend(found);
        }
    }
    appending.await.unwrap();
    assert_eq!(numbers(&seen), (0..100).collect::<Vec<_>>());
    member.close().await;
}

pub(crate) async fn bytes_come_out_as_they_went_in(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    let all: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let header = |name: &str, value: &[u8]| (name.to_owned(), Bytes::copy_from_slice(value));
    let sent = [
        NewRecord::default(),
        NewRecord {
            key: Some(Bytes::new()),
            value: all.clone(),
            null_value: false,
            headers: vec![
                header("twice", b"1"),
                header("empty", b""),
                header("twice", b"2"),
            ],
        },
        NewRecord {
            key: Some(all.clone()),
            value: Bytes::new(),
            null_value: false,
            headers: vec![header("binary", &all)],
        },
        NewRecord {
            key: None,
            value: vec![b'x'; 900_000].into(),
            null_value: false,
            headers: vec![],
        },
    ];
    let mut places = Vec::new();
    for record in &sent {
        places.push(log.append(&topic, record.clone()).await.expect("append"));
    }
    let mut member = Member::join(&log, &group(), &topic);
    for record in member.records(sent.len()).await {
        let index = places
            .iter()
            .position(|place| (place.partition, place.offset) == (record.partition, record.offset))
            .expect("where it was put");
        assert_eq!(&*record.topic, topic);
        assert_eq!(record.key, sent[index].key);
        assert!(record.value == sent[index].value, "value of {index}");
        assert_eq!(record.headers, sent[index].headers);
        assert!(
            record.timestamp_ms > 1_700_000_000_000,
            "a time: {record:?}"
        );
    }
    member.close().await;
}

pub(crate) async fn a_record_over_the_limit_is_refused_and_harms_nothing(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    let before = log.append(&topic, record(Some("k"), "0"));
    let large = log.append(
        &topic,
        NewRecord {
            key: Some(Bytes::from_static(b"k")),
            value: vec![0; 2 << 20].into(),
            null_value: false,
            headers: Vec::new(),
        },
    );
    let after = log.append(&topic, record(Some("k"), "1"));
    assert!(matches!(large.await, Err(AppendError::Refused(_))));
    before.await.expect("the record before");
    after.await.expect("the record after");
    let mut member = Member::join(&log, &group(), &topic);
    assert_eq!(numbers(&member.records(2).await), [0, 1]);
    member.close().await;
}

pub(crate) async fn a_time_finds_its_first_record(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    for n in 0..5 {
        fill(&log, &topic, "k", n..n + 1).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let mut member = Member::join(&log, &group(), &topic);
    let records = member.records(5).await;
    let partition = records[0].partition;
    assert!(
        records.is_sorted_by_key(|r| r.timestamp_ms),
        "time goes back within a partition"
    );
    for record in &records {
        let first = records
            .iter()
            .find(|other| other.timestamp_ms >= record.timestamp_ms)
            .unwrap();
        let found = log
            .offset_at(&topic, partition, record.timestamp_ms)
            .await
            .unwrap();
        assert_eq!(found, Some(first.offset));
    }
    let early = log.offset_at(&topic, partition, 0).await.unwrap();
    assert_eq!(early, Some(records[0].offset));
    let late = records[4].timestamp_ms + 60_000;
    assert_eq!(log.offset_at(&topic, partition, late).await.unwrap(), None);
    member.close().await;
}

pub(crate) async fn topics_that_are_there_are_kept(log: Arc<dyn Log>) {
    let topic = topic(&log).await;
    fill(&log, &topic, "k", 0..2).await;
    ensure(&log, &topic).await;
    let mut member = Member::join(&log, &group(), &topic);
    assert_eq!(numbers(&member.records(2).await), [0, 1]);
    member.close().await;
    log.check().await.expect("check");
    let id = log.cluster_id().await.expect("cluster_id");
    assert!(!id.is_empty());
    assert_eq!(log.cluster_id().await.unwrap(), id);
    log.flush().await;
}
