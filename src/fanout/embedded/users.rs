//! Every user's state behind the user's lock: loaded when it is needed, let go when it is idle.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::user::UserState;
use crate::config::bounds::Bounds;
use crate::fanout::Result;
use crate::protocol::ids::UserId;
use crate::store::Store;

/// Locks: far more than cores, so that users seldom wait for each other.
const SHARDS: usize = 64;

/// A state that nothing has used for so long is let go, milliseconds.
const IDLE_MS: i64 = 60_000;

/// With more states than this in a shard, those are let go too that were used a moment ago.
const CROWDED: usize = 1024;

/// And this is a moment, milliseconds.
const MOMENT_MS: i64 = 1_000;

/// Where time and chance come from, so that a simulation can bring its own.
pub(super) struct Environment {
    /// Milliseconds since the Unix epoch.
    pub(super) clock: Box<dyn Fn() -> i64 + Send + Sync>,
    /// A number that nobody has had before.
    pub(super) random: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// What the rules of one user see of the world.
pub(super) struct World<'a> {
    pub(super) store: &'a Store,
    pub(super) bounds: &'a Bounds,
    /// Milliseconds since the Unix epoch.
    pub(super) now_ms: i64,
    pub(super) random: &'a (dyn Fn() -> u64 + Send + Sync),
}

impl World<'_> {
    /// A random id as text.
    pub(super) fn random_id(&self) -> String {
        format!("{:016x}", (self.random)())
    }
}

#[derive(Debug, Default)]
struct Shard {
    /// Boxed: a map is up to twice as large as what is in it.
    users: HashMap<UserId, Box<UserState>>,
    /// Look for states to let go when there are more than this.
    crowded: usize,
}

/// All users.
#[derive(Debug)]
pub(super) struct Users {
    pub(super) store: Store,
    pub(super) bounds: Bounds,
    environment: Environment,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

impl Users {
    pub(super) fn new(store: Store, bounds: Bounds, environment: Environment) -> Self {
        Self {
            store,
            bounds,
            environment,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn world(&self) -> World<'_> {
        World {
            store: &self.store,
            bounds: &self.bounds,
            now_ms: (self.environment.clock)(),
            random: &*self.environment.random,
        }
    }

    fn lock(&self, user: &UserId) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(user) as usize % SHARDS;
        // The lock is poisoned by a panic in a rule: what is in memory is forgotten below like
        // after an error.
        self.shards[index].lock().unwrap_or_else(|poisoned| {
            let mut shard = poisoned.into_inner();
            for state in shard.users.values_mut() {
                state.distrust();
            }
            self.shards[index].clear_poison();
            shard
        })
    }

    /// Runs a rule under the user's lock.
    ///
    /// Rules change the state in memory before they commit. Where one fails, it is unknown what
    /// the store has taken, so everything in memory is forgotten: for answers in flight that is
    /// what the contract calls "the fan-out lost its data", and the rest is read again.
    pub(super) fn with<T>(
        &self,
        user: &UserId,
        rule: impl FnOnce(&mut UserState, &World<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut shard = self.lock(user);
        // Taken under the lock: a user's calls see a clock that does not go back.
        let world = self.world();
        if shard.users.len() > shard.crowded.max(CROWDED) {
            shard
                .users
                .retain(|_, state| !state.is_idle(world.now_ms - MOMENT_MS));
            shard.crowded = shard.users.len() * 2;
        }
        let state = match shard.users.entry(user.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Box::new(UserState::new(user.clone(), &world))),
        };
        state.used_ms = world.now_ms;
        let result = state.load(&world).and_then(|()| rule(state, &world));
        if result.is_err() {
            state.distrust();
        }
        result
    }

    /// Lets go of idle states, in the shard of this number; false when there is no such shard.
    pub(super) fn evict(&self, shard: usize) -> bool {
        let Some(shard) = self.shards.get(shard) else {
            return false;
        };
        let before_ms = self.world().now_ms - IDLE_MS;
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        for state in shard.users.values_mut() {
            state.tidy(before_ms + IDLE_MS, &self.bounds);
        }
        shard.users.retain(|_, state| !state.is_idle(before_ms));
        shard.crowded = 0;
        if shard.users.len() < shard.users.capacity() / 8 {
            shard.users.shrink_to_fit();
        }
        true
    }

    /// The clock.
    pub(super) fn now_ms(&self) -> i64 {
        self.world().now_ms
    }

    /// How many states are in memory.
    #[cfg(test)]
    pub(super) fn loaded(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap().users.len())
            .sum()
    }
}
