//! Simulates two members of a group over two partitions, with crashes, rebalances and delays. Each
//! seed determines when every handler ends, every event arrives and every fault happens. `SIM_SEED`
//! repeats one seed, `SIM_RUNS` sets the number of seeds.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::harness::FakeLog;
use crate::config::settings::PipelineSettings;
use crate::log::{Assignment, Consumer, ConsumerEvent, LogError};
use crate::pipeline::driver::{self, Dependencies};
use crate::pipeline::metrics::PipelineMetrics;
use crate::pipeline::{DeadLetterWriter, Delivery, Handler, StopRequested, Verdict, WorkSlot};
use crate::protocol::log_record::Record;
use crate::seeds::Seeds;

const PARTITIONS: i32 = 2;
/// Number of records in each partition.
const RECORDS: i64 = 12;
const LANES: [&str; 3] = ["a", "b", "c"];

/// What the broker sends to one member of the group.
struct Member {
    /// Assignments and revocations that the member has not received yet, each with the time at
    /// which it arrives.
    events: VecDeque<(Instant, ConsumerEvent)>,
}

/// The log and the group as the broker sees them.
struct Group {
    /// The lane of each record, by partition and offset.
    lanes: Vec<Vec<&'static str>>,
    /// The number of the member that owns each partition.
    owners: Vec<usize>,
    /// The committed offset of each partition.
    committed_offsets: Vec<i64>,
    /// Offsets that handlers have finished, by partition.
    finished: Vec<BTreeSet<i64>>,
    members: Vec<Member>,
    /// How often the processing of each record will still fail, by partition and offset.
    remaining_failures: Vec<Vec<u32>>,
    /// Decides when records arrive and how long handlers take.
    rng: StdRng,
    /// The first invariant that was violated.
    violation: Option<String>,
}

impl Group {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut random_table = || -> Vec<Vec<u32>> {
            let partition = |_| (0..RECORDS).map(|_| rng.random_range(0..6)).collect();
            (0..PARTITIONS).map(partition).collect()
        };
        let lanes = random_table();
        let failures = random_table();
        Self {
            lanes: lanes
                .iter()
                .map(|all| all.iter().map(|lane| LANES[*lane as usize % 3]).collect())
                .collect(),
            owners: vec![0; PARTITIONS as usize],
            committed_offsets: vec![0; PARTITIONS as usize],
            finished: vec![BTreeSet::new(); PARTITIONS as usize],
            members: (0..2)
                .map(|_| Member {
                    events: VecDeque::new(),
                })
                .collect(),
            remaining_failures: failures
                .iter()
                .map(|all| all.iter().map(|n| u32::from(*n == 0)).collect())
                .collect(),
            rng,
            violation: None,
        }
    }

    fn send_event(&mut self, member: usize, delay_ms: u64, event: ConsumerEvent) {
        let arrives_at = Instant::now() + Duration::from_millis(delay_ms);
        self.members[member].events.push_back((arrives_at, event));
    }

    fn assign(&mut self, member: usize, partition: i32) {
        self.owners[partition as usize] = member;
        let committed = Some(self.committed_offsets[partition as usize]);
        let assignment = Assignment {
            partition,
            committed_offset: committed,
        };
        self.send_event(member, 0, ConsumerEvent::Assigned(vec![assignment]));
    }

    /// Notes that a handler finished a record. It is a violation if an earlier record of the same
    /// lane is not finished.
    fn finish(&mut self, partition: i32, offset: i64) {
        let index = partition as usize;
        let lanes = &self.lanes[index];
        let unfinished = (0..offset).find(|other| {
            lanes[*other as usize] == lanes[offset as usize]
                && !self.finished[index].contains(other)
        });
        if let Some(unfinished) = unfinished {
            let violation = format!("{partition}/{offset} was finished before {unfinished}");
            self.violation = Some(violation);
        }
        self.finished[index].insert(offset);
    }

    /// Whether every record is finished and committed.
    fn is_done(&self) -> bool {
        self.committed_offsets
            .iter()
            .all(|offset| *offset == RECORDS)
    }
}

type SharedGroup = Arc<Mutex<Group>>;

/// The consumer of one member. It returns the member's events and the records of its partitions
/// after random delays.
struct SimConsumer {
    /// The number of the member, 0 or 1.
    number: usize,
    group: SharedGroup,
    /// The offset that is read next, for each assigned partition.
    next_offsets: HashMap<i32, i64>,
    /// Wakes the consumer when there may be a new event.
    changed: Arc<Notify>,
}

#[async_trait]
impl Consumer for SimConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            let wait = {
                let mut group = self.group.lock().unwrap();
                match group.members[self.number].events.front() {
                    Some((arrives_at, _)) if *arrives_at <= Instant::now() => {
                        let (_, event) = group.members[self.number].events.pop_front().unwrap();
                        match &event {
                            ConsumerEvent::Assigned(all) => self.next_offsets.extend(
                                all.iter()
                                    .map(|a| (a.partition, a.committed_offset.unwrap())),
                            ),
                            ConsumerEvent::Revoked(all) => {
                                self.next_offsets.retain(|p, _| !all.contains(p));
                            }
                            ConsumerEvent::Record(_) => {}
                        }
                        return event;
                    }
                    _ => Duration::from_millis(group.rng.random_range(0..4)),
                }
            };
            tokio::time::sleep(wait).await;
            let unread = self
                .next_offsets
                .iter_mut()
                .find(|(_, offset)| **offset < RECORDS);
            if let Some((partition, offset)) = unread {
                let group = self.group.lock().unwrap();
                let lane = group.lanes[*partition as usize][*offset as usize];
                *offset += 1;
                return ConsumerEvent::Record(Record {
                    topic: "topic".into(),
                    partition: *partition,
                    offset: *offset - 1,
                    timestamp_ms: 0,
                    key: Some(Bytes::from(lane)),
                    value: Bytes::from_static(b"x"),
                    null_value: false,
                    headers: vec![],
                });
            }
            let next = Instant::now() + Duration::from_millis(20);
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        let mut group = self.group.lock().unwrap();
        let index = partition as usize;
        let unfinished = (0..next_offset).find(|offset| !group.finished[index].contains(offset));
        if let Some(unfinished) = unfinished {
            let violation =
                format!("{partition}/{next_offset} was stored although {unfinished} is unfinished");
            group.violation = Some(violation);
        }
        // The broker ignores offsets of a member that no longer owns the partition.
        if group.owners[index] == self.number {
            group.committed_offsets[index] = group.committed_offsets[index].max(next_offset);
        }
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        self.next_offsets.insert(partition, offset);
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

/// A handler that takes a random time for each record, fails as often as `remaining_failures` says,
/// and ignores half of the stop requests.
struct SimHandler(SharedGroup);

#[async_trait]
impl Handler for SimHandler {
    fn lane(&self, record: &Record) -> String {
        String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()
    }

    async fn handle(&self, delivery: &Delivery, slot: &mut WorkSlot) -> Verdict {
        let (partition, offset) = (delivery.record.partition, delivery.record.offset);
        let (processing_ms, obeys_stop) = {
            let mut group = self.0.lock().unwrap();
            (group.rng.random_range(0..30), group.rng.random_bool(0.5))
        };
        let processing = tokio::time::sleep(Duration::from_millis(processing_ms));
        if obeys_stop {
            tokio::select! {
                () = processing => {}
                () = slot.stop_token().cancelled() => return Verdict::Unfinished,
            }
        } else {
            // Ignore the stop and complete the record, as the worker does when the model call of an
            // answer was made.
            processing.await;
        }
        let mut group = self.0.lock().unwrap();
        let failures = &mut group.remaining_failures[partition as usize][offset as usize];
        if *failures > 0 {
            *failures -= 1;
            return Verdict::Failed("once".into());
        }
        group.finish(partition, offset);
        Verdict::Done
    }

    async fn report_failure(
        &self,
        _: &Delivery,
        _: &str,
        _: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        Ok(())
    }
}

/// Starts the pipeline of the member `number`.
fn start_member(number: usize, group: &SharedGroup, changed: &Arc<Notify>) -> JoinHandle<()> {
    let dependencies = Dependencies {
        consumer: Box::new(SimConsumer {
            number,
            group: Arc::clone(group),
            next_offsets: HashMap::new(),
            changed: Arc::clone(changed),
        }),
        handler: Arc::new(SimHandler(Arc::clone(group))),
        rewind_policy: None,
        rewind_requests: None,
        dead_letters: DeadLetterWriter::new(Arc::new(FakeLog(Arc::default())), "topic.dlq".into()),
        settings: PipelineSettings {
            topic: "topic".into(),
            dead_letter_topic: "topic.dlq".into(),
            group: "group".into(),
            max_workers: 3,
            max_deliveries: 5,
            read_ahead_bytes: 1 << 20,
            drain_timeout: Duration::from_secs(5),
        },
        metrics: PipelineMetrics::for_worker("topic"),
    };
    tokio::spawn(driver::run(dependencies, CancellationToken::new()))
}

/// Runs the simulation with one seed, and returns an error if an invariant was violated or not
/// every record was committed.
async fn run(seed: u64) -> Result<(), String> {
    let group = Arc::new(Mutex::new(Group::new(seed)));
    let changed = Arc::new(Notify::new());
    let mut faults = StdRng::seed_from_u64(!seed);
    for partition in 0..PARTITIONS {
        group.lock().unwrap().assign(0, partition);
    }
    let mut members: Vec<_> = (0..2)
        .map(|number| start_member(number, &group, &changed))
        .collect();
    for _ in 0..faults.random_range(0..6) {
        tokio::time::sleep(Duration::from_millis(faults.random_range(0..60))).await;
        if faults.random_bool(0.4) {
            // Crash a member. A new process replaces it and is assigned the same partitions.
            let crashed = faults.random_range(0..2);
            members[crashed].abort();
            let mut group_now = group.lock().unwrap();
            group_now.members[crashed].events.clear();
            for partition in 0..PARTITIONS {
                if group_now.owners[partition as usize] == crashed {
                    group_now.assign(crashed, partition);
                }
            }
            drop(group_now);
            members[crashed] = start_member(crashed, &group, &changed);
        } else {
            // Move a partition to the other member. The revocation may reach the former owner after
            // the assignment has reached the new owner.
            let partition = faults.random_range(0..PARTITIONS);
            let delay_ms = faults.random_range(0..100);
            let mut group = group.lock().unwrap();
            let former_owner = group.owners[partition as usize];
            let revocation = ConsumerEvent::Revoked(vec![partition]);
            group.send_event(former_owner, delay_ms, revocation);
            group.assign(1 - former_owner, partition);
        }
        changed.notify_waiters();
    }
    let completion = async {
        while !group.lock().unwrap().is_done() && group.lock().unwrap().violation.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let result = tokio::time::timeout(Duration::from_secs(600), completion).await;
    for member in members {
        member.abort();
    }
    let group = group.lock().unwrap();
    match &group.violation {
        Some(violation) => Err(violation.clone()),
        None if result.is_err() => Err(format!("never finished: {:?}", group.committed_offsets)),
        None => Ok(()),
    }
}

#[test]
fn lanes_keep_their_order_and_no_commit_passes_unfinished_records() {
    Seeds::new("lanes and commits", "SIM_RUNS", 500).run_with_paused_time(run);
}
