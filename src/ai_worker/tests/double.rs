//! A fan-out that counts, hangs, loses its data and publishes cancels as a test wants it; behind
//! it is the embedded one, on the runtime's clock.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::Journal;
use crate::config::bounds::Bounds;
use crate::fanout::embedded::EmbeddedFanout;
use crate::fanout::{
    Admissions, Answers, BeginRequest, BeginResponse, Channel, FanoutError, Feed, FeedEvent, Feeds,
    History, KeepRequest, KeepResponse, LiveRequest, LiveResponse, Result, Turn,
};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::store::Store;

/// The fan-out's clock at the beginning of each test.
pub(super) const EPOCH_MS: i64 = 1_800_000_000_000;

/// What `live` was called with, and when.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) at: Instant,
    pub(super) attempt: u32,
    pub(super) delta: Option<(u32, String)>,
}

/// Opens when it is told to; open from the beginning.
#[derive(Debug)]
pub(super) struct Gate {
    closed: AtomicBool,
    permits: Semaphore,
}

impl Gate {
    fn new() -> Self {
        Self {
            closed: AtomicBool::new(false),
            permits: Semaphore::new(0),
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    async fn pass(&self) {
        if self.closed.load(Ordering::SeqCst) {
            self.permits.acquire().await.unwrap().forget();
        }
    }
}

/// The subscriptions that a worker holds, and what it did.
#[derive(Debug, Default)]
pub(super) struct Ears {
    events: Mutex<Option<mpsc::Sender<FeedEvent>>>,
    heard: Mutex<HashSet<UserId>>,
    pub(super) said: Mutex<Vec<String>>,
    pub(super) deaf: AtomicBool,
    pub(super) slow: AtomicBool,
}

impl Ears {
    pub(super) fn tell(&self, event: FeedEvent) {
        let events = self.events.lock().unwrap();
        events.as_ref().unwrap().try_send(event).unwrap();
    }

    pub(super) fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }
}

struct TestFeed(Arc<Ears>);

#[async_trait]
impl Feed for TestFeed {
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        assert_eq!(channel, Channel::Cancel);
        if self.0.slow.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.0.said.lock().unwrap().push(format!("+{user}"));
        assert!(self.0.heard.lock().unwrap().insert(user.clone()), "twice");
        Ok(())
    }

    async fn unsubscribe(&self, user: &UserId, _: Channel) -> Result<()> {
        self.0.said.lock().unwrap().push(format!("-{user}"));
        assert!(self.0.heard.lock().unwrap().remove(user), "not subscribed");
        Ok(())
    }
}

pub(super) struct Double {
    inner: Mutex<Arc<EmbeddedFanout>>,
    journal: Journal,
    pub(super) written: Mutex<Vec<Written>>,
    /// Before `live` does anything.
    pub(super) live_gate: Gate,
    /// Before `begin` does anything.
    pub(super) begin_gate: Gate,
    /// After `begin` was carried out, before its answer comes.
    pub(super) begun_gate: Gate,
    pub(super) begins: AtomicU32,
    /// Answers of `context` that fail first.
    pub(super) context_away_until: Mutex<Option<Instant>>,
    pub(super) ears: Arc<Ears>,
}

fn empty() -> Arc<EmbeddedFanout> {
    let begun = Instant::now();
    let clock = move || EPOCH_MS + begun.elapsed().as_millis() as i64;
    Arc::new(
        EmbeddedFanout::open_at(Store::in_memory(), Bounds::default(), Box::new(clock)).unwrap(),
    )
}

impl Double {
    pub(super) fn new(journal: Journal) -> Arc<Self> {
        Self::over(empty(), journal)
    }

    /// Another process's view of the same fan-out.
    pub(super) fn beside(&self) -> Arc<Self> {
        Self::over(self.inner(), Arc::clone(&self.journal))
    }

    fn over(inner: Arc<EmbeddedFanout>, journal: Journal) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            journal,
            written: Mutex::default(),
            live_gate: Gate::new(),
            begin_gate: Gate::new(),
            begun_gate: Gate::new(),
            begins: AtomicU32::new(0),
            context_away_until: Mutex::default(),
            ears: Arc::default(),
        })
    }

    fn inner(&self) -> Arc<EmbeddedFanout> {
        Arc::clone(&self.inner.lock().unwrap())
    }

    fn is_context_away(&self) -> bool {
        let away = *self.context_away_until.lock().unwrap();
        away.is_some_and(|until| Instant::now() < until)
    }

    /// Everything that it held is gone.
    pub(super) fn lose_all(&self) {
        *self.inner.lock().unwrap() = empty();
    }

    pub(super) fn deltas(&self) -> Vec<(u32, u32, String)> {
        let written = self.written.lock().unwrap();
        let deltas = written.iter().filter_map(|written| {
            let (index, text) = written.delta.clone()?;
            Some((written.attempt, index, text))
        });
        deltas.collect()
    }

    /// Cancels a message, and publishes the notice if the worker has subscribed to the user.
    pub(super) async fn cancel(
        &self,
        user: &UserId,
        message_id: &MessageId,
    ) -> Result<CancelResult> {
        let result = self.inner().cancel(user, message_id).await?;
        if self.ears.heard.lock().unwrap().contains(user) {
            self.ears.tell(FeedEvent::Frame {
                user: user.clone(),
                channel: Channel::Cancel,
                payload: Bytes::from(format!(r#"{{"message_id":"{message_id}"}}"#)),
            });
        }
        Ok(result)
    }

    pub(super) async fn forget(
        &self,
        user: &UserId,
        conversation: Option<&ConversationId>,
    ) -> Result<bool> {
        self.inner().forget(user, conversation).await
    }
}

#[async_trait]
impl Answers for Double {
    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse> {
        self.begins.fetch_add(1, Ordering::SeqCst);
        self.begin_gate.pass().await;
        let mut begun = self.inner().begin(call).await;
        if self.is_context_away()
            && let Ok(BeginResponse::Attempt { history, .. }) = &mut begun
        {
            *history = None;
        }
        self.begun_gate.pass().await;
        begun
    }

    async fn live(&self, call: LiveRequest) -> Result<LiveResponse> {
        self.live_gate.pass().await;
        let (attempt, delta) = (call.attempt, call.delta.clone());
        let reply = self.inner().live(call).await?;
        self.written.lock().unwrap().push(Written {
            at: Instant::now(),
            attempt,
            delta: delta.filter(|_| reply == LiveResponse::Written),
        });
        Ok(reply)
    }

    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse> {
        let kept = self.inner().keep(call).await?;
        if matches!(kept, KeepResponse::Outcome(_) | KeepResponse::Appended(..)) {
            self.journal.lock().unwrap().push("kept".into());
        }
        Ok(kept)
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_age: Duration,
    ) -> Result<Vec<Turn>> {
        if self.is_context_away() {
            return Err(FanoutError::Unavailable("away".into()));
        }
        let inner = self.inner();
        inner.context(user, conversation, limit, max_age).await
    }
}

#[async_trait]
impl Feeds for Double {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        if self.ears.deaf.load(Ordering::SeqCst) {
            return Err(FanoutError::Unavailable("away".into()));
        }
        let (sender, events) = mpsc::channel(capacity);
        *self.ears.events.lock().unwrap() = Some(sender);
        Ok((Arc::new(TestFeed(Arc::clone(&self.ears))), events))
    }
}
