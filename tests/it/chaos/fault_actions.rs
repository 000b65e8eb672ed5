//! The effect of each fault on the fleet.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep};

use super::calls::{FaultCost, api_key_of};
use super::faults::Fault;
use super::injector::{FaultInjector, RECOVERY_LIMIT};
use crate::support::stack::{MESSAGES, RELAYS, RESPONSES, WORKERS};
use crate::support::tcp_proxy::ProxyMode;
use crate::support::{TEST_TIMEOUT, wait_until};

const ALL_WORKERS: [&str; 3] = ["worker_1", "worker_2", "worker_3"];

/// Longer than a member's session at Kafka (6 s) and a worker's lease (3 s).
const PAUSE: Duration = Duration::from_millis(7500);

impl FaultInjector<'_> {
    /// The index of a random member with this role.
    fn random_member(&mut self, role: &str) -> usize {
        let first = match role {
            "gateway" => 0,
            "worker" => 2,
            _ => 4,
        };
        first + self.rng.random_range(0..2)
    }

    /// Applies a fault and reverts it. Returns a description, and the time from which the recovery
    /// is measured.
    pub(super) async fn apply_and_revert(&mut self, fault: Fault) -> (String, Instant) {
        let duration = Duration::from_millis(self.rng.random_range(300..2500));
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
                sleep(duration).await;
                self.fleet.kafka.spawn_and_wait().await;
                self.record_cost(FaultCost::Reassignment, &ALL_WORKERS, from);
                ("the broker".into(), Instant::now())
            }
            Fault::KafkaStopped => {
                let from = Instant::now();
                self.fleet.kafka.terminate();
                sleep(duration).await;
                self.fleet.kafka.spawn_and_wait().await;
                self.record_cost(FaultCost::Reassignment, &ALL_WORKERS, from);
                ("the broker".into(), Instant::now())
            }
            Fault::KafkaPaused => {
                let from = Instant::now();
                self.fleet.kafka.pause();
                sleep(PAUSE).await;
                self.fleet.kafka.resume();
                self.record_cost(FaultCost::Reassignment, &ALL_WORKERS, from);
                ("the broker".into(), Instant::now())
            }
            Fault::RedisRestarted => {
                self.fleet.redis.kill();
                sleep(duration / 2).await;
                self.fleet.redis.restart().await;
                ("with its data".into(), Instant::now())
            }
            Fault::RedisEmptied => {
                let from = Instant::now();
                self.fleet.redis.kill();
                sleep(duration / 2).await;
                self.fleet.redis.restart_empty().await;
                self.record_cost(FaultCost::Redis, &ALL_WORKERS, from);
                ("without its data".into(), Instant::now())
            }
            Fault::RedisPaused => {
                self.fleet.redis.pause();
                sleep(duration * 2).await;
                self.fleet.redis.resume();
                ("Redis".into(), Instant::now())
            }
            Fault::LinkCut => self.disturb_link(ProxyMode::Disconnect, duration).await,
            Fault::LinkSilent => self.disturb_link(ProxyMode::Stall, duration * 2).await,
            Fault::LinkSlow => {
                let slow = ProxyMode::Delay(Duration::from_millis(100));
                self.disturb_link(slow, duration * 2).await
            }
            Fault::ProviderDown => {
                let from = Instant::now();
                for member in self.fleet.members.iter().filter(|m| m.is_worker()) {
                    member
                        .external_proxy
                        .as_ref()
                        .expect("a worker has this proxy")
                        .set_mode(ProxyMode::Disconnect);
                }
                // The outage is shorter than the worker's retries, which wait 1 s and 2 s between
                // three attempts.
                sleep(duration / 4).await;
                self.fleet.restore_links();
                self.record_cost(FaultCost::Model, &ALL_WORKERS, from);
                ("both workers' connections".into(), Instant::now())
            }
            Fault::ProviderFaulty => {
                let from = Instant::now();
                self.fleet
                    .model_faults
                    .enabled
                    .store(true, Ordering::Relaxed);
                sleep(duration * 2).await;
                self.fleet
                    .model_faults
                    .enabled
                    .store(false, Ordering::Relaxed);
                self.model_fault_spans.push((from, Instant::now()));
                ("errors, 429 and cut-offs".into(), Instant::now())
            }
            Fault::ClockShifted => self.shift_clock().await,
            Fault::RebalanceStorm => self.rebalance().await,
            Fault::PartitionsAdded => self.add_partitions().await,
        }
    }

    /// Kills a member (SIGKILL) and restarts it, as a supervisor does.
    async fn kill(&mut self, role: &str) -> (String, Instant) {
        let n = self.random_member(role);
        let downtime = Duration::from_millis(self.rng.random_range(100..3000));
        let since = Instant::now();
        let name = self.fleet.members[n].name;
        self.fleet.members[n].kill();
        sleep(downtime).await;
        // The last requests of the killed member have reached the model API by now.
        self.record_cost(FaultCost::Worker, &[name], since);
        self.fleet.members[n].start().await;
        (name.into(), since)
    }

    /// Terminates a member (SIGTERM), which must exit with code 0, and restarts it.
    async fn stop(&mut self, role: &str) -> (String, Instant) {
        let n = self.random_member(role);
        let since = Instant::now();
        let member = &mut self.fleet.members[n];
        member.running().terminate();
        let status = member.running().wait_exit(TEST_TIMEOUT).await;
        assert_eq!(status.code(), Some(0), "{} failed to drain", member.name);
        member.archive_log();
        member.start().await;
        let name = member.name;
        // The member finishes the records that it has begun. Other members read the waiting records
        // again, and all records after them.
        self.record_cost(FaultCost::Reassignment, &[name], since);
        (name.into(), since)
    }

    /// Pauses a member (SIGSTOP) for longer than its session and its leases.
    async fn pause(&mut self, role: &str) -> (String, Instant) {
        let n = self.random_member(role);
        let from = Instant::now();
        let member = &mut self.fleet.members[n];
        let name = member.name;
        member.running().pause();
        sleep(PAUSE).await;
        member.running().resume();
        self.record_cost(FaultCost::Worker, &[name], from);
        // A request that the member was about to send arrives after the member has resumed.
        if let Some(fault) = self.costly_faults.last_mut() {
            fault.until += Duration::from_secs(1);
        }
        (name.into(), Instant::now())
    }

    /// Breaks or slows one connection of a random member for `duration`.
    async fn disturb_link(&mut self, mode: ProxyMode, duration: Duration) -> (String, Instant) {
        let n = self.rng.random_range(0..6);
        let mut link_number = self.rng.random_range(0..3);
        let member = &self.fleet.members[n];
        let name = member.name;
        if self.plan.steady_model && member.is_worker() {
            link_number = link_number.max(1);
        }
        let from = Instant::now();
        let (peer, link) = match (link_number, &member.external_proxy) {
            (0, Some(external_proxy)) if member.is_gateway() => ("its clients", external_proxy),
            (0, Some(external_proxy)) => ("the model", external_proxy),
            (1, _) => ("Kafka", &member.kafka_proxy),
            _ => ("Redis", &member.redis_proxy),
        };
        link.set_mode(mode);
        sleep(duration).await;
        link.set_mode(ProxyMode::Forward);
        match peer {
            "the model" => self.record_cost(FaultCost::Model, &[name], from),
            "Kafka" if name.starts_with("worker") => {
                self.record_cost(FaultCost::Reassignment, &[name], from);
            }
            _ => {}
        }
        (format!("{name} and {peer}"), Instant::now())
    }

    /// Restarts a member with its clock shifted by about an hour, and later with the correct clock.
    async fn shift_clock(&mut self) -> (String, Instant) {
        let n = self.rng.random_range(0..6);
        let shift = *["-3700", "3700"].choose(&mut self.rng).expect("two shifts");
        let since = Instant::now();
        let original_spec = self.fleet.members[n].spec.clone();
        let member = &mut self.fleet.members[n];
        let name = member.name;
        member.kill();
        self.record_cost(FaultCost::Worker, &[name], since);
        let member = &mut self.fleet.members[n];
        member.spec = original_spec
            .clone()
            .env("LD_PRELOAD", &compile_preload_library("clock"))
            .env("CLOCK_SHIFT_SECONDS", shift);
        member.start().await;
        // The member processes some messages with the shifted clock.
        sleep(Duration::from_secs(3)).await;
        let from = Instant::now();
        self.fleet.members[n].kill();
        self.record_cost(FaultCost::Worker, &[name], from);
        let member = &mut self.fleet.members[n];
        member.spec = original_spec;
        member.start().await;
        (format!("{name} by {shift} s"), since)
    }

    /// A third worker joins and is killed, four times.
    async fn rebalance(&mut self) -> (String, Instant) {
        let spec = self.fleet.members[2].spec.clone().with_name("worker_3");
        let spec = spec
            .on_other_metrics_port()
            .env("OPENAI_API_KEY", &api_key_of("worker_3"));
        for _ in 0..4 {
            let mut third_worker = spec.start().await;
            sleep(Duration::from_millis(self.rng.random_range(100..1500))).await;
            let from = Instant::now();
            third_worker.kill();
            self.record_cost(FaultCost::Worker, &["worker_3"], from);
        }
        ("a third worker, four times".into(), Instant::now())
    }

    /// Adds partitions as documented: the gateways are drained, and every message is answered and
    /// delivered, before the topics change.
    async fn add_partitions(&mut self) -> (String, Instant) {
        for n in 0..2 {
            self.fleet.members[n].running().drain().await;
            self.fleet.members[n].archive_log();
        }
        let kafka = self.fleet.kafka_client();
        for (group, topic) in [(WORKERS, MESSAGES), (RELAYS, RESPONSES)] {
            wait_until("no record is left to process", RECOVERY_LIMIT, || async {
                kafka.lag(group, topic).await == 0
            })
            .await;
        }
        self.partitions += 3;
        let partitions = self.partitions;
        for topic in [MESSAGES, RESPONSES] {
            kafka.add_partitions(topic, partitions).await;
        }
        for member in &mut self.fleet.members {
            let spec = member.spec.clone();
            member.spec = spec.env("KAFKA_TOPIC_PARTITIONS", &partitions.to_string());
        }
        for n in 0..2 {
            self.fleet.members[n].start().await;
        }
        (format!("both topics have {partitions}"), Instant::now())
    }
}

/// Compiles `tests/it/chaos/NAME.c` to a library that replaces a function of the C library.
/// Uses the C compiler that built librdkafka. Returns the path for `LD_PRELOAD`.
pub(super) fn compile_preload_library(name: &str) -> String {
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
