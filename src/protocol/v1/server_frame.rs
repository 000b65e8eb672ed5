//! Encodes the `chatmesh.v1` frames that a gateway makes itself, and does not receive from the
//! fan-out.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::encode_json;
use super::super::error_code::ErrorCode;
use super::super::ids::{ClientMessageId, ConversationId, MessageId, StreamId, UserId};
use super::super::open_message::{CancelResult, InFlightAnswer, PendingMessage};
use super::super::wire::v1::Limits;

/// Maximum size in bytes of all contents in one `welcome`. A pending message whose content does not
/// fit is listed without it, so that a user with many long messages can still connect.
const MAX_WELCOME_CONTENT_BYTES: usize = 256 << 10;

/// The frame `pong`, the answer to `ping`.
pub const PONG_FRAME: &str = r#"{"type":"pong"}"#;

/// The frame `welcome`, the first frame of every connection.
#[derive(Debug)]
pub struct WelcomeFrame<'a> {
    /// The connection's user.
    pub user: &'a UserId,
    /// The gateway's `SERVER_ID`.
    pub server_id: &'a str,
    /// The position from which the client resumes when it connects again.
    pub position: &'a str,
    /// Whether all frames after the client's `since` follow. If false, the client has to reload the
    /// history: it sent no `since`, or frames after it may be gone.
    pub recovered: bool,
    /// Accepted messages without a terminal frame, oldest first.
    pub pending: &'a [PendingMessage],
    /// Time without a frame from the client, in milliseconds, after which the server sends a
    /// WebSocket ping.
    pub heartbeat_ms: u64,
    /// Limits on what the client may send.
    pub limits: Limits,
}

/// A pending message in `welcome`.
#[derive(Serialize)]
struct PendingEntry<'a> {
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl WelcomeFrame<'_> {
    /// Encodes the frame as JSON.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Shape<'a> {
            r#type: &'static str,
            userid: &'a UserId,
            server_id: &'a str,
            position: &'a str,
            recovered: bool,
            pending: Vec<PendingEntry<'a>>,
            heartbeat_ms: u64,
            limits: Limits,
        }
        let mut available_bytes = MAX_WELCOME_CONTENT_BYTES;
        let pending = self.pending.iter().map(|message| {
            let content = (message.content.len() <= available_bytes).then_some(&*message.content);
            available_bytes -= content.map_or(0, str::len);
            PendingEntry {
                message_id: &message.message_id,
                id: message.id.as_ref(),
                conversation_id: &message.conversation,
                content,
            }
        });
        encode_json(&Shape {
            r#type: "welcome",
            userid: self.user,
            server_id: self.server_id,
            position: self.position,
            recovered: self.recovered,
            pending: pending.collect(),
            heartbeat_ms: self.heartbeat_ms,
            limits: self.limits,
        })
    }
}

/// The frame `accepted`. The connection that sent the message gets the frame without content and
/// origin. For the user's other connections the frame is published, with content and origin.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AcceptedFrame<'a> {
    /// The message's user.
    pub userid: &'a UserId,
    /// The message's identity.
    pub message_id: &'a MessageId,
    /// The client's identifier of the message, if the client has chosen an identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a ClientMessageId>,
    /// The message's conversation.
    pub conversation_id: &'a ConversationId,
    /// The message's text, for connections that did not send it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// Random id of the connection that sent the message. The gateway of that connection does not
    /// deliver the published frame to it. Clients do not receive this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<&'a str>,
}

/// A frame: its `type`, followed by the other fields.
#[derive(Serialize)]
struct Tagged<T: Serialize> {
    r#type: &'static str,
    #[serde(flatten)]
    fields: T,
}

impl AcceptedFrame<'_> {
    /// Encodes the frame as JSON.
    pub fn to_json(self) -> String {
        encode_json(&Tagged {
            r#type: "accepted",
            fields: self,
        })
    }
}

/// Encodes the frame `snapshot`: the current stream of an answer in flight with all its parts so
/// far.
pub fn snapshot_frame(user: &UserId, answer: &InFlightAnswer) -> String {
    #[derive(Serialize)]
    struct Part<'a> {
        kind: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        meta: Option<&'a RawValue>,
        content: &'a str,
    }
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        message_id: &'a MessageId,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a ClientMessageId>,
        conversation_id: &'a ConversationId,
        stream: &'a StreamId,
        attempt: u32,
        parts: Vec<Part<'a>>,
    }
    let parts = answer.parts.iter().map(|part| Part {
        kind: &part.kind,
        // Properties that are no JSON are left out: without them the frame is still readable.
        meta: part
            .meta
            .as_deref()
            .and_then(|meta| serde_json::from_str(meta).ok()),
        content: &part.text,
    });
    encode_json(&Shape {
        r#type: "snapshot",
        userid: user,
        message_id: &answer.message_id,
        id: answer.id.as_ref(),
        conversation_id: &answer.conversation,
        stream: &answer.stream,
        attempt: answer.attempt,
        parts: parts.collect(),
    })
}

/// Encodes the frame `error` for a message or frame that the gateway rejects. The frame has no
/// `message_id`.
pub fn error_frame(
    user: &UserId,
    id: Option<&ClientMessageId>,
    code: ErrorCode,
    text: &str,
    correlation_id: &str,
) -> String {
    error_frame_with_retry(user, id, code, text, correlation_id, None)
}

/// Like [`error_frame`], with the time after which the client may retry, if there is such a time.
pub fn error_frame_with_retry(
    user: &UserId,
    id: Option<&ClientMessageId>,
    code: ErrorCode,
    text: &str,
    correlation_id: &str,
    retry_after: Option<Duration>,
) -> String {
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a ClientMessageId>,
        code: ErrorCode,
        message: &'a str,
        retryable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        correlation_id: &'a str,
    }
    encode_json(&Shape {
        r#type: "error",
        userid: user,
        id,
        code,
        message: text,
        retryable: code.is_retryable(),
        retry_after_ms: retry_after.map(|delay| delay.as_millis() as u64),
        correlation_id,
    })
}

/// Encodes the frame `cancel_result`, the answer to `cancel`.
pub fn cancel_result_frame(
    user: &UserId,
    message_id: &MessageId,
    id: Option<&ClientMessageId>,
    result: CancelResult,
) -> String {
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        message_id: &'a MessageId,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a ClientMessageId>,
        result: &'static str,
    }
    encode_json(&Shape {
        r#type: "cancel_result",
        userid: user,
        message_id,
        id,
        result: match result {
            CancelResult::Cancelling => "cancelling",
            CancelResult::AlreadyDone => "already_done",
            CancelResult::Unknown => "unknown",
        },
    })
}

/// Encodes the frame `cancelled` for the resend of a forgotten message: the conversation was
/// deleted, and a terminal frame of the message was delivered before. The frame has no content.
pub fn forgotten_message_frame(
    user: &UserId,
    message_id: &MessageId,
    id: Option<&ClientMessageId>,
    conversation_id: &ConversationId,
) -> String {
    let fields = AcceptedFrame {
        userid: user,
        message_id,
        id,
        conversation_id,
        content: None,
        origin: None,
    };
    encode_json(&Tagged {
        r#type: "cancelled",
        fields,
    })
}

/// Encodes the frame `closing`: the gateway closes the connection soon, and the client should
/// reconnect after `retry_after_ms` milliseconds.
pub fn closing_frame(user: &UserId, reason: &str, retry_after_ms: u64) -> String {
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        reason: &'a str,
        retry_after_ms: u64,
    }
    encode_json(&Shape {
        r#type: "closing",
        userid: user,
        reason,
        retry_after_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::open_message::InFlightPart;

    #[test]
    fn snapshot_has_all_parts_in_order() {
        let part = |kind: &str, meta: Option<&str>, text: &str| InFlightPart {
            kind: kind.into(),
            meta: meta.map(Into::into),
            length: text.len() as u32,
            text: text.into(),
        };
        let mut answer = InFlightAnswer {
            message_id: MessageId::parse("m").unwrap(),
            id: ClientMessageId::parse("i").ok(),
            conversation: ConversationId::parse("c").unwrap(),
            attempt: 2,
            stream: StreamId::parse("s.2").unwrap(),
            parts: vec![
                part("reasoning", None, "hm"),
                part("tool_call", Some(r#"{"name":"f"}"#), "{\"a\":1}"),
                part("text", Some("no json"), ""),
            ],
        };
        let user = UserId::parse("alice").unwrap();
        assert_eq!(
            snapshot_frame(&user, &answer),
            r#"{"type":"snapshot","userid":"alice","message_id":"m","id":"i","conversation_id":"c","stream":"s.2","attempt":2,"parts":[{"kind":"reasoning","content":"hm"},{"kind":"tool_call","meta":{"name":"f"},"content":"{\"a\":1}"},{"kind":"text","content":""}]}"#
        );
        answer.parts.clear();
        answer.id = None;
        assert_eq!(
            snapshot_frame(&user, &answer),
            r#"{"type":"snapshot","userid":"alice","message_id":"m","conversation_id":"c","stream":"s.2","attempt":2,"parts":[]}"#
        );
    }
}
