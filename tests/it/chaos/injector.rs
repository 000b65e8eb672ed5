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

/// Number of faults before a message's first log line that are printed with its log lines.
const PRINTED_EARLIER_FAULTS: usize = 2;
/// Limit for the faults that are printed with the log lines of a message. The log lines of a member
/// with a shifted clock may span the whole run.
const MAX_PRINTED_FAULTS: usize = 20;

/// A fault that was injected, and the recovery from it.
#[derive(Debug, Clone)]
struct InjectedFault {
    fault: Fault,
    /// Time from the kill, or from the end of the outage, until every open message had ended.
    /// `None` if another fault followed before that, whose recovery covers both.
    recovery: Option<Duration>,
    /// Whether the system had recovered from all earlier faults.
    was_alone: bool,
}

/// Messages that did not end in time after a fault.
pub(super) struct UnendedMessages {
    /// The last fault and its description.
    pub(super) fault: String,
    pub(super) timelines: Vec<(String, MessageTimeline)>,
}

pub(super) struct FaultInjector<'a> {
    pub(super) fleet: &'a mut Fleet,
    journal: &'a Journal,
    pub(super) rng: StdRng,
    pub(super) plan: FaultPlan,
    injected: Vec<InjectedFault>,
    /// The current number of partitions of each topic.
    pub(super) partitions: usize,
    /// The faults that may have caused further model calls.
    pub(super) costly_faults: Vec<CostlyFault>,
    /// The time spans in which the model API or the connection to it failed, so that answers may
    /// fail.
    pub(super) model_fault_spans: Vec<(Instant, Instant)>,
    /// The start of each fault (RFC 3339) and its description.
    fault_log: Vec<(String, String)>,
}

/// Probability that another fault follows before the system has recovered.
const OVERLAP_PROBABILITY: f64 = 0.6;
/// Maximum number of faults from which the system has not recovered yet.
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
            model_fault_spans: Vec::new(),
            fault_log: Vec::new(),
        }
    }

    /// Chooses the fault after the first `n`.
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
        // Partitions are added once, in the middle of a long run.
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
            let entry = WEIGHTS.choose_weighted(&mut self.rng, |(_, weight)| *weight);
            let fault = entry.expect("weights").0;
            if self.plan.allows(fault) {
                return fault;
            }
        }
    }

    /// Records that the fault may have caused further calls of these workers.
    pub(super) fn record_cost(&mut self, cost: FaultCost, workers: &[&'static str], from: Instant) {
        // Requests in transit arrive after the connection is restored.
        let transit_time = match cost {
            FaultCost::Model => Duration::from_secs(1),
            FaultCost::Worker | FaultCost::Redis | FaultCost::Reassignment => Duration::ZERO,
        };
        let until = Instant::now() + transit_time;
        if cost == FaultCost::Model {
            self.model_fault_spans.push((from, until));
        }
        self.costly_faults.push(CostlyFault {
            workers: workers.to_vec(),
            from,
            until,
            cost,
        });
    }

    /// Injects the next fault and waits until the system has recovered. After the first faults of a
    /// run, further ones may follow before the recovery.
    pub(super) async fn inject_next(&mut self) -> Result<(), UnendedMessages> {
        let n = self.injected.len();
        let mut fault = self.choose_fault(n);
        let (mut description, mut since) = self.inject(fault).await;
        let mut overlapping = 1;
        let may_overlap = match self.plan.only.len() {
            0 => n >= FIRST_FAULTS.len(),
            only => only > 1,
        };
        while may_overlap
            && overlapping < MAX_OVERLAPPING
            && self.rng.random_bool(OVERLAP_PROBABILITY)
        {
            self.injected.push(InjectedFault {
                fault,
                recovery: None,
                was_alone: false,
            });
            let next = self.choose_fault(self.injected.len());
            let (next_description, next_since) = self.inject(next).await;
            description = format!("{next_description}; overlapping {fault}, {description}");
            (fault, since) = (next, next_since);
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
                    "chaos: {:3} {fault} ({description}): {} ms",
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
                fault: format!("{fault} ({description})"),
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
            .map(|(_, description)| description.as_str())
            .collect();
        let faults = faults.join("\n");
        let mut files = vec![("faults.txt", faults.as_str())];
        files.extend(texts);
        self.fleet.save_logs(seed, &files)
    }

    /// The log lines of a message from all roles, and the faults during and shortly before them.
    pub(super) fn log_lines_of(&self, ids: &[String]) -> String {
        let mut lines = self.fleet.log_lines_of(ids);
        if let (Some((first_time, _)), Some((last_time, _))) = (lines.first(), lines.last()) {
            let first_fault = self
                .fault_log
                .partition_point(|(from, _)| from < first_time);
            let end = self
                .fault_log
                .partition_point(|(from, _)| from <= last_time);
            let end = end.min(first_fault + MAX_PRINTED_FAULTS);
            let faults = &self.fault_log[first_fault.saturating_sub(PRINTED_EARLIER_FAULTS)..end];
            lines.extend(faults.iter().cloned());
            lines.sort();
        }
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        lines.join("\n")
    }

    /// The number of faults injected.
    pub(super) fn fault_count(&self) -> usize {
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

    /// Applies a fault and reverts it. Returns its description, and the time from which the
    /// recovery is measured.
    async fn inject(&mut self, fault: Fault) -> (String, Instant) {
        let from = now_rfc3339();
        let (description, since) = self.apply_and_revert(fault).await;
        let line = format!("{from} until {} {fault} ({description})", now_rfc3339());
        self.fault_log.push((from, line));
        (description, since)
    }

    /// For each fault the number of injections, and the sorted recovery times in ms without an
    /// overlapping fault. The key `None` has the recoveries from several overlapping faults.
    pub(super) fn recoveries(&self) -> BTreeMap<Option<Fault>, (usize, Vec<u128>)> {
        let mut recoveries: BTreeMap<Option<Fault>, (usize, Vec<u128>)> = BTreeMap::new();
        for injected in &self.injected {
            recoveries.entry(Some(injected.fault)).or_default().0 += 1;
            let Some(recovery) = injected.recovery else {
                continue;
            };
            let key = injected.was_alone.then_some(injected.fault);
            let (count, recovery_times) = recoveries.entry(key).or_default();
            *count += usize::from(!injected.was_alone);
            recovery_times.push(recovery.as_millis());
        }
        for (_, recovery_times) in recoveries.values_mut() {
            recovery_times.sort_unstable();
        }
        recoveries
    }
}
