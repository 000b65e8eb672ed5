//! Runs many scenarios on one running system, because starting the system takes longer than most of
//! them. `SCENARIO` in the environment selects those whose names contain it.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;

use super::system::TestSystem;

/// A scenario that leaves the system as it is, so that others can run beside it.
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

/// Runs the scenarios at the same time, each with users of its own. Returns the names and messages
/// of those that failed.
pub(crate) async fn run_concurrently(
    system: &Arc<TestSystem>,
    scenarios: Vec<(&'static str, Scenario)>,
) -> Vec<String> {
    let mut running = Vec::new();
    for (name, scenario) in scenarios.into_iter().filter(|(name, _)| is_selected(name)) {
        let started = Instant::now();
        let scenario = scenario(system.clone());
        let timed = async move {
            scenario.await;
            started.elapsed()
        };
        running.push((name, tokio::spawn(timed)));
    }
    let mut failed = Vec::new();
    for (name, task) in running {
        match task.await {
            Ok(took) => eprintln!("{:?}: {name}: ok, {took:.1?}", system.backend),
            Err(error) => failed.push(format!("{name}: {}", panic_message(error))),
        }
    }
    if !failed.is_empty() {
        eprintln!("the roles' logs: {}", system.save_logs().display());
    }
    failed
}

/// Runs the scenarios one after another. Returns the names and messages of those that failed.
pub(crate) async fn run_sequentially(
    system: TestSystem,
    scenarios: Vec<(&'static str, FaultScenario)>,
) -> Vec<String> {
    let backend = system.backend;
    let system = Arc::new(tokio::sync::Mutex::new(system));
    let mut failed = Vec::new();
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
            Err(error) => failed.push(format!("{name}: {}", panic_message(error))),
        }
    }
    failed
}

/// The message of a task's panic.
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

/// Panics with the names and messages of all scenarios that failed.
pub(crate) fn assert_none_failed(failed: &[String]) {
    assert!(
        failed.is_empty(),
        "{} scenarios failed:\n{}",
        failed.len(),
        failed.join("\n---\n")
    );
}

fn is_selected(name: &str) -> bool {
    std::env::var("SCENARIO").map_or(true, |part| name.contains(&part))
}
