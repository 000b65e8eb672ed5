//! Admission of messages and their cancellation, called by gateways.

use std::time::Duration;

use async_trait::async_trait;

use super::error::Result;
use super::message::MessageRef;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::position::Position;

/// Length of a UTC day in milliseconds, the period of the daily token limit.
pub(super) const DAY_MS: i64 = 86_400_000;

/// Admits messages to the log and cancels them.
#[async_trait]
pub trait Admissions: Send + Sync + 'static {
    /// Decides whether a gateway appends a message to the log. A new message is checked against the
    /// user's limits and recorded as pending; `content` is stored there for the user's other
    /// devices. Only the log's acknowledgement makes the message durable.
    async fn admit(&self, message: &MessageRef, content: &str) -> Result<Admission>;

    /// Announces a message that the log has acknowledged: publishes `frame`, the JSON of the
    /// `accepted` frame, on the live channel for the user's other connections. Does nothing where
    /// the message already has an outcome.
    async fn accept(&self, message: &MessageRef, frame: String) -> Result<()>;

    /// Cancels a message at the request of any of its user's devices.
    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult>;

    /// Removes a message from the pending ones because the gateway saw its answer. Needed only
    /// beside a relay of the original system, which does not do it (`docs/protocol.md` section 6).
    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()>;
}

/// Response to [`Admissions::admit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// What the gateway does with the message.
    pub decision: AdmissionDecision,
    /// For a new message: the number of subscriptions to the user's live channel. A gateway that
    /// subscribes later finds the message among the pending ones.
    pub live_subscribers: u64,
}

impl From<AdmissionDecision> for Admission {
    /// With an unknown number of subscriptions, so that the caller publishes in any case.
    fn from(decision: AdmissionDecision) -> Self {
        Self {
            decision,
            live_subscribers: u64::MAX,
        }
    }
}

/// What a gateway does with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionDecision {
    /// Append it to the log. No outcome is known, and it is recorded as pending.
    New,
    /// Refuse it. It exceeds a limit, and nothing was recorded.
    Refused(Limit),
    /// Append nothing. Its outcome is stored, and the terminal frame is on its way.
    OutcomeStored,
    /// Append nothing. Its outcome was delivered: the terminal frame and its position.
    Delivered(String, Position),
    /// Append nothing, and expect no frame. Its outcome was delivered once, and the message has
    /// been forgotten since. The connection that sent it again receives `cancelled` without
    /// content and position, unless it has received the outcome before.
    Forgotten,
}

/// A limit of one user that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Messages per window; one more is allowed after this time.
    Rate(Duration),
    /// Model tokens per UTC day; the day ends after this time.
    Tokens(Duration),
    /// Messages without an outcome.
    Pending,
    /// Conversations: the message would begin one more.
    Conversations,
}
