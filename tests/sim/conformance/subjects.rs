//! The fan-outs under test.

use chatmesh::config::bounds::Bounds;

use super::*;

pub(super) struct Embedded {
    store: Store,
    clock: Arc<AtomicI64>,
    fanout: Arc<EmbeddedFanout>,
    feed: Option<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)>,
}

pub(super) fn bounds() -> Bounds {
    Bounds {
        mailbox_frames: FRAMES,
        ..Bounds::default()
    }
}

pub(super) fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

impl Embedded {
    pub(super) async fn new() -> Self {
        let clock = Arc::new(AtomicI64::new(1_800_000_000_000));
        let store = Store::in_memory();
        let fanout = Self::open(&store, &clock);
        let mut new = Self {
            store,
            clock,
            fanout,
            feed: None,
        };
        new.subscribe().await;
        new
    }

    fn open(store: &Store, clock: &Arc<AtomicI64>) -> Arc<EmbeddedFanout> {
        let clock = Arc::clone(clock);
        let now = Box::new(move || clock.load(Ordering::Relaxed));
        Arc::new(EmbeddedFanout::open_at(store.clone(), bounds(), now).unwrap())
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
impl Subjected for Embedded {
    fn fanout(&self) -> Arc<dyn Fanout> {
        Arc::clone(&self.fanout) as _
    }

    async fn pass(&mut self, ms: u16) {
        self.clock.fetch_add(i64::from(ms), Ordering::Relaxed);
    }

    async fn empty(&mut self) {
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
                panic!("a gap")
            };
            frames.push((channel, serde_json::from_slice(&payload).unwrap()));
        }
        Some(frames)
    }
}

pub(super) struct Redis {
    pub(super) fanout: Arc<RedisFanout>,
    pub(super) admin: Client,
    pub(super) user: UserId,
}

impl Redis {
    /// All keys of the user whose names end so.
    async fn on_keys(&self, body: &str) {
        let tag = format!("{{user:{}}}", self.user);
        let script =
            format!("for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do {body} end");
        let _: fred::types::Value = self
            .admin
            .eval(script, tag.as_str(), None::<()>)
            .await
            .unwrap();
    }
}

#[async_trait]
impl Subjected for Redis {
    fn fanout(&self) -> Arc<dyn Fanout> {
        Arc::clone(&self.fanout) as _
    }

    /// Redis has a clock of its own, so the leases move instead.
    async fn pass(&mut self, ms: u16) {
        self.on_keys(&format!(
            "if string.find(key, ':1:a:', 1, true) then redis.call('HINCRBY', key, 'until', -{ms}) end"
        ))
        .await;
    }

    async fn empty(&mut self) {
        self.on_keys("redis.call('DEL', key)").await;
    }

    async fn restart(&mut self) -> bool {
        false
    }

    fn published(&mut self) -> Option<Vec<(Channel, serde_json::Value)>> {
        None
    }
}
