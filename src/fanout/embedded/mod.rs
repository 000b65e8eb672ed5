//! The fan-out of a single process, on the local store.
//!
//! The store holds what must survive the process, under keys per user: outcomes, mailboxes,
//! history, pending messages, cancel marks, tokens and markers. Answers in flight, sequence numbers
//! and subscriptions exist only in memory. A restart loses them, which workers handle as a data
//! loss ([`crate::fanout::LiveResponse::DataLost`]).
//!
//! A call holds its user's lock from beginning to end, publication included, so frames leave in the
//! order of their sequence numbers. Reads and commits are short and never wait for the disk:
//! commits survive in their order, and the log lives in the same store, so nothing that follows
//! from a call survives without the call.
//!
//! [`user`] has the rules over one user's state, [`users`] the locks and the eviction.

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

/// Version of the store's layout.
const VERSION: &[u8] = b"1";

impl From<StoreError> for FanoutError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The fan-out of a single process.
#[derive(Debug)]
pub struct EmbeddedFanout {
    users: Arc<Users>,
    /// Never changes, because the store exists as long as the process.
    disruptions: watch::Sender<u64>,
    _sweeper: Option<Sweeper>,
}

/// The system's clock in milliseconds since the Unix epoch, prevented from going backwards.
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

    /// Opens the fan-out with the caller's clock, for simulations. The clock returns milliseconds
    /// since the Unix epoch and never goes backwards. Expired entries are not removed in the
    /// background.
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

    /// Opens the fan-out with the caller's clock and random numbers, without background removal.
    fn with_environment(store: Store, bounds: Bounds, environment: Environment) -> Result<Self> {
        match store.get(Table::Users, keys::VERSION)? {
            Some(version) if version == VERSION => {}
            Some(_) => {
                return Err(FanoutError::Unexpected(
                    "the data directory was written by another version of chatmesh; use that \
                     version or another directory"
                        .into(),
                ));
            }
            None => {
                let mut batch = Batch::default();
                batch.put(Table::Users, keys::VERSION, VERSION);
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
