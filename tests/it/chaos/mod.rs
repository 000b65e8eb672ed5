//! The promises under fire: two of each role, clients that come and go, and one fault after another.
//!
//! `tests/run --chaos` runs the long form. A failure prints the seed: `CHATMESH_CHAOS_SEED` draws the
//! same faults in the same order (not the same moments: these are real processes).
//! `CHATMESH_CHAOS_PROVIDER=steady` leaves out the faults of the model, `CHATMESH_CHAOS_ONLY=KafkaKilled,RelayStopped`
//! all but these. `CHATMESH_CHAOS_SET=MAX_WORKERS=200` gives every role other settings.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod answers;
mod calls;
mod checker;
mod classic;
mod clients;
mod disk;
mod faults;
mod fleet;
mod journal;
mod rebuild;
mod soak;

use calls::{Calls, Clock};
use checker::Checker;
use clients::{Crowd, Size};
use faults::{Fault, Plan, Storm, Stuck};
use fleet::Fleet;
use journal::Journal;

use crate::support::stack::{MESSAGES, RESPONSES};

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => default,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_storm_loses_nothing_doubles_nothing_and_keeps_the_order() {
    let size = Size {
        users: 30,
        classic: 6,
        pace: Duration::from_millis(1500),
    };
    let seed = number("CHATMESH_CHAOS_SEED", 1);
    storm(seed, size, Duration::from_secs(75)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "up to twenty minutes: tests/run --chaos"]
async fn a_long_storm_loses_nothing_doubles_nothing_and_keeps_the_order() {
    let users = usize::try_from(number("CHATMESH_CHAOS_USERS", 200)).expect("a number of users");
    let classic = number("CHATMESH_CHAOS_CLASSIC", users as u64 / 8);
    let size = Size {
        users,
        classic: usize::try_from(classic).expect("a number of users"),
        pace: Duration::from_millis(number("CHATMESH_CHAOS_PACE_MS", 3000)),
    };
    let random = uuid::Uuid::new_v4().as_u128() as u64 % 1_000_000;
    let seed = number("CHATMESH_CHAOS_SEED", random);
    let seconds = number("CHATMESH_CHAOS_SECONDS", 900);
    storm(seed, size, Duration::from_secs(seconds)).await;
}

async fn storm(seed: u64, size: Size, period: Duration) {
    eprintln!("chaos: seed {seed}");
    let set = std::env::var("CHATMESH_CHAOS_SET").unwrap_or_default();
    let settings = set.split(',').filter(|one| !one.is_empty()).map(|one| {
        let setting = one.split_once('=');
        setting.unwrap_or_else(|| panic!("CHATMESH_CHAOS_SET: {one:?} is not NAME=VALUE"))
    });
    let mut fleet = Fleet::start_with(&settings.collect::<Vec<_>>()).await;
    let journal = Arc::new(Journal::default());
    let mut crowd = Crowd::start(size, &fleet.doors(), &journal, seed);
    let clock = Clock::now();
    let mut storm = Storm::new(&mut fleet, &journal, Plan::from_env(), seed);
    let began = Instant::now();
    let mut failure = None;
    while began.elapsed() < period && failure.is_none() {
        if let Err(Stuck { blow, lives }) = storm.strike().await {
            let ids: Vec<String> = lives
                .iter()
                .filter_map(|(id, life)| life.message_id.clone().or(Some(id.clone())))
                .take(3)
                .collect();
            failure = Some(format!(
                "after {blow}: {} messages have not ended, such as {:?}\n{}",
                lives.len(),
                lives.first(),
                storm.path_of(&ids)
            ));
        }
        // A client that failed reads no more: that is why something has not ended.
        failure = crowd.failed().or(failure);
    }
    let ended = match failure {
        Some(failure) => Err(format!("fault {}: {failure}", storm.faults() + 1)),
        None => crowd.finish().await.map_err(|all| all.join("\n")),
    };
    let (users, classic) = ended.unwrap_or_else(|failure| {
        let verdict = format!("seed {seed}, {failure}\n");
        let folder = storm.keep(seed, &[("verdict.txt", &verdict)]);
        panic!("{verdict}all of it: {}", folder.display())
    });
    let took = began.elapsed();

    let kafka = storm.fleet.kafka_client();
    let whole = Duration::from_secs(3);
    let messages = kafka.read(MESSAGES, usize::MAX, whole).await;
    let responses = kafka.read(RESPONSES, usize::MAX, whole).await;
    let mut checker = Checker::new(
        (&messages, &responses),
        &storm.stakes,
        &storm.model_at_fault,
        clock,
    );
    for seen in &users {
        checker.user(seen);
    }
    for seen in &classic {
        checker.classic(seen);
    }
    checker.all();
    let mut calls = calls::count(
        &storm.fleet.model.requests(),
        &storm.fleet.whims.faulty(),
        &storm.stakes,
        (&messages, &responses),
        clock,
    );
    checker.add(std::mem::take(&mut calls.breaches));
    report(&storm, &checker, &calls, took);
    assert!(
        checker.count.answered > 0,
        "seed {seed}: nothing was answered"
    );
    if let Some(breach) = checker.breaches().first() {
        let verdict = format!(
            "seed {seed}: {} promises broken: {}\nthe path of the first:\n{}\n",
            checker.breaches().len(),
            checker.some_breaches(10),
            storm.path_of(&breach.ids)
        );
        let all = checker.some_breaches(usize::MAX);
        let folder = storm.keep(seed, &[("breaches.txt", &all), ("verdict.txt", &verdict)]);
        panic!("{verdict}all of it: {}", folder.display());
    }
    // Of the builds that are shipped, with what they are shipped with.
    if !cfg!(debug_assertions) && set.is_empty() {
        let slow = too_slow(&storm);
        assert!(slow.is_empty(), "seed {seed}: recovered too late: {slow:?}");
    }
}

/// In half of the cases within so many seconds; Kafka's restarts are told apart in
/// docs/reliability.md.
const IN_TIME: [(Fault, u128); 4] = [
    (Fault::WorkerKilled, 10),
    (Fault::RelayKilled, 10),
    (Fault::GatewayKilled, 10),
    (Fault::RedisRestarted, 5),
];

/// What took longer to recover from than it may: seconds in the median.
fn too_slow(storm: &Storm<'_>) -> Vec<(Fault, u128)> {
    let recoveries = storm.recoveries();
    let medians = IN_TIME.iter().filter_map(|(fault, seconds)| {
        let (_, measured) = recoveries.get(&Some(*fault))?;
        let median = *measured.get(measured.len().checked_sub(1)? / 2)?;
        (median > seconds * 1000).then_some((*fault, median / 1000))
    });
    medians.collect()
}

fn report(storm: &Storm<'_>, checker: &Checker, calls: &Calls, took: Duration) {
    let count = &checker.count;
    eprintln!(
        "chaos: {} faults in {} s, {} messages: {} answered, {} cancelled, {} failed, {} from the \
         history after {} reloads",
        storm.faults(),
        took.as_secs(),
        count.messages,
        count.answered,
        count.cancelled,
        count.failed,
        count.from_history,
        count.reloads,
    );
    eprintln!(
        "chaos: {} lost, {} doubled, {} out of order; {} records produced again, {} texts replaced by \
         the end of another call, {} frames told once more after partitions were added and Redis was \
         emptied",
        count.lost,
        count.doubled,
        count.out_of_order,
        count.records_again,
        count.replaced,
        count.told_after_move
    );
    eprintln!(
        "chaos: {} calls of the model, {} beyond one for each message, {} of them after a fault of the \
         model; {} answers were in flight when a worker or Redis's data went, and {} calls were for \
         what was answered, and not committed when both went",
        calls.made, calls.again, calls.excused, calls.in_flight, calls.uncommitted
    );
    eprintln!("chaos: what the roles warned of");
    for (times, said) in storm.fleet.warnings() {
        eprintln!("chaos:   {times:5} {said}");
    }
    eprintln!("chaos: time to recover in ms, of faults that struck alone");
    for (fault, (times, measured)) in storm.recoveries() {
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
