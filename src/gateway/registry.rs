//! Which users have sockets here, and their subscriptions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::user::{Socket, UserState};
use crate::fanout::{Channel, FanoutError, Feed};
use crate::protocol::ids::UserId;

/// A subscription that is not confirmed by then counts as failed.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Subscribed,
    /// Out of the map; whoever still holds it looks again.
    Gone,
}

/// A user with sockets here.
pub(super) struct Entry {
    pub(super) user: UserId,
    /// Held while the subscription is made or ended: who joins while the last one leaves waits.
    phase: tokio::sync::Mutex<Phase>,
    state: Mutex<UserState>,
}

impl Entry {
    pub(super) fn state(&self) -> MutexGuard<'_, UserState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(super) struct Registry {
    users: DashMap<UserId, Arc<Entry>>,
    feed: OnceLock<Arc<dyn Feed>>,
    connections: AtomicUsize,
    /// Published frames may have been lost.
    pub(super) gap: Notify,
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

    /// The users whose mailboxes have to be read.
    pub(super) fn wanting_check(&self) -> Vec<Arc<Entry>> {
        self.users
            .iter()
            .filter(|entry| entry.state().wants_check())
            .map(|entry| entry.value().clone())
            .collect()
    }

    /// Every user's mailbox has to be read.
    pub(super) fn lost_frames(&self) {
        for entry in &self.users {
            entry.state().set_due();
        }
        self.gap.notify_one();
    }

    /// Puts a socket where its user's frames reach it. Every frame published after this returned
    /// comes, or is followed by a gap. Not to be dropped half way: the entry would stay.
    pub(super) async fn join(
        &self,
        user: &UserId,
        socket: &Arc<Socket>,
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
                    })
                })
                .clone();
            let mut phase = entry.phase.lock().await;
            match *phase {
                Phase::Gone => continue,
                Phase::Subscribed => {}
                Phase::New => {
                    let subscribed =
                        timeout(SUBSCRIBE_TIMEOUT, feed.subscribe(user, Channel::Terminal))
                            .await
                            .unwrap_or_else(|_| {
                                Err(FanoutError::Unavailable("no confirmation in time".into()))
                            });
                    if let Err(error) = subscribed {
                        self.forget(&entry, &mut phase);
                        return Err(error);
                    }
                    *phase = Phase::Subscribed;
                }
            }
            entry.state().add(socket.clone());
            drop(phase);
            return Ok(entry);
        }
    }

    fn forget(&self, entry: &Arc<Entry>, phase: &mut Phase) {
        *phase = Phase::Gone;
        self.users
            .remove_if(&entry.user, |_, current| Arc::ptr_eq(current, entry));
    }

    /// Takes a socket out; the last one of a user ends the subscription.
    pub(super) async fn leave(
        &self,
        entry: &Arc<Entry>,
        socket: &Arc<Socket>,
    ) -> Result<(), FanoutError> {
        if !entry.state().remove(socket) {
            return Ok(());
        }
        let mut phase = entry.phase.lock().await;
        if *phase != Phase::Subscribed || !entry.state().is_empty() {
            return Ok(());
        }
        let Some(feed) = self.feed.get() else {
            return Ok(());
        };
        let result = timeout(
            SUBSCRIBE_TIMEOUT,
            feed.unsubscribe(&entry.user, Channel::Terminal),
        )
        .await
        .unwrap_or_else(|_| Err(FanoutError::Unavailable("no confirmation in time".into())));
        self.forget(entry, &mut phase);
        result
    }
}
