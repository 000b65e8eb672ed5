//! The fan-out of a single process, on the local store.
//!
//! The store holds what must survive the process, under keys per user: outcomes, mailboxes,
//! history, pending messages, cancel marks, tokens and markers. Answers in flight, sequence numbers
//! and subscriptions exist only in memory. A restart loses them: workers get
//! [`crate::fanout::StreamResponse::DataLost`], and gateways subscribe again.
//!
//! A call holds its user's lock from beginning to end, so frames are published in the order of
//! their sequence numbers. A call never waits until its commit is on the disk. That is safe because
//! commits survive in their order and the log is in the same store: whatever is committed as a
//! consequence of a call survives only if the call's commit survives too.
//!
//! [`user`] has the state of one user and the calls that read and change it. [`users`] has the
//! locks, and the eviction of unused states from memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use self::context::{Environment, millis};
use self::sweep::Sweeper;
use self::users::Users;
use super::error::{FanoutError, Result};
use crate::config::bounds::Bounds;
use crate::store::{Batch, Store, StoreError, Table};

mod calls;
mod codec;
mod context;
mod feed;
mod keys;
mod subscriptions;
mod sweep;
#[cfg(test)]
mod tests;
mod tokens;
mod user;
mod users;

/// Version of the store's layout. In layout 1, no turn of the history has parts
/// ([`Turn::parts`](super::Turn::parts)); everything else is the same.
const LAYOUT_VERSION: &[u8] = b"2";

/// The older layout that this version reads. Opening such a store gives it the current version, so
/// that a chatmesh that knows only the older layout refuses it instead of misreading its turns.
const READABLE_LAYOUT_VERSION: &[u8] = b"1";

impl From<StoreError> for FanoutError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The fan-out of a single process.
#[derive(Debug)]
pub struct EmbeddedFanout {
    users: Arc<Users>,
    /// Number of disruptions. It is always 0, because the store can't lose its data while the
    /// process runs.
    disruptions: watch::Sender<u64>,
    _sweeper: Option<Sweeper>,
}

/// Returns a clock in milliseconds since the Unix epoch. When the system's clock is set back, it
/// stands still instead of going backwards.
fn monotonic_clock() -> impl Fn() -> i64 + Send + Sync {
    let latest = AtomicI64::new(0);
    move || {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, millis);
        latest.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl EmbeddedFanout {
    /// Opens the fan-out on a store, and starts the thread that removes expired entries. The thread
    /// ends when the fan-out is dropped.
    ///
    /// # Errors
    /// [`FanoutError::Unexpected`] if another version of chatmesh wrote the store.
    pub fn open(store: Store, bounds: Bounds) -> Result<Self> {
        let environment = Environment {
            clock: Box::new(monotonic_clock()),
            random: Box::new(rand::random),
        };
        let fanout = Self::with_environment(store, bounds, environment)?;
        let sweeper = Sweeper::start(Arc::clone(&fanout.users))?;
        Ok(Self {
            _sweeper: Some(sweeper),
            ..fanout
        })
    }

    /// Opens the fan-out with the caller's clock, for simulations. The clock must return
    /// milliseconds since the Unix epoch and must not go backwards. No thread removes expired
    /// entries.
    ///
    /// # Errors
    /// [`FanoutError::Unexpected`] if another version of chatmesh wrote the store.
    pub fn open_with_clock(
        store: Store,
        bounds: Bounds,
        clock: Box<dyn Fn() -> i64 + Send + Sync>,
    ) -> Result<Self> {
        let random = Box::new(rand::random);
        Self::with_environment(store, bounds, Environment { clock, random })
    }

    /// Opens the fan-out with the caller's clock and random numbers. No thread removes expired
    /// entries.
    fn with_environment(store: Store, bounds: Bounds, environment: Environment) -> Result<Self> {
        match store.get(Table::Users, keys::LAYOUT_VERSION_KEY)? {
            Some(version) if version == LAYOUT_VERSION => {}
            Some(version) if version != READABLE_LAYOUT_VERSION => {
                return Err(FanoutError::Unexpected(
                    "the data directory was written by another version of chatmesh; use that \
                     version or another directory"
                        .into(),
                ));
            }
            Some(_) | None => {
                let mut batch = Batch::default();
                batch.put(Table::Users, keys::LAYOUT_VERSION_KEY, LAYOUT_VERSION);
                store.commit(batch)?;
            }
        }
        Ok(Self {
            users: Arc::new(Users::new(store, bounds, environment)),
            disruptions: watch::Sender::new(0),
            _sweeper: None,
        })
    }
}
