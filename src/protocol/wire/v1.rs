//! `chatmesh.v1` (protocol.md section 1.2): every frame of both directions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::record::Usage;

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToServer {
    /// Answer this.
    Message(Message),
    /// Stop a message.
    Cancel(Cancel),
    /// Are you there?
    Ping,
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromServer {
    /// The first frame.
    Welcome(Welcome),
    /// A message is durable.
    Accepted(Accepted),
    /// A piece of an answer.
    Delta(Delta),
    /// The whole text of an answer so far.
    Snapshot(Snapshot),
    /// The text so far is worth nothing.
    Restarted(Restarted),
    /// Terminal: the whole answer.
    Response(Response),
    /// Terminal: stopped.
    Cancelled(Cancelled),
    /// Refused (without `message_id`), or terminal failure (with one).
    Error(Failure),
    /// The answer to `cancel`.
    CancelResult(CancelResult),
    /// The server will close.
    Closing(Closing),
    /// The answer to `ping`.
    Pong,
    /// A type of a later version, which this one passes over.
    #[serde(other)]
    Other,
}

/// A message to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Message")]
pub struct Message {
    /// Chosen by the client. The same one again within `DEDUP_TTL` is the same message.
    pub id: ClientMessageId,
    /// The text.
    pub content: String,
    /// Where it belongs; `default` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Cancels what is pending in the conversation before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupt: bool,
    /// May be left out; if it is there it must be the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userid: Option<UserId>,
    /// The trace that the client began for it (W3C trace context); a bad one is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

/// Stops a message, by one of its two names, from any device of its user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Cancel")]
#[schemars(extend("oneOf" = [{"required": ["id"]}, {"required": ["message_id"]}]))]
pub struct Cancel {
    /// As the client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// As the server named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
}

/// Are you there? For browsers, which can't send protocol pings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Ping")]
pub struct Ping {}

/// The answer to `ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Pong")]
pub struct Pong {}

/// The first frame, always; once more with `recovered: false` whenever the client has to reload
/// the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Welcome")]
pub struct Welcome {
    /// Whose socket.
    pub userid: UserId,
    /// Which gateway.
    pub server_id: String,
    /// From where the client goes on; opaque, for `since`.
    pub position: String,
    /// Whether everything after the client's `since` follows.
    pub recovered: bool,
    /// What is accepted and has not ended, oldest first.
    pub pending: Vec<Pending>,
    /// Between the server's protocol pings, milliseconds.
    pub heartbeat_ms: u64,
    /// What a client may send.
    pub limits: Limits,
}

/// A message that is accepted and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Pending")]
pub struct Pending {
    /// The message.
    pub message_id: MessageId,
    /// As the client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    pub conversation_id: ConversationId,
    /// The text; left out where all of them together would be too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// What a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Limits")]
pub struct Limits {
    /// Characters of a message's content.
    pub max_content_chars: u64,
    /// Bytes of a frame.
    pub max_frame_bytes: u64,
    /// Messages of one user that have not ended; 0: any number.
    pub max_pending: u64,
}

/// The message is durable. Goes to all of the user's sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Accepted")]
pub struct Accepted {
    /// Whose.
    pub userid: UserId,
    /// The message.
    pub message_id: MessageId,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    pub conversation_id: ConversationId,
    /// The text, on sockets that did not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Delta")]
pub struct Delta {
    /// Whose.
    pub userid: UserId,
    /// The message.
    pub message_id: MessageId,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Which attempt writes it.
    pub attempt: u32,
    /// From 0 without gaps within an attempt; 0 begins the text anew.
    pub index: u32,
    /// What to append.
    pub content: String,
}

/// The whole text so far: it replaces what there was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Snapshot")]
pub struct Snapshot {
    /// Whose.
    pub userid: UserId,
    /// The message.
    pub message_id: MessageId,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    pub conversation_id: ConversationId,
    /// Which attempt writes it.
    pub attempt: u32,
    /// The next delta has this one.
    pub index: u32,
    /// The text so far.
    pub content: String,
}

/// Throw away the text so far: another attempt begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Restarted")]
pub struct Restarted {
    /// Whose.
    pub userid: UserId,
    /// The message.
    pub message_id: MessageId,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that begins.
    pub attempt: u32,
}

/// Terminal: the whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Response")]
pub struct Response {
    /// Whose.
    pub userid: UserId,
    /// The message; absent only where an original worker answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The whole text: it replaces what there was.
    pub content: String,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// From the worker's taking of the message to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// The provider's reason to end, or `length` where `MAX_ANSWER_BYTES` ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// By which logs are followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Where it is; for `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// The trace that the message belongs to (W3C trace context), where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Terminal: stopped by its user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Cancelled")]
pub struct Cancelled {
    /// Whose.
    pub userid: UserId,
    /// The message.
    pub message_id: MessageId,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The text so far; absent where it was forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// From the worker's taking of the message to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// By which logs are followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Where it is; for `since`. Absent where everything else of the message was forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// The trace that the message belongs to (W3C trace context), where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Without `message_id`: refused. With one: the message failed for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Error")]
pub struct Failure {
    /// Whose.
    pub userid: UserId,
    /// The message, where it ends here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// Where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The attempt that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What went wrong, for programs; absent where an original worker wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// For people.
    pub message: String,
    /// Whether sending it again (`unavailable`: with the same `id`) may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// After how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// From the worker's taking of the message to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// By which logs are followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Where it is, if it is terminal; for `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// The trace that the message belongs to (W3C trace context), where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What became of a `cancel`. It never claims what did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CancelOutcome")]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// The message was pending, and is being stopped.
    Cancelling,
    /// It had ended.
    AlreadyDone,
    /// Nothing is known of it; if it is on its way, it is stopped when it arrives.
    Unknown,
}

/// The answer to `cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1CancelResult")]
pub struct CancelResult {
    /// Whose.
    pub userid: UserId,
    /// The message.
    pub message_id: MessageId,
    /// As its client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// What became of it.
    pub result: CancelOutcome,
}

/// The server will close this connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Closing")]
pub struct Closing {
    /// Whose.
    pub userid: UserId,
    /// Why.
    pub reason: String,
    /// Come back after this long.
    pub retry_after_ms: u64,
}
