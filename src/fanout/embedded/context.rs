//! The inputs of the rules over one user's state: store, bounds, time and random numbers.

use std::fmt;
use std::time::Duration;

use crate::config::bounds::Bounds;
use crate::store::Store;

/// Sources of time and randomness. A simulation replaces them by deterministic ones.
pub(super) struct Environment {
    /// Milliseconds since the Unix epoch; never goes backwards.
    pub(super) clock: Box<dyn Fn() -> i64 + Send + Sync>,
    /// Numbers that are never repeated.
    pub(super) random: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// Everything that a rule uses besides the user's state. It makes the rules deterministic.
pub(super) struct StoreContext<'a> {
    pub(super) store: &'a Store,
    pub(super) bounds: &'a Bounds,
    /// Milliseconds since the Unix epoch.
    pub(super) now_ms: i64,
    pub(super) random: &'a (dyn Fn() -> u64 + Send + Sync),
}

impl StoreContext<'_> {
    /// Generates a random id as text.
    pub(super) fn random_id(&self) -> String {
        format!("{:016x}", (self.random)())
    }

    /// Whether something stored at `at_ms` has outlived its `ttl`.
    pub(super) fn is_expired(&self, at_ms: i64, ttl: Duration) -> bool {
        is_expired(at_ms, ttl, self.now_ms)
    }
}

/// The duration in milliseconds.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Whether something stored at `at_ms` has outlived its `ttl` at `now_ms`.
pub(super) fn is_expired(at_ms: i64, ttl: Duration, now_ms: i64) -> bool {
    at_ms.saturating_add(millis(ttl)) <= now_ms
}
