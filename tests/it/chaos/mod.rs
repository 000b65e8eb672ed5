//! Chaos tests: a system of two gateways, workers and relays under load, with clients that connect
//! and disconnect, while one fault after another is injected. The promises must hold throughout.
//!
//! `tests/run --chaos` runs the long form. A failure prints the seed. `CHATMESH_CHAOS_SEED` repeats
//! the same faults in the same order, though not at the same moments, because the processes are
//! real. `CHATMESH_CHAOS_PROVIDER=steady` leaves out the faults of the model API,
//! `CHATMESH_CHAOS_ONLY=KafkaKilled,RelayStopped` all but the listed ones.
//! `CHATMESH_CHAOS_SET=MAX_WORKERS=200` changes settings of every role.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod answers;
mod calls;
mod checker;
mod classic;
mod clients;
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

/// The number in an environment variable, or the default.
fn number(name: &str, default: u64) -> u64 {
    number_from_env(name).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_chaos_run_loses_nothing_duplicates_nothing_and_keeps_the_order() {
    let size = LoadSize {
        users: 30,
        classic: 6,
        pace: Duration::from_millis(1500),
    };
    let seed = number("CHATMESH_CHAOS_SEED", 1);
    run_chaos(seed, size, Duration::from_secs(75)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "up to twenty minutes: tests/run --chaos"]
async fn long_chaos_run_loses_nothing_duplicates_nothing_and_keeps_the_order() {
    let users = usize::try_from(number("CHATMESH_CHAOS_USERS", 200)).expect("a number of users");
    let classic = number("CHATMESH_CHAOS_CLASSIC", users as u64 / 8);
    let size = LoadSize {
        users,
        classic: usize::try_from(classic).expect("a number of users"),
        pace: Duration::from_millis(number("CHATMESH_CHAOS_PACE_MS", 3000)),
    };
    let random = uuid::Uuid::new_v4().as_u128() as u64 % 1_000_000;
    let seed = number("CHATMESH_CHAOS_SEED", random);
    let seconds = number("CHATMESH_CHAOS_SECONDS", 900);
    run_chaos(seed, size, Duration::from_secs(seconds)).await;
}

/// Runs load and faults for `period`, and checks all promises afterwards.
async fn run_chaos(seed: u64, size: LoadSize, period: Duration) {
    eprintln!("chaos: seed {seed}");
    let set = std::env::var("CHATMESH_CHAOS_SET").unwrap_or_default();
    let settings = set.split(',').filter(|one| !one.is_empty()).map(|one| {
        let setting = one.split_once('=');
        setting.unwrap_or_else(|| panic!("CHATMESH_CHAOS_SET: {one:?} is not NAME=VALUE"))
    });
    let mut fleet = Fleet::start_with(&settings.collect::<Vec<_>>()).await;
    let journal = Arc::new(Journal::default());
    let mut simulated_users = SimulatedUsers::start(size, &fleet.client_ports(), &journal, seed);
    let clock = LogClock::now();
    let mut injector = FaultInjector::new(&mut fleet, &journal, FaultPlan::from_env(), seed);
    let started = Instant::now();
    let mut failure = None;
    while started.elapsed() < period && failure.is_none() {
        if let Err(UnendedMessages {
            injected,
            timelines,
        }) = injector.inject_next().await
        {
            let ids: Vec<String> = timelines
                .iter()
                .filter_map(|(id, timeline)| timeline.message_id.clone().or(Some(id.clone())))
                .take(3)
                .collect();
            failure = Some(format!(
                "after {injected}: {} messages have not ended, such as {:?}\n{}",
                timelines.len(),
                timelines.first(),
                injector.log_lines_of(&ids)
            ));
        }
        // A client that failed does not read any more, which explains messages without an outcome.
        failure = simulated_users.failed().or(failure);
    }
    let ended = match failure {
        Some(failure) => Err(format!("fault {}: {failure}", injector.faults() + 1)),
        None => simulated_users.finish().await.map_err(|all| all.join("\n")),
    };
    let (users, classic) = ended.unwrap_or_else(|failure| {
        let verdict = format!("seed {seed}, {failure}\n");
        let folder = injector.save_logs(seed, &[("verdict.txt", &verdict)]);
        panic!("{verdict}everything: {}", folder.display())
    });
    let took = started.elapsed();

    let kafka = injector.fleet.kafka_client();
    let limit = Duration::from_secs(3);
    let messages = kafka.read(MESSAGES, usize::MAX, limit).await;
    let responses = kafka.read(RESPONSES, usize::MAX, limit).await;
    let mut checker = Checker::new(
        (&messages, &responses),
        &injector.costly_faults,
        &injector.model_at_fault,
        clock,
    );
    for user in &users {
        checker.check_user(user);
    }
    for client in &classic {
        checker.check_classic(client);
    }
    checker.check_totals();
    let mut calls = calls::check_model_calls(
        &injector.fleet.model.requests(),
        &injector.fleet.model_faults.faulty(),
        &injector.costly_faults,
        (&messages, &responses),
        clock,
    );
    checker.add(std::mem::take(&mut calls.violations));
    report(&injector, &checker, &calls, took);
    assert!(
        checker.totals.answered > 0,
        "seed {seed}: nothing was answered"
    );
    if let Some(violation) = checker.violations().first() {
        let verdict = format!(
            "seed {seed}: {} promises broken: {}\nthe log lines of the first:\n{}\n",
            checker.violations().len(),
            checker.format_violations(10),
            injector.log_lines_of(&violation.ids)
        );
        let all = checker.format_violations(usize::MAX);
        let folder =
            injector.save_logs(seed, &[("violations.txt", &all), ("verdict.txt", &verdict)]);
        panic!("{verdict}everything: {}", folder.display());
    }
    // The limits apply to release builds with the default settings.
    if !cfg!(debug_assertions) && set.is_empty() {
        let slow = slow_recoveries(&injector);
        assert!(
            slow.is_empty(),
            "seed {seed}: recovery took too long: {slow:?}"
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
        let (_, measured) = recoveries.get(&Some(*fault))?;
        let median = *measured.get(measured.len().checked_sub(1)? / 2)?;
        (median > seconds * 1000).then_some((*fault, median / 1000))
    });
    medians.collect()
}

fn report(
    injector: &FaultInjector<'_>,
    checker: &Checker,
    calls: &ModelCallTotals,
    took: Duration,
) {
    let totals = &checker.totals;
    eprintln!(
        "chaos: {} faults in {} s, {} messages: {} answered, {} cancelled, {} failed, {} from the \
         history after {} reloads",
        injector.faults(),
        took.as_secs(),
        totals.messages,
        totals.answered,
        totals.cancelled,
        totals.failed,
        totals.from_history,
        totals.reloads,
    );
    eprintln!(
        "chaos: {} lost, {} duplicated, {} out of order; {} records produced again, {} texts replaced \
         by the outcome of another model call, {} frames sent again after partitions were added and \
         Redis was emptied",
        totals.lost,
        totals.duplicated,
        totals.out_of_order,
        totals.duplicate_records,
        totals.replaced,
        totals.repeated_after_move
    );
    eprintln!(
        "chaos: {} model calls, {} beyond one per message, {} of them after a fault of the model API; \
         {} answers were in flight when a worker stopped or Redis lost its data, and {} calls were \
         for answered messages whose commit and outcome were both lost",
        calls.made, calls.again, calls.excused, calls.in_flight, calls.uncommitted
    );
    eprintln!("chaos: warnings and errors of the roles");
    for (times, warning) in injector.fleet.warnings() {
        eprintln!("chaos:   {times:5} {warning}");
    }
    eprintln!("chaos: recovery time in ms, of faults that were injected alone");
    for (fault, (times, measured)) in injector.recoveries() {
        let name = fault.map_or("several at once".to_owned(), |fault| fault.to_string());
        let median = measured.get(measured.len().saturating_sub(1) / 2);
        let took = match (median, measured.last()) {
            (Some(median), Some(longest)) => format!("median {median:6}, longest {longest:6}"),
            _ => "never alone".to_owned(),
        };
        eprintln!(
            "chaos:   {name:<16} {times:3} times, {:3} measured, {took}",
            measured.len()
        );
    }
}
