//! What a role knows of its own condition: which dependency is out of reach, and whether it drains.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Shared by a role's parts and its HTTP server. Begins with every dependency it was made with as
/// "not reached yet", so that readiness is false until each has answered once.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    draining: bool,
    /// Since when, and why.
    failing: BTreeMap<&'static str, (Instant, String)>,
}

/// Why a role is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// It was told to stop and takes nothing new.
    Draining,
    /// The dependency's name and what is wrong with it.
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
    /// `dependencies` as `/health/ready` names them (`kafka`, `redis`).
    pub fn new(dependencies: &[&'static str]) -> Self {
        let failing = dependencies
            .iter()
            .map(|name| (*name, (Instant::now(), "not reached yet".to_owned())))
            .collect();
        Self {
            state: Mutex::new(State {
                draining: false,
                failing,
            }),
        }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Notes what a check of `dependency` gave. True where this changed whether it is reachable.
    pub fn set(&self, dependency: &'static str, result: Result<(), String>) -> bool {
        let mut state = self.state();
        match result {
            Ok(()) => state.failing.remove(dependency).is_some(),
            Err(reason) => {
                let before = state.failing.get(dependency).map(|(since, _)| *since);
                let since = before.unwrap_or_else(Instant::now);
                state.failing.insert(dependency, (since, reason));
                before.is_none()
            }
        }
    }

    /// For how long no check of `dependency` has succeeded; zero where the last one did.
    pub fn away(&self, dependency: &str) -> Duration {
        let state = self.state();
        let failing = state.failing.get(dependency);
        failing.map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// From now on not ready: the role was told to stop.
    pub fn drain(&self) {
        self.state().draining = true;
    }

    /// Ready for work, or the first reason why not.
    pub fn ready(&self) -> Result<(), NotReady> {
        let state = self.state();
        if state.draining {
            return Err(NotReady::Draining);
        }
        match state.failing.first_key_value() {
            None => Ok(()),
            Some((name, (_, reason))) => Err(NotReady::Dependency(name, reason.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn how_long_something_is_away_is_counted_from_its_first_failure() {
        let health = Health::new(&[]);
        let second = Duration::from_secs(1);
        assert_eq!(health.away("redis"), Duration::ZERO);
        assert!(health.set("redis", Err("refused".into())));
        tokio::time::advance(second).await;
        assert!(!health.set("redis", Err("refused again".into())));
        tokio::time::advance(second).await;
        assert_eq!(health.away("redis"), 2 * second);
        assert!(health.set("redis", Ok(())));
        assert_eq!(health.away("redis"), Duration::ZERO);
    }
}
