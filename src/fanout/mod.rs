//! The fan-out seam: publish and subscribe, mailboxes, answers in flight, outcomes, history.
//!
//! Everything that changes a user's state is one of the calls below, each atomic on the server
//! and each harmless when repeated, as protocol.md section 3 has them (its wording was
//! model-checked; `docs/scenarios.md` names the interleavings). Nothing else writes it.
//!
//! Two implementations, one contract: [`redis`] for a deployment, [`embedded`] for one process.
//! What is kept here is a cache of the log, but for the outcomes and the history; it can be
//! emptied or rolled back at any time, and the relay rebuilds the mailboxes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::open_message::{CancelResult, InFlightAnswer, PendingMessage};
use crate::protocol::position::{Epoch, Position};
use crate::protocol::record::Usage;

pub mod embedded;
pub mod redis;

/// How long a worker owns an answer after each `begin` or `live`, by the fan-out's clock.
pub const LEASE: Duration = Duration::from_secs(3);

/// How the frame begins that [`Fanout::revoke`] publishes: no frame of clients.
pub const REVOKED_FRAME: &str = r#"{"type":"revoked","#;

/// Milliseconds of a day, which is what `USER_DAILY_TOKENS` are for.
const DAY_MS: i64 = 86_400_000;

/// The call was not carried out, or it is unknown whether it was: repeat it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FanoutError {
    /// Away or too slow. Never a fault of the record at hand.
    #[error("fan-out unavailable: {0}")]
    Unavailable(String),
    /// It answered what it should not (a key of another type, a script error): a person has to
    /// look, and until then it counts as away.
    #[error("fan-out answered unexpectedly: {0}")]
    Unexpected(String),
}

/// Shorthand for the calls' results.
pub type Result<T> = std::result::Result<T, FanoutError>;

/// A message and whose it is: what most calls are about.
#[derive(Debug, Clone)]
pub struct MessageRef {
    /// Whose.
    pub user: UserId,
    /// The message.
    pub message_id: MessageId,
    /// The client's own identifier, where there is one.
    pub id: Option<ClientMessageId>,
    /// The conversation.
    pub conversation: ConversationId,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnStatus {
    /// Answered: part of the model's context.
    Answered,
    /// Stopped by its user; what was said until then is part of the context.
    Cancelled,
    /// Failed: in the history, not in the context.
    Failed,
}

/// A question and its answer in the history, kept under the `message_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The message.
    pub message_id: MessageId,
    /// What the user wrote; `None` where only the answer is known (it was rebuilt from the log).
    pub question: Option<String>,
    /// What the user was told.
    pub answer: String,
    /// How it ended.
    pub status: TurnStatus,
    /// When it was stored, milliseconds since the Unix epoch by the fan-out's clock. Ignored in
    /// what is given to the fan-out.
    pub at_ms: i64,
}

/// How a message ends: its terminal record and its turn in the history.
#[derive(Debug, Clone)]
pub struct NewOutcome {
    /// The terminal record's JSON, as it is produced.
    pub frame: String,
    /// Goes into the history.
    pub turn: Turn,
}

impl NewOutcome {
    /// The model's tokens that it cost, as its record's `usage` says.
    fn tokens(&self) -> u64 {
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

/// An ending that is made only where it is needed, which is seldom.
#[derive(Clone)]
pub struct DeferredOutcome(Arc<dyn Fn() -> NewOutcome + Send + Sync>);

impl DeferredOutcome {
    /// Made by this, each time.
    pub fn new(make: impl Fn() -> NewOutcome + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    /// The ending.
    pub fn make(&self) -> NewOutcome {
        (self.0)()
    }
}

impl From<NewOutcome> for DeferredOutcome {
    fn from(ending: NewOutcome) -> Self {
        Self::new(move || ending.clone())
    }
}

impl fmt::Debug for DeferredOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeferredOutcome")
    }
}

/// The frame that tells gateways of a revocation.
fn revoked_frame(user: &UserId, at_ms: i64) -> String {
    format!(r#"{REVOKED_FRAME}"userid":"{user}","at_ms":{at_ms}}}"#)
}

/// Where a conversation may have so many turns, a context hardly ever reaches its bound, and a
/// worker need not know what fell out of it.
const MANY_TURNS: usize = 1000;

/// What is known to be a message's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOutcome {
    /// The terminal frame's JSON. Only this may be produced.
    pub frame: String,
    /// Where it is in `responses`, when a relay has delivered it; then there is nothing to produce.
    pub delivered_at: Option<Position>,
}

/// Answer to [`Fanout::admit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// What is to be done.
    pub decision: AdmissionDecision,
    /// Of a new message: how many are subscribed to the user's live channel. Whoever subscribes
    /// later finds the message in `pending`.
    pub live_subscribers: u64,
}

impl From<AdmissionDecision> for Admission {
    /// Any number may be subscribed.
    fn from(admitted: AdmissionDecision) -> Self {
        Self {
            decision: admitted,
            live_subscribers: u64::MAX,
        }
    }
}

/// What becomes of a message that a gateway has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionDecision {
    /// Not ended as far as is known: produce it. It is noted as pending.
    New,
    /// Over a limit: nothing was noted.
    Refused(Limit),
    /// Ended, and its terminal frame is on its way: nothing to produce.
    OutcomeStored,
    /// Ended and delivered: the frame, with its position.
    Delivered(String, Position),
    /// Its end was delivered once, and all of it has been forgotten since: nothing to produce, no
    /// frame to wait for. The socket that resent it is told that it is cancelled, without content
    /// and position (unless it was told its end before).
    Forgotten,
}

/// Which of a user's limits is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Messages in a window: one more after this long.
    Rate(Duration),
    /// Tokens of the day, which ends after this long.
    Tokens(Duration),
    /// Messages that wait for their ends.
    Pending,
    /// Conversations: this would be a new one.
    Conversations,
}

/// A worker's random id for one taking of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// A new one.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string().into())
    }

    /// As it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Argument of [`Fanout::begin`].
#[derive(Debug, Clone)]
pub struct BeginRequest {
    /// The message.
    pub message: MessageRef,
    /// Who takes it.
    pub owner: Owner,
    /// The highest attempt that this owner has had; 0 for none.
    pub last_attempt: u32,
    /// The ending that is kept if the message was cancelled before this.
    pub cancelled_outcome: DeferredOutcome,
    /// What is to be brought of the conversation's history with an attempt; `None` for nothing.
    pub history: Option<HistoryRequest>,
}

/// Which state a conversation's history is in: another one after each change but the going of what
/// is too old, or one too many where many are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryVersion(String);

/// What a worker wants to know of a conversation's history: [`Fanout::context`] in the same call.
#[derive(Debug, Clone)]
pub struct HistoryRequest {
    /// At most so many turns.
    pub limit: usize,
    /// None where the newest is older.
    pub max_age: Duration,
    /// The state of which the worker has the turns in mind: they are brought only where it is
    /// another one.
    pub known_version: Option<HistoryVersion>,
}

/// A conversation's history as [`Fanout::begin`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryResponse {
    /// In the state that the worker knows.
    Unchanged,
    /// In this one, with these turns in the model's context, oldest first.
    Turns(HistoryVersion, Vec<Turn>),
}

/// Answer to [`Fanout::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginResponse {
    /// Ended already; nothing to do but, unless it was delivered, to produce this.
    Ended(StoredOutcome),
    /// Another owner's lease is alive for this much longer: ask again then.
    Busy(Duration),
    /// The answer is this owner's, with no text yet.
    Attempt {
        /// Its number, from 1.
        number: u32,
        /// The fan-out's clock, milliseconds since the Unix epoch.
        now_ms: i64,
        /// How many owners have begun this message, this one included: 1 where nobody did before.
        /// What an owner repeats counts once.
        delivery_count: u32,
        /// The history, where it was asked for. Its absence says nothing: ask for the context.
        history: Option<HistoryResponse>,
    },
}

/// Argument of [`Fanout::live`].
#[derive(Debug, Clone)]
pub struct LiveRequest {
    /// The message.
    pub message: MessageRef,
    /// Who writes the answer.
    pub owner: Owner,
    /// In which attempt.
    pub attempt: u32,
    /// A piece of text and its index, from 0; `None` only renews the lease.
    pub delta: Option<(u32, String)>,
}

/// Answer to [`Fanout::live`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveResponse {
    /// Done, and the lease is renewed.
    Written,
    /// Not this index (a repeat): this one is next. The lease is renewed.
    Expected(u32),
    /// Another owner or attempt, or the message has ended: stop, close the provider's call.
    Fenced,
    /// The user has cancelled: stop, and `keep` what there is.
    Cancelled,
    /// The fan-out lost its data: `begin` again and send the whole text again.
    DataLost,
}

/// Argument of [`Fanout::keep`].
#[derive(Debug, Clone)]
pub struct KeepRequest {
    /// The message.
    pub message: MessageRef,
    /// Who wrote the answer.
    pub owner: Owner,
    /// In which attempt.
    pub attempt: u32,
    /// How it ends.
    pub outcome: Arc<NewOutcome>,
    /// How it ends if it was cancelled: the text so far.
    pub cancelled_outcome: DeferredOutcome,
}

/// Answer to [`Fanout::keep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepResponse {
    /// The message's outcome: this call's ending, its `cancelled`, or one that was there.
    Outcome(StoredOutcome),
    /// The outcome is this call's ending, and its turn is the newest of the conversation now,
    /// whose other turns are as they were.
    Appended(StoredOutcome, Appended),
    /// Another owner or attempt: `begin` again to learn the outcome.
    Fenced,
}

/// A conversation's history with one turn more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Its state before.
    pub before: HistoryVersion,
    /// Its state now.
    pub after: HistoryVersion,
    /// When the turn was stored, milliseconds since the Unix epoch by the fan-out's clock.
    pub at_ms: i64,
}

/// Argument of [`Fanout::deliver`].
#[derive(Debug, Clone)]
pub struct DeliverRequest {
    /// Whose.
    pub user: UserId,
    /// The message, or the record's derived identity where an original worker wrote it.
    pub message_id: MessageId,
    /// The conversation, where it is known: then the answer goes into its history.
    pub conversation: Option<ConversationId>,
    /// Where the record is in `responses`.
    pub position: Position,
    /// The user's last position that this relay knows to be in the mailbox.
    pub known_end: Option<Position>,
    /// When the log got the record, in ms since the Unix epoch by its own clock. A turn that a history
    /// has lost comes back to its place by this; without, it becomes the newest. A fan-out that
    /// can't lose its data apart from the log's need not heed it.
    pub logged_at_ms: Option<i64>,
    /// Below the group's commit as it was: published on the live channel only.
    pub is_rewind: bool,
    /// The terminal frame's JSON with its `position`, as it goes to clients.
    pub frame: String,
    /// What the history is to say.
    pub answer: String,
    /// How it ended.
    pub status: TurnStatus,
}

/// Answer to [`Fanout::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliverResponse {
    /// Put into the mailbox and published; so many subscriptions took it (of one node, where the
    /// fan-out is a cluster).
    Published(u64),
    /// Was delivered before, at this position or (the same message) at another one: only
    /// `pending` was cleared.
    AlreadyDelivered,
    /// The mailbox ends below `known`: nothing was done. Rewind first.
    DataLost,
}

/// Argument of [`Fanout::read`].
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// Whose.
    pub user: UserId,
    /// Frames after this position; without one no frames, only where the mailbox ends.
    pub after: Option<Position>,
    /// Without `after`: all frames that the mailbox holds, from its oldest. For a reader whose
    /// position is worth nothing any more (`recovered` was false) and who picks by `message_id`.
    pub from_start: bool,
    /// At most so many bytes of frames, but at least one frame.
    pub max_bytes: usize,
}

/// Answer to [`Fanout::read`]: one consistent look.
#[derive(Debug, Clone)]
pub struct UserView {
    /// The number of the last published frame of this user, 0 before the first.
    pub n: u64,
    /// The random id of the counter that `n` is of.
    pub n_id: String,
    /// Where the mailbox ends: the position of its last frame apart from its bounds, or, where it
    /// never held one, a position that is good until it is trimmed.
    pub end: Position,
    /// Whether every frame after `after` is in the mailbox. False without `after`.
    pub recovered: bool,
    /// The frames after `after`, or with `from_start` from the oldest, oldest first; otherwise
    /// empty where not `recovered`.
    pub frames: Vec<(Position, String)>,
    /// There are more after the last of `frames`: read again from its position.
    pub has_more: bool,
    /// The last frame that a rewind has put into the mailbox, which may have trimmed it since. What
    /// is there up to it was delivered before, and is no news.
    pub rebuilt_up_to: Option<Position>,
    /// Answers being written.
    pub in_flight: Vec<InFlightAnswer>,
    /// What is accepted and not yet ended, oldest first: a hint.
    pub pending: Vec<PendingMessage>,
}

/// A conversation of a user, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationEntry {
    /// Its name.
    pub conversation: ConversationId,
    /// How many turns it has.
    pub turns: u64,
    /// When the newest of them was stored, milliseconds since the Unix epoch by the fan-out's
    /// clock.
    pub updated_ms: i64,
}

/// Which of a user's channels a frame came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `user:alice`: terminal frames.
    Terminal,
    /// `{user:alice}:live`: everything else, and terminal frames of a rewind.
    Live,
    /// `{user:alice}:cancel`: the `message_id`s of cancelled messages, for the worker that writes.
    Cancel,
}

/// What a [`Feed`] brings.
#[derive(Debug, Clone)]
pub enum FeedEvent {
    /// A published frame: its JSON, with `n` and `n_id` where chatmesh published it.
    Frame {
        /// Whose.
        user: UserId,
        /// By which channel.
        channel: Channel,
        /// JSON.
        payload: Bytes,
    },
    /// Frames may have been lost (reconnected, or the reader was too slow): `read` the users.
    Gap,
}

/// The subscriptions of one gateway process.
///
/// The feed is bounded: a reader that falls behind gets a [`FeedEvent::Gap`] in place of the
/// frames that were dropped.
#[async_trait]
pub trait Feed: Send + Sync {
    /// Subscribes to a user's channel and returns when the server has confirmed it: every frame
    /// published from then on comes through the feed. Kept through reconnects until
    /// [`Feed::unsubscribe`]. Subscribing twice is one subscription.
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()>;

    /// Ends a subscription. Frames already under way may still come.
    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()>;
}

/// The fan-out.
#[async_trait]
pub trait Fanout: Send + Sync + 'static {
    /// A gateway is about to produce a message. `content` is kept in `pending` for the user's
    /// other devices.
    async fn admit(&self, subject: &MessageRef, content: &str) -> Result<Admission>;

    /// The log has acknowledged a message: publishes `frame` (the `accepted` frame for the user's
    /// other sockets, JSON) on the live channel, unless the message has ended already.
    async fn accept(&self, subject: &MessageRef, frame: String) -> Result<()>;

    /// A worker takes a message.
    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse>;

    /// A worker writes a piece of the answer, or renews its lease.
    async fn live(&self, call: LiveRequest) -> Result<LiveResponse>;

    /// A worker ends a message.
    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse>;

    /// A relay brings a terminal record to its user.
    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse>;

    /// A user stops a message, from any device.
    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult>;

    /// One consistent look at a user. The first one makes the empty mailbox.
    async fn read(&self, call: ReadRequest) -> Result<UserView>;

    /// The newest turns of a conversation that are part of the model's context (not failed), at
    /// most `limit`, oldest first; none where the newest is older than `max_age`.
    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_age: Duration,
    ) -> Result<Vec<Turn>>;

    /// Forgets one conversation, or with `None` all of a user: history, mailbox frames, outcomes.
    /// What is in flight or pending there is marked cancelled, and its ids, and those of all that
    /// is removed, are remembered for `dedup_ttl` as forgotten: `keep` and `deliver` (rewinds too)
    /// put nothing of them back. A frame of a forgotten message is still published to sockets that
    /// wait for its end, and is not kept. Returns whether there was anything.
    ///
    /// To a client that resumes it is as if the frames had never been: `recovered` stays true. A
    /// worker that meets a forgotten message gets the cancelled ending and stores nothing; it
    /// produces it unless an end was delivered before. A resent one is never answered: while no
    /// end was delivered it is admitted as new (so that the log has it, and a worker says that it
    /// is cancelled; the second such record is dropped by `deliver`), but not noted as pending;
    /// afterwards it is [`AdmissionDecision::Forgotten`]. What no longer is or not yet was known here
    /// (a message of the log that was never admitted, or of a server that lost its data) can't be
    /// forgotten.
    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool>;

    /// The user's conversations, the one with the newest turn first, at most `limit`, after the
    /// entry `after` (of an earlier call) where it is given; none where that is gone.
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>>;

    /// Turns of a conversation, newest first, failed ones among them, at most `limit`, before
    /// (older than) the turn of `before` where it is given; `None` where `before` is not there.
    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>>;

    /// Those of the `messages` whose end was delivered, in one look and in the order of `messages`: for
    /// who waits for an end that the mailbox can't tell any more.
    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>>;

    /// Beside an original relay only: the gateway saw the message's answer, so it is no longer
    /// pending (protocol.md section 6).
    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()>;

    /// The user's stored token and the seconds it has left, if there is one
    /// (`token:alice`, the original's key).
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>>;

    /// Stores `candidate` for `ttl` unless the user has a token already; returns the one that is
    /// there now, with the seconds it has left.
    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)>;

    /// Removes the user's stored token; remembers, so that signed ones that were made before are
    /// refused; and tells all gateways to close the user's sockets. By this process's clock, as
    /// the tokens' own times are. Where it fails it may have been done in part: repeat it.
    async fn revoke(&self, user: &UserId) -> Result<()>;

    /// When the user's tokens were revoked last, milliseconds since the Unix epoch.
    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>>;

    /// Whether the marker of this partition of `responses` is on every server that holds users:
    /// false after a server lost its data.
    async fn has_marker(&self, epoch: &Epoch) -> Result<bool>;

    /// Puts the marker on every server that holds users.
    async fn set_marker(&self, epoch: &Epoch) -> Result<()>;

    /// As [`Fanout::has_marker`], for a relay that is about to bring the mailboxes back: where
    /// the marker is gone, `token` (a random word) is left in its place.
    async fn begin_marker(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let _ = token;
        self.has_marker(epoch).await
    }

    /// Puts the marker on every server that has it or still has this `token`. False where one has
    /// neither: it lost its data meanwhile. So a repeat of this call, which the client library
    /// makes after a reconnect, never calls an emptied server complete.
    async fn complete_marker(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let _ = token;
        self.set_marker(epoch).await.map(|()| true)
    }

    /// Grows at every reconnect and failover: what was written before may be gone.
    fn disruptions(&self) -> watch::Receiver<u64>;

    /// Opens the subscriptions of one gateway; the queue holds at most `capacity` events.
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)>;

    /// Sentences about the server's settings that endanger what chatmesh promises
    /// (`maxmemory-policy`, no persistence).
    async fn warnings(&self) -> Result<Vec<String>>;

    /// Asks the server whether it answers, within 2 seconds.
    async fn check(&self) -> Result<()>;
}

/// The end of a message that was delivered, of [`Fanout::delivered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredOutcome {
    /// The message.
    pub message_id: MessageId,
    /// Where it was delivered.
    pub position: Position,
    /// The terminal frame; `None` where the message was forgotten, which ends as cancelled for who
    /// still waits.
    pub frame: Option<String>,
}
