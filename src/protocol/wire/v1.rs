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
    /// A request for the frame `pong`.
    Ping,
}

/// A frame from the server to the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerToClient {
    /// The first frame of a connection, sent again when the client has to reload the history.
    Welcome(Welcome),
    /// The log has acknowledged a message.
    Accepted(Accepted),
    /// The next part of an answer.
    Delta(Delta),
    /// The complete text so far of an answer in flight.
    Snapshot(Snapshot),
    /// A new attempt begins, and the client discards the text so far.
    Restarted(Restarted),
    /// Terminal frame: the complete answer.
    Response(Response),
    /// Terminal frame: the message was cancelled.
    Cancelled(Cancelled),
    /// With `message_id`, a terminal frame: the message failed. Without it, the rejection of a
    /// frame or message.
    Error(ErrorFrame),
    /// The answer to `cancel`.
    CancelResult(CancelResult),
    /// The server is about to close the connection.
    Closing(Closing),
    /// The answer to `ping`.
    Pong,
    /// A frame of a type that only a later version of the protocol has. Clients ignore it.
    #[serde(other)]
    Other,
}

/// A message to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Message")]
pub struct Message {
    /// The client's identifier of the message. Messages with the same `id` within `DEDUP_TTL` are
    /// the same message, which is answered once.
    pub id: ClientMessageId,
    /// The text of the message.
    pub content: String,
    /// The message's conversation; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Whether the messages of the conversation that were pending before this message are
    /// cancelled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupt: bool,
    /// Optional; if present, it must be the connection's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userid: Option<UserId>,
    /// W3C trace context of the message. An invalid value is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Vendor-specific part of the trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

/// Cancels a message of the user, from whichever device it was sent. Names the message by exactly
/// one of its two identifiers.
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

/// Asks for the frame `pong`. For browsers, which cannot send WebSocket pings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Ping")]
pub struct Ping {}

/// The frame `pong`, the answer to `ping`.
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
    /// The position from which the client resumes when it reconnects. Opaque text, passed as
    /// `since`.
    pub position: String,
    /// Whether all frames after the client's `since` follow. If false, the client reloads the
    /// history: it sent no `since`, or frames after it may be gone.
    pub recovered: bool,
    /// Accepted messages without a terminal frame, oldest first.
    pub pending: Vec<Pending>,
    /// Time without a frame from the client, in milliseconds, after which the server sends a
    /// WebSocket ping.
    pub heartbeat_ms: u64,
    /// Limits on what the client may send.
    pub limits: Limits,
}

/// An accepted message without a terminal frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Pending")]
pub struct Pending {
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    pub conversation_id: ConversationId,
    /// The text of the message. Absent if it does not fit into the 256 KiB that `welcome` has for
    /// the texts of all pending messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Limits on what a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Limits")]
pub struct Limits {
    /// Maximum length of a message's content, in characters.
    pub max_content_chars: u64,
    /// Maximum size of a frame, in bytes.
    pub max_frame_bytes: u64,
    /// Maximum number of messages that may wait for their answers at the same time.
    pub max_pending: u64,
}

/// The log has acknowledged the message, so the message will get exactly one terminal frame. The
/// connection that sent the message gets this frame, and so do the user's other `chatmesh.v1`
/// connections, if one of them existed when the gateway took the message on, and the message has
/// not ended before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Accepted")]
pub struct Accepted {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    pub conversation_id: ConversationId,
    /// The text of the message. Absent on the connection that sent the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// The next part of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Delta")]
pub struct Delta {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Number of the attempt that generates the text, from 1.
    pub attempt: u32,
    /// Number of the delta within its attempt, from 0 without gaps. The delta with the index 0
    /// replaces all text so far.
    pub index: u32,
    /// The text to append.
    pub content: String,
}

/// The complete text so far of an answer in flight. It replaces the text that the client has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Snapshot")]
pub struct Snapshot {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    pub conversation_id: ConversationId,
    /// Number of the attempt that generates the text, from 1.
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
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Number of the attempt that begins.
    pub attempt: u32,
}

/// Terminal frame: the complete answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Response")]
pub struct Response {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity. Absent only if a worker of the original system answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Number of the attempt that generated the answer, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The complete text of the answer. It replaces the text that the client has.
    pub content: String,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// The provider's reason for ending the answer, or `length` if `MAX_ANSWER_BYTES` was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The tokens used, as counted by the model's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Id that correlates the log lines of all roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The frame's position, which the client passes as `since` when it reconnects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// W3C trace context of the message. Absent if the message has no trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Terminal frame: the message was cancelled, by the user, by an interrupt, or because its
/// conversation was deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Cancelled")]
pub struct Cancelled {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Number of the attempt that was cancelled, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The text that was generated before the message was cancelled. Absent if the conversation was
    /// deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// Id that correlates the log lines of all roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The frame's position, which the client passes as `since` when it reconnects. Absent if the
    /// conversation was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// W3C trace context of the message. Absent if the message has no trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// With `message_id`, a terminal frame: the message failed. Without it, the rejection of a frame or
/// message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Error")]
pub struct ErrorFrame {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity. Absent in a rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Number of the attempt that failed, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Machine-readable reason. Absent if a worker of the original system wrote the frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Human-readable reason.
    pub message: String,
    /// Whether another try may succeed: after a rejection with the same `id`, after a terminal
    /// frame with a new `id`.
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
    /// Id that correlates the log lines of all roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The position of a terminal frame, which the client passes as `since` when it reconnects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// W3C trace context of the message. Absent if the message has no trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The result of a `cancel`. It never claims an effect that did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CancelOutcome")]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// The message was pending or its answer was in flight, and it is being cancelled.
    Cancelling,
    /// The message has ended already, or its conversation was deleted.
    AlreadyDone,
    /// As far as the server knows, the message is neither pending nor ended. If the message arrives
    /// within `DEDUP_TTL`, it ends as `cancelled`.
    Unknown,
}

/// The frame `cancel_result`, the answer to `cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1CancelResult")]
pub struct CancelResult {
    /// The connection's user.
    pub userid: UserId,
    /// The message's identity.
    pub message_id: MessageId,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The result of the request.
    pub result: CancelOutcome,
}

/// The server is about to close the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Closing")]
pub struct Closing {
    /// The connection's user.
    pub userid: UserId,
    /// Why the server closes the connection.
    pub reason: String,
    /// Milliseconds to wait before the client reconnects.
    pub retry_after_ms: u64,
}
