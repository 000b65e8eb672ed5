//! The feed of one process on Redis: its subscriptions, on connections of their own.
//!
//! The client library's `subscribe` returns when the SUBSCRIBE command is written. A PING after it
//! on the same connection is answered when the server has processed the SUBSCRIBE. `ssubscribe`
//! itself waits for the server's answer.
//!
//! After a reconnect, all channels are subscribed to again before the [`FeedEvent::Gap`] is sent.
//! The `read` that the gap causes therefore covers all frames that were published while the
//! channels were not subscribed to.

use std::collections::HashMap;
use std::result;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{ClusterStateChange, ConnectHandle, Message};
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channel;
use super::connection::{close, fanout_error};
use crate::fanout::{Channel, Feed, FeedEvent, Result};
use crate::protocol::ids::UserId;

/// Maximum number of channels per SUBSCRIBE command when all subscriptions are renewed.
const SUBSCRIBE_BATCH: usize = 500;
/// Maximum number of concurrent SSUBSCRIBE commands, each for one channel, when all subscriptions
/// are renewed.
const CONCURRENT_SUBSCRIBES: usize = 256;
/// Maximum number of concurrent UNSUBSCRIBE commands. When thousands of users disconnect at once,
/// for example because a load balancer fails, the client library would otherwise hold some
/// kilobytes for each command.
const CONCURRENT_UNSUBSCRIBES: usize = 64;
/// Interval of the liveness check, a PING to each server. A subscriber sends no other commands, so
/// it would otherwise never notice that a server vanished.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Delay between two attempts to renew the subscriptions.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The state that [`RedisFeed`] and its two tasks, [`maintain_subscriptions`] and
/// [`forward_frames`], share.
struct State {
    client: Client,
    is_clustered: bool,
    /// The channels that are or shall be subscribed to, by name.
    subscriptions: Mutex<HashMap<String, Subscription>>,
    unsubscribe_permits: Semaphore,
    /// Notified by [`maintain_subscriptions`] when frames may have been lost and all subscriptions
    /// are renewed.
    gap_detected: Notify,
}

/// The state of the subscription to one channel.
#[derive(Default)]
struct Subscription {
    /// Whether the server has confirmed the subscription at least once.
    is_confirmed: bool,
    /// Number of `subscribe` calls that wait for a confirmation. A call that fails removes a
    /// subscription that was never confirmed, unless another call waits for it too.
    waiting_calls: usize,
}

/// The [`Feed`] on Redis. Dropping it closes its connections.
struct RedisFeed {
    state: Arc<State>,
    _stop: DropGuard,
}

impl State {
    /// Subscribes to the channels of these names, and returns when the server has confirmed all of
    /// them.
    async fn subscribe_confirmed(&self, names: Vec<String>) -> result::Result<(), Error> {
        if self.is_clustered {
            futures_util::stream::iter(names)
                .map(|name| self.client.ssubscribe(name))
                .buffer_unordered(CONCURRENT_SUBSCRIBES)
                .try_collect::<()>()
                .await
        } else {
            for batch in names.chunks(SUBSCRIBE_BATCH) {
                self.client.subscribe(batch.to_vec()).await?;
                self.client.ping::<()>(None).await?;
            }
            Ok(())
        }
    }

    async fn unsubscribe(&self, name: &str) -> result::Result<(), Error> {
        // The result is always a permit: acquiring fails only if the semaphore was closed, and
        // nothing closes it.
        let _permit = self.unsubscribe_permits.acquire().await;
        // The futures are boxed, so that a call that waits for its permit does not yet hold the
        // memory of the command.
        if self.is_clustered {
            Box::pin(self.client.sunsubscribe(name)).await
        } else {
            Box::pin(self.client.unsubscribe(name)).await
        }
    }

    /// Subscribes to all recorded channels again, and retries until that succeeds.
    async fn renew_subscriptions(&self) {
        loop {
            let names: Vec<String> = self.subscriptions.lock().keys().cloned().collect();
            match self.subscribe_confirmed(names.clone()).await {
                Ok(()) => {
                    let removed: Vec<String> = {
                        let current = self.subscriptions.lock();
                        let mut removed = names;
                        removed.retain(|name| !current.contains_key(name));
                        removed
                    };
                    for name in removed {
                        let _ = self.unsubscribe(&name).await;
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "redis resubscription failed, retrying");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Whether all servers that the feed is connected to answer a PING. True while the servers of a
    /// cluster are not known yet.
    async fn is_alive(&self) -> bool {
        if !self.is_clustered {
            return self.client.ping::<()>(None).await.is_ok();
        }
        let Some(routing) = self.client.cached_cluster_state() else {
            return true;
        };
        for node in routing.unique_primary_nodes() {
            let node = self.client.with_cluster_node(node);
            if node.ping::<()>(None).await.is_err() {
                return false;
            }
        }
        true
    }
}

#[async_trait]
impl Feed for RedisFeed {
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        let name = channel::name(user, channel);
        // The channel is recorded before the command is sent, so that a reconnect in between
        // subscribes to the channel too.
        self.state
            .subscriptions
            .lock()
            .entry(name.clone())
            .or_default()
            .waiting_calls += 1;
        let result = self.state.subscribe_confirmed(vec![name.clone()]).await;
        let mut subscriptions = self.state.subscriptions.lock();
        if let Some(subscription) = subscriptions.get_mut(&name) {
            subscription.waiting_calls = subscription.waiting_calls.saturating_sub(1);
            subscription.is_confirmed |= result.is_ok();
            if !subscription.is_confirmed && subscription.waiting_calls == 0 {
                subscriptions.remove(&name);
            }
        }
        result.map_err(|error| fanout_error(&self.state.client, &error))
    }

    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        let name = channel::name(user, channel);
        self.state.subscriptions.lock().remove(&name);
        self.state
            .unsubscribe(&name)
            .await
            .map_err(|error| fanout_error(&self.state.client, &error))
    }
}

/// Opens a feed on `client`, which is not connected yet. Waits for the client's first connection
/// for at most `max_wait`. `cluster_changes` are the changes of the topology that the client of the
/// calls observes, because an idle subscriber observes none.
pub(super) async fn open(
    client: Client,
    cluster_changes: Receiver<Vec<ClusterStateChange>>,
    capacity: usize,
    max_wait: Duration,
) -> (Arc<dyn Feed>, mpsc::Receiver<FeedEvent>) {
    let stop = CancellationToken::new();
    let (events, receiver) = mpsc::channel(capacity.max(1));
    let state = Arc::new(State {
        is_clustered: client.is_clustered(),
        subscriptions: Mutex::default(),
        unsubscribe_permits: Semaphore::new(CONCURRENT_UNSUBSCRIBES),
        gap_detected: Notify::new(),
        client,
    });
    let messages = state.client.message_rx();
    let mut reconnected = state.client.reconnect_rx();
    let connect_handle = state.client.connect();
    if let Ok(Ok(())) = timeout(max_wait, state.client.ping::<()>(None)).await {
        // The client library announces the first connections too. They are dropped here, because no
        // frame can have been lost before the first subscription.
        while reconnected.try_recv().is_ok() {}
    }
    tokio::spawn(forward_frames(
        Arc::clone(&state),
        messages,
        events,
        stop.clone(),
    ));
    tokio::spawn(maintain_subscriptions(
        Arc::clone(&state),
        reconnected,
        cluster_changes,
        connect_handle,
        stop.clone(),
    ));
    let feed = RedisFeed {
        state,
        _stop: stop.drop_guard(),
    };
    (Arc::new(feed), receiver)
}

/// The task that renews the subscriptions after each reconnect and each change of the cluster, and
/// reconnects when a server no longer answers. Runs until `stop`, then closes the client.
async fn maintain_subscriptions(
    state: Arc<State>,
    mut reconnected: Receiver<Server>,
    mut cluster_changes: Receiver<Vec<ClusterStateChange>>,
    connect_handle: ConnectHandle,
    stop: CancellationToken,
) {
    let mut heartbeat = interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_observing_changes = true;
    loop {
        let needs_renewal = tokio::select! {
            () = stop.cancelled() => break,
            event = reconnected.recv() => match event {
                Err(RecvError::Closed) => break,
                _ => true,
            },
            event = cluster_changes.recv(), if is_observing_changes => {
                is_observing_changes = !matches!(event, Err(RecvError::Closed));
                if is_observing_changes && let Err(error) = state.client.sync_cluster().await {
                    tracing::debug!(%error, "redis feed failed to load the cluster topology");
                }
                is_observing_changes
            }
            _ = heartbeat.tick() => {
                if state.client.is_connected() && !state.is_alive().await {
                    tracing::warn!(
                        "redis feed connection is dead, reconnecting; no action is needed unless \
                         this repeats"
                    );
                    let _ = state.client.force_reconnection().await;
                }
                false
            }
        };
        if needs_renewal {
            // One renewal suffices for all reconnects that were announced before it starts.
            while reconnected.try_recv().is_ok() {}
            // Without a confirmed subscription no frame can have been lost. That is so at the first
            // connection.
            let may_have_missed_frames = state
                .subscriptions
                .lock()
                .values()
                .any(|subscription| subscription.is_confirmed);
            tokio::select! {
                () = stop.cancelled() => break,
                () = state.renew_subscriptions() => {
                    if may_have_missed_frames {
                        state.gap_detected.notify_one();
                    }
                }
            }
        }
    }
    close(&state.client, &connect_handle).await;
}

/// Converts a published message to the event for the reader. Returns `None` if the channel is not a
/// user's channel.
fn feed_event(message: Message) -> Option<FeedEvent> {
    let (user, channel) = channel::parse(&message.channel)?;
    // The payload is copied, because the library's value may keep its whole read buffer alive.
    let payload = Bytes::copy_from_slice(message.value.as_bytes()?);
    Some(FeedEvent::Frame {
        user,
        channel,
        payload,
    })
}

/// The task that forwards published frames to the reader's queue. If the queue is full, it drops
/// frames until it can queue a [`FeedEvent::Gap`]. Runs until `stop` or until the reader is
/// dropped.
async fn forward_frames(
    state: Arc<State>,
    mut messages: Receiver<Message>,
    events: mpsc::Sender<FeedEvent>,
    stop: CancellationToken,
) {
    let mut has_gap = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.gap_detected.notified() => has_gap = true,
            permit = events.reserve(), if has_gap => match permit {
                Ok(permit) => {
                    permit.send(FeedEvent::Gap);
                    has_gap = false;
                }
                Err(_) => return,
            },
            message = messages.recv() => match message {
                // Drop the frame: the gap event that waits for room in the queue reports its loss.
                Ok(_) if has_gap => {}
                Ok(message) => {
                    if let Some(event) = feed_event(message) {
                        match events.try_send(event) {
                            Ok(()) => {}
                            Err(mpsc::error::TrySendError::Full(_)) => has_gap = true,
                            Err(mpsc::error::TrySendError::Closed(_)) => return,
                        }
                    }
                }
                Err(RecvError::Lagged(_)) => has_gap = true,
                Err(RecvError::Closed) => return,
            },
        }
    }
}
