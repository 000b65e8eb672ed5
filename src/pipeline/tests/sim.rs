//! Two members of a group over two partitions, with crashes, moves and pauses, in as many orders
//! as seeds: each seed gives every handler, event and fault its own moment of paused time.
//! `SIM_SEED` runs one seed again, `SIM_RUNS` more of them.

use std::collections::{BTreeSet, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use tokio::time::Instant;

use super::*;

const PARTITIONS: i32 = 2;
const RECORDS: i64 = 12;
const LANES: [&str; 3] = ["a", "b", "c"];

struct Member {
    events: VecDeque<(Instant, ConsumerEvent)>,
}

/// The log and the group, as the broker sees them.
struct Group {
    lanes: Vec<Vec<&'static str>>,
    owner: Vec<usize>,
    committed: Vec<i64>,
    /// Offsets that a handler has finished.
    finished: Vec<BTreeSet<i64>>,
    members: Vec<Member>,
    /// How often each record is to fail first.
    fails: Vec<Vec<u32>>,
    rng: StdRng,
    wrong: Option<String>,
}

impl Group {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut each = || -> Vec<Vec<u32>> {
            let partition = |_| (0..RECORDS).map(|_| rng.random_range(0..6)).collect();
            (0..PARTITIONS).map(partition).collect()
        };
        let lanes = each();
        let fails = each();
        Self {
            lanes: lanes
                .iter()
                .map(|all| all.iter().map(|lane| LANES[*lane as usize % 3]).collect())
                .collect(),
            owner: vec![0; PARTITIONS as usize],
            committed: vec![0; PARTITIONS as usize],
            finished: vec![BTreeSet::new(); PARTITIONS as usize],
            members: (0..2)
                .map(|_| Member {
                    events: VecDeque::new(),
                })
                .collect(),
            fails: fails
                .iter()
                .map(|all| all.iter().map(|fails| u32::from(*fails == 0)).collect())
                .collect(),
            rng,
            wrong: None,
        }
    }

    fn tell(&mut self, member: usize, late_ms: u64, event: ConsumerEvent) {
        let at = Instant::now() + Duration::from_millis(late_ms);
        self.members[member].events.push_back((at, event));
    }

    fn assign(&mut self, member: usize, partition: i32) {
        self.owner[partition as usize] = member;
        let committed = Some(self.committed[partition as usize]);
        let assignment = Assignment {
            partition,
            committed,
        };
        self.tell(member, 0, ConsumerEvent::Assigned(vec![assignment]));
    }

    /// The handler has finished a record: everything before it in its lane was.
    fn finish(&mut self, partition: i32, offset: i64) {
        let index = partition as usize;
        let lanes = &self.lanes[index];
        let before = (0..offset).find(|other| {
            lanes[*other as usize] == lanes[offset as usize]
                && !self.finished[index].contains(other)
        });
        if let Some(before) = before {
            self.wrong = Some(format!("{partition}/{offset} was finished before {before}"));
        }
        self.finished[index].insert(offset);
    }

    fn is_done(&self) -> bool {
        self.committed.iter().all(|at| *at == RECORDS)
    }
}

type Shared = Arc<Mutex<Group>>;

struct SimConsumer {
    number: usize,
    group: Shared,
    at: HashMap<i32, i64>,
    changed: Arc<Notify>,
}

#[async_trait]
impl Consumer for SimConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            let wait = {
                let mut group = self.group.lock().unwrap();
                match group.members[self.number].events.front() {
                    Some((at, _)) if *at <= Instant::now() => {
                        let (_, event) = group.members[self.number].events.pop_front().unwrap();
                        match &event {
                            ConsumerEvent::Assigned(all) => self
                                .at
                                .extend(all.iter().map(|a| (a.partition, a.committed.unwrap()))),
                            ConsumerEvent::Revoked(all) => self.at.retain(|p, _| !all.contains(p)),
                            ConsumerEvent::Record(_) => {}
                        }
                        return event;
                    }
                    _ => Duration::from_millis(group.rng.random_range(0..4)),
                }
            };
            tokio::time::sleep(wait).await;
            let ready = self.at.iter_mut().find(|(_, at)| **at < RECORDS);
            if let Some((partition, at)) = ready {
                let group = self.group.lock().unwrap();
                let lane = group.lanes[*partition as usize][*at as usize];
                *at += 1;
                return ConsumerEvent::Record(Record {
                    topic: "topic".into(),
                    partition: *partition,
                    offset: *at - 1,
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
        let open = (0..next_offset).find(|offset| !group.finished[index].contains(offset));
        if let Some(open) = open {
            let what = format!("{next_offset} of {partition} is stored, and {open} is open");
            group.wrong = Some(what);
        }
        // What a member stores that no longer owns it does nothing.
        if group.owner[index] == self.number {
            group.committed[index] = group.committed[index].max(next_offset);
        }
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        self.at.insert(partition, offset);
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

struct Works(Shared);

#[async_trait]
impl Handler for Works {
    fn lane(&self, record: &Record) -> String {
        String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()
    }

    async fn handle(&self, delivery: &Delivery, work: &mut Work) -> Verdict {
        let (partition, offset) = (delivery.record.partition, delivery.record.offset);
        let (pause, heeds) = {
            let mut group = self.0.lock().unwrap();
            (group.rng.random_range(0..30), group.rng.random_bool(0.5))
        };
        let pause = tokio::time::sleep(Duration::from_millis(pause));
        if heeds {
            tokio::select! {
                () = pause => {}
                () = work.stop().cancelled() => return Verdict::Left,
            }
        } else {
            // An answer that is being written is finished all the same.
            pause.await;
        }
        let mut group = self.0.lock().unwrap();
        let fails = &mut group.fails[partition as usize][offset as usize];
        if *fails > 0 {
            *fails -= 1;
            return Verdict::Failed("once".into());
        }
        group.finish(partition, offset);
        Verdict::Done
    }

    async fn give_up(&self, _: &Delivery, _: &str, _: &mut Work) -> Result<(), Stopped> {
        Ok(())
    }
}

fn member(number: usize, group: &Shared, changed: &Arc<Notify>) -> JoinHandle<()> {
    let parts = Parts {
        consumer: Box::new(SimConsumer {
            number,
            group: Arc::clone(group),
            at: HashMap::new(),
            changed: Arc::clone(changed),
        }),
        handler: Arc::new(Works(Arc::clone(group))),
        go_back: None,
        commands: None,
        dead_letters: DeadLetters::new(Arc::new(FakeLog(Arc::default())), "dead".into()),
        settings: PipelineSettings {
            topic: "topic".into(),
            dead_letter_topic: "dead".into(),
            group: "group".into(),
            max_workers: 3,
            max_deliveries: 5,
            read_ahead_bytes: 1 << 20,
            drain_timeout: Duration::from_secs(5),
        },
        metrics: PipelineMetrics::for_worker("topic"),
    };
    tokio::spawn(driver::run(parts, CancellationToken::new()))
}

async fn run(seed: u64) -> Option<String> {
    let group = Arc::new(Mutex::new(Group::new(seed)));
    let changed = Arc::new(Notify::new());
    let mut faults = StdRng::seed_from_u64(!seed);
    for partition in 0..PARTITIONS {
        group.lock().unwrap().assign(0, partition);
    }
    let mut members: Vec<_> = (0..2).map(|one| member(one, &group, &changed)).collect();
    for _ in 0..faults.random_range(0..6) {
        tokio::time::sleep(Duration::from_millis(faults.random_range(0..60))).await;
        if faults.random_bool(0.4) {
            // A crash: another process takes its place.
            let dead = faults.random_range(0..2);
            members[dead].abort();
            let mut group_now = group.lock().unwrap();
            group_now.members[dead].events.clear();
            for partition in 0..PARTITIONS {
                if group_now.owner[partition as usize] == dead {
                    group_now.assign(dead, partition);
                }
            }
            drop(group_now);
            members[dead] = member(dead, &group, &changed);
        } else {
            // A move; who had it may learn of that late.
            let partition = faults.random_range(0..PARTITIONS);
            let late = faults.random_range(0..100);
            let mut group = group.lock().unwrap();
            let before = group.owner[partition as usize];
            group.tell(before, late, ConsumerEvent::Revoked(vec![partition]));
            group.assign(1 - before, partition);
        }
        changed.notify_waiters();
    }
    let done = async {
        while !group.lock().unwrap().is_done() && group.lock().unwrap().wrong.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(600), done).await;
    for member in members {
        member.abort();
    }
    let group = group.lock().unwrap();
    let never = || format!("never finished: {:?}", group.committed);
    group.wrong.clone().or_else(|| in_time.is_err().then(never))
}

#[test]
fn lanes_keep_their_order_and_no_offset_passes_unfinished_work() {
    let setting = |name: &str| {
        let value = std::env::var(name).ok();
        value.map(|text| text.parse::<u64>().unwrap())
    };
    let seeds = match setting("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("SIM_RUNS").unwrap_or(500),
    };
    let begun = std::time::Instant::now();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        if let Some(wrong) = runtime.block_on(run(seed)) {
            panic!("SIM_SEED={seed}: {wrong}");
        }
    }
    let time = begun.elapsed().as_secs_f64();
    #[allow(clippy::print_stderr, reason = "how fast it was")]
    {
        eprintln!("{count} runs of {} records in {time:.1} s", RECORDS * 2);
    }
}
