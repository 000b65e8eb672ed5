//! The registry of all users with connections on this gateway. It subscribes to a user's channels
//! when the user's first connection joins, and ends the subscriptions when the last connection
//! leaves.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::client::Client;
use super::user::UserState;
use super::v1::shared_read::SharedRead;
use crate::fanout::{Channel, FanoutError, Feed};
use crate::protocol::ids::UserId;
use crate::protocol::position::Position;

/// Time after which a call to subscribe or unsubscribe counts as failed if it was not confirmed.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The channels of one user to which this gateway has subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubscribedChannels {
    None,
    /// The terminal channel, which every connection needs.
    Terminal,
    /// The terminal channel and the live channel, which `chatmesh.v1` connections need.
    TerminalAndLive,
    /// No channel, and the user is no longer in the registry. A task that still has a reference to
    /// the user's sessions must look the user up again.
    Removed,
}

/// One user's connections on this gateway.
pub(super) struct UserSessions {
    pub(super) user: UserId,
    /// Locked while a subscription begins or ends, so that a connection that joins waits while
    /// the last connection leaves.
    subscription: tokio::sync::Mutex<SubscribedChannels>,
    state: Mutex<UserState>,
    /// Coordinates the reads of the user's `chatmesh.v1` connections.
    pub(super) shared_read: SharedRead,
    /// Notified after each published frame that was passed to the user's `chatmesh.v1` connections.
    pub(super) frame_published: Notify,
}

impl UserSessions {
    fn new(user: UserId) -> Self {
        Self {
            user,
            subscription: tokio::sync::Mutex::new(SubscribedChannels::None),
            state: Mutex::default(),
            shared_read: SharedRead::default(),
            frame_published: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, UserState> {
        self.state.lock()
    }
}

/// The users with connections on this gateway.
#[derive(Default)]
pub(super) struct SessionRegistry {
    users: DashMap<UserId, Arc<UserSessions>>,
    feed: OnceLock<Arc<dyn Feed>>,
    /// Number of open connections.
    connections: AtomicUsize,
    /// Assigns users to shards.
    shard_hasher: RandomState,
    /// Notified when published frames may have been lost, so that all mailboxes have to be read.
    pub(super) gap_detected: Notify,
    /// The users whose mailboxes are read at once, because a frame was deferred. A user is added at
    /// most once between two passes.
    immediate_reads: Mutex<Vec<Arc<UserSessions>>>,
    /// Notified when a user was added to `immediate_reads`.
    pub(super) immediate_read_requested: Notify,
}

impl SessionRegistry {
    /// Whether the feed is open, so that connections can be accepted.
    pub(super) fn has_feed(&self) -> bool {
        self.feed.get().is_some()
    }

    /// Sets the feed by which users are subscribed. Only the first call has an effect.
    pub(super) fn set_feed(&self, feed: Arc<dyn Feed>) {
        let _ = self.feed.set(feed);
    }

    /// The number of users with connections here.
    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    /// The number of connections, from their upgrade to their end.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn increment_connections(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn decrement_connections(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self, user: &UserId) -> Option<Arc<UserSessions>> {
        self.users.get(user).map(|entry| entry.value().clone())
    }

    fn immediate_reads(&self) -> MutexGuard<'_, Vec<Arc<UserSessions>>> {
        self.immediate_reads.lock()
    }

    /// Requests an immediate mailbox read for a user. Called for the first frame that was deferred
    /// since the user's last pass began.
    pub(super) fn request_immediate_read(&self, sessions: Arc<UserSessions>) {
        self.immediate_reads().push(sessions);
        self.immediate_read_requested.notify_one();
    }

    /// Removes and returns the users for whom an immediate read was requested.
    pub(super) fn drain_immediate_reads(&self) -> Vec<Arc<UserSessions>> {
        std::mem::take(&mut *self.immediate_reads())
    }

    /// The users whose mailboxes have to be read.
    pub(super) fn users_needing_mailbox_read(&self) -> Vec<Arc<UserSessions>> {
        self.users
            .iter()
            .filter(|entry| entry.state().needs_mailbox_read())
            .map(|entry| entry.value().clone())
            .collect()
    }

    /// The users of the shard with index `shard` that have `chatmesh.v1` connections. The users are
    /// divided into `shard_count` shards, and each user belongs to exactly one of them.
    pub(super) fn v1_users_in_shard(&self, shard: u64, shard_count: u64) -> Vec<Arc<UserSessions>> {
        self.users
            .iter()
            .filter(|entry| self.shard_hasher.hash_one(entry.key()) % shard_count.max(1) == shard)
            .filter(|entry| !entry.state().subscribers.is_empty())
            .map(|entry| entry.value().clone())
            .collect()
    }

    /// Records for every user that published frames may have been lost.
    pub(super) fn record_gap(&self) {
        for entry in &self.users {
            entry.state().record_gap();
        }
        self.gap_detected.notify_one();
    }

    /// Adds a connection and subscribes to the channels of its user that it needs. Every frame that
    /// is published after this returns is received for the connection, or reported as a gap.
    /// `resume_after` is the position from which a `chatmesh.v1` client resumes. Not cancel-safe: a
    /// user without connections could remain in the registry.
    pub(super) async fn join(
        &self,
        user: &UserId,
        client: &Client,
        resume_after: Option<&Position>,
    ) -> Result<Arc<UserSessions>, FanoutError> {
        let Some(feed) = self.feed.get() else {
            return Err(FanoutError::Unavailable("no subscription yet".into()));
        };
        loop {
            let sessions = self
                .users
                .entry(user.clone())
                .or_insert_with(|| Arc::new(UserSessions::new(user.clone())))
                .clone();
            let mut subscription = sessions.subscription.lock().await;
            if *subscription == SubscribedChannels::Removed {
                continue;
            }
            if *subscription == SubscribedChannels::None {
                if let Err(error) =
                    await_confirmation(feed.subscribe(user, Channel::Terminal)).await
                {
                    self.remove(&sessions, &mut subscription);
                    return Err(error);
                }
                *subscription = SubscribedChannels::Terminal;
            }
            if matches!(client, Client::V1(_)) && *subscription == SubscribedChannels::Terminal {
                if let Err(error) = await_confirmation(feed.subscribe(user, Channel::Live)).await {
                    if sessions.state().is_empty() {
                        // The user has no connection whose end would end the subscription to the
                        // terminal channel.
                        let _ = await_confirmation(feed.unsubscribe(user, Channel::Terminal)).await;
                        self.remove(&sessions, &mut subscription);
                    }
                    return Err(error);
                }
                *subscription = SubscribedChannels::TerminalAndLive;
            }
            sessions.state().add(client, resume_after.cloned());
            drop(subscription);
            return Ok(sessions);
        }
    }

    fn remove(&self, sessions: &Arc<UserSessions>, subscription: &mut SubscribedChannels) {
        *subscription = SubscribedChannels::Removed;
        self.users
            .remove_if(&sessions.user, |_, current| Arc::ptr_eq(current, sessions));
    }

    /// Removes a connection, and ends the subscriptions that no other connection of the user needs:
    /// all of them after the last connection, and the subscription to the live channel after the
    /// last `chatmesh.v1` connection.
    pub(super) async fn leave(
        &self,
        sessions: &Arc<UserSessions>,
        client: &Client,
    ) -> Result<(), FanoutError> {
        {
            let mut state = sessions.state();
            state.remove(client);
            let needs_same_channels = match client {
                Client::Classic(_) => true,
                Client::V1(_) => !state.subscribers.is_empty(),
            };
            if !state.is_empty() && needs_same_channels {
                return Ok(());
            }
        }
        let mut subscription = sessions.subscription.lock().await;
        if matches!(
            *subscription,
            SubscribedChannels::None | SubscribedChannels::Removed
        ) {
            return Ok(());
        }
        let (is_empty, needs_live) = {
            let state = sessions.state();
            (state.is_empty(), !state.subscribers.is_empty())
        };
        let Some(feed) = self.feed.get() else {
            return Ok(());
        };
        let mut result = Ok(());
        if *subscription == SubscribedChannels::TerminalAndLive && !needs_live {
            result = await_confirmation(feed.unsubscribe(&sessions.user, Channel::Live)).await;
            *subscription = SubscribedChannels::Terminal;
        }
        if is_empty {
            let unsubscribed =
                await_confirmation(feed.unsubscribe(&sessions.user, Channel::Terminal)).await;
            self.remove(sessions, &mut subscription);
            result = result.and(unsubscribed);
        }
        result
    }
}

/// Waits for the result of a call to `subscribe` or `unsubscribe`, for at most
/// [`SUBSCRIBE_TIMEOUT`].
async fn await_confirmation(
    call: impl Future<Output = Result<(), FanoutError>>,
) -> Result<(), FanoutError> {
    timeout(SUBSCRIBE_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(FanoutError::Unavailable("no confirmation in time".into())))
}
