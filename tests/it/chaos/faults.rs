//! What goes wrong, and how long it takes until it is right again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chatmesh::protocol::timestamp::now_rfc3339;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use super::calls::{Cost, Stake, key_of};
use super::fleet::{Fleet, PARTITIONS};
use super::journal::{Journal, Life};
use crate::support::stack::{MESSAGES, RELAYS, RESPONSES, WORKERS};
use crate::support::tcp_proxy::ProxyMode;
use crate::support::{TEST_TIMEOUT, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    GatewayKilled,
    WorkerKilled,
    RelayKilled,
    GatewayStopped,
    WorkerStopped,
    RelayStopped,
    GatewayPaused,
    WorkerPaused,
    RelayPaused,
    KafkaKilled,
    KafkaStopped,
    KafkaPaused,
    RedisRestarted,
    RedisEmptied,
    RedisPaused,
    LinkCut,
    LinkSilent,
    LinkSlow,
    ProviderDown,
    ProviderFaulty,
    ClockShifted,
    RebalanceStorm,
    PartitionsAdded,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// So many faults before a message's path are told with it, and so many at most from then on: a clock may
/// have been shifted.
const SHORTLY_BEFORE: usize = 2;
const MOST_TOLD: usize = 20;

/// How often each is drawn, in a hundred or so.
const WEIGHTS: [(Fault, u32); 22] = [
    (Fault::GatewayKilled, 8),
    (Fault::WorkerKilled, 10),
    (Fault::RelayKilled, 8),
    (Fault::GatewayStopped, 5),
    (Fault::WorkerStopped, 6),
    (Fault::RelayStopped, 5),
    (Fault::GatewayPaused, 2),
    (Fault::WorkerPaused, 3),
    (Fault::RelayPaused, 2),
    (Fault::KafkaKilled, 3),
    (Fault::KafkaStopped, 2),
    (Fault::KafkaPaused, 2),
    (Fault::RedisRestarted, 6),
    (Fault::RedisEmptied, 4),
    (Fault::RedisPaused, 3),
    (Fault::LinkCut, 10),
    (Fault::LinkSilent, 6),
    (Fault::LinkSlow, 5),
    (Fault::ProviderDown, 4),
    (Fault::ProviderFaulty, 5),
    (Fault::ClockShifted, 2),
    (Fault::RebalanceStorm, 2),
];

/// What a short run begins with, so that each sort is in it.
const FIRST: [Fault; 12] = [
    Fault::WorkerKilled,
    Fault::RelayKilled,
    Fault::GatewayKilled,
    Fault::RedisRestarted,
    Fault::WorkerStopped,
    Fault::KafkaKilled,
    Fault::RedisEmptied,
    Fault::ProviderFaulty,
    Fault::GatewayStopped,
    Fault::LinkCut,
    Fault::RelayStopped,
    Fault::LinkSilent,
];

/// From the fault of this number on, what has not struck yet is next: chance may leave a sort out.
const EACH_ONCE: usize = 60;

/// Which faults strike, other than the usual ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// None of the model, nor of the way to it.
    pub(super) steady_model: bool,
    /// These, again and again; empty: all.
    pub(super) only: Vec<Fault>,
}

impl Plan {
    /// `CHATMESH_CHAOS_PROVIDER=steady`, `CHATMESH_CHAOS_ONLY=KafkaKilled,RelayStopped`.
    pub(super) fn from_env() -> Self {
        let steady_model = match std::env::var("CHATMESH_CHAOS_PROVIDER").as_deref() {
            Err(_) | Ok("") => false,
            Ok("steady") => true,
            Ok(other) => panic!("CHATMESH_CHAOS_PROVIDER={other}: only steady is known"),
        };
        let only = std::env::var("CHATMESH_CHAOS_ONLY").unwrap_or_default();
        let only = only.split(',').filter(|name| !name.is_empty()).map(|name| {
            let all = WEIGHTS.iter().map(|(fault, _)| *fault);
            let all = all.chain([Fault::PartitionsAdded]);
            let named = all.clone().find(|fault| fault.to_string() == name);
            named.unwrap_or_else(|| {
                let known: Vec<String> = all.map(|fault| fault.to_string()).collect();
                let known = known.join(", ");
                panic!("CHATMESH_CHAOS_ONLY: no fault is named {name}; there are {known}")
            })
        });
        Self {
            steady_model,
            only: only.collect(),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        !(self.steady_model && matches!(fault, Fault::ProviderDown | Fault::ProviderFaulty))
    }
}

const ALL_WORKERS: [&str; 3] = ["worker_1", "worker_2", "worker_3"];

/// Longer than a member's session at Kafka (6 s) and a worker's lease (3 s).
const PAUSE: Duration = Duration::from_millis(7500);

/// What one fault cost.
#[derive(Debug, Clone)]
struct Blow {
    fault: Fault,
    /// From the kill, or from when what was away is back, until everything that was open then had
    /// ended. `None` where another one struck before that: their time is the last one's.
    recovery: Option<Duration>,
    /// The system had recovered from all others.
    alone: bool,
}

/// Messages that did not end.
pub(super) struct Stuck {
    pub(super) blow: String,
    pub(super) lives: Vec<(String, Life)>,
}

pub(super) struct Storm<'a> {
    pub(super) fleet: &'a mut Fleet,
    journal: &'a Journal,
    rng: StdRng,
    plan: Plan,
    blows: Vec<Blow>,
    partitions: usize,
    /// What may have cost calls of the model.
    pub(super) stakes: Vec<Stake>,
    /// While the model, or the way to it, was at fault: answers may fail.
    pub(super) model_at_fault: Vec<(Instant, Instant)>,
    /// When each fault began (RFC 3339), and what it was.
    diary: Vec<(String, String)>,
}

/// How often another fault strikes while the system still recovers, and how many do at most.
const ONE_MORE: f64 = 0.6;
const MOST_AT_ONCE: usize = 4;

/// What a struck system is given until nothing is open any more.
const LIMIT: Duration = Duration::from_secs(60);

impl<'a> Storm<'a> {
    pub(super) fn new(fleet: &'a mut Fleet, journal: &'a Journal, plan: Plan, seed: u64) -> Self {
        Self {
            fleet,
            journal,
            rng: StdRng::seed_from_u64(seed),
            plan,
            blows: Vec::new(),
            partitions: PARTITIONS,
            stakes: Vec::new(),
            model_at_fault: Vec::new(),
            diary: Vec::new(),
        }
    }

    fn draw(&mut self, n: usize) -> Fault {
        if let Some(only) = self.plan.only.choose(&mut self.rng) {
            return *only;
        }
        if let Some(first) = FIRST.iter().filter(|fault| self.plan.has(**fault)).nth(n) {
            return *first;
        }
        if n >= 40 && self.partitions == PARTITIONS {
            return Fault::PartitionsAdded;
        }
        if n >= EACH_ONCE
            && let Some((fault, _)) = WEIGHTS.iter().find(|(fault, _)| {
                self.plan.has(*fault) && self.blows.iter().all(|blow| blow.fault != *fault)
            })
        {
            return *fault;
        }
        loop {
            let drawn = WEIGHTS.choose_weighted(&mut self.rng, |(_, weight)| *weight);
            let fault = drawn.expect("weights").0;
            if self.plan.has(fault) {
                return fault;
            }
        }
    }

    /// It may have cost calls of these workers.
    fn may_cost(&mut self, cost: Cost, workers: &[&'static str], from: Instant) {
        // What was on its way to the model comes there when the way is open again.
        let on_its_way = match cost {
            Cost::Model => Duration::from_secs(1),
            Cost::Worker | Cost::Redis | Cost::Moved => Duration::ZERO,
        };
        let until = Instant::now() + on_its_way;
        if cost == Cost::Model {
            self.model_at_fault.push((from, until));
        }
        self.stakes.push(Stake {
            workers: workers.to_vec(),
            from,
            until,
            cost,
        });
    }

    /// The next fault, from when it strikes until everything has recovered. When each sort has been
    /// there, some strike while the system still recovers from another one.
    pub(super) async fn strike(&mut self) -> Result<(), Stuck> {
        let n = self.blows.len();
        let mut fault = self.draw(n);
        let (mut what, mut since) = self.inflict(fault).await;
        let mut at_once = 1;
        let many = match self.plan.only.len() {
            0 => n >= FIRST.len(),
            only => only > 1,
        };
        while many && at_once < MOST_AT_ONCE && self.rng.random_bool(ONE_MORE) {
            self.blows.push(Blow {
                fault,
                recovery: None,
                alone: false,
            });
            let next = self.draw(self.blows.len());
            let (other, later) = self.inflict(next).await;
            what = format!("{other}; before it {fault}, {what}");
            (fault, since) = (next, later);
            at_once += 1;
        }
        let until = Instant::now().max(since) + Duration::from_millis(500);
        match self.journal.caught_up(since, until, LIMIT).await {
            Ok(recovery) => {
                eprintln!(
                    "chaos: {:3} {fault} ({what}): {} ms",
                    self.blows.len() + 1,
                    recovery.as_millis()
                );
                self.blows.push(Blow {
                    fault,
                    recovery: Some(recovery),
                    alone: at_once == 1,
                });
                self.everybody_runs().await;
                Ok(())
            }
            Err(lives) => Err(Stuck {
                blow: format!("{fault} ({what})"),
                lives,
            }),
        }
    }

    /// Keeps the roles' logs, the faults and these texts. Returns the folder.
    pub(super) fn keep(&self, seed: u64, texts: &[(&str, &str)]) -> PathBuf {
        let faults: Vec<&str> = self.diary.iter().map(|(_, what)| what.as_str()).collect();
        let faults = faults.join("\n");
        let mut all = vec![("faults.txt", faults.as_str())];
        all.extend(texts);
        self.fleet.keep(seed, &all)
    }

    /// A message's path: what all roles wrote of it, and the faults meanwhile and shortly before.
    pub(super) fn path_of(&self, ids: &[String]) -> String {
        let mut lines = self.fleet.path_of(ids);
        if let (Some((first, _)), Some((last, _))) = (lines.first(), lines.last()) {
            let began = self.diary.partition_point(|(from, _)| from < first);
            let ended = self.diary.partition_point(|(from, _)| from <= last);
            let ended = ended.min(began + MOST_TOLD);
            let struck = &self.diary[began.saturating_sub(SHORTLY_BEFORE)..ended];
            lines.extend(struck.iter().cloned());
            lines.sort();
        }
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        lines.join("\n")
    }

    /// How many faults have struck.
    pub(super) fn faults(&self) -> usize {
        self.blows.len()
    }

    /// As a supervisor does: what has ended is started again.
    async fn everybody_runs(&mut self) {
        for member in &mut self.fleet.members {
            match &mut member.process {
                Some(process) => process.wait_ready(LIMIT).await,
                None => member.start().await,
            }
        }
    }

    fn one_of(&mut self, role: &str) -> usize {
        let first = match role {
            "gateway" => 0,
            "worker" => 2,
            _ => 4,
        };
        first + self.rng.random_range(0..2)
    }

    /// Does it, undoes it, and writes it down. Returns what it was, and from when recovery counts.
    async fn inflict(&mut self, fault: Fault) -> (String, Instant) {
        let from = now_rfc3339();
        let (what, since) = self.do_and_undo(fault).await;
        let line = format!("{from} until {} {fault} ({what})", now_rfc3339());
        self.diary.push((from, line));
        (what, since)
    }

    async fn do_and_undo(&mut self, fault: Fault) -> (String, Instant) {
        let hold = Duration::from_millis(self.rng.random_range(300..2500));
        match fault {
            Fault::GatewayKilled => self.kill("gateway").await,
            Fault::WorkerKilled => self.kill("worker").await,
            Fault::RelayKilled => self.kill("relay").await,
            Fault::GatewayStopped => self.stop("gateway").await,
            Fault::WorkerStopped => self.stop("worker").await,
            Fault::RelayStopped => self.stop("relay").await,
            Fault::GatewayPaused => self.pause("gateway").await,
            Fault::WorkerPaused => self.pause("worker").await,
            Fault::RelayPaused => self.pause("relay").await,
            Fault::KafkaKilled => {
                let from = Instant::now();
                self.fleet.kafka.kill();
                sleep(hold).await;
                self.fleet.kafka.spawn_and_wait().await;
                self.may_cost(Cost::Moved, &ALL_WORKERS, from);
                ("the broker".into(), Instant::now())
            }
            Fault::KafkaStopped => {
                let from = Instant::now();
                self.fleet.kafka.terminate();
                sleep(hold).await;
                self.fleet.kafka.spawn_and_wait().await;
                self.may_cost(Cost::Moved, &ALL_WORKERS, from);
                ("the broker".into(), Instant::now())
            }
            Fault::KafkaPaused => {
                let from = Instant::now();
                self.fleet.kafka.pause();
                sleep(PAUSE).await;
                self.fleet.kafka.resume();
                self.may_cost(Cost::Moved, &ALL_WORKERS, from);
                ("the broker".into(), Instant::now())
            }
            Fault::RedisRestarted => {
                self.fleet.redis.kill();
                sleep(hold / 2).await;
                self.fleet.redis.restart().await;
                ("with its data".into(), Instant::now())
            }
            Fault::RedisEmptied => {
                let from = Instant::now();
                self.fleet.redis.kill();
                sleep(hold / 2).await;
                self.fleet.redis.restart_empty().await;
                self.may_cost(Cost::Redis, &ALL_WORKERS, from);
                ("without its data".into(), Instant::now())
            }
            Fault::RedisPaused => {
                self.fleet.redis.pause();
                sleep(hold * 2).await;
                self.fleet.redis.resume();
                ("Redis".into(), Instant::now())
            }
            Fault::LinkCut => self.disturb(ProxyMode::Disconnect, hold).await,
            Fault::LinkSilent => self.disturb(ProxyMode::Stall, hold * 2).await,
            Fault::LinkSlow => {
                let slow = ProxyMode::Delay(Duration::from_millis(100));
                self.disturb(slow, hold * 2).await
            }
            Fault::ProviderDown => {
                let from = Instant::now();
                for member in self.fleet.members.iter().filter(|m| m.is_worker()) {
                    member
                        .outside
                        .as_ref()
                        .expect("a worker's")
                        .set_mode(ProxyMode::Disconnect);
                }
                // Within what the worker tries: 1 and 2 s between three attempts.
                sleep(hold / 4).await;
                self.fleet.mend();
                self.may_cost(Cost::Model, &ALL_WORKERS, from);
                ("both workers'".into(), Instant::now())
            }
            Fault::ProviderFaulty => {
                let from = Instant::now();
                self.fleet.whims.on.store(true, Ordering::Relaxed);
                sleep(hold * 2).await;
                self.fleet.whims.on.store(false, Ordering::Relaxed);
                self.model_at_fault.push((from, Instant::now()));
                ("errors, 429 and cut-offs".into(), Instant::now())
            }
            Fault::ClockShifted => self.shift_a_clock().await,
            Fault::RebalanceStorm => self.rebalance().await,
            Fault::PartitionsAdded => self.add_partitions().await,
        }
    }

    /// SIGKILL, and started again by a supervisor.
    async fn kill(&mut self, role: &str) -> (String, Instant) {
        let n = self.one_of(role);
        let pause = Duration::from_millis(self.rng.random_range(100..3000));
        let since = Instant::now();
        let name = self.fleet.members[n].name;
        self.fleet.members[n].kill();
        sleep(pause).await;
        // Its last requests have come to the model by now.
        self.may_cost(Cost::Worker, &[name], since);
        self.fleet.members[n].start().await;
        (name.into(), since)
    }

    /// SIGTERM; it has to end in order.
    async fn stop(&mut self, role: &str) -> (String, Instant) {
        let n = self.one_of(role);
        let since = Instant::now();
        let member = &mut self.fleet.members[n];
        member.running().terminate();
        let status = member.running().wait_exit(TEST_TIMEOUT).await;
        assert_eq!(status.code(), Some(0), "{} ended badly", member.name);
        member.bury();
        member.start().await;
        let name = member.name;
        // It ends what it has at work. What waits is read by others, with what ended behind it.
        self.may_cost(Cost::Moved, &[name], since);
        (name.into(), since)
    }

    /// SIGSTOP for longer than its session and its leases.
    async fn pause(&mut self, role: &str) -> (String, Instant) {
        let n = self.one_of(role);
        let from = Instant::now();
        let member = &mut self.fleet.members[n];
        let name = member.name;
        member.running().pause();
        sleep(PAUSE).await;
        member.running().resume();
        self.may_cost(Cost::Worker, &[name], from);
        // What it was about to ask comes to the model when it is awake.
        if let Some(stake) = self.stakes.last_mut() {
            stake.until += Duration::from_secs(1);
        }
        (name.into(), Instant::now())
    }

    async fn disturb(&mut self, traffic: ProxyMode, hold: Duration) -> (String, Instant) {
        let n = self.rng.random_range(0..6);
        let mut which = self.rng.random_range(0..3);
        let member = &self.fleet.members[n];
        let name = member.name;
        if self.plan.steady_model && member.is_worker() {
            which = which.max(1);
        }
        let from = Instant::now();
        let (to, link) = match (which, &member.outside) {
            (0, Some(outside)) if member.is_gateway() => ("its clients", outside),
            (0, Some(outside)) => ("the model", outside),
            (1, _) => ("Kafka", &member.to_kafka),
            _ => ("Redis", &member.to_redis),
        };
        link.set_mode(traffic);
        sleep(hold).await;
        link.set_mode(ProxyMode::Forward);
        match to {
            "the model" => self.may_cost(Cost::Model, &[name], from),
            "Kafka" if name.starts_with("worker") => {
                self.may_cost(Cost::Moved, &[name], from);
            }
            _ => {}
        }
        (format!("{name} and {to}"), Instant::now())
    }

    /// Started anew, a role lives in another hour.
    async fn shift_a_clock(&mut self) -> (String, Instant) {
        let n = self.rng.random_range(0..6);
        let shift = *["-3700", "3700"].choose(&mut self.rng).expect("two");
        let since = Instant::now();
        let right = self.fleet.members[n].spec.clone();
        let member = &mut self.fleet.members[n];
        let name = member.name;
        member.kill();
        self.may_cost(Cost::Worker, &[name], since);
        let member = &mut self.fleet.members[n];
        member.spec = right
            .clone()
            .env("LD_PRELOAD", &preloaded("clock"))
            .env("CLOCK_SHIFT_SECONDS", shift);
        member.start().await;
        // For some messages' time.
        sleep(Duration::from_secs(3)).await;
        let from = Instant::now();
        self.fleet.members[n].kill();
        self.may_cost(Cost::Worker, &[name], from);
        let member = &mut self.fleet.members[n];
        member.spec = right;
        member.start().await;
        (format!("{name} by {shift} s"), since)
    }

    /// A third worker comes and goes.
    async fn rebalance(&mut self) -> (String, Instant) {
        let spec = self.fleet.members[2].spec.clone().with_name("worker_3");
        let spec = spec
            .on_other_metrics_port()
            .env("OPENAI_API_KEY", &key_of("worker_3"));
        for _ in 0..4 {
            let mut third = spec.start().await;
            sleep(Duration::from_millis(self.rng.random_range(100..1500))).await;
            let from = Instant::now();
            third.kill();
            self.may_cost(Cost::Worker, &["worker_3"], from);
        }
        ("a third worker, four times".into(), Instant::now())
    }

    /// With the gateways drained and nothing waiting, as documented.
    async fn add_partitions(&mut self) -> (String, Instant) {
        for n in 0..2 {
            self.fleet.members[n].running().drain().await;
            self.fleet.members[n].bury();
        }
        let kafka = self.fleet.kafka_client();
        for (group, topic) in [(WORKERS, MESSAGES), (RELAYS, RESPONSES)] {
            wait_until("everything is answered", LIMIT, || async {
                kafka.lag(group, topic).await == 0
            })
            .await;
        }
        self.partitions += 3;
        let now = self.partitions;
        for topic in [MESSAGES, RESPONSES] {
            kafka.grow(topic, now).await;
        }
        for member in &mut self.fleet.members {
            let spec = member.spec.clone();
            member.spec = spec.env("KAFKA_TOPIC_PARTITIONS", &now.to_string());
        }
        for n in 0..2 {
            self.fleet.members[n].start().await;
        }
        (format!("both topics have {now}"), Instant::now())
    }

    /// How often each fault struck, and the times to recover from it where it struck alone, in ms and
    /// sorted. Under `None` those of several at once.
    pub(super) fn recoveries(&self) -> BTreeMap<Option<Fault>, (usize, Vec<u128>)> {
        let mut all: BTreeMap<Option<Fault>, (usize, Vec<u128>)> = BTreeMap::new();
        for blow in &self.blows {
            all.entry(Some(blow.fault)).or_default().0 += 1;
            let Some(recovery) = blow.recovery else {
                continue;
            };
            let alone = blow.alone.then_some(blow.fault);
            let (times, measured) = all.entry(alone).or_default();
            *times += usize::from(!blow.alone);
            measured.push(recovery.as_millis());
        }
        for (_, measured) in all.values_mut() {
            measured.sort_unstable();
        }
        all
    }
}

/// A library that takes the place of something of the system's: `tests/it/chaos/NAME.c`, compiled by what
/// librdkafka was.
pub(super) fn preloaded(name: &str) -> String {
    let library = format!("{}/{name}.so", env!("CARGO_TARGET_TMPDIR"));
    let source = format!("{}/tests/it/chaos/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O2", "-o", &library, &source])
        .status()
        .expect("a C compiler");
    assert!(compiled.success(), "{source} can't be compiled");
    library
}
