//! The calls that a worker makes while it generates an answer: take the lease on the message
//! (`begin`), publish the answer's parts while they grow (`open_part`, `append`), renew the lease
//! (`renew`), store the outcome (`keep`), and read the earlier turns (`context`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::error::Result;
use super::history::Turn;
use super::message::MessageRef;
use crate::protocol::ids::{ConversationId, StreamId, UserId};
use crate::protocol::parts::{PartKind, TextRange};
use crate::protocol::position::Position;
use crate::protocol::record::Usage;

/// Duration of a worker's lease on an answer, by the fan-out's clock. The lease starts anew with
/// each [`Answers::begin`] that returns an attempt to this worker and each [`Answers::renew`] that
/// is not refused.
pub const LEASE: Duration = Duration::from_secs(3);

/// Value of `HISTORY_TURNS` from which on a conversation is much longer than a model's context. The
/// oldest turn is then hardly ever part of a cached context, so the context stays valid when that
/// turn is trimmed.
pub(super) const LARGE_HISTORY_TURNS: usize = 1000;

/// Coordinates the workers that generate answers: at any time at most one worker owns an answer,
/// and a message gets one outcome.
#[async_trait]
pub trait Answers: Send + Sync + 'static {
    /// Gives the calling worker the lease on a message and starts an attempt, unless the message
    /// has an outcome or another owner holds the lease.
    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse>;

    /// Opens the next part of the answer with its first piece of text, and publishes the piece as
    /// the part's opening. A repeat changes nothing.
    async fn open_part(&self, call: OpenPartRequest) -> Result<StreamResponse>;

    /// Appends a piece of text to the last part of a stream and publishes it. The call does not
    /// check whether the caller still has the lease: a worker that has lost it can only append to
    /// its own stream, which nobody reads any more.
    ///
    /// Returns the number of pieces that the fan-out has of the stream: 0 if the stream does not
    /// exist, because the fan-out lost it or the answer has ended, and otherwise at least 1. If the
    /// number is lower than the caller expects, the fan-out has lost data, and the caller calls
    /// [`Answers::renew`]. After an error the caller repeats the call with the same piece, before
    /// it appends another one.
    async fn append(&self, call: AppendRequest) -> Result<u64>;

    /// Renews the lease, and compares the parts that the fan-out has with those that the caller
    /// knows to be stored.
    async fn renew(&self, call: RenewRequest) -> Result<StreamResponse>;

    /// Stores the outcome of a message, unless it has one. The worker appends only a stored outcome
    /// to the log.
    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse>;

    /// Returns the newest turns that belong to the model's context (all turns that have not
    /// failed), at most `limit`, oldest first. Returns no turns if the newest of these turns is
    /// older than `max_newest_turn_age`.
    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_newest_turn_age: Duration,
    ) -> Result<Vec<Turn>>;
}

/// Fencing token of a worker: a random id for one delivery of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(Arc<str>);

/// Number of hexadecimal digits of an owner id. An owner id is unique among the deliveries of one
/// message, of which there are few, and it is part of every delta.
const OWNER_ID_DIGITS: usize = 16;

impl Owner {
    /// Generates a new owner id.
    pub fn random() -> Self {
        let random = uuid::Uuid::new_v4().simple().to_string();
        Self(random[..OWNER_ID_DIGITS].into())
    }

    /// The stream of this owner's attempt with this number. An owner never has two attempts with
    /// the same number, so no two attempts have the same stream.
    pub fn stream(&self, attempt: u32) -> StreamId {
        StreamId::of_attempt(&self.0, attempt)
    }

    /// The owner id as text, as the fan-out stores it.
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
    /// Number of the last attempt that this owner had; 0 for none. If the fan-out has a higher
    /// attempt of the same owner, this call is a repeat.
    pub last_attempt: u32,
    /// The outcome that `begin` stores and returns if the message was cancelled before this call.
    /// If the message was forgotten, `begin` returns this outcome and stores nothing.
    pub cancelled_outcome: LazyOutcome,
    /// Which turns of the conversation `begin` returns together with an attempt; `None` for no
    /// turns.
    pub history: Option<HistoryRequest>,
}

/// Response to [`Answers::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginResponse {
    /// The message already has an outcome, so the worker does not call the model. It appends this
    /// outcome to the log unless `delivered_at` shows that a relay has delivered one.
    Ended(StoredOutcome),
    /// Another owner holds the lease for this remaining time. Call `begin` again after this time.
    Busy(Duration),
    /// This owner has the lease. The attempt's stream has no parts, unless the call was a repeat:
    /// then the parts that were opened since the first call stay.
    Attempt {
        /// Number of the attempt, from 1.
        number: u32,
        /// The time of this call by the fan-out's clock, in milliseconds since the Unix epoch.
        now_ms: i64,
        /// Number of different owners that have begun this message, this owner included. It is 1
        /// when the log delivers the record for the first time, and starts again at 1 after the
        /// fan-out lost its data.
        delivery_count: u32,
        /// The response to the request for turns. With `None` it is unknown whether the
        /// conversation has turns: call [`Answers::context`].
        history: Option<HistoryResponse>,
    },
}

/// Version of a conversation's history. Every call that appends, changes or forgets a turn gives
/// the history a new version. The expiry of a turn does not. The version may also change although
/// the history did not, for example after a restart of the embedded fan-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryVersion(pub(super) String);

/// A request for a conversation's context as part of [`Answers::begin`].
#[derive(Debug, Clone)]
pub struct HistoryRequest {
    /// Maximum number of turns that are returned.
    pub limit: usize,
    /// Age of the newest turn above which no turns are returned.
    pub max_newest_turn_age: Duration,
    /// Version of the turns that the worker has cached. Turns are returned only if the history's
    /// current version differs.
    pub known_version: Option<HistoryVersion>,
}

/// A conversation's context at the time of [`Answers::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryResponse {
    /// `known_version` is the current version, so no turns are returned.
    Unchanged,
    /// The history's current version, and the turns for the model's context, oldest first.
    Turns(HistoryVersion, Vec<Turn>),
}

/// A piece of the text of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where the text lies in the answer. A piece never begins or ends inside a character, and two
    /// pieces of a stream overlap only if they are the same piece.
    pub range: TextRange,
    /// The text.
    pub text: String,
}

/// Argument of [`Answers::open_part`].
#[derive(Debug, Clone)]
pub struct OpenPartRequest {
    /// The message that the worker answers.
    pub message: MessageRef,
    /// The worker that generates the answer.
    pub owner: Owner,
    /// Number of the worker's attempt.
    pub attempt: u32,
    /// What the part contains.
    pub kind: PartKind,
    /// JSON object with the part's properties; `None` if it has none.
    pub meta: Option<Arc<str>>,
    /// Length of the previous part in UTF-16 code units; `None` for the first part.
    pub previous_end: Option<u32>,
    /// The first piece of the part's text, which may be empty. Its offset is 0.
    pub piece: Piece,
}

/// Argument of [`Answers::append`].
#[derive(Debug, Clone)]
pub struct AppendRequest {
    /// The message that the worker answers.
    pub message: MessageRef,
    /// The worker that generates the answer.
    pub owner: Owner,
    /// Number of the worker's attempt.
    pub attempt: u32,
    /// The piece of text. It continues the last part that was opened.
    pub piece: Piece,
}

/// Argument of [`Answers::renew`].
#[derive(Debug, Clone)]
pub struct RenewRequest {
    /// The message that the worker answers.
    pub message: MessageRef,
    /// The worker that generates the answer.
    pub owner: Owner,
    /// Number of the worker's attempt.
    pub attempt: u32,
    /// Number of parts that the fan-out has confirmed in this attempt.
    pub parts: u32,
    /// Length of the last of these parts that the fan-out has confirmed, in UTF-16 code units; 0
    /// without a part.
    pub last_length: u32,
    /// Number of pieces of the stream that the fan-out had when it last confirmed one. Where it has
    /// at least as many and the last one ends at `last_length`, it may take them for complete; it
    /// reads all pieces otherwise.
    pub pieces: u64,
}

/// Response to [`Answers::open_part`] and [`Answers::renew`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamResponse {
    /// The part is open, or the lease was renewed. Contains the number of pieces that the fan-out
    /// now has of the stream. The number can be lower than before, because a renewal joins pieces.
    Confirmed(u64),
    /// Another owner or attempt is current, or the message has an outcome. The worker stops and
    /// closes the call to the provider.
    Fenced,
    /// The user has cancelled or forgotten the message. The worker stops and calls `keep` with the
    /// text so far.
    Cancelled,
    /// The fan-out lost the answer in flight or some of its text. The worker calls `begin` again
    /// and opens all parts again.
    DataLost,
}

/// Argument of [`Answers::keep`].
#[derive(Debug, Clone)]
pub struct KeepRequest {
    /// The message that the worker answered.
    pub message: MessageRef,
    /// The worker that generated the answer.
    pub owner: Owner,
    /// Number of the worker's attempt.
    pub attempt: u32,
    /// The outcome to store, unless the message already has an outcome or was cancelled.
    pub outcome: Arc<NewOutcome>,
    /// The outcome with the text so far, stored instead of `outcome` if the message was cancelled.
    /// If the message was forgotten, `keep` returns this outcome and stores nothing.
    pub cancelled_outcome: LazyOutcome,
}

/// Response to [`Answers::keep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepResponse {
    /// The message's outcome: the `outcome` or the `cancelled_outcome` of this call, or an outcome
    /// that was stored earlier.
    Outcome(StoredOutcome),
    /// The `outcome` of this call was stored, and its turn was appended to the conversation. No
    /// other turn changed that a worker may have cached.
    Appended(StoredOutcome, TurnAppend),
    /// Another owner or attempt is current, and nothing was stored. The worker calls `begin` again
    /// to get the outcome.
    Fenced,
}

/// Describes the append of one turn to a conversation's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnAppend {
    /// The history's version before the append.
    pub version_before: HistoryVersion,
    /// The history's version after the append.
    pub version_after: HistoryVersion,
    /// When the turn was appended, in milliseconds since the Unix epoch by the fan-out's clock.
    pub at_ms: i64,
}

/// An outcome to store: the terminal record and the turn for the history.
#[derive(Debug, Clone)]
pub struct NewOutcome {
    /// JSON of the terminal record, exactly as the worker appends it to the log.
    pub frame: String,
    /// The turn to store in the conversation's history.
    pub turn: Turn,
}

impl NewOutcome {
    /// Number of model tokens that the answer cost: `usage.total_tokens` of the record, or 0.
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

/// An outcome that is built only when a call needs it. Used for the cancelled outcome, which most
/// calls do not need.
#[derive(Clone)]
pub struct LazyOutcome(Arc<dyn Fn() -> NewOutcome + Send + Sync>);

impl LazyOutcome {
    /// A lazy outcome whose function `build` runs at each call of [`LazyOutcome::build`].
    pub fn new(build: impl Fn() -> NewOutcome + Send + Sync + 'static) -> Self {
        Self(Arc::new(build))
    }

    /// Runs the function and returns the outcome that it builds.
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
    /// JSON of the terminal record. The worker appends no other record for this message.
    pub frame: String,
    /// Position in `responses` of the terminal record that a relay has delivered for the message;
    /// `None` before the delivery. A worker does not append a delivered outcome to the log again.
    pub delivered_at: Option<Position>,
}
