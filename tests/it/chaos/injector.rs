//! Injects one fault after another and measures the recovery from them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chatmesh::protocol::timestamp::now_rfc3339;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::calls::{CostlyFault, FaultCost};
use super::faults::{COMPLETE_COVERAGE_FROM, FIRST_FAULTS, Fault, FaultPlan, WEIGHTS};
use super::fleet::{Fleet, PARTITIONS};
use super::journal::{Journal, MessageTimeline};

/// Number of faults before a message's log lines that are printed with them, and of faults in
/// total; a limit is needed because a clock may have been shifted.
const FAULTS_BEFORE: usize = 2;
const MAX_PRINTED_FAULTS: usize = 20;
/// A fault that was injected, and the recovery from it.
#[derive(Debug, Clone)]
struct InjectedFault {
    fault: Fault,
    /// Time from the kill, or from the return of what was unavailable, until every message that was
    /// open had ended. `None` if another fault followed before that; its recovery covers both.
    recovery: Option<Duration>,
    /// The system had recovered from all earlier faults.
    was_alone: bool,
}

/// Messages that did not end in time after a fault.
pub(super) struct UnendedMessages {
    pub(super) injected: String,
    pub(super) timelines: Vec<(String, MessageTimeline)>,
}

pub(super) struct FaultInjector<'a> {
    pub(super) fleet: &'a mut Fleet,
    journal: &'a Journal,
    pub(super) rng: StdRng,
    pub(super) plan: FaultPlan,
    injected: Vec<InjectedFault>,
    pub(super) partitions: usize,
    /// The faults that may have caused further model calls.
    pub(super) costly_faults: Vec<CostlyFault>,
    /// The time spans in which the model API or the connection to it failed, so that answers may
    /// fail.
    pub(super) model_at_fault: Vec<(Instant, Instant)>,
    /// The start of each fault (RFC 3339) and its description.
    fault_log: Vec<(String, String)>,
}

/// Probability that another fault follows before the system has recovered, and the number of faults
/// that may overlap.
const OVERLAP_PROBABILITY: f64 = 0.6;
const MAX_OVERLAPPING: usize = 4;

/// Limit for the recovery from faults.
pub(super) const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

impl<'a> FaultInjector<'a> {
    pub(super) fn new(
        fleet: &'a mut Fleet,
        journal: &'a Journal,
        plan: FaultPlan,
        seed: u64,
    ) -> Self {
        Self {
            fleet,
            journal,
            rng: StdRng::seed_from_u64(seed),
            plan,
            injected: Vec::new(),
            partitions: PARTITIONS,
            costly_faults: Vec::new(),
            model_at_fault: Vec::new(),
            fault_log: Vec::new(),
        }
    }

    fn choose_fault(&mut self, n: usize) -> Fault {
        if let Some(only) = self.plan.only.choose(&mut self.rng) {
            return *only;
        }
        if let Some(first) = FIRST_FAULTS
            .iter()
            .filter(|fault| self.plan.allows(**fault))
            .nth(n)
        {
            return *first;
        }
        if n >= 40 && self.partitions == PARTITIONS {
            return Fault::PartitionsAdded;
        }
        if n >= COMPLETE_COVERAGE_FROM
            && let Some((fault, _)) = WEIGHTS.iter().find(|(fault, _)| {
                self.plan.allows(*fault)
                    && self
                        .injected
                        .iter()
                        .all(|injected| injected.fault != *fault)
            })
        {
            return *fault;
        }
        loop {
            let drawn = WEIGHTS.choose_weighted(&mut self.rng, |(_, weight)| *weight);
            let fault = drawn.expect("weights").0;
            if self.plan.allows(fault) {
                return fault;
            }
        }
    }

    /// Records that the fault may have caused further calls of these workers.
    pub(super) fn record_cost(&mut self, cost: FaultCost, workers: &[&'static str], from: Instant) {
        // Requests that were on their way arrive after the connection is restored.
        let on_its_way = match cost {
            FaultCost::Model => Duration::from_secs(1),
            FaultCost::Worker | FaultCost::Redis | FaultCost::Reassignment => Duration::ZERO,
        };
        let until = Instant::now() + on_its_way;
        if cost == FaultCost::Model {
            self.model_at_fault.push((from, until));
        }
        self.costly_faults.push(CostlyFault {
            workers: workers.to_vec(),
            from,
            until,
            cost,
        });
    }

    /// Injects the next fault and waits until the system has recovered. Once each sort was
    /// injected, further faults may follow before the recovery.
    pub(super) async fn inject_next(&mut self) -> Result<(), UnendedMessages> {
        let n = self.injected.len();
        let mut fault = self.choose_fault(n);
        let (mut what, mut since) = self.inject(fault).await;
        let mut overlapping = 1;
        let many = match self.plan.only.len() {
            0 => n >= FIRST_FAULTS.len(),
            only => only > 1,
        };
        while many && overlapping < MAX_OVERLAPPING && self.rng.random_bool(OVERLAP_PROBABILITY) {
            self.injected.push(InjectedFault {
                fault,
                recovery: None,
                was_alone: false,
            });
            let next = self.choose_fault(self.injected.len());
            let (other, later) = self.inject(next).await;
            what = format!("{other}; overlapping {fault}, {what}");
            (fault, since) = (next, later);
            overlapping += 1;
        }
        let until = Instant::now().max(since) + Duration::from_millis(500);
        match self
            .journal
            .wait_until_ended(since, until, RECOVERY_LIMIT)
            .await
        {
            Ok(recovery) => {
                eprintln!(
                    "chaos: {:3} {fault} ({what}): {} ms",
                    self.injected.len() + 1,
                    recovery.as_millis()
                );
                self.injected.push(InjectedFault {
                    fault,
                    recovery: Some(recovery),
                    was_alone: overlapping == 1,
                });
                self.restart_stopped_members().await;
                Ok(())
            }
            Err(timelines) => Err(UnendedMessages {
                injected: format!("{fault} ({what})"),
                timelines,
            }),
        }
    }

    /// Writes the roles' logs, the faults and these texts below the target folder. Returns their
    /// folder.
    pub(super) fn save_logs(&self, seed: u64, texts: &[(&str, &str)]) -> PathBuf {
        let faults: Vec<&str> = self
            .fault_log
            .iter()
            .map(|(_, what)| what.as_str())
            .collect();
        let faults = faults.join("\n");
        let mut all = vec![("faults.txt", faults.as_str())];
        all.extend(texts);
        self.fleet.save_logs(seed, &all)
    }

    /// The log lines of a message from all roles, and the faults during and shortly before them.
    pub(super) fn log_lines_of(&self, ids: &[String]) -> String {
        let mut lines = self.fleet.log_lines_of(ids);
        if let (Some((first, _)), Some((last, _))) = (lines.first(), lines.last()) {
            let started = self.fault_log.partition_point(|(from, _)| from < first);
            let ended = self.fault_log.partition_point(|(from, _)| from <= last);
            let ended = ended.min(started + MAX_PRINTED_FAULTS);
            let struck = &self.fault_log[started.saturating_sub(FAULTS_BEFORE)..ended];
            lines.extend(struck.iter().cloned());
            lines.sort();
        }
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        lines.join("\n")
    }

    /// The number of faults injected.
    pub(super) fn faults(&self) -> usize {
        self.injected.len()
    }

    /// Restarts the members that have exited, as a supervisor does.
    async fn restart_stopped_members(&mut self) {
        for member in &mut self.fleet.members {
            match &mut member.process {
                Some(process) => process.wait_ready(RECOVERY_LIMIT).await,
                None => member.start().await,
            }
        }
    }
    /// Applies a fault and reverts it. Returns its description, and the moment from which the
    /// recovery counts.
    async fn inject(&mut self, fault: Fault) -> (String, Instant) {
        let from = now_rfc3339();
        let (what, since) = self.apply_and_revert(fault).await;
        let line = format!("{from} until {} {fault} ({what})", now_rfc3339());
        self.fault_log.push((from, line));
        (what, since)
    }
    /// For each fault the number of injections, and the sorted recovery times in ms without an
    /// overlapping fault. The key `None` has the recoveries from several overlapping faults.
    pub(super) fn recoveries(&self) -> BTreeMap<Option<Fault>, (usize, Vec<u128>)> {
        let mut all: BTreeMap<Option<Fault>, (usize, Vec<u128>)> = BTreeMap::new();
        for injected in &self.injected {
            all.entry(Some(injected.fault)).or_default().0 += 1;
            let Some(recovery) = injected.recovery else {
                continue;
            };
            let was_alone = injected.was_alone.then_some(injected.fault);
            let (times, measured) = all.entry(was_alone).or_default();
            *times += usize::from(!injected.was_alone);
            measured.push(recovery.as_millis());
        }
        for (_, measured) in all.values_mut() {
            measured.sort_unstable();
        }
        all
    }
}
