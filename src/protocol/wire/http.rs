//! The response bodies of the HTTP routes (protocol.md section 4).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::parts::FinishedPart;

/// Response of `POST /token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IssuedToken {
    /// The token. It is a secret.
    pub token: String,
    /// The user who may connect with the token.
    pub userid: UserId,
    /// Remaining lifetime of the token, in seconds.
    pub expires_in: u64,
}

/// Response of `DELETE /token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevokedTokens {
    /// The user whose tokens were revoked.
    pub userid: UserId,
    /// Always true.
    pub revoked: bool,
}

/// Response of `GET /conversations`, a page of the user's conversations. The conversation with the
/// newest turn comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConversationList {
    /// The conversations of this page.
    pub conversations: Vec<ConversationEntry>,
    /// Value of the parameter `after` for the next page; null on the last page.
    pub next: Option<ConversationId>,
}

/// A conversation in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConversationEntry {
    /// The conversation's identifier.
    pub conversation_id: ConversationId,
    /// Number of stored turns.
    pub turns: u64,
    /// Time of the newest turn, RFC 3339.
    pub updated_at: String,
}

/// Response of `GET /conversations/{id}/messages`, a page of turns, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageList {
    /// The conversation's identifier.
    pub conversation_id: ConversationId,
    /// The turns of this page.
    pub messages: Vec<TurnEntry>,
    /// Value of the parameter `before` for the next page; null on the last page.
    pub next: Option<MessageId>,
}

/// A turn: a question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TurnEntry {
    /// The message's identity.
    pub message_id: MessageId,
    /// The text of the question; null if the history has only the answer.
    pub question: Option<String>,
    /// The text of the answer. If the message was cancelled, the text that was generated before.
    pub answer: String,
    /// The parts of the answer, in order. Absent if the answer is one part of text, or empty. The
    /// texts of the parts `text` and `refusal`, in order, are `answer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<FinishedPart>>,
    /// How the turn ended.
    pub status: TurnStatus,
    /// Time of the turn, RFC 3339.
    pub timestamp: String,
}

// Other programs may use the schema under its first name, `TurnEnd`.
/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TurnEnd")]
#[serde(rename_all = "snake_case")]
pub enum TurnStatus {
    /// The message was answered.
    Answered,
    /// The message was cancelled.
    Cancelled,
    /// The message failed.
    Failed,
}

/// Response to a request that was rejected or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Refused")]
pub struct ErrorBody {
    /// Machine-readable reason: a code of `error` frames, `not_found` or `method_not_allowed`.
    pub code: String,
    /// Human-readable reason.
    pub message: String,
}

/// Response of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Always `healthy`.
    pub status: String,
    /// Name of the service in the original system that has this role.
    pub service: String,
    /// The process's `SERVER_ID`.
    pub server_id: String,
    /// Number of users with a connection to this gateway; absent in other roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_users: Option<u64>,
    /// Number of connections to this gateway; absent in other roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_connections: Option<u64>,
}

/// Response of `GET /health/live`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Alive")]
pub struct Liveness {
    /// Always `alive`.
    pub status: String,
}

/// Response of `GET /health/ready`: 200 with `ready`, or 503 with `unavailable` and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Ready")]
pub struct Readiness {
    /// `ready` or `unavailable`.
    pub status: String,
    /// Name of the unavailable dependency. Absent if the process is ready or draining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependency: Option<String>,
    /// Why the process is not ready: the dependency's error, or `draining`. Absent if it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
