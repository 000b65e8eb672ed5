//! What clients send and get on `chatmesh.v1` (protocol.md section 1.2).

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error_code::ErrorCode;
use super::frame::{Kind, Published, Refused, content_of, json, read_object};
use super::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use super::trace_context::TraceContext;
use crate::protocol::open_message::{CancelResult, InFlightAnswer, PendingMessage};

/// The name in `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "chatmesh.v1";

/// Bytes of contents in one `welcome`; pending messages over it are listed without.
const WELCOME_CONTENTS: usize = 256 << 10;

/// A client's frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// Answer this.
    Message {
        /// Chosen by the client.
        id: ClientMessageId,
        /// The text.
        content: String,
        /// Where it belongs.
        conversation: ConversationId,
        /// Cancels what is pending before it in its conversation.
        interrupt: bool,
        /// The trace that the client began for it.
        trace: Option<TraceContext>,
    },
    /// Stop a message.
    Cancel {
        /// Which.
        message_id: MessageId,
        /// As the client named it, if it did.
        id: Option<ClientMessageId>,
    },
    /// Are you there?
    Ping,
}

/// Why a frame is not taken, and the client's `id` in it where it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedFrame {
    /// Code and text.
    pub refused: Refused,
    /// The client's own identifier.
    pub id: Option<ClientMessageId>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    conversation_id: Option<Cow<'a, str>>,
    #[serde(default)]
    interrupt: Option<bool>,
    #[serde(borrow, default)]
    userid: Option<Cow<'a, str>>,
    // Whatever they are: a bad trace never costs a message.
    #[serde(borrow, default)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tracestate: Option<&'a RawValue>,
}

impl Raw<'_> {
    fn trace(&self) -> Option<TraceContext> {
        let text = |field: &RawValue| serde_json::from_str::<String>(field.get()).ok();
        let state = self.tracestate.and_then(text);
        TraceContext::parse(&text(self.traceparent?)?, state.as_deref())
    }
}

#[derive(Deserialize)]
struct OnlyId {
    #[serde(default)]
    id: Option<ClientMessageId>,
}

/// Reads a client's frame. Unknown fields are ignored; NUL is taken out of the content.
///
/// # Errors
/// The `code` and the text of the `error` that answers it; the text never quotes the frame.
pub fn parse(
    text: &str,
    user: &UserId,
    max_content_chars: usize,
) -> Result<ClientFrame, RefusedFrame> {
    read(text, user, max_content_chars).map_err(|refused| RefusedFrame {
        refused,
        id: serde_json::from_str::<OnlyId>(text).ok().and_then(|o| o.id),
    })
}

fn read(text: &str, user: &UserId, max_content_chars: usize) -> Result<ClientFrame, Refused> {
    let frame: Raw<'_> = read_object(
        text,
        "a JSON object with fields of the documented types is expected",
    )?;
    if frame
        .userid
        .as_deref()
        .is_some_and(|named| named != user.as_str())
    {
        return Err(Refused::invalid("`userid` must be the connection's"));
    }
    let id = |given: &str| {
        ClientMessageId::parse(given).map_err(|error| Refused::invalid(&error.to_string()))
    };
    match frame.kind.as_deref() {
        Some("ping") => Ok(ClientFrame::Ping),
        Some("cancel") => match (&frame.id, &frame.message_id) {
            (Some(given), None) => {
                let id = id(given)?;
                Ok(ClientFrame::Cancel {
                    message_id: MessageId::of_client(user, &id),
                    id: Some(id),
                })
            }
            (None, Some(given)) => Ok(ClientFrame::Cancel {
                message_id: MessageId::parse(given)
                    .map_err(|error| Refused::invalid(&error.to_string()))?,
                id: None,
            }),
            _ => Err(Refused::invalid("either `id` or `message_id` is expected")),
        },
        Some("message") => {
            let Some(given) = &frame.id else {
                return Err(Refused::invalid("`id` is missing"));
            };
            let id = id(given)?;
            let conversation = match &frame.conversation_id {
                Some(given) => ConversationId::parse(given)
                    .map_err(|error| Refused::invalid(&error.to_string()))?,
                None => ConversationId::default_conversation(),
            };
            Ok(ClientFrame::Message {
                id,
                trace: frame.trace(),
                content: content_of(frame.content, max_content_chars)?,
                conversation,
                interrupt: frame.interrupt.unwrap_or(false),
            })
        }
        _ => Err(Refused::invalid(
            "`type` must be `message`, `cancel` or `ping`",
        )),
    }
}

/// Every field that a frame about a message can have; which of them, its kind says.
#[derive(Serialize, Default)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    userid: Option<&'a UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation_id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retryable: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processing_time_ms: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Given(&'a RawValue),
    Ours(&'static str),
}

/// What a `chatmesh.v1` socket of `user` gets of a published frame: exactly the fields of section
/// 1.2, whatever else was published. `None` for what is not for clients.
pub fn of_published(frame: &Published<'_>, user: &UserId) -> Option<String> {
    let base = Frame {
        userid: Some(user),
        message_id: frame.message_id.as_ref(),
        id: frame.id,
        conversation_id: frame.conversation_id,
        ..Frame::default()
    };
    let end = Frame {
        correlation_id: frame.correlation_id.as_deref(),
        timestamp: frame.timestamp,
        processing_time_ms: frame.processing_time_ms,
        attempt: frame.attempt,
        position: frame.position.as_deref(),
        traceparent: frame.traceparent,
        ..base
    };
    Some(json(&match frame.kind() {
        Kind::Response => Frame {
            kind: "response",
            content: frame.content,
            finish_reason: frame.finish_reason,
            model: frame.model,
            usage: frame.usage,
            ..end
        },
        Kind::Cancelled => Frame {
            kind: "cancelled",
            content: frame.content,
            ..end
        },
        Kind::Error => Frame {
            kind: "error",
            code: frame.code,
            message: Some(
                frame
                    .message
                    .map_or_else(|| Text::Ours(ErrorCode::Unavailable.text()), Text::Given),
            ),
            retryable: frame.retryable,
            retry_after_ms: frame.retry_after_ms,
            ..end
        },
        Kind::Accepted => Frame {
            kind: "accepted",
            content: frame.content,
            correlation_id: None,
            timestamp: None,
            processing_time_ms: None,
            attempt: None,
            position: None,
            traceparent: None,
            ..end
        },
        Kind::Delta | Kind::Restarted => Frame {
            kind: if frame.kind() == Kind::Delta {
                "delta"
            } else {
                "restarted"
            },
            index: frame.index,
            content: frame.content,
            correlation_id: None,
            timestamp: None,
            processing_time_ms: None,
            position: None,
            traceparent: None,
            ..end
        },
        Kind::Other => return None,
    }))
}

/// The limits that `welcome` names.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Characters of a message's content.
    pub max_content_chars: usize,
    /// Bytes of a client's frame.
    pub max_frame_bytes: usize,
    /// Messages of one connection that the log has not acknowledged.
    pub max_pending: usize,
}

/// What `welcome` says.
#[derive(Debug)]
pub struct Welcome<'a> {
    /// Whose socket.
    pub user: &'a UserId,
    /// Which gateway.
    pub server_id: &'a str,
    /// From where the client goes on.
    pub position: &'a str,
    /// False where the client has to reload the history.
    pub recovered: bool,
    /// What is accepted and has not ended.
    pub pending: &'a [PendingMessage],
    /// Between protocol pings, milliseconds.
    pub heartbeat_ms: u64,
    /// Limits.
    pub limits: Limits,
}

#[derive(Serialize)]
struct PendingEntry<'a> {
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Welcome<'_> {
    /// As JSON.
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
        let mut room = WELCOME_CONTENTS;
        let entry = |one: &'_ PendingMessage| {
            let fits = one.content.len() <= room;
            room -= if fits { one.content.len() } else { 0 };
            fits
        };
        let fits: Vec<bool> = self.pending.iter().map(entry).collect();
        let pending = self.pending.iter().zip(fits);
        json(&Shape {
            r#type: "welcome",
            userid: self.user,
            server_id: self.server_id,
            position: self.position,
            recovered: self.recovered,
            pending: pending
                .map(|(one, fits)| PendingEntry {
                    message_id: &one.message_id,
                    id: one.id.as_ref(),
                    conversation_id: &one.conversation,
                    content: fits.then_some(&one.content),
                })
                .collect(),
            heartbeat_ms: self.heartbeat_ms,
            limits: self.limits,
        })
    }
}

/// `accepted`: for its sender without content and origin, for the user's other sockets, as it is
/// published, with both.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Accepted<'a> {
    /// Whose.
    pub userid: &'a UserId,
    /// The message.
    pub message_id: &'a MessageId,
    /// The client's own identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a ClientMessageId>,
    /// The conversation.
    pub conversation_id: &'a ConversationId,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// The random id of the socket that sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<&'a str>,
}

#[derive(Serialize)]
struct Tagged<T: Serialize> {
    r#type: &'static str,
    #[serde(flatten)]
    rest: T,
}

impl Accepted<'_> {
    /// As JSON.
    pub fn to_json(self) -> String {
        json(&Tagged {
            r#type: "accepted",
            rest: self,
        })
    }
}

/// The whole text of an answer being written.
pub fn snapshot(user: &UserId, answer: &InFlightAnswer) -> String {
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        message_id: &'a MessageId,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a ClientMessageId>,
        conversation_id: &'a ConversationId,
        attempt: u32,
        index: u32,
        content: &'a str,
    }
    json(&Shape {
        r#type: "snapshot",
        userid: user,
        message_id: &answer.message_id,
        id: answer.id.as_ref(),
        conversation_id: &answer.conversation,
        attempt: answer.attempt,
        index: answer.index,
        content: &answer.text,
    })
}

/// An `error` of the gateway's own: a refusal, so it has no `message_id`.
pub fn error(
    user: &UserId,
    id: Option<&ClientMessageId>,
    code: ErrorCode,
    text: &str,
    correlation_id: &str,
) -> String {
    refusal(user, id, code, text, correlation_id, None)
}

/// The same, and when it may be tried again.
pub fn refusal(
    user: &UserId,
    id: Option<&ClientMessageId>,
    code: ErrorCode,
    text: &str,
    correlation_id: &str,
    wait: Option<Duration>,
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
    json(&Shape {
        r#type: "error",
        userid: user,
        id,
        code,
        message: text,
        retryable: code.retryable(),
        retry_after_ms: wait.map(|wait| wait.as_millis() as u64),
        correlation_id,
    })
}

/// The answer to `cancel`.
pub fn cancel_result(
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
    json(&Shape {
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

/// The end of a message of which everything else was forgotten.
pub fn forgotten(
    user: &UserId,
    message_id: &MessageId,
    id: Option<&ClientMessageId>,
    conversation_id: &ConversationId,
) -> String {
    let rest = Accepted {
        userid: user,
        message_id,
        id,
        conversation_id,
        content: None,
        origin: None,
    };
    json(&Tagged {
        r#type: "cancelled",
        rest,
    })
}

/// The answer to `ping`.
pub const PONG: &str = r#"{"type":"pong"}"#;

/// The server will close; come back after so many milliseconds.
pub fn closing(user: &UserId, reason: &str, retry_after_ms: u64) -> String {
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        reason: &'a str,
        retry_after_ms: u64,
    }
    json(&Shape {
        r#type: "closing",
        userid: user,
        reason,
        retry_after_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> UserId {
        UserId::parse("alice").unwrap()
    }

    #[test]
    fn a_refused_frame_names_the_id_it_had_and_quotes_nothing() {
        for (bad, id) in [
            (r#"{"type":"message","id":"a","content":7}"#, Some("a")),
            (r#"{"type":"message","id":"a"}"#, Some("a")),
            (r#"{"type":"message","id":"a b","content":"secret"}"#, None),
            (r#"{"type":"message","content":"secret"}"#, None),
            (
                r#"{"type":"message","id":"a","content":"secret","conversation_id":""}"#,
                Some("a"),
            ),
            (
                r#"{"type":"message","id":"a","content":"secret","userid":"bob"}"#,
                Some("a"),
            ),
            (r#"{"type":"cancel"}"#, None),
            (r#"{"type":"cancel","id":"a","message_id":"b"}"#, Some("a")),
            (r#"{"type":"nonsense","id":"a"}"#, Some("a")),
            ("secret", None),
        ] {
            let refused = parse(bad, &user(), 100).unwrap_err();
            assert_eq!(
                refused.id.as_ref().map(ClientMessageId::as_str),
                id,
                "{bad}"
            );
            assert_eq!(refused.refused.code, ErrorCode::InvalidMessage, "{bad}");
            assert!(refused.refused.text.starts_with("Invalid message"));
            assert!(!refused.refused.text.contains("secret"));
        }
        let long = r#"{"type":"message","id":"a","content":"secret"}"#;
        let refused = parse(long, &user(), 5).unwrap_err();
        assert_eq!(refused.refused.code, ErrorCode::TooLarge);
    }

    #[test]
    fn only_the_documented_fields_of_a_published_frame_reach_a_client() {
        let of = |payload: &str| {
            let frame = Published::parse(payload.as_bytes()).unwrap();
            of_published(&frame, &user())
        };
        assert_eq!(
            of(r#"{"v":1,"type":"delta","userid":"alice","message_id":"m","id":"i","conversation_id":"c","attempt":1,"index":0,"content":",\"n\":1","secret":1,"n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"delta","userid":"alice","message_id":"m","id":"i","conversation_id":"c","attempt":1,"index":0,"content":",\"n\":1"}"#
        );
        assert_eq!(
            of(r#"{"v":1,"type":"error","code":"cancelled","message":"Cancelled","content":"part","userid":"alice","message_id":"m","conversation_id":"c","correlation_id":"k","retryable":false,"position":"a~0~1.4","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"cancelled","userid":"alice","message_id":"m","conversation_id":"c","content":"part","correlation_id":"k","position":"a~0~1.4"}"#
        );
        assert_eq!(
            of(r#"{"type":"accepted","userid":"alice","message_id":"m","conversation_id":"c","content":"q","origin":"o","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"accepted","userid":"alice","message_id":"m","conversation_id":"c","content":"q"}"#
        );
        assert_eq!(of(r#"{"type":"cancel","message_id":"m"}"#), None);
    }
}
