//! All users' states, each behind a lock: loaded when used, evicted when idle.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use super::context::{Environment, StoreContext};
use super::user::UserState;
use crate::config::bounds::Bounds;
use crate::fanout::Result;
use crate::protocol::ids::UserId;
use crate::store::Store;

/// Number of locks. Far more than cores, so that different users seldom contend.
const SHARD_COUNT: usize = 64;

/// A state that was unused for this long is evicted, in milliseconds.
const IDLE_MS: i64 = 60_000;

/// A shard with more states than this evicts them already after [`CROWDED_IDLE_MS`].
const CROWDED_SHARD_STATES: usize = 1024;

/// A state in a crowded shard that was unused for this long is evicted, in milliseconds.
const CROWDED_IDLE_MS: i64 = 1_000;

#[derive(Debug, Default)]
struct Shard {
    /// Boxed, because a hash map allocates up to twice the space of its values.
    states: HashMap<UserId, Box<UserState>>,
    /// The shard evicts idle states when it has more states than this (or than [`CROWDED_SHARD_STATES`]).
    eviction_threshold: usize,
}

/// All users' states.
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
            shards: (0..SHARD_COUNT).map(|_| Mutex::default()).collect(),
        }
    }

    fn context(&self) -> StoreContext<'_> {
        StoreContext {
            store: &self.store,
            bounds: &self.bounds,
            now_ms: self.now_ms(),
            random: &*self.environment.random,
        }
    }

    /// Runs `call` on a user's state, under the user's lock.
    ///
    /// A call changes the state in memory before it commits. When it fails, it is unknown whether
    /// the store has the change, so the state in memory is reset. For answers in flight that is a
    /// data loss in the sense of the contract; everything else is loaded again. The same holds
    /// after a call that panicked, which is noticed at the user's next call.
    pub(super) fn with_state<T>(
        &self,
        user: &UserId,
        call: impl FnOnce(&mut UserState, &StoreContext<'_>) -> Result<T>,
    ) -> Result<T> {
        let index = self.hasher.hash_one(user) as usize % SHARD_COUNT;
        let mut shard = self.shards[index].lock();
        // The clock is read under the lock, so that it never goes backwards for a user's calls.
        let context = self.context();
        if shard.states.len() > shard.eviction_threshold.max(CROWDED_SHARD_STATES) {
            let before_ms = context.now_ms - CROWDED_IDLE_MS;
            shard.states.retain(|_, state| !state.is_idle(before_ms));
            shard.eviction_threshold = shard.states.len() * 2;
        }
        let state = match shard.states.entry(user.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Box::new(UserState::new(user.clone(), &context))),
        };
        state.last_used_ms = context.now_ms;
        if std::mem::replace(&mut state.is_in_call, true) {
            state.reset();
        }
        let result = state.load(&context).and_then(|()| call(state, &context));
        state.is_in_call = false;
        if result.is_err() {
            state.reset();
        }
        result
    }

    /// Evicts the idle states of one shard. Returns false if there is no shard of this index.
    pub(super) fn evict(&self, shard: usize) -> bool {
        let Some(shard) = self.shards.get(shard) else {
            return false;
        };
        let now_ms = self.now_ms();
        let mut shard = shard.lock();
        for state in shard.states.values_mut() {
            state.remove_expired(now_ms, &self.bounds);
        }
        shard
            .states
            .retain(|_, state| !state.is_idle(now_ms - IDLE_MS));
        shard.eviction_threshold = 0;
        if shard.states.len() < shard.states.capacity() / 8 {
            shard.states.shrink_to_fit();
        }
        true
    }

    /// The current time in milliseconds since the Unix epoch.
    pub(super) fn now_ms(&self) -> i64 {
        (self.environment.clock)()
    }

    /// Number of states in memory.
    #[cfg(test)]
    pub(super) fn loaded_count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().states.len())
            .sum()
    }
}
