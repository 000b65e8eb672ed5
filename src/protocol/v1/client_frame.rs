//! Parses and validates the frames that `chatmesh.v1` clients send.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use super::super::trace_context::TraceContext;
use super::super::validation::{Rejection, parse_object, validate_content};

/// A valid frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// A message to be answered.
    Message {
        /// Identifier that the client has chosen. A later message with the same identifier is a
        /// resend of this message.
        id: ClientMessageId,
        /// The text of the message, without NUL characters.
        content: String,
        /// The message's conversation; `default` if the frame names no conversation.
        conversation: ConversationId,
        /// Whether the messages of the conversation that were pending before this message are
        /// cancelled.
        interrupt: bool,
        /// The trace context in the frame, if it is valid.
        trace: Option<TraceContext>,
    },
    /// A request to cancel a message.
    Cancel {
        /// The message to cancel. Derived from `id` if the frame names the message by `id`.
        message_id: MessageId,
        /// The client's identifier of the message, if the frame names the message by it.
        id: Option<ClientMessageId>,
    },
    /// A request for the frame `pong`.
    Ping,
}

/// An invalid frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedFrame {
    /// Code and text of the `error` frame that the client receives.
    pub rejection: Rejection,
    /// The value of `id` in the frame, if it can be read.
    pub id: Option<ClientMessageId>,
}

/// A frame of a client, before it is validated.
#[derive(Deserialize)]
struct UncheckedFrame<'a> {
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
    // The trace fields stay undecoded, so that a value of a wrong type never invalidates the
    // message.
    #[serde(borrow, default)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tracestate: Option<&'a RawValue>,
}

impl UncheckedFrame<'_> {
    fn trace(&self) -> Option<TraceContext> {
        let text = |field: &RawValue| serde_json::from_str::<String>(field.get()).ok();
        let tracestate = self.tracestate.and_then(text);
        TraceContext::parse(&text(self.traceparent?)?, tracestate.as_deref())
    }
}

/// The field `id` of an invalid frame. The other fields are ignored.
#[derive(Deserialize)]
struct FrameId {
    #[serde(default)]
    id: Option<ClientMessageId>,
}

/// Parses and validates a client's frame. Unknown fields are ignored, and NUL characters are
/// removed from the content.
///
/// # Errors
/// The frame is invalid. The text of the rejection never quotes it.
pub fn parse_client_frame(
    text: &str,
    user: &UserId,
    max_content_chars: usize,
) -> Result<ClientFrame, RejectedFrame> {
    validate(text, user, max_content_chars).map_err(|rejection| RejectedFrame {
        rejection,
        id: serde_json::from_str::<FrameId>(text)
            .ok()
            .and_then(|frame| frame.id),
    })
}

fn validate(text: &str, user: &UserId, max_content_chars: usize) -> Result<ClientFrame, Rejection> {
    let frame: UncheckedFrame<'_> = parse_object(
        text,
        "a JSON object with fields of the documented types is expected",
    )?;
    if frame
        .userid
        .as_deref()
        .is_some_and(|named| named != user.as_str())
    {
        return Err(Rejection::invalid("`userid` must be the connection's"));
    }
    let client_id = |text: &str| {
        ClientMessageId::parse(text).map_err(|error| Rejection::invalid(&error.to_string()))
    };
    match frame.kind.as_deref() {
        Some("ping") => Ok(ClientFrame::Ping),
        Some("cancel") => match (&frame.id, &frame.message_id) {
            (Some(given), None) => {
                let id = client_id(given)?;
                Ok(ClientFrame::Cancel {
                    message_id: MessageId::from_client_id(user, &id),
                    id: Some(id),
                })
            }
            (None, Some(given)) => Ok(ClientFrame::Cancel {
                message_id: MessageId::parse(given)
                    .map_err(|error| Rejection::invalid(&error.to_string()))?,
                id: None,
            }),
            _ => Err(Rejection::invalid(
                "either `id` or `message_id` is expected",
            )),
        },
        Some("message") => {
            let Some(given) = &frame.id else {
                return Err(Rejection::invalid("`id` is missing"));
            };
            let id = client_id(given)?;
            let conversation = match &frame.conversation_id {
                Some(given) => ConversationId::parse(given)
                    .map_err(|error| Rejection::invalid(&error.to_string()))?,
                None => ConversationId::default_conversation(),
            };
            Ok(ClientFrame::Message {
                id,
                trace: frame.trace(),
                content: validate_content(frame.content, max_content_chars)?,
                conversation,
                interrupt: frame.interrupt.unwrap_or(false),
            })
        }
        _ => Err(Rejection::invalid(
            "`type` must be `message`, `cancel` or `ping`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::error_code::ErrorCode;
    use super::*;

    fn user() -> UserId {
        UserId::parse("alice").unwrap()
    }

    #[test]
    fn rejection_names_the_id_and_never_quotes_the_frame() {
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
            let rejected = parse_client_frame(bad, &user(), 100).unwrap_err();
            assert_eq!(
                rejected.id.as_ref().map(ClientMessageId::as_str),
                id,
                "{bad}"
            );
            assert_eq!(rejected.rejection.code, ErrorCode::InvalidMessage, "{bad}");
            assert!(rejected.rejection.text.starts_with("Invalid message"));
            assert!(!rejected.rejection.text.contains("secret"));
        }
        let long = r#"{"type":"message","id":"a","content":"secret"}"#;
        let rejected = parse_client_frame(long, &user(), 5).unwrap_err();
        assert_eq!(rejected.rejection.code, ErrorCode::TooLarge);
    }
}
