//! Chaos tests: a system of two gateways, workers and relays under load, with clients that connect
//! and disconnect, while one fault after another is injected. The promises of docs/reliability.md
//! must hold throughout.
//!
//! `tests/run --chaos` runs the long form. A failure prints the seed. `CHATMESH_CHAOS_SEED` repeats
//! the same faults in the same order, though not at the same moments, because the processes are
//! real. `CHATMESH_CHAOS_PROVIDER=steady` leaves out the faults of the model API, and
//! `CHATMESH_CHAOS_ONLY=KafkaKilled,RelayStopped` injects only the listed faults.
//! `CHATMESH_CHAOS_SET=MAX_WORKERS=200` changes settings of every role.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod answers;
mod calls;
mod checker;
mod classic;
mod clients;
mod data_losses;
mod disk;
mod fault_actions;
mod faults;
mod fleet;
mod injector;
mod journal;
mod rebuild;
mod soak;

use calls::{LogClock, ModelCallTotals};
use checker::Checker;
use clients::{LoadSize, SimulatedUsers};
use faults::{Fault, FaultPlan};
use fleet::Fleet;
use injector::{FaultInjector, UnendedMessages};
use journal::Journal;

use crate::seeds::number_from_env;
use crate::support::stack::{MESSAGES, RESPONSES};

/// The number in an environment variable, or the default if the variable is not set.
fn number_or_default(name: &str, default: u64) -> u64 {
    number_from_env(name).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_chaos_run_loses_nothing_duplicates_nothing_and_keeps_the_order() {
    let size = LoadSize {
        users: 30,
        classic_users: 6,
        pace: Duration::from_millis(1500),
    };
    let seed = number_or_default("CHATMESH_CHAOS_SEED", 1);
    run_chaos(seed, size, Duration::from_secs(75)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "up to twenty minutes: tests/run --chaos"]
async fn long_chaos_run_loses_nothing_duplicates_nothing_and_keeps_the_order() {
    let users =
        usize::try_from(number_or_default("CHATMESH_CHAOS_USERS", 200)).expect("a number of users");
    let classic_users = number_or_default("CHATMESH_CHAOS_CLASSIC", users as u64 / 8);
    let size = LoadSize {
        users,
        classic_users: usize::try_from(classic_users).expect("a number of users"),
        pace: Duration::from_millis(number_or_default("CHATMESH_CHAOS_PACE_MS", 3000)),
    };
    let random = uuid::Uuid::new_v4().as_u128() as u64 % 1_000_000;
    let seed = number_or_default("CHATMESH_CHAOS_SEED", random);
    let seconds = number_or_default("CHATMESH_CHAOS_SECONDS", 900);
    run_chaos(seed, size, Duration::from_secs(seconds)).await;
}

/// Runs load and faults for `period`, and checks all promises afterwards.
async fn run_chaos(seed: u64, size: LoadSize, period: Duration) {
    eprintln!("chaos: seed {seed}");
    let overrides = std::env::var("CHATMESH_CHAOS_SET").unwrap_or_default();
    let entries = overrides.split(',').filter(|entry| !entry.is_empty());
    let settings = entries.map(|entry| {
        let setting = entry.split_once('=');
        setting.unwrap_or_else(|| panic!("CHATMESH_CHAOS_SET: {entry:?} is not NAME=VALUE"))
    });
    let mut fleet = Fleet::start_with(&settings.collect::<Vec<_>>()).await;
    let journal = Arc::new(Journal::default());
    let mut simulated_users = SimulatedUsers::start(size, &fleet.client_ports(), &journal, seed);
    let clock = LogClock::now();
    let mut injector = FaultInjector::new(&mut fleet, &journal, FaultPlan::from_env(), seed);
    let started = Instant::now();
    let mut failure = None;
    while started.elapsed() < period && failure.is_none() {
        if let Err(UnendedMessages { fault, timelines }) = injector.inject_next().await {
            let ids: Vec<String> = timelines
                .iter()
                .filter_map(|(id, timeline)| timeline.message_id.clone().or(Some(id.clone())))
                .take(3)
                .collect();
            failure = Some(format!(
                "after {fault}: {} messages have not ended, such as {:?}\n{}",
                timelines.len(),
                timelines.first(),
                injector.log_lines_of(&ids)
            ));
        }
        // A failed client stops reading, so its failure explains messages without an outcome and is
        // reported instead of them.
        failure = simulated_users.failure().or(failure);
    }
    let observations = match failure {
        Some(failure) => Err(format!("fault {}: {failure}", injector.fault_count() + 1)),
        None => simulated_users
            .finish()
            .await
            .map_err(|failures| failures.join("\n")),
    };
    let (users, classic_users) = observations.unwrap_or_else(|failure| {
        let verdict = format!("seed {seed}, {failure}\n");
        let folder = injector.save_logs(seed, &[("verdict.txt", &verdict)]);
        panic!("{verdict}logs and verdict: {}", folder.display())
    });
    let duration = started.elapsed();

    let kafka = injector.fleet.kafka_client();
    let limit = Duration::from_secs(3);
    let messages = kafka.read(MESSAGES, usize::MAX, limit).await;
    let responses = kafka.read(RESPONSES, usize::MAX, limit).await;
    let mut checker = Checker::new(
        (&messages, &responses),
        &injector.costly_faults,
        &injector.model_fault_spans,
        clock,
    );
    for user in &users {
        checker.check_user(user);
    }
    for client in &classic_users {
        checker.check_classic(client);
    }
    checker.check_totals();
    let mut calls = calls::check_model_calls(
        &injector.fleet.model.requests(),
        &injector.fleet.model_faults.failed_calls(),
        &injector.costly_faults,
        (&messages, &responses),
        clock,
    );
    checker.add_violations(std::mem::take(&mut calls.violations));
    report(&injector, &checker, &calls, duration);
    assert!(
        checker.totals.answered > 0,
        "seed {seed}: nothing was answered"
    );
    if let Some(violation) = checker.violations().first() {
        let verdict = format!(
            "seed {seed}: {} promises broken: {}\nthe log lines of the first one:\n{}\n",
            checker.violations().len(),
            checker.format_violations(10),
            injector.log_lines_of(&violation.ids)
        );
        let all = checker.format_violations(usize::MAX);
        let folder =
            injector.save_logs(seed, &[("violations.txt", &all), ("verdict.txt", &verdict)]);
        panic!("{verdict}logs and verdict: {}", folder.display());
    }
    // The limits apply to release builds with the default settings.
    if !cfg!(debug_assertions) && overrides.is_empty() {
        let slow_faults = slow_recoveries(&injector);
        assert!(
            slow_faults.is_empty(),
            "seed {seed}: the median recovery took too long: {slow_faults:?}"
        );
    }
}

/// Upper limits of the median recovery time in seconds. docs/reliability.md treats restarts of
/// Kafka separately.
const MEDIAN_LIMITS: [(Fault, u128); 4] = [
    (Fault::WorkerKilled, 10),
    (Fault::RelayKilled, 10),
    (Fault::GatewayKilled, 10),
    (Fault::RedisRestarted, 5),
];

/// The faults whose median recovery time exceeds its limit, with the median in seconds.
fn slow_recoveries(injector: &FaultInjector<'_>) -> Vec<(Fault, u128)> {
    let recoveries = injector.recoveries();
    let medians = MEDIAN_LIMITS.iter().filter_map(|(fault, seconds)| {
        let (_, recovery_times) = recoveries.get(&Some(*fault))?;
        let median = *recovery_times.get(recovery_times.len().checked_sub(1)? / 2)?;
        (median > seconds * 1000).then_some((*fault, median / 1000))
    });
    medians.collect()
}

/// Prints the totals, the warnings of the roles and the recovery times.
fn report(
    injector: &FaultInjector<'_>,
    checker: &Checker,
    calls: &ModelCallTotals,
    duration: Duration,
) {
    let totals = &checker.totals;
    eprintln!(
        "chaos: {} faults in {} s, {} messages: {} answered, {} cancelled, {} failed, {} from the \
         history after {} reloads",
        injector.fault_count(),
        duration.as_secs(),
        totals.messages,
        totals.answered,
        totals.cancelled,
        totals.failed,
        totals.from_history,
        totals.reloads,
    );
    eprintln!(
        "chaos: {} lost, {} duplicated, {} out of order; {} records produced again, {} answers replaced \
         by the outcome of another model call, {} frames sent again after partitions were added and \
         Redis was emptied",
        totals.lost,
        totals.duplicated,
        totals.out_of_order,
        totals.duplicate_records,
        totals.replaced_answers,
        totals.repeated_after_move
    );
    eprintln!(
        "chaos: {} model calls, {} beyond one per message, {} of them after a fault of the model API; \
         {} answers were in flight when a worker stopped or Redis lost its data, and {} calls were \
         for answered messages whose commit and outcome were both lost",
        calls.total,
        calls.additional,
        calls.after_model_fault,
        calls.in_flight,
        calls.after_lost_outcome
    );
    eprintln!("chaos: warnings and errors of the roles");
    for (count, warning) in injector.fleet.warnings() {
        eprintln!("chaos:   {count:5} {warning}");
    }
    eprintln!("chaos: recovery time in ms, of faults that were injected alone");
    for (fault, (count, recovery_times)) in injector.recoveries() {
        let name = fault.map_or("several at once".to_owned(), |fault| fault.to_string());
        let median = recovery_times.get(recovery_times.len().saturating_sub(1) / 2);
        let summary = match (median, recovery_times.last()) {
            (Some(median), Some(longest)) => format!("median {median:6}, longest {longest:6}"),
            _ => "never alone".to_owned(),
        };
        eprintln!(
            "chaos:   {name:<16} {count:3} times, {:3} measured, {summary}",
            recovery_times.len()
        );
    }
}
