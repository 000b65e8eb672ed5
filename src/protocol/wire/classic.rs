//! The classic protocol (protocol.md section 1.1): every frame of both directions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{MessageId, UserId};

/// A message to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassicMessage")]
pub struct Message {
    /// The text.
    pub content: String,
    /// May be left out; if it is there it must be the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userid: Option<UserId>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassicResponse")]
pub struct Response {
    /// The text.
    pub content: String,
    /// Whose.
    pub userid: UserId,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// From the worker's taking of the message to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// By which logs are followed: the connection's `X-Correlation-ID`, `-`, and a counter.
    pub correlation_id: String,
    /// The message; absent only where an original worker answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
}

/// A refusal, or a message that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassicError")]
pub struct Failure {
    /// For people.
    pub message: String,
    /// Whose.
    pub userid: UserId,
    /// For programs; absent only where an original worker wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// By which logs are followed.
    pub correlation_id: String,
}
