//! The generation of an answer, called by workers: lease, live text, outcome, context.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::error::Result;
use super::history::Turn;
use super::message::MessageRef;
use crate::protocol::ids::{ConversationId, UserId};
use crate::protocol::position::Position;
use crate::protocol::record::Usage;

/// Duration of a worker's lease on an answer, by the fan-out's clock. Each [`Answers::begin`] and
/// [`Answers::live`] renews it.
pub const LEASE: Duration = Duration::from_secs(3);

/// Where conversations may have at least this many turns, a model's context practically never
/// reaches the bound. A cached context then stays valid when the oldest turn is trimmed.
pub(super) const LARGE_HISTORY_TURNS: usize = 1000;

/// Coordinates the workers that generate answers: one owner at a time, one outcome per message.
#[async_trait]
pub trait Answers: Send + Sync + 'static {
    /// Takes the lease on a message and starts an attempt, unless the message has an outcome or
    /// another owner holds the lease.
    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse>;

    /// Appends a piece of the answer's text and publishes it on the live channel, or only renews
    /// the lease.
    async fn live(&self, call: LiveRequest) -> Result<LiveResponse>;

    /// Stores the outcome of a message. Only a stored outcome may be appended to the log.
    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse>;

    /// Returns at most `limit` of the newest turns that belong to the model's context (all but
    /// failed ones), oldest first. Empty where the newest one is older than `max_idle_time`.
    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_idle_time: Duration,
    ) -> Result<Vec<Turn>>;
}

/// Fencing token of a worker: a random id for one delivery of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// Generates a new id.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string().into())
    }

    /// The id in its stored form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Argument of [`Answers::begin`].
#[derive(Debug, Clone)]
pub struct BeginRequest {
    /// The message to answer.
    pub message: MessageRef,
    /// The worker that requests the lease.
    pub owner: Owner,
    /// Number of the last attempt that this owner had; 0 for none. A higher current attempt of the
    /// same owner means that this call is a repeat.
    pub last_attempt: u32,
    /// The outcome that is stored if the message was cancelled before this call.
    pub cancelled_outcome: LazyOutcome,
    /// Requests the conversation's history along with a new attempt; `None` for no history.
    pub history: Option<HistoryRequest>,
}

/// Response to [`Answers::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginResponse {
    /// The message has an outcome. It needs no answer; the outcome is appended to the log unless it
    /// was delivered.
    Ended(StoredOutcome),
    /// Another owner holds the lease for this much longer. Call again then.
    Busy(Duration),
    /// The lease is this owner's, and the answer's text is empty.
    Attempt {
        /// Number of the attempt, from 1.
        number: u32,
        /// The fan-out's clock, in milliseconds since the Unix epoch.
        now_ms: i64,
        /// Number of different owners that have begun this message, this one included. 1 where it
        /// is delivered for the first time.
        delivery_count: u32,
        /// The history, if it was requested. `None` says nothing about it: call
        /// [`Answers::context`].
        history: Option<HistoryResponse>,
    },
}

/// Version of a conversation's history. Every change gives a new one, except the expiry of old
/// turns and, where conversations may be long, the trimming of the oldest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryVersion(pub(super) String);

/// A request for a conversation's context as part of [`Answers::begin`].
#[derive(Debug, Clone)]
pub struct HistoryRequest {
    /// Maximum number of turns.
    pub limit: usize,
    /// No turns are returned where the newest one is older than this.
    pub max_idle_time: Duration,
    /// The version that the worker has cached. The turns are returned only where the current
    /// version differs.
    pub known_version: Option<HistoryVersion>,
}

/// A conversation's context at the time of [`Answers::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryResponse {
    /// The worker's cached version is current.
    Unchanged,
    /// The current version and its turns in the model's context, oldest first.
    Turns(HistoryVersion, Vec<Turn>),
}

/// Argument of [`Answers::live`].
#[derive(Debug, Clone)]
pub struct LiveRequest {
    /// The message that is answered.
    pub message: MessageRef,
    /// The worker that generates the answer.
    pub owner: Owner,
    /// Number of the worker's attempt.
    pub attempt: u32,
    /// A piece of text and its index, from 0. `None` only renews the lease.
    pub delta: Option<(u32, String)>,
}

/// Response to [`Answers::live`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveResponse {
    /// The text was appended (if there was any) and the lease renewed.
    Written,
    /// The index is not the next one, so the call is a repeat. Contains the next index. The lease
    /// is renewed.
    OutOfOrder(u32),
    /// Another owner or attempt is current, or the message has an outcome. Stop, and close the call
    /// to the provider.
    Fenced,
    /// The user has cancelled the message. Stop, and `keep` the text so far.
    Cancelled,
    /// The fan-out lost its data. `begin` again, and send the whole text again.
    DataLost,
}

/// Argument of [`Answers::keep`].
#[derive(Debug, Clone)]
pub struct KeepRequest {
    /// The message that is answered.
    pub message: MessageRef,
    /// The worker that generated the answer.
    pub owner: Owner,
    /// Number of the worker's attempt.
    pub attempt: u32,
    /// The outcome to store.
    pub outcome: Arc<NewOutcome>,
    /// The outcome that is stored instead if the message was cancelled: the text so far.
    pub cancelled_outcome: LazyOutcome,
}

/// Response to [`Answers::keep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepResponse {
    /// The message's outcome: the one of this call, its `cancelled_outcome`, or an earlier one.
    Outcome(StoredOutcome),
    /// The outcome of this call was stored, and its turn was appended to the conversation, whose
    /// other turns are unchanged.
    Appended(StoredOutcome, TurnAppend),
    /// Another owner or attempt is current. `begin` again to learn the outcome.
    Fenced,
}

/// Describes the append of one turn to a conversation's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnAppend {
    /// The history's version before the append.
    pub version_before: HistoryVersion,
    /// The history's version after the append.
    pub version_after: HistoryVersion,
    /// When the turn was stored, in milliseconds since the Unix epoch by the fan-out's clock.
    pub at_ms: i64,
}

/// An outcome that is not stored yet: the terminal record and the turn for the history.
#[derive(Debug, Clone)]
pub struct NewOutcome {
    /// JSON of the terminal record, exactly as it is appended to the log.
    pub frame: String,
    /// The turn that is stored in the conversation's history.
    pub turn: Turn,
}

impl NewOutcome {
    /// Number of model tokens that the answer cost, from the `usage` of its record.
    pub(super) fn tokens(&self) -> u64 {
        #[derive(serde::Deserialize)]
        struct Record {
            #[serde(default)]
            usage: Option<Usage>,
        }
        let record = serde_json::from_str::<Record>(&self.frame).ok();
        let usage = record.and_then(|record| record.usage);
        usage.map_or(0, |usage| usage.total_tokens)
    }
}

/// An outcome that is built only when it is needed. The cancelled outcome of a call seldom is.
#[derive(Clone)]
pub struct LazyOutcome(Arc<dyn Fn() -> NewOutcome + Send + Sync>);

impl LazyOutcome {
    /// Stores `build`, which runs at each call of [`LazyOutcome::build`].
    pub fn new(build: impl Fn() -> NewOutcome + Send + Sync + 'static) -> Self {
        Self(Arc::new(build))
    }

    /// Builds the outcome.
    pub fn build(&self) -> NewOutcome {
        (self.0)()
    }
}

impl From<NewOutcome> for LazyOutcome {
    fn from(outcome: NewOutcome) -> Self {
        Self::new(move || outcome.clone())
    }
}

impl fmt::Debug for LazyOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LazyOutcome")
    }
}

/// The outcome of a message as the fan-out has stored it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOutcome {
    /// JSON of the terminal record. No other one may be appended to the log for this message.
    pub frame: String,
    /// Position of the delivered record in `responses`; `None` until a relay has delivered it. A
    /// delivered outcome is not appended to the log again.
    pub delivered_at: Option<Position>,
}
