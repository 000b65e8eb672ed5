//! Tracks the health of a process: which dependencies are unavailable, and whether the process
//! drains. `app` and the roles report it, and `/health/ready` reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Tracks the state behind `/health/ready`. Every dependency starts as unavailable, so the process
/// is not ready until each has responded once.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    is_draining: bool,
    /// The unavailable dependencies, each with the time since when and the reason why.
    unavailable: BTreeMap<&'static str, (Instant, String)>,
}

/// Why a process is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// The process is stopping and accepts no new work.
    Draining,
    /// A dependency is unavailable. The fields are its name and the reason.
    Dependency(&'static str, String),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining => f.write_str("draining"),
            Self::Dependency(name, reason) => write!(f, "{name}: {reason}"),
        }
    }
}

impl Health {
    /// Creates the health of a process whose `dependencies` are all unavailable so far. They are
    /// the names in `/health/ready`, such as `kafka` and `redis`.
    pub fn new(dependencies: &[&'static str]) -> Self {
        let unavailable = dependencies
            .iter()
            .map(|name| (*name, (Instant::now(), "not reached yet".to_owned())))
            .collect();
        Self {
            state: Mutex::new(State {
                is_draining: false,
                unavailable,
            }),
        }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Records the result of a check of `dependency`. Returns whether the dependency changed
    /// between available and unavailable.
    pub fn set(&self, dependency: &'static str, result: Result<(), String>) -> bool {
        let mut state = self.state();
        match result {
            Ok(()) => state.unavailable.remove(dependency).is_some(),
            Err(reason) => {
                let since = state.unavailable.get(dependency).map(|(since, _)| *since);
                let is_new = since.is_none();
                let since = since.unwrap_or_else(Instant::now);
                state.unavailable.insert(dependency, (since, reason));
                is_new
            }
        }
    }

    /// Returns for how long `dependency` has been unavailable; zero if the last check succeeded.
    pub fn unavailable_for(&self, dependency: &str) -> Duration {
        let state = self.state();
        let unavailable = state.unavailable.get(dependency);
        unavailable.map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Marks the process as draining, so it is not ready any more.
    pub fn drain(&self) {
        self.state().is_draining = true;
    }

    /// Returns whether the process accepts work. The error is the drain, or else the first
    /// unavailable dependency by name.
    pub fn ready(&self) -> Result<(), NotReady> {
        let state = self.state();
        if state.is_draining {
            return Err(NotReady::Draining);
        }
        match state.unavailable.first_key_value() {
            None => Ok(()),
            Some((name, (_, reason))) => Err(NotReady::Dependency(name, reason.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn unavailability_is_measured_from_the_first_failed_check() {
        let health = Health::new(&[]);
        let second = Duration::from_secs(1);
        assert_eq!(health.unavailable_for("redis"), Duration::ZERO);
        assert!(health.set("redis", Err("refused".into())));
        tokio::time::advance(second).await;
        assert!(!health.set("redis", Err("refused again".into())));
        tokio::time::advance(second).await;
        assert_eq!(health.unavailable_for("redis"), 2 * second);
        assert!(health.set("redis", Ok(())));
        assert_eq!(health.unavailable_for("redis"), Duration::ZERO);
    }
}
