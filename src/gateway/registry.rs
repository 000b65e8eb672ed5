//! Which users have sockets here, and their subscriptions.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::user::{Socket, UserState};
use super::v1::catch_up::SharedRead;
use crate::fanout::{Channel, FanoutError, Feed};
use crate::protocol::ids::UserId;
use crate::protocol::position::Position;

/// A subscription that is not confirmed by then counts as failed.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// To the terminal channel, and where a `chatmesh.v1` socket came, to the live one.
    Subscribed {
        live: bool,
    },
    /// Out of the map; whoever still holds it looks again.
    Gone,
}

/// A user with sockets here.
pub(super) struct Entry {
    pub(super) user: UserId,
    /// Held while the subscription is made or ended: who joins while the last one leaves waits.
    phase: tokio::sync::Mutex<Phase>,
    state: Mutex<UserState>,
    /// For its `chatmesh.v1` sockets.
    pub(super) reads: SharedRead,
    /// Something was published to them.
    pub(super) published: Notify,
}

impl Entry {
    pub(super) fn state(&self) -> MutexGuard<'_, UserState> {
        self.state.lock()
    }
}

#[derive(Default)]
pub(super) struct Registry {
    users: DashMap<UserId, Arc<Entry>>,
    feed: OnceLock<Arc<dyn Feed>>,
    connections: AtomicUsize,
    spread: RandomState,
    /// Published frames may have been lost: all mailboxes have to be read.
    pub(super) gap: Notify,
    /// Users of whom a frame waits for a reading of the mailbox: each once for a look.
    urgent: Mutex<Vec<Arc<Entry>>>,
    /// There are such.
    pub(super) is_urgent: Notify,
}

impl Registry {
    pub(super) fn has_feed(&self) -> bool {
        self.feed.get().is_some()
    }

    pub(super) fn set_feed(&self, feed: Arc<dyn Feed>) {
        // Set once by the one task that opens it.
        let _ = self.feed.set(feed);
    }

    /// Users with sockets here.
    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    /// Sockets here.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a socket from its upgrade to its end.
    pub(super) fn count(&self, change: isize) {
        self.connections
            .fetch_add(change as usize, Ordering::Relaxed);
    }

    pub(super) fn get(&self, user: &UserId) -> Option<Arc<Entry>> {
        self.users.get(user).map(|entry| entry.value().clone())
    }

    /// A frame of this user was left to a reading of the mailbox, the first since the last look.
    pub(super) fn left(&self, entry: Arc<Entry>) {
        let mut urgent = self.urgent.lock();
        urgent.push(entry);
        drop(urgent);
        self.is_urgent.notify_one();
    }

    /// Those whose mailboxes have to be read at once.
    pub(super) fn take_urgent(&self) -> Vec<Arc<Entry>> {
        let mut urgent = self.urgent.lock();
        std::mem::take(&mut *urgent)
    }

    /// The users whose mailboxes have to be read.
    pub(super) fn wanting_check(&self) -> Vec<Arc<Entry>> {
        self.users
            .iter()
            .filter(|entry| entry.state().wants_check())
            .map(|entry| entry.value().clone())
            .collect()
    }

    /// The users with `chatmesh.v1` sockets, a part of them: each user is in one of `parts`.
    pub(super) fn following(&self, part: u64, parts: u64) -> Vec<Arc<Entry>> {
        self.users
            .iter()
            .filter(|entry| self.spread.hash_one(entry.key()) % parts.max(1) == part)
            .filter(|entry| !entry.state().followers.is_empty())
            .map(|entry| entry.value().clone())
            .collect()
    }

    /// Every user's mailbox has to be read.
    pub(super) fn lost_frames(&self) {
        for entry in &self.users {
            entry.state().lost_frames();
        }
        self.gap.notify_one();
    }

    /// Puts a socket where its user's frames reach it. Every frame published after this returned
    /// comes, or is followed by a gap. Not to be dropped half way: the entry would stay.
    pub(super) async fn join(
        &self,
        user: &UserId,
        socket: &Arc<Socket>,
        since: Option<&Position>,
    ) -> Result<Arc<Entry>, FanoutError> {
        let Some(feed) = self.feed.get() else {
            return Err(FanoutError::Unavailable("no subscription yet".into()));
        };
        loop {
            let entry = self
                .users
                .entry(user.clone())
                .or_insert_with(|| {
                    Arc::new(Entry {
                        user: user.clone(),
                        phase: tokio::sync::Mutex::new(Phase::New),
                        state: Mutex::default(),
                        reads: SharedRead::default(),
                        published: Notify::new(),
                    })
                })
                .clone();
            let mut phase = entry.phase.lock().await;
            match *phase {
                Phase::Gone => continue,
                Phase::Subscribed { .. } => {}
                Phase::New => {
                    if let Err(error) = in_time(feed.subscribe(user, Channel::Terminal)).await {
                        self.forget(&entry, &mut phase);
                        return Err(error);
                    }
                    *phase = Phase::Subscribed { live: false };
                }
            }
            if socket.line.is_some() && *phase == (Phase::Subscribed { live: false }) {
                if let Err(error) = in_time(feed.subscribe(user, Channel::Live)).await {
                    if entry.state().is_empty() {
                        // Nobody is here, and nobody may come again to end it.
                        let _ = in_time(feed.unsubscribe(user, Channel::Terminal)).await;
                        self.forget(&entry, &mut phase);
                    }
                    return Err(error);
                }
                *phase = Phase::Subscribed { live: true };
            }
            entry.state().add(socket.clone(), since.cloned());
            drop(phase);
            return Ok(entry);
        }
    }

    fn forget(&self, entry: &Arc<Entry>, phase: &mut Phase) {
        *phase = Phase::Gone;
        self.users
            .remove_if(&entry.user, |_, current| Arc::ptr_eq(current, entry));
    }

    /// Takes a socket out; the last one of a user ends the subscriptions, the last one of
    /// `chatmesh.v1` that to the live channel.
    pub(super) async fn leave(
        &self,
        entry: &Arc<Entry>,
        socket: &Arc<Socket>,
    ) -> Result<(), FanoutError> {
        {
            let mut state = entry.state();
            state.remove(socket);
            let live_wanted = !state.followers.is_empty() || socket.line.is_none();
            if !state.is_empty() && live_wanted {
                return Ok(());
            }
        }
        let mut phase = entry.phase.lock().await;
        let Phase::Subscribed { live } = *phase else {
            return Ok(());
        };
        let (nobody, live_wanted) = {
            let state = entry.state();
            (state.is_empty(), !state.followers.is_empty())
        };
        let Some(feed) = self.feed.get() else {
            return Ok(());
        };
        let mut result = Ok(());
        if live && !live_wanted {
            result = in_time(feed.unsubscribe(&entry.user, Channel::Live)).await;
            *phase = Phase::Subscribed { live: false };
        }
        if nobody {
            let ended = in_time(feed.unsubscribe(&entry.user, Channel::Terminal)).await;
            self.forget(entry, &mut phase);
            result = result.and(ended);
        }
        result
    }
}

async fn in_time(call: impl Future<Output = Result<(), FanoutError>>) -> Result<(), FanoutError> {
    timeout(SUBSCRIBE_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(FanoutError::Unavailable("no confirmation in time".into())))
}
