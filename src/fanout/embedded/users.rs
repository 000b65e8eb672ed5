//! The states of all users in memory. Runs each call under the lock of its user, creates a state at
//! a user's first call, and evicts idle states.

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

/// Number of shards, each with one lock for all of its users. It is far above the number of cores,
/// so that calls for different users seldom wait for each other.
const SHARD_COUNT: usize = 64;

/// Time in milliseconds after which an unused state is evicted.
const IDLE_MS: i64 = 60_000;

/// Number of states above which a shard evicts unused states already after [`CROWDED_IDLE_MS`].
const CROWDED_SHARD_STATES: usize = 1024;

/// Time in milliseconds after which an unused state is evicted from a shard with more than
/// [`CROWDED_SHARD_STATES`] states.
const CROWDED_IDLE_MS: i64 = 1_000;

/// The states of some of the users, behind one lock.
#[derive(Debug, Default)]
struct Shard {
    /// The states by user. They are boxed, because a hash map may allocate twice the space of its
    /// values.
    states: HashMap<UserId, Box<UserState>>,
    /// Number of states above which a call evicts unused states, if it is above
    /// [`CROWDED_SHARD_STATES`]. It is twice the number of states after the last such eviction, so
    /// that a crowded shard is not searched at every call.
    eviction_threshold: usize,
}

/// The states of all users in memory, and everything that calls on them need.
#[derive(Debug)]
pub(super) struct Users {
    pub(super) store: Store,
    pub(super) bounds: Bounds,
    environment: Environment,
    /// Selects the shard of a user.
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

    /// Runs the body of one fan-out call, `call`, on a user's state under the user's lock.
    ///
    /// The body changes the state in memory and then commits to the store. If it returns an error,
    /// it is unknown whether the store has the change, so everything in memory but the
    /// subscriptions is discarded. The next call loads it from the store again, except the answers
    /// in flight, which exist only in memory: their workers get `DataLost`. After a panic in the
    /// body, the next call for this user discards the state in the same way.
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

    /// Evicts the idle states of the shard with this index, and removes expired data from the other
    /// states in memory. Returns false if there is no such shard.
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

    /// Number of users whose state is in memory.
    #[cfg(test)]
    pub(super) fn loaded_count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().states.len())
            .sum()
    }
}
