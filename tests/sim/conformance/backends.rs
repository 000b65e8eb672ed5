//! The fan-outs under test.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use chatmesh::fanout::embedded::EmbeddedFanout;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::fanout::{Channel, Fanout, Feed, FeedEvent, Feeds as _};
use chatmesh::protocol::ids::UserId;
use chatmesh::store::Store;
use fred::clients::Client;
use fred::interfaces::LuaInterface;
use tokio::sync::mpsc;

use super::{bounds, user};

/// A fan-out under test, with one user of its own.
#[async_trait]
pub(super) trait FanoutUnderTest {
    fn fanout(&self) -> Arc<dyn Fanout>;
    async fn advance_time(&mut self, ms: u16);
    async fn lose_data(&mut self);
    /// Restarts the process. Returns false where the state does not depend on this process.
    async fn restart(&mut self) -> bool;
    /// The frames published since the last call, or `None` where they can't be observed in order.
    fn published(&mut self) -> Option<Vec<(Channel, serde_json::Value)>>;
}

pub(super) struct EmbeddedUnderTest {
    store: Store,
    clock: Arc<AtomicI64>,
    fanout: Arc<EmbeddedFanout>,
    feed: Option<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)>,
}

impl EmbeddedUnderTest {
    pub(super) async fn new() -> Self {
        let clock = Arc::new(AtomicI64::new(1_800_000_000_000));
        let store = Store::in_memory();
        let fanout = Self::open(&store, &clock);
        let mut under_test = Self {
            store,
            clock,
            fanout,
            feed: None,
        };
        under_test.subscribe().await;
        under_test
    }

    fn open(store: &Store, clock: &Arc<AtomicI64>) -> Arc<EmbeddedFanout> {
        let clock = Arc::clone(clock);
        let now = Box::new(move || clock.load(Ordering::Relaxed));
        Arc::new(EmbeddedFanout::open_with_clock(store.clone(), bounds(), now).unwrap())
    }

    async fn subscribe(&mut self) {
        let (feed, events) = self.fanout.open_feed(1024).await.unwrap();
        for channel in [Channel::Terminal, Channel::Live] {
            feed.subscribe(&user("alice"), channel).await.unwrap();
        }
        self.feed = Some((feed, events));
    }
}

#[async_trait]
impl FanoutUnderTest for EmbeddedUnderTest {
    fn fanout(&self) -> Arc<dyn Fanout> {
        Arc::clone(&self.fanout) as _
    }

    async fn advance_time(&mut self, ms: u16) {
        self.clock.fetch_add(i64::from(ms), Ordering::Relaxed);
    }

    async fn lose_data(&mut self) {
        self.store = Store::in_memory();
        self.restart().await;
    }

    async fn restart(&mut self) -> bool {
        self.fanout = Self::open(&self.store, &self.clock);
        self.subscribe().await;
        true
    }

    fn published(&mut self) -> Option<Vec<(Channel, serde_json::Value)>> {
        let (_, events) = self.feed.as_mut()?;
        let mut frames = Vec::new();
        while let Ok(event) = events.try_recv() {
            let FeedEvent::Frame {
                channel, payload, ..
            } = event
            else {
                panic!("a gap in the embedded feed")
            };
            frames.push((channel, serde_json::from_slice(&payload).unwrap()));
        }
        Some(frames)
    }
}

pub(super) struct RedisUnderTest {
    pub(super) fanout: Arc<RedisFanout>,
    pub(super) admin: Client,
    pub(super) user: UserId,
}

impl RedisUnderTest {
    /// Runs Lua code for each `key` of the user.
    async fn for_each_key(&self, body: &str) {
        let tag = format!("{{user:{}}}", self.user);
        let script =
            format!("for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do {body} end");
        let _: fred::types::Value = self
            .admin
            .eval(script, tag.as_str(), None::<()>)
            .await
            .unwrap();
    }

    pub(super) async fn delete_keys(&self) {
        self.for_each_key("redis.call('DEL', key)").await;
    }
}

#[async_trait]
impl FanoutUnderTest for RedisUnderTest {
    fn fanout(&self) -> Arc<dyn Fanout> {
        Arc::clone(&self.fanout) as _
    }

    /// Moves the leases into the past, because Redis has a clock of its own.
    async fn advance_time(&mut self, ms: u16) {
        self.for_each_key(&format!(
            "if string.find(key, ':1:a:', 1, true) then redis.call('HINCRBY', key, 'until', -{ms}) end"
        ))
        .await;
    }

    async fn lose_data(&mut self) {
        self.delete_keys().await;
    }

    async fn restart(&mut self) -> bool {
        false
    }

    fn published(&mut self) -> Option<Vec<(Channel, serde_json::Value)>> {
        None
    }
}
