//! The embedded fan-out in memory, with faults that a test decides: it can be away, and what it
//! publishes can be lost on its way.

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

pub(super) struct Faulty {
    inner: EmbeddedFanout,
    pub(super) away: AtomicBool,
    losing: Arc<AtomicBool>,
    lost: watch::Sender<usize>,
    pub(super) reads: AtomicUsize,
    events: Mutex<Option<mpsc::Sender<FeedEvent>>>,
}

impl Faulty {
    pub(super) fn new() -> Arc<Self> {
        let inner = EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
        Arc::new(Self {
            inner,
            away: AtomicBool::new(false),
            losing: Arc::default(),
            lost: watch::Sender::new(0),
            reads: AtomicUsize::new(0),
            events: Mutex::default(),
        })
    }

    fn here(&self) -> Result<&EmbeddedFanout> {
        if self.away.load(Ordering::SeqCst) {
            return Err(FanoutError::Unavailable("the test says so".into()));
        }
        Ok(&self.inner)
    }

    /// The fan-out behind this one, as workers and relays reach it.
    pub(super) fn inner(&self) -> &EmbeddedFanout {
        &self.inner
    }

    /// What is published from now on is lost.
    pub(super) fn lose(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }

    /// Nothing more is lost, once so many frames were.
    pub(super) async fn lost(&self, count: usize) {
        let mut lost = self.lost.subscribe();
        timeout(TEST_TIMEOUT, lost.wait_for(|lost| *lost >= count))
            .await
            .unwrap()
            .unwrap();
        self.losing.store(false, Ordering::SeqCst);
    }

    /// Puts an event between those that are published.
    pub(super) async fn event(&self, event: FeedEvent) {
        let events = self.events.lock().unwrap().clone().unwrap();
        events.send(event).await.unwrap();
    }
}

#[async_trait]
impl Admissions for Faulty {
    async fn admit(&self, subject: &MessageRef, content: &str) -> Result<Admission> {
        self.here()?.admit(subject, content).await
    }

    async fn accept(&self, subject: &MessageRef, frame: String) -> Result<()> {
        self.here()?.accept(subject, frame).await
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        self.here()?.cancel(user, message_id).await
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        self.here()?.clear_pending(user, message_id).await
    }
}

#[async_trait]
impl Reads for Faulty {
    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.here()?.read(call).await
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        self.here()?.delivered_outcomes(user, messages).await
    }
}

#[async_trait]
impl History for Faulty {
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        self.here()?.conversations(user, after, limit).await
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        self.here()?
            .history(user, conversation, before, limit)
            .await
    }

    async fn forget(&self, user: &UserId, of: Option<&ConversationId>) -> Result<bool> {
        self.here()?.forget(user, of).await
    }
}

#[async_trait]
impl Tokens for Faulty {
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        self.here()?.stored_token(user).await
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        self.here()?.issue_token(user, candidate, ttl).await
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        self.here()?.revoke(user).await
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        self.here()?.revoked_at(user).await
    }
}

#[async_trait]
impl Feeds for Faulty {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let (feed, mut published) = self.inner.open_feed(capacity).await?;
        let (sender, receiver) = mpsc::channel(capacity);
        *self.events.lock().unwrap() = Some(sender.clone());
        let (losing, lost) = (self.losing.clone(), self.lost.clone());
        tokio::spawn(async move {
            while let Some(event) = published.recv().await {
                if losing.load(Ordering::SeqCst) {
                    lost.send_modify(|lost| *lost += 1);
                } else if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok((feed, receiver))
    }
}
