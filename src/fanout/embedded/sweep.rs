//! What is too old counts as gone at once; here it is removed, a little at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::codec::{Reader, damaged};
use super::history;
use super::keys::{self, Tag};
use super::mailbox::Mailbox;
use super::user::{UserState, expired};
use super::users::{Users, World};
use crate::fanout::{FanoutError, Result};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::store::{Batch, Entry, Table};

/// Entries looked at in one step: about a millisecond of work.
const PAGE: usize = 128;

/// Between two steps of a pass.
const BETWEEN_STEPS: Duration = Duration::from_millis(25);

/// Between two passes, and after an error.
const BETWEEN_PASSES: Duration = Duration::from_secs(30);

/// Where a pass is: it goes through both tables, then through the states in memory.
#[derive(Debug)]
enum At {
    Users(Vec<u8>),
    History(Vec<u8>),
    Memory(usize),
}

/// Passes over everything, step by step.
#[derive(Debug)]
pub(super) struct Sweep {
    users: Arc<Users>,
    at: At,
}

impl Sweep {
    pub(super) fn new(users: Arc<Users>) -> Self {
        Self {
            users,
            at: At::Users(keys::USERS_FROM.to_vec()),
        }
    }

    /// One step. True where it ended a pass.
    pub(super) fn step(&mut self) -> Result<bool> {
        let next = match &self.at {
            At::Users(from) => match self.page(Table::Users, from)? {
                (page, Some(next)) => {
                    self.expire_entries(&page)?;
                    At::Users(next)
                }
                (page, None) => {
                    self.expire_entries(&page)?;
                    At::History(keys::USERS_FROM.to_vec())
                }
            },
            At::History(from) => match self.page(Table::History, from)? {
                (page, Some(next)) => {
                    self.expire_turns(&page)?;
                    At::History(next)
                }
                (page, None) => {
                    self.expire_turns(&page)?;
                    At::Memory(0)
                }
            },
            At::Memory(shard) if self.users.evict(*shard) => At::Memory(shard + 1),
            At::Memory(_) => At::Users(keys::USERS_FROM.to_vec()),
        };
        self.at = next;
        Ok(matches!(&self.at, At::Users(from) if from == keys::USERS_FROM))
    }

    /// The entries from a key on, and where the next page begins.
    fn page(&self, table: Table, from: &[u8]) -> Result<(Vec<Entry>, Option<Vec<u8>>)> {
        let store = &self.users.store;
        let page = store.scan(table, from, keys::USERS_TO, PAGE, false)?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|(key, _)| {
            let mut next = key.clone();
            next.push(0);
            next
        });
        Ok((page, next))
    }

    fn expire_entries(&self, page: &[Entry]) -> Result<()> {
        let now_ms = self.users.now_ms();
        let mut found: HashMap<UserId, Vec<&[u8]>> = HashMap::new();
        for (key, value) in page {
            let (user, tag, _) = keys::parse(key).ok_or_else(damaged)?;
            if is_gone(&self.users, tag, value, now_ms)? {
                found.entry(user).or_default().push(key);
            }
        }
        for (user, entries) in found {
            self.users
                .with(&user, |state, world| state.expire(&entries, world))?;
        }
        Ok(())
    }

    fn expire_turns(&self, page: &[Entry]) -> Result<()> {
        let now_ms = self.users.now_ms();
        let ttl = self.users.bounds.history_ttl;
        let mut found: HashMap<UserId, Vec<(ConversationId, u64)>> = HashMap::new();
        for (key, value) in page {
            let Some((user, conversation, sequence)) = keys::parse_turn(key) else {
                continue;
            };
            if expired(history::age_and_message(value)?.0, ttl, now_ms) {
                let turns = found.entry(user).or_default();
                turns.push((conversation, sequence));
            }
        }
        for (user, turns) in found {
            self.users
                .with(&user, |state, world| state.expire_turns(&turns, world))?;
        }
        Ok(())
    }
}

/// Whether an entry has to go, or (a mailbox's head) something of what it stands for.
fn is_gone(users: &Users, tag: Tag, value: &[u8], now_ms: i64) -> Result<bool> {
    let bounds = &users.bounds;
    let at_ms = Reader::new(value).number()?;
    Ok(match tag {
        Tag::Head => Mailbox::decode(value)?.is_due(bounds.mailbox_ttl, now_ms),
        // Frames go with their head; how long a revocation matters nobody knows.
        Tag::Frame | Tag::Revoked => false,
        Tag::Pending => expired(at_ms, bounds.pending_ttl, now_ms),
        Tag::Mark | Tag::Outcome => expired(at_ms, bounds.dedup_ttl, now_ms),
        // A token's number is when it ends, and so is a count's.
        Tag::Token | Tag::Rate | Tag::Cost => at_ms <= now_ms,
    })
}

impl UserState {
    /// Removes those of these entries that are too old, now that nobody else can change them.
    fn expire(&mut self, entries: &[&[u8]], world: &World<'_>) -> Result<()> {
        let mut batch = Batch::default();
        let mut mailbox = false;
        for key in entries {
            let (_, tag, rest) = keys::parse(key).ok_or_else(damaged)?;
            if tag == Tag::Head {
                mailbox = true;
                continue;
            }
            let Some(value) = world.store.get(Table::Users, key)? else {
                continue;
            };
            let at_ms = Reader::new(&value).number()?;
            let ttl = match tag {
                Tag::Pending => world.bounds.pending_ttl,
                Tag::Mark | Tag::Outcome => world.bounds.dedup_ttl,
                Tag::Token | Tag::Rate | Tag::Cost => Duration::ZERO,
                Tag::Head | Tag::Frame | Tag::Revoked => continue,
            };
            if !expired(at_ms, ttl, world.now_ms) {
                continue;
            }
            batch.delete(Table::Users, *key);
            if tag == Tag::Pending {
                let sequence = keys::number(rest).ok_or_else(damaged)?;
                self.pending.retain(|_, entry| entry.sequence != sequence);
            }
            if tag == Tag::Mark {
                let message = std::str::from_utf8(rest).map_err(|_| damaged())?;
                self.marks
                    .remove(&MessageId::parse(message).map_err(|_| damaged())?);
            }
        }
        if !batch.is_empty() {
            world.store.commit(batch)?;
        }
        if mailbox {
            self.expire_mailbox(world)?;
        }
        Ok(())
    }
}

/// The thread that sweeps. It ends when this is dropped, and with it its hold on the store.
#[derive(Debug)]
pub(super) struct Sweeper {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// A thread of its own: what it reads may come from the disk.
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

fn run(mut sweep: Sweep, stopped: &mpsc::Receiver<()>) {
    loop {
        let pause = match sweep.step() {
            Ok(false) => BETWEEN_STEPS,
            Ok(true) => BETWEEN_PASSES,
            Err(error) => {
                tracing::warn!(%error, "removing what is too old from the fan-out failed; it is tried again");
                BETWEEN_PASSES
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
            tracing::error!("the thread that removes what is too old from the fan-out panicked");
        }
    }
}
