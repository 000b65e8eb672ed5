//! The frames of the classic protocol, both directions (protocol.md section 1.1).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{MessageId, UserId};

/// A message to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassicMessage")]
pub struct Message {
    /// The text of the message.
    pub content: String,
    /// Optional; if present, it must be the connection's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userid: Option<UserId>,
}

/// The complete answer to a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassicResponse")]
pub struct Response {
    /// The text of the answer.
    pub content: String,
    /// The connection's user.
    pub userid: UserId,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// Id that correlates the log lines of all roles: the connection's `X-Correlation-ID`, `-`, and
    /// a counter.
    pub correlation_id: String,
    /// The message's identity. Absent only if a worker of the original system answered the
    /// message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
}

/// The rejection of a frame, or the failure or cancellation of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassicError")]
pub struct ErrorFrame {
    /// Human-readable reason.
    pub message: String,
    /// The connection's user.
    pub userid: UserId,
    /// Machine-readable reason. Absent only if a worker of the original system wrote the frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Id that correlates the log lines of all roles.
    pub correlation_id: String,
}
