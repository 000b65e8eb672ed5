//! Removes expired entries in the background, in small steps. Calls treat an expired entry as
//! absent, so the removal only frees its space.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::codec::damaged_entry_error;
use super::context::is_expired;
use super::keys;
use super::user::{needs_expiry, turn_header};
use super::users::Users;
use crate::fanout::{FanoutError, Result};
use crate::protocol::ids::{ConversationId, UserId};
use crate::store::{Entry, Table};

/// Maximum number of entries that one step examines. Such a step takes about a millisecond.
const STEP_ENTRIES: usize = 128;

/// Pause between two steps of a pass.
const STEP_INTERVAL: Duration = Duration::from_millis(25);

/// Pause between two passes, and after an error.
const PASS_INTERVAL: Duration = Duration::from_secs(30);

/// How far a pass has come. A pass goes through both tables and then the states in memory.
#[derive(Debug)]
enum Progress {
    /// The next step begins at this key of [`Table::Users`].
    Users(Vec<u8>),
    /// The next step begins at this key of [`Table::History`].
    History(Vec<u8>),
    /// The next step evicts idle states of the shard with this index.
    Memory(usize),
}

/// Removes expired data, in passes over the users, the history and the states in memory. Each call
/// of `step` does a small part of a pass; [`Sweeper`] makes the calls.
#[derive(Debug)]
pub(super) struct Sweep {
    users: Arc<Users>,
    progress: Progress,
}

impl Sweep {
    pub(super) fn new(users: Arc<Users>) -> Self {
        Self {
            users,
            progress: Progress::Users(keys::USERS_FROM.to_vec()),
        }
    }

    /// Runs one step. Returns whether it was the last step of a pass.
    pub(super) fn step(&mut self) -> Result<bool> {
        let next = match &self.progress {
            Progress::Users(from) => {
                let (page, next) = self.page(Table::Users, from)?;
                self.expire_entries(&page)?;
                match next {
                    Some(next) => Progress::Users(next),
                    None => Progress::History(keys::USERS_FROM.to_vec()),
                }
            }
            Progress::History(from) => {
                let (page, next) = self.page(Table::History, from)?;
                self.expire_turns(&page)?;
                match next {
                    Some(next) => Progress::History(next),
                    None => Progress::Memory(0),
                }
            }
            Progress::Memory(shard) if self.users.evict(*shard) => Progress::Memory(shard + 1),
            Progress::Memory(_) => {
                self.progress = Progress::Users(keys::USERS_FROM.to_vec());
                return Ok(true);
            }
        };
        self.progress = next;
        Ok(false)
    }

    /// Returns the next entries, beginning at the key `from`, and the key at which the entries
    /// after them begin; `None` if there are no more entries.
    fn page(&self, table: Table, from: &[u8]) -> Result<(Vec<Entry>, Option<Vec<u8>>)> {
        let store = &self.users.store;
        let page = store.scan(table, from, keys::USERS_TO, STEP_ENTRIES, false)?;
        let last = page.last().filter(|_| page.len() == STEP_ENTRIES);
        let next = last.map(|(key, _)| keys::successor(key));
        Ok((page, next))
    }

    /// Removes the expired entries of a page of [`Table::Users`].
    fn expire_entries(&self, page: &[Entry]) -> Result<()> {
        let now_ms = self.users.now_ms();
        let mut expired: HashMap<UserId, Vec<&[u8]>> = HashMap::new();
        for (key, value) in page {
            let (user, tag, _) = keys::parse(key).ok_or_else(damaged_entry_error)?;
            if needs_expiry(&self.users.bounds, tag, value, now_ms)? {
                expired.entry(user).or_default().push(key);
            }
        }
        for (user, entries) in expired {
            self.users
                .with_state(&user, |state, context| state.expire(&entries, context))?;
        }
        Ok(())
    }

    /// Removes the expired turns of a page of [`Table::History`].
    fn expire_turns(&self, page: &[Entry]) -> Result<()> {
        let now_ms = self.users.now_ms();
        let ttl = self.users.bounds.history_ttl;
        let mut expired: HashMap<UserId, Vec<(ConversationId, u64)>> = HashMap::new();
        for (key, value) in page {
            let Some((user, conversation, sequence)) = keys::parse_turn(key) else {
                continue;
            };
            if is_expired(turn_header(value)?.0, ttl, now_ms) {
                let turns = expired.entry(user).or_default();
                turns.push((conversation, sequence));
            }
        }
        for (user, turns) in expired {
            self.users
                .with_state(&user, |state, context| state.expire_turns(&turns, context))?;
        }
        Ok(())
    }
}

/// The thread that runs the sweep. Dropping this value stops the thread and waits for it, so that
/// the thread no longer uses the store.
#[derive(Debug)]
pub(super) struct Sweeper {
    /// Dropping the sender stops the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts the thread. The sweep does not run as a task, because its reads may block on the
    /// disk.
    pub(super) fn start(users: Arc<Users>) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("fanout-sweep".into())
            .spawn(move || run(Sweep::new(users), &stopped))
            .map_err(|error| FanoutError::Unavailable(format!("can't start a thread: {error}")))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// Runs steps of the sweep with pauses between them, until the sender of `stopped` is dropped.
fn run(mut sweep: Sweep, stopped: &mpsc::Receiver<()>) {
    loop {
        let pause = match sweep.step() {
            Ok(false) => STEP_INTERVAL,
            Ok(true) => PASS_INTERVAL,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "removing expired fan-out entries failed; retried in 30 s, check the data \
                     directory if this persists"
                );
                PASS_INTERVAL
            }
        };
        if !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                "the thread that removes expired fan-out entries panicked; restart the process if \
                 its data directory grows"
            );
        }
    }
}
