//! The fan-out on Redis: a single server, a cluster, or a server found by sentinel.
//!
//! A call runs one Lua script (`scripts/`), once in most cases. The scripts are atomic, and
//! idempotent because the client library repeats commands after a reconnect. All keys of a user but
//! the stored token are in one slot. One connection to each server carries all calls: they are
//! pipelined, and Redis executes them one by one in any case.
//!
//! `scripts` builds the scripts. `admissions`, `answers`, `deliveries`, `reads`, `history` and
//! `tokens` each implement the trait of that name: they encode a script's arguments and decode its
//! reply.

use std::sync::Arc;

use async_trait::async_trait;
use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, MetricsInterface};
use fred::types::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::append_queue::AppendQueue;
use self::connection_health::ConnectionHealth;
use self::reply::Reply;
use self::scripts::{Script, Scripts};
use super::error::{FanoutError, Result};
use super::feeds::{Feed, FeedEvent, Feeds};
use super::health::FanoutHealth;
use crate::config::settings::RedisSettings;
use crate::protocol::ids::UserId;
use crate::protocol::position::Epoch;

mod admissions;
mod answers;
mod append_queue;
mod args;
mod channel;
mod connection;
mod connection_health;
mod deliveries;
mod feed;
mod frame;
mod history;
pub mod inspect;
mod pieces;
mod reads;
mod reply;
mod scripts;
mod servers;
mod streams;
mod tokens;
mod turn;

/// The fan-out on Redis. Dropping it closes the connection of its calls; each feed has a connection
/// of its own, which closes when the feed is dropped.
pub struct RedisFanout {
    settings: RedisSettings,
    client: Client,
    scripts: Scripts,
    appends: AppendQueue,
    disruptions: watch::Receiver<u64>,
    health: ConnectionHealth,
    _stop: DropGuard,
}

impl RedisFanout {
    /// Returns the error with which [`RedisFanout::connect`] would reject the settings. Does not
    /// connect.
    pub fn validate(settings: &RedisSettings) -> Result<()> {
        connection::client(settings, connection::CALL_REDIRECTIONS).map(|_| ())
    }

    /// Connects in the background, and reconnects without limit whenever the connection is lost.
    /// Until it is connected, calls fail as unavailable after `command_timeout`. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// Returns an error only if `REDIS_URL` can't be used.
    pub fn connect(settings: &RedisSettings) -> Result<Self> {
        let client = connection::client(settings, connection::CALL_REDIRECTIONS)?;
        let stop = CancellationToken::new();
        let (sender, disruptions) = watch::channel(0);
        let health = ConnectionHealth::observe(&client);
        connection::connect_and_count(&client, sender, stop.clone());
        Ok(Self {
            health,
            settings: settings.clone(),
            scripts: Scripts::new(&settings.bounds, client.is_clustered()),
            appends: AppendQueue::new(client.clone()),
            client,
            disruptions,
            _stop: stop.drop_guard(),
        })
    }

    /// Runs a script on the server that has the slot of `keys`.
    async fn run(&self, script: &Script, keys: &[&str], args: Vec<Value>) -> Result<Reply> {
        let call = script.run(&self.client, keys, args);
        self.with_timeout(call).await.map(Reply::new)
    }

    /// Runs a script on the server that has the keys of `user`.
    async fn run_for(&self, script: &Script, user: &UserId, args: Vec<Value>) -> Result<Reply> {
        let tag = channel::hash_tag(user);
        self.run(script, &[&tag, &channel::absent_key(&tag)], args)
            .await
    }

    /// Makes a call. Fails as unavailable while too many calls wait for Redis, and after
    /// `command_timeout`, because the client library may wait longer.
    async fn with_timeout<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if self.client.command_queue_len() >= connection::MAX_QUEUED_COMMANDS {
            return Err(connection::too_many_calls());
        }
        let result = timeout(self.settings.command_timeout, call).await;
        let result = result.unwrap_or_else(|_| Err(connection::no_answer()));
        self.health.record(result)
    }

    /// Runs a marker script on every server that holds users. Returns whether the script returned 1
    /// on all of them.
    async fn run_marker(&self, script: &Script, epoch: &Epoch, token: &str) -> Result<bool> {
        let call = servers::run_marker(&self.client, script, epoch, token);
        timeout(self.settings.command_timeout, call)
            .await
            .unwrap_or_else(|_| Err(connection::no_answer()))
    }

    /// Returns `limit`, but at most the number of turns that a conversation may have.
    fn limit_turns(&self, limit: usize) -> usize {
        limit.min(self.settings.bounds.history_turns)
    }
}

/// The error for a reply whose first word is none of those that the script's caller handles.
fn unexpected_reply_error(word: &str) -> FanoutError {
    FanoutError::Unexpected(format!("a script answered {word:?}"))
}

#[async_trait]
impl Feeds for RedisFanout {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let client = connection::client(&self.settings, connection::FEED_REDIRECTIONS)?;
        let timeout = self.settings.command_timeout;
        // The client library reports the first discovery of a cluster as a change of the cluster.
        // The ping waits until that has happened, so that the new feed does not treat it as a gap.
        // If Redis is unreachable, the ping fails and the feed opens all the same.
        let _ = tokio::time::timeout(timeout, self.client.ping::<()>(None)).await;
        let changes = self.client.cluster_change_rx();
        Ok(feed::open(client, changes, capacity, timeout).await)
    }
}

#[async_trait]
impl FanoutHealth for RedisFanout {
    async fn check(&self) -> Result<()> {
        let result = servers::check(&self.client).await;
        result.map_err(|error| self.health.explain(error))
    }

    async fn warnings(&self) -> Result<Vec<String>> {
        servers::warnings(&self.client).await
    }
}
