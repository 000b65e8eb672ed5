//! The subscriptions of one gateway, on connections of their own.
//!
//! fred answers SUBSCRIBE when it is written, so a PING behind it on the same connection tells
//! when the server has taken it; SSUBSCRIBE is answered by the server itself. After a reconnect
//! everything is subscribed to again here, and only then comes the [`FeedEvent::Gap`]: a `read`
//! that it causes then sees whatever was published before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface, PubsubInterface};
use fred::types::{ClusterStateChange, ConnectHandle, Message};
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channel;
use super::connection::{close, failure};
use crate::fanout::{Channel, Feed, FeedEvent, Result};
use crate::protocol::ids::UserId;

/// Channels in one SUBSCRIBE when all of them are renewed.
const BATCH: usize = 500;
/// SSUBSCRIBEs under way when all of them are renewed: each is for one channel.
const CONCURRENT: usize = 256;
/// UNSUBSCRIBEs under way. When thousands of users leave at once, as where a balancer dies, the
/// client library would hold a command of some kilobytes for each.
const LEAVING: usize = 64;
/// How often the connections prove that they are alive. A subscriber sends nothing by itself, so
/// otherwise a peer that vanished would never be noticed.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between attempts to subscribe again.
const RETRY: Duration = Duration::from_millis(200);

struct State {
    client: Client,
    clustered: bool,
    /// What is wanted, with the number of `subscribe` calls that wait for their first
    /// confirmation: a call that fails takes its channel back only when no other wants it.
    wanted: Mutex<HashMap<String, Wanted>>,
    leaving: Semaphore,
    gap: Notify,
}

#[derive(Default)]
struct Wanted {
    confirmed: bool,
    waiting: usize,
}

pub(super) struct RedisFeed {
    state: Arc<State>,
    _stop: DropGuard,
}

impl State {
    fn wanted(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Wanted>> {
        self.wanted.lock()
    }

    /// Returns when the server has taken the subscriptions.
    async fn confirm(&self, names: Vec<String>) -> std::result::Result<(), fred::error::Error> {
        if self.clustered {
            futures_util::stream::iter(names)
                .map(|name| self.client.ssubscribe(name))
                .buffer_unordered(CONCURRENT)
                .try_collect::<()>()
                .await
        } else {
            for batch in names.chunks(BATCH) {
                self.client.subscribe(batch.to_vec()).await?;
                self.client.ping::<()>(None).await?;
            }
            Ok(())
        }
    }

    async fn drop_subscription(&self, name: &str) -> std::result::Result<(), fred::error::Error> {
        // Never closed.
        let _turn = self.leaving.acquire().await;
        // Boxed, so that those whose turn has not come hold no room for it.
        if self.clustered {
            Box::pin(self.client.sunsubscribe(name)).await
        } else {
            Box::pin(self.client.unsubscribe(name)).await
        }
    }

    /// Subscribes to everything that is wanted, until that has worked.
    async fn renew(&self) {
        loop {
            let names: Vec<String> = self.wanted().keys().cloned().collect();
            match self.confirm(names.clone()).await {
                Ok(()) => {
                    let gone: Vec<String> = {
                        let wanted = self.wanted();
                        let gone = names.into_iter().filter(|name| !wanted.contains_key(name));
                        gone.collect()
                    };
                    for name in gone {
                        let _ = self.drop_subscription(&name).await;
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "redis: subscribing again failed, trying on");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn alive(&self) -> bool {
        if !self.clustered {
            return self.client.ping::<()>(None).await.is_ok();
        }
        let Some(routing) = self.client.cached_cluster_state() else {
            return true;
        };
        for node in routing.unique_primary_nodes() {
            if self
                .client
                .with_cluster_node(node)
                .ping::<()>(None)
                .await
                .is_err()
            {
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
        // Noted before it is sent: a reconnect in between renews it too.
        self.state.wanted().entry(name.clone()).or_default().waiting += 1;
        let result = self.state.confirm(vec![name.clone()]).await;
        let mut wanted = self.state.wanted();
        if let Some(entry) = wanted.get_mut(&name) {
            entry.waiting = entry.waiting.saturating_sub(1);
            entry.confirmed |= result.is_ok();
            if !entry.confirmed && entry.waiting == 0 {
                wanted.remove(&name);
            }
        }
        result.map_err(|error| failure(&self.state.client, &error))
    }

    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        let name = channel::name(user, channel);
        self.state.wanted().remove(&name);
        self.state
            .drop_subscription(&name)
            .await
            .map_err(|error| failure(&self.state.client, &error))
    }
}

/// Opens a feed on `client`, which is not connected yet, and waits for its first connection at
/// most for `patience`. `changes` are those of the cluster as the calls' connections notice them:
/// an idle subscriber notices none.
pub(super) async fn open(
    client: Client,
    changes: Receiver<Vec<ClusterStateChange>>,
    capacity: usize,
    patience: Duration,
) -> (Arc<dyn Feed>, mpsc::Receiver<FeedEvent>) {
    let stop = CancellationToken::new();
    let (events, reader) = mpsc::channel(capacity.max(1));
    let state = Arc::new(State {
        clustered: client.is_clustered(),
        wanted: Mutex::default(),
        leaving: Semaphore::new(LEAVING),
        gap: Notify::new(),
        client,
    });
    let messages = state.client.message_rx();
    let mut reconnected = state.client.reconnect_rx();
    let connection = state.client.connect();
    if let Ok(Ok(())) = tokio::time::timeout(patience, state.client.ping::<()>(None)).await {
        // The first connections are announced like all others, but nothing was missed by them.
        while reconnected.try_recv().is_ok() {}
    }
    tokio::spawn(forward(Arc::clone(&state), messages, events, stop.clone()));
    tokio::spawn(watch_over(
        Arc::clone(&state),
        reconnected,
        changes,
        connection,
        stop.clone(),
    ));
    let feed = RedisFeed {
        state,
        _stop: stop.drop_guard(),
    };
    (Arc::new(feed), reader)
}

/// Renews the subscriptions whenever a connection may have lost them.
async fn watch_over(
    state: Arc<State>,
    mut reconnected: Receiver<fred::types::config::Server>,
    mut changes: Receiver<Vec<ClusterStateChange>>,
    connection: ConnectHandle,
    stop: CancellationToken,
) {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut changes_open = true;
    loop {
        let lost = tokio::select! {
            () = stop.cancelled() => break,
            event = reconnected.recv() => match event {
                Err(RecvError::Closed) => break,
                _ => true,
            },
            event = changes.recv(), if changes_open => {
                changes_open = !matches!(event, Err(RecvError::Closed));
                if changes_open && let Err(error) = state.client.sync_cluster().await {
                    tracing::debug!(%error, "redis: the feed could not learn the cluster's change");
                }
                changes_open
            }
            _ = heartbeat.tick() => {
                if state.client.is_connected() && !state.alive().await {
                    tracing::warn!("redis: the feed's connection is dead, connecting again");
                    let _ = state.client.force_reconnection().await;
                }
                false
            }
        };
        if lost {
            // One renewal serves all that has been announced until it begins.
            while reconnected.try_recv().is_ok() {}
            // Where nothing was confirmed yet, nothing can have been missed (the first connection).
            let missed = state.wanted().values().any(|entry| entry.confirmed);
            tokio::select! {
                () = stop.cancelled() => break,
                () = state.renew() => {
                    if missed {
                        state.gap.notify_one();
                    }
                }
            }
        }
    }
    close(&state.client, &connection).await;
}

fn event(message: Message) -> Option<FeedEvent> {
    let (user, channel) = channel::parse(&message.channel)?;
    // A copy: what fred hands out may pin the whole read buffer.
    let payload = Bytes::copy_from_slice(message.value.as_bytes()?);
    Some(FeedEvent::Frame {
        user,
        channel,
        payload,
    })
}

/// Hands the frames over; what finds no room becomes a gap.
async fn forward(
    state: Arc<State>,
    mut messages: Receiver<Message>,
    events: mpsc::Sender<FeedEvent>,
    stop: CancellationToken,
) {
    let mut gap = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.gap.notified() => gap = true,
            permit = events.reserve(), if gap => match permit {
                Ok(permit) => {
                    permit.send(FeedEvent::Gap);
                    gap = false;
                }
                Err(_) => return,
            },
            message = messages.recv() => match message {
                // While a gap waits for room, it stands for what follows too.
                Ok(_) if gap => {}
                Ok(message) => {
                    if let Some(event) = event(message) {
                        match events.try_send(event) {
                            Ok(()) => {}
                            Err(mpsc::error::TrySendError::Full(_)) => gap = true,
                            Err(mpsc::error::TrySendError::Closed(_)) => return,
                        }
                    }
                }
                Err(RecvError::Lagged(_)) => gap = true,
                Err(RecvError::Closed) => return,
            },
        }
    }
}
