//! The contract suite of the log: tests of the guarantees of `chatmesh::log` that run over every
//! implementation.
//!
//! `log_contract!(backend);` generates the tests for one implementation. `backend` is an async
//! function that returns a log, and a guard that is kept until the test ends. Topics and groups
//! have random names, so all tests can share one server.
//!
//! - `append`: order, partitions and contents of records
//! - `groups`: assignment, redelivery and committed offsets
//! - `delivery`: seek, pause and cancellation
//! - `topics`: lookup by time, and existing topics

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatmesh::log::{Consumer, ConsumerEvent, Log, LogOffset, TopicSpec};
use chatmesh::protocol::log_record::{NewRecord, Record};
use tokio::time::{Instant, timeout};

pub(crate) mod append;
pub(crate) mod delivery;
pub(crate) mod groups;
pub(crate) mod topics;

/// Number of partitions of this suite's topics, in every implementation.
pub(crate) const PARTITIONS: i32 = 4;
/// Time limit of an operation, long enough to join a group on a real server.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A period without events after which no further record is expected. Only a pause needs it: no
/// sentinel record can pass a paused consumer.
const QUIET_PERIOD: Duration = Duration::from_millis(700);

macro_rules! log_contract {
    ($backend:path) => {
        $crate::log_contract::log_contract!($backend;
            append::records_of_one_key_keep_the_order_of_append_calls,
            append::keys_map_to_the_partitions_of_kafkas_java_client,
            groups::new_group_starts_at_the_earliest_record,
            groups::next_member_starts_at_the_stored_offset,
            groups::record_without_stored_offset_is_delivered_again,
            groups::each_group_receives_every_record,
            groups::two_members_share_partitions_without_overlap,
            groups::partitions_of_a_closed_member_move_to_the_other,
            groups::storing_an_offset_of_a_revoked_partition_has_no_effect,
            delivery::seek_delivers_only_records_from_its_offset_on,
            delivery::seek_does_not_move_the_committed_offset_back,
            delivery::resume_after_pause_loses_no_record,
            delivery::cancelled_call_of_next_loses_no_record,
            append::records_are_read_as_they_were_appended,
            append::oversized_record_is_refused_without_affecting_others,
            topics::offset_at_finds_the_first_record_of_a_time,
            topics::existing_topic_is_kept,
        );
    };
    ($backend:path; $($module:ident::$name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (log, _guard) = $backend().await;
                $crate::log_contract::$module::$name(log).await;
            }
        )*
    };
}
pub(crate) use log_contract;

/// Creates a topic with a unique name.
async fn create_topic(log: &Arc<dyn Log>) -> String {
    let name = format!("contract-{}", uuid::Uuid::new_v4().simple());
    ensure_topic(log, &name).await;
    name
}

async fn ensure_topic(log: &Arc<dyn Log>, name: &str) {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: PARTITIONS,
        replication: 1,
    };
    timeout(TIMEOUT, log.ensure_topics(std::slice::from_ref(&spec)))
        .await
        .expect("ensure_topics returns in time")
        .expect("ensure_topics succeeds");
}

fn unique_group() -> String {
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

/// Appends numbers as values under one key, and returns the offset of the last one.
async fn append_numbers(
    log: &Arc<dyn Log>,
    topic: &str,
    key: &str,
    numbers: std::ops::Range<u32>,
) -> LogOffset {
    let futures: Vec<_> = numbers
        .map(|n| log.append(topic, record(Some(key), &n.to_string())))
        .collect();
    let mut last_offset = None;
    for future in futures {
        last_offset = Some(future.await.expect("the append succeeds"));
    }
    last_offset.expect("the range of numbers is not empty")
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.to_vec()).expect("the value is UTF-8")
}

fn numbers(records: &[Record]) -> Vec<u32> {
    records.iter().map(|r| text(r).parse().unwrap()).collect()
}

/// A consumer that checks the invariants of every event: assignments do not overlap, and records
/// belong to assigned partitions.
struct Member {
    consumer: Box<dyn Consumer>,
    /// The assigned partitions, each with the committed offset of its assignment.
    assigned: BTreeMap<i32, Option<i64>>,
}

impl Member {
    fn join(log: &Arc<dyn Log>, group: &str, topic: &str) -> Self {
        Self {
            consumer: log
                .consumer(group, topic)
                .expect("the log creates a consumer"),
            assigned: BTreeMap::new(),
        }
    }

    /// Polls one event. Returns `None` if there is none within `wait`, and `Some(None)` for an
    /// event that is not a record.
    async fn poll(&mut self, wait: Duration) -> Option<Option<Record>> {
        match timeout(wait, self.consumer.next()).await.ok()? {
            ConsumerEvent::Assigned(assignments) => {
                for assignment in assignments {
                    let earlier_assignment = self
                        .assigned
                        .insert(assignment.partition, assignment.committed_offset);
                    assert_eq!(
                        earlier_assignment, None,
                        "expected a partition that is not assigned yet: {assignment:?}"
                    );
                }
                Some(None)
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    assert!(
                        self.assigned.remove(&partition).is_some(),
                        "expected that revoked partition {partition} was assigned"
                    );
                }
                Some(None)
            }
            ConsumerEvent::Record(record) => {
                assert!(
                    self.assigned.contains_key(&record.partition),
                    "expected a record of an assigned partition: {record:?}"
                );
                Some(Some(record))
            }
        }
    }

    /// Polls until `count` records were delivered.
    async fn records(&mut self, count: usize) -> Vec<Record> {
        let deadline = Instant::now() + TIMEOUT;
        let mut records = Vec::new();
        while records.len() < count {
            let remaining = deadline.saturating_duration_since(Instant::now());
            match self.poll(remaining).await {
                Some(event) => records.extend(event),
                None => panic!("only {} of {count} records arrived in time", records.len()),
            }
        }
        records
    }

    /// Polls until there was no event for [`QUIET_PERIOD`], and returns the records.
    async fn records_until_quiet(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(event) = self.poll(QUIET_PERIOD).await {
            records.extend(event);
        }
        records
    }

    /// Polls until this many partitions are assigned. Panics if a record is delivered.
    async fn wait_for_partitions(&mut self, count: usize) {
        let deadline = Instant::now() + TIMEOUT;
        while self.assigned.len() != count {
            let remaining = deadline.saturating_duration_since(Instant::now());
            match self.poll(remaining).await {
                Some(None) => {}
                Some(Some(record)) => panic!("expected no record, got {record:?}"),
                None => panic!(
                    "expected {count} assigned partitions, got {}",
                    self.assigned.len()
                ),
            }
        }
    }

    async fn close(self) {
        self.consumer.close().await;
    }
}

/// Polls two members in turn until `is_done`. Both are polled, because a member that is not polled
/// loses its membership.
async fn poll_both(
    a: &mut Member,
    b: &mut Member,
    mut on_record: impl FnMut(usize, Record),
    is_done: impl Fn(&Member, &Member) -> bool,
) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_done(a, b) {
        assert!(
            Instant::now() < deadline,
            "timed out with the assignments {:?} and {:?}",
            a.assigned,
            b.assigned
        );
        for (index, member) in [&mut *a, &mut *b].into_iter().enumerate() {
            if let Some(Some(record)) = member.poll(Duration::from_millis(20)).await {
                on_record(index, record);
            }
        }
    }
}
