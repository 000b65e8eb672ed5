//! The frames of `chatmesh.v1`, both directions (protocol.md section 1.2).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, StreamId, UserId};
use crate::protocol::parts::{FinishedPart, MAX_PARTS, PartKind, PartMeta, known_meta};
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
    /// A piece of the text of an answer's part.
    Delta(Delta),
    /// The parts so far of an answer in flight.
    Snapshot(Snapshot),
    /// A new attempt begins, and the client discards the parts so far.
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

/// A piece of the text of an answer's part. The first delta of a part, its opening, has `kind`. The
/// client appends the text that lies beyond the end of the text that it has. If text is missing
/// before the piece, the client waits for the next `snapshot` or `restarted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1Delta")]
#[schemars(extend("dependentRequired" = {"meta": ["kind"], "previous_end": ["kind"]}))]
pub struct Delta {
    /// The message's identity.
    pub message_id: MessageId,
    /// The stream of the attempt that generates the answer. The opening of part 0 of another stream
    /// replaces all parts; any other delta of another stream is ignored.
    pub stream: StreamId,
    /// Number of the part within its stream, from 0.
    #[schemars(extend("maximum" = MAX_PARTS - 1))]
    pub part: u32,
    /// Where the piece begins in the part's text, in UTF-16 code units; 0 in an opening.
    pub offset: u32,
    /// Where the piece ends in the part's text, in UTF-16 code units.
    pub end: u32,
    /// What the part contains. Present only in the opening of a part. Later versions may have other
    /// kinds. A client counts such a part and its text, and shows nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PartKind>")]
    pub kind: Option<String>,
    /// Properties of the part. Present only in the opening of a part that has some.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "known_meta"
    )]
    pub meta: Option<PartMeta>,
    /// Length of the previous part in UTF-16 code units. Present only in the opening of a part that
    /// is not the first. If the client has another length, it lacks text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_end: Option<u32>,
    /// Number of the attempt that generates the answer, from 1.
    pub attempt: u32,
    /// The client's identifier of the message. Absent if the client has chosen none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The text of the piece. May be empty in an opening.
    pub content: String,
}

/// The parts so far of an answer in flight. They replace the parts that the client has.
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
    /// The stream of the attempt that generates the answer. The next deltas continue it.
    pub stream: StreamId,
    /// Number of the attempt that generates the answer, from 1.
    pub attempt: u32,
    /// The parts so far, in order. Only the last part can still grow.
    pub parts: Vec<SnapshotPart>,
}

/// A part of an answer in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "V1SnapshotPart")]
pub struct SnapshotPart {
    /// What the part contains. Later versions may have other kinds. A client counts such a part and
    /// its text, and shows nothing of it.
    #[schemars(with = "PartKind")]
    pub kind: String,
    /// Properties of the part. Absent if the part has none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "known_meta"
    )]
    pub meta: Option<PartMeta>,
    /// The text of the part so far.
    pub content: String,
}

/// A new attempt begins; the client discards the parts so far.
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
    /// The stream of the attempt that begins.
    pub stream: StreamId,
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
    /// The parts of the answer, in order. Absent if the answer is one part of text, or empty. The
    /// texts of the parts `text` and `refusal`, in order, are `content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<FinishedPart>>,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<serde_json::Number>,
    /// The provider's reason for ending the answer, or `length` if the answer reached
    /// `MAX_ANSWER_BYTES` or 256 parts.
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
    /// The text that was generated before the message was cancelled. Absent if the conversation was
    /// deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The parts that were generated before the message was cancelled, like those of `response`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<FinishedPart>>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_with_parts_of_a_later_version_are_decoded() {
        let answer = r#""userid":"u","message_id":"m","conversation_id":"c""#;
        let part = r#"{"kind":"image","meta":[{"w":1}],"content":"x","length":1}"#;
        let frames = [
            r#"{"type":"delta","message_id":"m","stream":"s","part":0,"offset":0,"end":1,"kind":"image","meta":{"id":1},"attempt":1,"content":"x"}"#.to_owned(),
            format!(r#"{{"type":"snapshot",{answer},"stream":"s","attempt":1,"parts":[{part}]}}"#),
            format!(r#"{{"type":"response",{answer},"content":"","parts":[{part}]}}"#),
            format!(r#"{{"type":"cancelled",{answer},"parts":[{part}]}}"#),
        ];
        for json in frames {
            let kind = match serde_json::from_str(&json).unwrap() {
                ServerToClient::Delta(frame) => frame.kind.unwrap(),
                ServerToClient::Snapshot(frame) => frame.parts[0].kind.clone(),
                ServerToClient::Response(Response { parts, .. })
                | ServerToClient::Cancelled(Cancelled { parts, .. }) => {
                    parts.unwrap()[0].kind.clone()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(kind, "image", "{json}");
        }
    }

    #[test]
    fn delta_is_encoded_like_the_published_one() {
        use crate::protocol::parts::TextRange;
        use crate::protocol::v1::{DeltaTarget, PartOpening, delta_frame};

        let meta = PartMeta {
            name: Some("f".into()),
            ..PartMeta::default()
        };
        let meta = serde_json::value::RawValue::from_string(meta.to_json()).unwrap();
        let opening = PartOpening {
            kind: PartKind::ToolCall.as_str(),
            meta: Some(&meta),
            previous_end: Some(7),
        };
        let target = DeltaTarget {
            message_id: &MessageId::parse("m").unwrap(),
            id: Some(&ClientMessageId::parse("i").unwrap()),
            conversation: &ConversationId::parse("c").unwrap(),
            stream: &StreamId::parse("s.1").unwrap(),
            attempt: 2,
        };
        let range = TextRange {
            part: 1,
            offset: 0,
            end: 2,
        };
        for opening in [Some(opening), None] {
            let json = delta_frame(target, range, opening, "{}");
            let frame: ServerToClient = serde_json::from_str(&json).unwrap();
            assert!(matches!(frame, ServerToClient::Delta(_)));
            assert_eq!(serde_json::to_string(&frame).unwrap(), json);
        }
    }
}
