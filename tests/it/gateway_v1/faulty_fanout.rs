//! The embedded fan-out in memory, with faults that a test controls: it can be unavailable, and the
//! frames that it publishes can be lost.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::embedded::EmbeddedFanout;
use chatmesh::fanout::{
    Admission, Admissions, ConversationEntry, DeliveredOutcome, FanoutError, Feed, FeedEvent,
    Feeds, History, MessageRef, ReadRequest, Reads, Result, Tokens, Turn, UserView,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::open_message::CancelResult;
use chatmesh::store::Store;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::support::TEST_TIMEOUT;

/// A fan-out for one gateway with faults that the test switches on and off.
pub(super) struct FaultyFanout {
    inner: EmbeddedFanout,
    pub(super) is_unavailable: AtomicBool,
    loses_frames: Arc<AtomicBool>,
    lost_frames: watch::Sender<usize>,
    /// The number of calls of `read`.
    pub(super) reads: AtomicUsize,
    events: Mutex<Option<mpsc::Sender<FeedEvent>>>,
}

impl FaultyFanout {
    pub(super) fn new() -> Arc<Self> {
        let inner = EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
        Arc::new(Self {
            inner,
            is_unavailable: AtomicBool::new(false),
            loses_frames: Arc::default(),
            lost_frames: watch::Sender::new(0),
            reads: AtomicUsize::new(0),
            events: Mutex::default(),
        })
    }

    /// The fan-out, or an error while the test has made it unavailable.
    fn available(&self) -> Result<&EmbeddedFanout> {
        if self.is_unavailable.load(Ordering::SeqCst) {
            return Err(FanoutError::Unavailable(
                "made unavailable by the test".into(),
            ));
        }
        Ok(&self.inner)
    }

    /// The fan-out without faults, which the test calls in the role of worker and relay.
    pub(super) fn inner(&self) -> &EmbeddedFanout {
        &self.inner
    }

    /// Loses every frame that is published from now on.
    pub(super) fn start_losing_frames(&self) {
        self.loses_frames.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` frames were lost in total, and loses no further ones.
    pub(super) async fn stop_losing_after(&self, count: usize) {
        let mut lost_frames = self.lost_frames.subscribe();
        timeout(TEST_TIMEOUT, lost_frames.wait_for(|lost| *lost >= count))
            .await
            .unwrap()
            .unwrap();
        self.loses_frames.store(false, Ordering::SeqCst);
    }

    /// Inserts an event into the gateway's feed.
    pub(super) async fn inject(&self, event: FeedEvent) {
        let events = self.events.lock().unwrap().clone().unwrap();
        events.send(event).await.unwrap();
    }
}

#[async_trait]
impl Admissions for FaultyFanout {
    async fn admit(&self, message: &MessageRef, content: &str) -> Result<Admission> {
        self.available()?.admit(message, content).await
    }

    async fn accept(&self, message: &MessageRef, frame: String) -> Result<()> {
        self.available()?.accept(message, frame).await
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        self.available()?.cancel(user, message_id).await
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        self.available()?.clear_pending(user, message_id).await
    }
}

#[async_trait]
impl Reads for FaultyFanout {
    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.available()?.read(call).await
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        self.available()?.delivered_outcomes(user, messages).await
    }
}

#[async_trait]
impl History for FaultyFanout {
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        self.available()?.conversations(user, after, limit).await
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        self.available()?
            .history(user, conversation, before, limit)
            .await
    }

    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool> {
        self.available()?.forget(user, conversation).await
    }
}

#[async_trait]
impl Tokens for FaultyFanout {
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        self.available()?.stored_token(user).await
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        self.available()?.issue_token(user, candidate, ttl).await
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        self.available()?.revoke(user).await
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        self.available()?.revoked_at(user).await
    }
}

#[async_trait]
impl Feeds for FaultyFanout {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let (feed, mut published) = self.inner.open_feed(capacity).await?;
        let (sender, receiver) = mpsc::channel(capacity);
        *self.events.lock().unwrap() = Some(sender.clone());
        let (loses_frames, lost_frames) = (self.loses_frames.clone(), self.lost_frames.clone());
        tokio::spawn(async move {
            while let Some(event) = published.recv().await {
                if loses_frames.load(Ordering::SeqCst) {
                    lost_frames.send_modify(|lost| *lost += 1);
                } else if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok((feed, receiver))
    }
}
