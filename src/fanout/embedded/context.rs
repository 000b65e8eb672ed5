//! What a call gets besides its arguments and the user's state: store, settings, time and random
//! numbers.

use std::fmt;
use std::time::Duration;

use crate::config::bounds::Bounds;
use crate::store::Store;

/// Sources of time and random numbers. Simulations and tests pass deterministic sources.
pub(super) struct Environment {
    /// Returns the current time in milliseconds since the Unix epoch. The time never goes
    /// backwards.
    pub(super) clock: Box<dyn Fn() -> i64 + Send + Sync>,
    /// Returns a random number, practically never the same number twice.
    pub(super) random: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// Everything that a call uses besides its arguments and the user's state. With the same context, a
/// call is deterministic.
pub(super) struct StoreContext<'a> {
    pub(super) store: &'a Store,
    pub(super) bounds: &'a Bounds,
    /// Time of the call, in milliseconds since the Unix epoch.
    pub(super) now_ms: i64,
    /// Returns a random number (see [`Environment::random`]).
    pub(super) random: &'a (dyn Fn() -> u64 + Send + Sync),
}

impl StoreContext<'_> {
    /// Generates a random id of 16 hexadecimal digits.
    pub(super) fn random_id(&self) -> String {
        format!("{:016x}", (self.random)())
    }

    /// Whether an entry that was stored at `at_ms` has outlived its time to live.
    pub(super) fn is_expired(&self, at_ms: i64, ttl: Duration) -> bool {
        is_expired(at_ms, ttl, self.now_ms)
    }
}

/// A duration in milliseconds; `i64::MAX` if it is longer.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Whether an entry that was stored at `at_ms` has outlived its time to live at `now_ms`.
pub(super) fn is_expired(at_ms: i64, ttl: Duration, now_ms: i64) -> bool {
    at_ms.saturating_add(millis(ttl)) <= now_ms
}
