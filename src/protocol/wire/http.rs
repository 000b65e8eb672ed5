//! What the HTTP routes answer (protocol.md section 4).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// `POST /token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IssuedToken {
    /// The token. It is a secret.
    pub token: String,
    /// Whose.
    pub userid: UserId,
    /// How long it is good for, seconds.
    pub expires_in: u64,
}

/// `DELETE /token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevokedTokens {
    /// Whose.
    pub userid: UserId,
    /// Always true.
    pub revoked: bool,
}

/// `GET /conversations`: newest turn first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConversationList {
    /// This page's.
    pub conversations: Vec<ConversationEntry>,
    /// For `after`; null at the end.
    pub next: Option<ConversationId>,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConversationEntry {
    /// Its name.
    pub conversation_id: ConversationId,
    /// How many turns are kept.
    pub turns: u64,
    /// Of the newest turn, RFC 3339.
    pub updated_at: String,
}

/// `GET /conversations/{id}/messages`: newest first, one entry a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageList {
    /// Of which conversation.
    pub conversation_id: ConversationId,
    /// This page's.
    pub messages: Vec<TurnEntry>,
    /// For `before`; null at the end.
    pub next: Option<MessageId>,
}

/// A question and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TurnEntry {
    /// The message.
    pub message_id: MessageId,
    /// What was asked; null where only the answer is known.
    pub question: Option<String>,
    /// The answer; of a cancelled one the text so far.
    pub answer: String,
    /// How it ended.
    pub status: TurnEnd,
    /// When, RFC 3339.
    pub timestamp: String,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnEnd {
    /// With an answer.
    Answered,
    /// By its user.
    Cancelled,
    /// Without an answer.
    Failed,
}

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// For programs: an `error` frame's code, `not_found` or `method_not_allowed`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Always `healthy`.
    pub status: String,
    /// The original's name of this job.
    pub service: String,
    /// `SERVER_ID`.
    pub server_id: String,
    /// Users with a connection here (gateway only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_users: Option<u64>,
    /// Connections here (gateway only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_connections: Option<u64>,
}

/// `GET /health/live`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alive {
    /// Always `alive`.
    pub status: String,
}

/// `GET /health/ready`: 200 with `ready`, 503 with `unavailable` and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ready {
    /// `ready` or `unavailable`.
    pub status: String,
    /// What is out of reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependency: Option<String>,
    /// Why, or `draining`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
