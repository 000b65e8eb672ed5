//! The fan-out in this process, on the local store.
//!
//! What must survive the process is in the store, under keys of each user: outcomes, mailboxes,
//! history, pending messages, cancel marks, tokens, markers. Answers in flight, the counter `n`
//! and the subscriptions are in memory only; after a restart they are gone, which the contract
//! knows as "the fan-out lost its data".
//!
//! A call runs under its user's lock from beginning to end, publishing included, so that frames
//! leave in the order of their numbers. The store's reads and commits are short and wait for no
//! disk. Nobody waits for a commit to be synced: commits survive in their order, and the log
//! lives in the same store, so nothing that follows from a call survives without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use self::codec::{Reader, Writer};
use self::feed::EmbeddedFeed;
use self::forget::Which;
use self::keys::Tag;
use self::sweep::Sweeper;
use self::user::millis;
use self::users::{Environment, Users};
use super::{
    Admission, BeginRequest, BeginResponse, Channel, ConversationEntry, DeliverRequest,
    DeliverResponse, DeliveredOutcome, Fanout, FanoutError, Feed, FeedEvent, KeepRequest,
    KeepResponse, LiveRequest, LiveResponse, MessageRef, ReadRequest, Result, Turn, UserView,
};
use crate::config::bounds::Bounds;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::position::Epoch;
use crate::store::{Batch, Store, StoreError, Table};

mod answer;
mod codec;
mod deliver;
mod end;
mod feed;
mod forget;
mod history;
mod keys;
mod limits;
mod listing;
mod mailbox;
mod read;
mod sweep;
#[cfg(test)]
mod tests;
mod user;
mod users;

/// The version of what is written in the store.
const VERSION: &[u8] = b"1";

impl From<StoreError> for FanoutError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The fan-out of one process.
#[derive(Debug)]
pub struct EmbeddedFanout {
    users: Arc<Users>,
    disruptions: watch::Sender<u64>,
    /// Ends its thread when it is dropped.
    _sweeper: Option<Sweeper>,
}

/// The system's clock, held back from going backwards.
fn system_clock() -> impl Fn() -> i64 + Send + Sync {
    let latest = AtomicI64::new(0);
    move || {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, millis);
        latest.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl EmbeddedFanout {
    /// Opens the fan-out over a store, and starts the thread that removes what is too old; it
    /// ends when the fan-out is dropped.
    ///
    /// # Errors
    /// [`FanoutError::Unexpected`] where another version of chatmesh wrote the store.
    pub fn open(store: Store, bounds: Bounds) -> Result<Self> {
        let environment = Environment {
            clock: Box::new(system_clock()),
            random: Box::new(rand::random),
        };
        let fanout = Self::with_environment(store, bounds, environment)?;
        let sweeper = Sweeper::start(Arc::clone(&fanout.users))?;
        Ok(Self {
            _sweeper: Some(sweeper),
            ..fanout
        })
    }

    /// With a clock of the caller's, milliseconds since the Unix epoch that never go back: for
    /// simulations. Sweeps nothing by itself.
    ///
    /// # Errors
    /// [`FanoutError::Unexpected`] where another version of chatmesh wrote the store.
    pub fn open_at(
        store: Store,
        bounds: Bounds,
        clock: Box<dyn Fn() -> i64 + Send + Sync>,
    ) -> Result<Self> {
        let random = Box::new(rand::random);
        Self::with_environment(store, bounds, Environment { clock, random })
    }

    /// With a clock and random numbers of the caller's; sweeps nothing by itself.
    fn with_environment(store: Store, bounds: Bounds, environment: Environment) -> Result<Self> {
        match store.get(Table::Users, keys::VERSION)? {
            Some(version) if version == VERSION => {}
            Some(_) => {
                return Err(FanoutError::Unexpected(
                    "the data directory was written by another version of chatmesh; use that \
                     version or another directory"
                        .into(),
                ));
            }
            None => {
                let mut batch = Batch::default();
                batch.put(Table::Users, keys::VERSION, VERSION);
                store.commit(batch)?;
            }
        }
        Ok(Self {
            users: Arc::new(Users::new(store, bounds, environment)),
            disruptions: watch::Sender::new(0),
            _sweeper: None,
        })
    }
}

/// What is left until `ends_ms`, in whole seconds, rounded up.
fn seconds_left(ends_ms: i64, now_ms: i64) -> u64 {
    (ends_ms.saturating_sub(now_ms).max(0) as u64).div_ceil(1000)
}

/// The token that is stored and not over, and when it ends.
fn token(store: &Store, user: &UserId, now_ms: i64) -> Result<Option<(String, u64)>> {
    let Some(value) = store.get(Table::Users, &keys::user(user, Tag::Token, b""))? else {
        return Ok(None);
    };
    let mut reader = Reader::new(&value);
    let ends_ms = reader.number()?;
    let token = reader.rest()?.to_owned();
    Ok((ends_ms > now_ms).then(|| (token, seconds_left(ends_ms, now_ms))))
}

#[async_trait]
impl Fanout for EmbeddedFanout {
    async fn admit(&self, subject: &MessageRef, content: &str) -> Result<Admission> {
        self.users.with(&subject.user, |state, world| {
            state.admit(subject, content, world)
        })
    }

    async fn accept(&self, subject: &MessageRef, frame: String) -> Result<()> {
        self.users.with(&subject.user, |state, world| {
            state.accept(&subject.message_id, &frame, world)
        })
    }

    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse> {
        let user = call.message.user.clone();
        self.users
            .with(&user, |state, world| state.begin(call, world))
    }

    async fn live(&self, call: LiveRequest) -> Result<LiveResponse> {
        self.users
            .with(&call.message.user, |state, world| state.live(&call, world))
    }

    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse> {
        let user = call.message.user.clone();
        self.users
            .with(&user, |state, world| state.keep(call, world))
    }

    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse> {
        self.users
            .with(&call.user, |state, world| state.deliver(&call, world))
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        self.users
            .with(user, |state, world| state.cancel(message_id, world))
    }

    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        self.users
            .with(&call.user, |state, world| state.read(&call, world))
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_age: Duration,
    ) -> Result<Vec<Turn>> {
        self.users.with(user, |state, world| {
            state.context(conversation, limit, max_age, world)
        })
    }

    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool> {
        self.users.with(user, |state, world| {
            state.forget(&Which::of(conversation), world)
        })
    }

    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        self.users.with(user, |state, world| {
            state.conversations(after, limit, world)
        })
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        self.users.with(user, |state, world| {
            state.history(conversation, before, limit, world)
        })
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        self.users
            .with(user, |state, world| state.delivered(messages, world))
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        self.users
            .with(user, |state, world| state.clear_pending(message_id, world))
    }

    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        token(&self.users.store, user, self.users.now_ms())
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        self.users.with(user, |_, world| {
            if let Some(there) = token(world.store, user, world.now_ms)? {
                return Ok(there);
            }
            let ends_ms = world.now_ms.saturating_add(millis(ttl));
            let value = Writer::with_capacity(candidate.len() + 8)
                .number(ends_ms)
                .rest(candidate);
            let mut batch = Batch::default();
            batch.put(Table::Users, keys::user(user, Tag::Token, b""), value);
            world.store.commit(batch)?;
            Ok((candidate.to_owned(), seconds_left(ends_ms, world.now_ms)))
        })
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        let at_ms = crate::protocol::timestamp::now_ms();
        self.users.with(user, |state, world| {
            let key = keys::user(user, Tag::Revoked, b"");
            let before = match world.store.get(Table::Users, &key)? {
                Some(value) => Reader::new(&value).number()?,
                None => i64::MIN,
            };
            let mut batch = Batch::default();
            batch.put(Table::Users, key, at_ms.max(before).to_be_bytes());
            batch.delete(Table::Users, keys::user(user, Tag::Token, b""));
            world.store.commit(batch)?;
            let frame = crate::fanout::revoked_frame(user, at_ms);
            state.publish(Channel::Terminal, &frame);
            Ok(())
        })
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        let key = keys::user(user, Tag::Revoked, b"");
        match self.users.store.get(Table::Users, &key)? {
            Some(value) => Ok(Some(Reader::new(&value).number()?)),
            None => Ok(None),
        }
    }

    async fn has_marker(&self, epoch: &Epoch) -> Result<bool> {
        let marker = self
            .users
            .store
            .get(Table::Users, &keys::marker(epoch.as_str()))?;
        Ok(marker.is_some())
    }

    async fn set_marker(&self, epoch: &Epoch) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::Users, keys::marker(epoch.as_str()), b"1");
        self.users.store.commit(batch)?;
        Ok(())
    }

    /// Never changes: the store is there as long as the process.
    fn disruptions(&self) -> watch::Receiver<u64> {
        self.disruptions.subscribe()
    }

    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let (feed, events) = EmbeddedFeed::open(Arc::clone(&self.users), capacity);
        Ok((Arc::new(feed), events))
    }

    async fn warnings(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn check(&self) -> Result<()> {
        Ok(self.users.store.check()?)
    }
}
