//! The calls that a gateway makes before and after it appends a message to the log (`admit`,
//! `accept`), and to cancel a message (`cancel`).

use std::time::Duration;

use async_trait::async_trait;

use super::error::Result;
use super::message::MessageRef;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::position::Position;

/// Length of a UTC day in milliseconds, the period of the daily token limit.
pub(super) const DAY_MS: i64 = 86_400_000;

/// Decides which messages a gateway appends to the log, and cancels messages.
#[async_trait]
pub trait Admissions: Send + Sync + 'static {
    /// Decides whether a gateway appends a message to the log. A new message is checked against the
    /// user's limits and recorded as pending. Its `content` is stored in the pending entry, so that
    /// the user's other devices can show it. Only the log's acknowledgement makes the message
    /// durable.
    async fn admit(&self, message: &MessageRef, content: &str) -> Result<Admission>;

    /// Announces a message that the log has acknowledged: publishes `frame`, the JSON of the
    /// `accepted` frame, on the live channel for the user's other connections. Does nothing if the
    /// message has an outcome or was forgotten.
    async fn accept(&self, message: &MessageRef, frame: String) -> Result<()>;

    /// Cancels a message at the request of any device of the user, and notifies the worker that
    /// generates its answer.
    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult>;

    /// Removes the pending entry of a message whose terminal frame the gateway has received. Needed
    /// only for a relay of the original system, which does not remove the entry
    /// (`docs/protocol.md` section 6).
    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()>;
}

/// Response to [`Admissions::admit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Whether the gateway appends the message to the log, and what it sends to the client.
    pub decision: AdmissionDecision,
    /// Number of subscriptions to the user's live channel. With [`AdmissionDecision::New`], a
    /// gateway that has the only subscription need not publish the `accepted` frame: a gateway that
    /// subscribes later finds the message among the pending messages. [`u64::MAX`] means unknown.
    pub live_subscribers: u64,
}

impl From<AdmissionDecision> for Admission {
    /// An admission with an unknown number of subscriptions.
    fn from(decision: AdmissionDecision) -> Self {
        Self {
            decision,
            live_subscribers: u64::MAX,
        }
    }
}

/// Whether a gateway appends a message to the log, and what it sends to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionDecision {
    /// The gateway appends the message to the log. No outcome of the message was delivered or
    /// stored. The message is recorded as pending, unless it was forgotten before.
    New,
    /// The gateway refuses the message, because it exceeds this limit. Nothing was recorded.
    Refused(Limit),
    /// The gateway appends nothing. The message's outcome is stored, and a relay delivers its
    /// terminal frame soon.
    OutcomeStored,
    /// The gateway appends nothing. The message's outcome was delivered. Contains the terminal
    /// frame as JSON and its position.
    Delivered(String, Position),
    /// The gateway appends nothing, and no frame follows. The message's outcome was delivered, and
    /// the message was forgotten after that. The connection that sent the message again receives
    /// `cancelled` without content and position, unless it has received the outcome before.
    Forgotten,
}

/// The limit of a user that a message would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Messages per window. Contains the time after which one more message is allowed.
    Rate(Duration),
    /// Model tokens per UTC day. Contains the remaining time of the day.
    Tokens(Duration),
    /// Number of pending messages.
    Pending,
    /// Number of conversations, which the message would increase.
    Conversations,
}
