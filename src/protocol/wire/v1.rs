//! The frames of `chatmesh.v1`, both directions (protocol.md section 1.2).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::record::Usage;

/// A frame from the client to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientToServer {
    /// A message to be answered.
    Message(Message),
    /// A request to cancel a message.
    Cancel(Cancel),
    /// A request for `pong`.
    Ping,
}

/// A frame from the server to the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerToClient {
    /// The first frame of a connection.
    Welcome(Welcome),
    /// The log has acknowledged a message.
    Accepted(Accepted),
    /// The next part of an answer.
    Delta(Delta),
    /// The complete text so far of an answer in progress.
    Snapshot(Snapshot),
    /// A new attempt begins, and the text so far is invalid.
    Restarted(Restarted),
    /// Terminal: the complete answer.
    Response(Response),
    /// Terminal: the user cancelled the message.
    Cancelled(Cancelled),
    /// A rejection (without `message_id`), or terminal: the message failed (with one).
    Error(ErrorFrame),
    /// The answer to `cancel`.
    CancelResult(CancelResult),
    /// The server is about to close the connection.
    Closing(Closing),
    /// The answer to `ping`.
    Pong,
    /// A type of a later version of the protocol, which clients ignore.
    #[serde(other)]
    Other,
}

/// A message to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Message")]
pub struct Message {
    /// The client's identifier. The same `id` within `DEDUP_TTL` is the same message and is answered once.
    pub id: ClientMessageId,
    /// The text of the message.
    pub content: String,
    /// The conversation; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Cancels the pending messages of the conversation first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupt: bool,
    /// Optional; if present, it must be the connection's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userid: Option<UserId>,
    /// W3C trace context of the message. An invalid one is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Vendor-specific part of the trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

/// Cancels a message of the user, sent from any device. Names the message by exactly one of its two
/// identifiers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Cancel")]
#[schemars(extend("oneOf" = [{"required": ["id"]}, {"required": ["message_id"]}]))]
pub struct Cancel {
    /// The client's identifier of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
}

/// Asks for `pong`. For browsers, which cannot send WebSocket pings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Ping")]
pub struct Ping {}

/// The answer to `ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Pong")]
pub struct Pong {}

/// The first frame of every connection. Sent again with `recovered: false` whenever the client
/// has to reload the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Welcome")]
pub struct Welcome {
    /// The connection's user.
    pub userid: UserId,
    /// The gateway's `SERVER_ID`.
    pub server_id: String,
    /// The position from which the client resumes; opaque, for `since`.
    pub position: String,
    /// Whether all frames after the client's `since` follow. If false, the client reloads the history.
    pub recovered: bool,
    /// Accepted messages without a terminal frame, oldest first.
    pub pending: Vec<Pending>,
    /// Interval of the server's WebSocket pings, in milliseconds.
    pub heartbeat_ms: u64,
    /// Bounds of what the client may send.
    pub limits: Limits,
}

/// An accepted message without a terminal frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Pending")]
pub struct Pending {
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The text of the message. Absent if the contents of all pending messages together are too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Bounds of what a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Limits")]
pub struct Limits {
    /// Longest content of a message, in characters.
    pub max_content_chars: u64,
    /// Largest frame, in bytes.
    pub max_frame_bytes: u64,
    /// Largest number of messages that may wait for their answers.
    pub max_pending: u64,
}

/// The log has acknowledged the message, so it will get exactly one terminal frame. All of the user's
/// connections get this frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Accepted")]
pub struct Accepted {
    /// The user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The text of the message, on connections that did not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// The next part of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Delta")]
pub struct Delta {
    /// The user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that generates the text.
    pub attempt: u32,
    /// Counts from 0 without gaps within an attempt. 0 replaces all text so far.
    pub index: u32,
    /// The text to append.
    pub content: String,
}

/// The complete text so far of an answer in progress. It replaces the text that the client has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Snapshot")]
pub struct Snapshot {
    /// The user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The attempt that generates the text.
    pub attempt: u32,
    /// The index of the next delta.
    pub index: u32,
    /// The complete text so far.
    pub content: String,
}

/// A new attempt begins; the client discards the text so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Restarted")]
pub struct Restarted {
    /// The user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that begins.
    pub attempt: u32,
}

/// Terminal frame: the complete answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Response")]
pub struct Response {
    /// The user.
    pub userid: UserId,
    /// The message's identity. Absent only if a worker of the original system answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that generated the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The complete text. It replaces the text that the client has.
    pub content: String,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// The provider's reason for the end, or `length` if `MAX_ANSWER_BYTES` was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The tokens used, as counted by the model's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Correlates log lines of all roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The frame's position, for `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// W3C trace context of the message, if there is a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Terminal frame: the user cancelled the message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Cancelled")]
pub struct Cancelled {
    /// The user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The text so far. Absent if the conversation was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// Correlates log lines of all roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The frame's position, for `since`. Absent if the conversation was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// W3C trace context of the message, if there is a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Without `message_id`, the rejection of a frame. With one, a terminal frame: the message failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Error")]
pub struct ErrorFrame {
    /// The user.
    pub userid: UserId,
    /// The message's identity, in a terminal frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Machine-readable reason. Absent if a worker of the original system wrote the frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Human-readable reason.
    pub message: String,
    /// Whether a retry may succeed. After `unavailable`, retry with the same `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Milliseconds to wait before a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// Correlates log lines of all roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The position of a terminal frame, for `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// W3C trace context of the message, if there is a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The result of a `cancel`. It never claims an effect that did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CancelOutcome")]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// The message was pending and is being cancelled.
    Cancelling,
    /// The message already has its terminal frame.
    AlreadyDone,
    /// The message is unknown. If it has not arrived yet, it is cancelled when it arrives.
    Unknown,
}

/// The answer to `cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1CancelResult")]
pub struct CancelResult {
    /// The user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The result.
    pub result: CancelOutcome,
}

/// The server is about to close the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Closing")]
pub struct Closing {
    /// The user.
    pub userid: UserId,
    /// The reason of the close.
    pub reason: String,
    /// Milliseconds to wait before the client reconnects.
    pub retry_after_ms: u64,
}
