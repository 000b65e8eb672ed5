//! The embedded fan-out: the contract, in memory and on disk.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::embedded::EmbeddedFanout;
use chatmesh::fanout::{
    Admission, BeginRequest, BeginResponse, ConversationEntry, DeliverRequest, DeliverResponse,
    DeliveredOutcome, Fanout, Feed, FeedEvent, KeepRequest, KeepResponse, LiveRequest,
    LiveResponse, MessageRef, ReadRequest, Result, Turn, UserView,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::open_message::CancelResult;
use chatmesh::protocol::position::Epoch;
use chatmesh::store::{Store, Table};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use crate::fanout_contract::Backend;

/// A fan-out that can lose its data while it is in use: another one, on an empty store, takes its
/// place.
struct Replaceable {
    durable: bool,
    bounds: Bounds,
    current: Mutex<(Arc<EmbeddedFanout>, Store, Option<TempDir>)>,
}

impl Replaceable {
    fn new(durable: bool, bounds: Bounds) -> Self {
        let current = Mutex::new(Self::empty(durable, &bounds));
        Self {
            durable,
            bounds,
            current,
        }
    }

    fn empty(durable: bool, bounds: &Bounds) -> (Arc<EmbeddedFanout>, Store, Option<TempDir>) {
        let dir = durable.then(|| tempfile::tempdir().unwrap());
        let store = match &dir {
            Some(dir) => Store::open(dir.path(), 0).unwrap(),
            None => Store::in_memory(),
        };
        let fanout = EmbeddedFanout::open(store.clone(), bounds.clone()).unwrap();
        (Arc::new(fanout), store, dir)
    }

    fn lose(&self) {
        let empty = Self::empty(self.durable, &self.bounds);
        let mut current = self.current.lock();
        *current = empty;
    }

    fn now(&self) -> Arc<EmbeddedFanout> {
        let current = self.current.lock();
        Arc::clone(&current.0)
    }
}

#[async_trait]
impl Fanout for Replaceable {
    async fn admit(&self, subject: &MessageRef, content: &str) -> Result<Admission> {
        self.now().admit(subject, content).await
    }

    async fn accept(&self, subject: &MessageRef, frame: String) -> Result<()> {
        self.now().accept(subject, frame).await
    }

    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool> {
        self.now().forget(user, conversation).await
    }

    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        self.now().conversations(user, after, limit).await
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        self.now().history(user, conversation, before, limit).await
    }

    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse> {
        self.now().begin(call).await
    }

    async fn live(&self, call: LiveRequest) -> Result<LiveResponse> {
        self.now().live(call).await
    }

    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse> {
        self.now().keep(call).await
    }

    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse> {
        self.now().deliver(call).await
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        self.now().cancel(user, message_id).await
    }

    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        self.now().read(call).await
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_age: Duration,
    ) -> Result<Vec<Turn>> {
        self.now().context(user, conversation, limit, max_age).await
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        self.now().delivered_outcomes(user, messages).await
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        self.now().clear_pending(user, message_id).await
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        self.now().revoke(user).await
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        self.now().revoked_at(user).await
    }

    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        self.now().stored_token(user).await
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        self.now().issue_token(user, candidate, ttl).await
    }

    async fn has_marker(&self, epoch: &Epoch) -> Result<bool> {
        self.now().has_marker(epoch).await
    }

    async fn set_marker(&self, epoch: &Epoch) -> Result<()> {
        self.now().set_marker(epoch).await
    }

    fn disruptions(&self) -> watch::Receiver<u64> {
        self.now().disruptions()
    }

    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        self.now().open_feed(capacity).await
    }

    async fn warnings(&self) -> Result<Vec<String>> {
        self.now().warnings().await
    }

    async fn check(&self) -> Result<()> {
        self.now().check().await
    }
}

/// One process's fan-out: whoever opens it has the same one.
struct EmbeddedBackend {
    durable: bool,
    fanout: OnceLock<Arc<Replaceable>>,
}

#[allow(clippy::unused_async, reason = "other backends have to wait")]
async fn backend(durable: bool) -> EmbeddedBackend {
    EmbeddedBackend {
        durable,
        fanout: OnceLock::new(),
    }
}

#[async_trait]
impl Backend for EmbeddedBackend {
    async fn open(&self, bounds: Bounds) -> Arc<dyn Fanout> {
        let new = || Arc::new(Replaceable::new(self.durable, bounds));
        Arc::clone(self.fanout.get_or_init(new)) as Arc<dyn Fanout>
    }

    async fn lose(&self, _user: &UserId) {
        if let Some(fanout) = self.fanout.get() {
            fanout.lose();
        }
    }

    async fn holds(&self, user: &UserId, text: &str) -> bool {
        let fanout = self.fanout.get().unwrap();
        let store = fanout.current.lock().1.clone();
        let from = [user.as_str().as_bytes(), b"\0"].concat();
        let to = [user.as_str().as_bytes(), b"\x01"].concat();
        [Table::Users, Table::History].into_iter().any(|table| {
            let entries = store.scan(table, &from, &to, usize::MAX, false).unwrap();
            let mut values = entries.iter().map(|(_, value)| value.windows(text.len()));
            values.any(|mut parts| parts.any(|part| part == text.as_bytes()))
        })
    }
}

mod memory {
    crate::fanout_contract!(super::backend(false));
}

mod durable {
    crate::fanout_contract!(super::backend(true));
}
