//! Runs many scenarios on one running system, because starting the system takes longer than most
//! scenarios. The environment variable `SCENARIO` selects the scenarios whose names contain its
//! value.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;

use super::system::TestSystem;

/// A scenario that stops no part of the system, so that other scenarios can run at the same time.
pub(crate) type Scenario = fn(Arc<TestSystem>) -> BoxFuture<'static, ()>;

/// A scenario that stops or breaks a part of the system and repairs it before it returns.
pub(crate) type FaultScenario = for<'a> fn(&'a mut TestSystem) -> BoxFuture<'a, ()>;

/// Turns functions into named [`Scenario`]s.
#[macro_export]
macro_rules! scenarios {
    ($($scenario:path),* $(,)?) => {
        vec![$((
            stringify!($scenario),
            (|system| Box::pin($scenario(system))) as $crate::support::scenario::Scenario,
        )),*]
    };
}

/// Turns functions into named [`FaultScenario`]s.
#[macro_export]
macro_rules! fault_scenarios {
    ($($scenario:path),* $(,)?) => {
        vec![$((
            stringify!($scenario),
            (|system| Box::pin($scenario(system))) as $crate::support::scenario::FaultScenario,
        )),*]
    };
}

/// Runs the scenarios at the same time; each has users of its own. Returns the name and the panic
/// message of each scenario that failed.
pub(crate) async fn run_concurrently(
    system: &Arc<TestSystem>,
    scenarios: Vec<(&'static str, Scenario)>,
) -> Vec<String> {
    let mut tasks = Vec::new();
    for (name, scenario) in scenarios.into_iter().filter(|(name, _)| is_selected(name)) {
        let started = Instant::now();
        let scenario = scenario(system.clone());
        let timed_scenario = async move {
            scenario.await;
            started.elapsed()
        };
        tasks.push((name, tokio::spawn(timed_scenario)));
    }
    let mut failures = Vec::new();
    for (name, task) in tasks {
        match task.await {
            Ok(duration) => eprintln!("{:?}: {name}: ok, {duration:.1?}", system.backend),
            Err(error) => failures.push(format!("{name}: {}", panic_message(error))),
        }
    }
    if !failures.is_empty() {
        eprintln!("the roles' logs: {}", system.save_logs().display());
    }
    failures
}

/// Runs the scenarios one after another. Returns the name and the panic message of each scenario
/// that failed.
pub(crate) async fn run_sequentially(
    system: TestSystem,
    scenarios: Vec<(&'static str, FaultScenario)>,
) -> Vec<String> {
    let backend = system.backend;
    let system = Arc::new(tokio::sync::Mutex::new(system));
    let mut failures = Vec::new();
    for (name, scenario) in scenarios.into_iter().filter(|(name, _)| is_selected(name)) {
        let started = Instant::now();
        let system = system.clone();
        let task = tokio::spawn(async move {
            let mut system = system.lock().await;
            system.wait_ready().await;
            scenario(&mut system).await;
        });
        match task.await {
            Ok(()) => eprintln!("{backend:?}: {name}: ok, {:.1?}", started.elapsed()),
            Err(error) => failures.push(format!("{name}: {}", panic_message(error))),
        }
    }
    failures
}

/// The message of the panic that ended a task.
pub(crate) fn panic_message(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a message".to_owned()),
        Err(error) => error.to_string(),
    }
}

/// Panics with the names and panic messages of all scenarios that failed, if any.
pub(crate) fn assert_none_failed(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} scenarios failed:\n{}",
        failures.len(),
        failures.join("\n---\n")
    );
}

fn is_selected(name: &str) -> bool {
    std::env::var("SCENARIO").map_or(true, |part| name.contains(&part))
}
