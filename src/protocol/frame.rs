//! What clients send and get on the classic protocol (protocol.md section 1.1), and the published
//! frames that it is made of.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error_code::ErrorCode;
use super::ids::{ConversationId, MessageId, UserId};
use super::trace_context::TraceContext;

/// Why a client's frame is not taken: the `code` and the text of the `error` that answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// For programs.
    pub code: ErrorCode,
    /// For people; begins with `Invalid message`, and never quotes the frame.
    pub text: String,
}

impl Refused {
    pub(super) fn invalid(what: &str) -> Self {
        Self {
            code: ErrorCode::InvalidMessage,
            text: format!("{}: {what}", ErrorCode::InvalidMessage.text()),
        }
    }
}

#[derive(Deserialize)]
struct ClientFrame<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    userid: Option<Cow<'a, str>>,
}

/// The content of a classic client's frame. NUL is taken out of it, since stores behind may cut
/// there; every other character stays. Unknown fields are ignored.
pub fn parse_classic(
    text: &str,
    user: &UserId,
    max_content_chars: usize,
) -> Result<String, Refused> {
    let frame: ClientFrame<'_> = read_object(
        text,
        "a JSON object with the texts `type`, `content` is expected",
    )?;
    if frame.kind.as_deref() != Some("message") {
        return Err(Refused::invalid("`type` must be `message`"));
    }
    if frame
        .userid
        .as_deref()
        .is_some_and(|named| named != user.as_str())
    {
        return Err(Refused::invalid("`userid` must be the connection's"));
    }
    content_of(frame.content, max_content_chars)
}

/// Reads a client's frame; `expected` is the text where it is JSON but not that.
pub(super) fn read_object<'a, T: Deserialize<'a>>(
    text: &'a str,
    expected: &str,
) -> Result<T, Refused> {
    // An array would do for serde where its elements fit the fields.
    if !text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Err(Refused::invalid(expected));
    }
    // serde_json's own text can quote the frame, which is content.
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Refused::invalid(expected),
        _ => Refused::invalid("not JSON"),
    })
}

/// A message's text, of either protocol.
pub(super) fn content_of(
    content: Option<Cow<'_, str>>,
    max_content_chars: usize,
) -> Result<String, Refused> {
    let Some(content) = content else {
        return Err(Refused::invalid("`content` is missing"));
    };
    let content: String = if content.contains('\0') {
        content.chars().filter(|c| *c != '\0').collect()
    } else {
        content.into_owned()
    };
    if content.trim().is_empty() {
        return Err(Refused::invalid("`content` is empty"));
    }
    // The number of bytes bounds the number of characters: most messages need no count.
    if content.len() > max_content_chars && content.chars().count() > max_content_chars {
        return Err(Refused {
            code: ErrorCode::TooLarge,
            text: format!(
                "{}: `content` has more than {max_content_chars} characters",
                ErrorCode::InvalidMessage.text()
            ),
        });
    }
    Ok(content)
}

/// What a published frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Terminal: the whole answer.
    Response,
    /// Terminal: a failure.
    Error,
    /// Terminal: stopped by its user; published as an `error` with that code.
    Cancelled,
    /// A message of this user is durable.
    Accepted,
    /// A piece of an answer.
    Delta,
    /// The text so far is worth nothing.
    Restarted,
    /// Nothing that clients are to see.
    Other,
}

/// A frame published on one of a user's channels, as far as sockets need it. Tolerant: an original
/// service may have written it.
#[derive(Debug, Deserialize)]
pub struct Published<'a> {
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) processing_time_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) code: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) conversation_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) attempt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) index: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) retryable: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) retry_after_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    /// Whose it says it is.
    #[serde(borrow, default)]
    pub userid: Option<Cow<'a, str>>,
    /// By which logs are followed, and an answer without `message_id` is matched.
    #[serde(borrow, default)]
    pub correlation_id: Option<Cow<'a, str>>,
    /// The message; absent where an original worker answered it.
    #[serde(default)]
    pub message_id: Option<MessageId>,
    /// Where it is in `responses`; absent where an original relay published it.
    #[serde(borrow, default)]
    pub position: Option<Cow<'a, str>>,
    /// The trace of a terminal frame.
    #[serde(borrow, default)]
    pub(super) traceparent: Option<&'a RawValue>,
    /// The socket that sent the message, of an `accepted`.
    #[serde(borrow, default)]
    pub origin: Option<Cow<'a, str>>,
    /// Its number; absent where an original relay published it.
    #[serde(default)]
    pub n: Option<u64>,
    /// The random id of the counter that `n` is of.
    #[serde(borrow, default)]
    pub n_id: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct ClassicResponse<'a> {
    r#type: &'static str,
    content: Option<&'a RawValue>,
    userid: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processing_time_ms: Option<&'a RawValue>,
    correlation_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a MessageId>,
}

#[derive(Serialize)]
struct ClassicError<'a, M: Serialize, C: Serialize> {
    r#type: &'static str,
    message: M,
    userid: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<C>,
    correlation_id: &'a str,
}

pub(super) fn json(frame: &impl Serialize) -> String {
    // Only maps with other keys than strings can fail, and there are none.
    serde_json::to_string(frame).unwrap_or_default()
}

impl<'a> Published<'a> {
    /// Reads a published payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> Option<TraceContext> {
        // Nothing in a good one needs an escape.
        let field = self.traceparent?.get().strip_prefix('"')?;
        TraceContext::parse(field.strip_suffix('"')?, None)
    }

    /// The conversation; the default one where an original service wrote the frame.
    pub fn conversation(&self) -> Option<ConversationId> {
        let Some(raw) = self.conversation_id else {
            return Some(ConversationId::default_conversation());
        };
        let text: Cow<'_, str> = serde_json::from_str(raw.get()).ok()?;
        ConversationId::parse(&text).ok()
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match &*self.type_name {
            "response" => Kind::Response,
            "error" if self.code.is_some_and(|code| code.get() == r#""cancelled""#) => {
                Kind::Cancelled
            }
            "error" => Kind::Error,
            "accepted" => Kind::Accepted,
            "delta" => Kind::Delta,
            "restarted" => Kind::Restarted,
            _ => Kind::Other,
        }
    }

    /// Whether it ends a message.
    pub fn is_terminal(&self) -> bool {
        matches!(self.kind(), Kind::Response | Kind::Error | Kind::Cancelled)
    }

    /// What a classic socket of `user` gets of it: exactly the fields of section 1.1. `None` for a
    /// type that classic clients never see.
    pub fn to_classic(&self, user: &UserId) -> Option<String> {
        let correlation_id = self.correlation_id.as_deref().unwrap_or_default();
        match &*self.type_name {
            "response" => Some(json(&ClassicResponse {
                r#type: "response",
                content: self.content,
                userid: user,
                timestamp: self.timestamp,
                processing_time_ms: self.processing_time_ms,
                correlation_id,
                message_id: self.message_id.as_ref(),
            })),
            "error" => Some(match self.message {
                Some(message) => json(&ClassicError {
                    r#type: "error",
                    message,
                    userid: user,
                    code: self.code,
                    correlation_id,
                }),
                None => json(&ClassicError {
                    r#type: "error",
                    message: ErrorCode::Unavailable.text(),
                    userid: user,
                    code: self.code,
                    correlation_id,
                }),
            }),
            _ => None,
        }
    }
}

/// The terminal frame of a message of which everything else was forgotten, as a relay would publish it.
pub fn forgotten(message_id: &MessageId, correlation_id: &str) -> String {
    #[derive(Serialize)]
    struct Forgotten<'a> {
        r#type: &'static str,
        code: ErrorCode,
        message: &'static str,
        correlation_id: &'a str,
        message_id: &'a MessageId,
    }
    json(&Forgotten {
        r#type: "error",
        code: ErrorCode::Cancelled,
        message: ErrorCode::Cancelled.text(),
        correlation_id,
        message_id,
    })
}

/// An `error` frame of the gateway's own for a classic client.
pub fn classic_error(user: &UserId, code: ErrorCode, text: &str, correlation_id: &str) -> String {
    json(&ClassicError {
        r#type: "error",
        message: text,
        userid: user,
        code: Some(code),
        correlation_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> UserId {
        UserId::parse("alice").unwrap()
    }

    fn refused(text: &str) -> ErrorCode {
        let refused = parse_classic(text, &user(), 5).unwrap_err();
        assert!(refused.text.starts_with("Invalid message"), "{refused:?}");
        refused.code
    }

    #[test]
    fn an_array_is_no_message() {
        let user = UserId::parse("alice").unwrap();
        for bad in [
            r#"["message","hi"]"#,
            r#" ["message","hi",null]"#,
            "[]",
            "7",
        ] {
            let refused = parse_classic(bad, &user, 100).unwrap_err();
            assert!(
                refused.text.contains("a JSON object"),
                "{bad}: {}",
                refused.text
            );
        }
    }

    #[test]
    fn a_frame_that_is_no_message_is_refused_with_a_text_that_quotes_nothing() {
        for bad in [
            "",
            "hello",
            "[]",
            "{}",
            "null",
            r#"{"type":"message"}"#,
            r#"{"type":"ping","content":"x"}"#,
            r#"{"content":"x"}"#,
            r#"{"type":"message","content":7}"#,
            r#"{"type":"message","content":""}"#,
            r#"{"type":"message","content":" \n"}"#,
            r#"{"type":"message","content":"\u0000"}"#,
            r#"{"type":"message","content":"\ud800"}"#,
            r#"{"type":"message","content":"x","userid":"bob"}"#,
            r#"{"type":"message","content":"x","userid":7}"#,
        ] {
            assert_eq!(refused(bad), ErrorCode::InvalidMessage, "{bad}");
        }
        let long = r#"{"type":"message","content":"secret"}"#;
        assert_eq!(refused(long), ErrorCode::TooLarge);
        let text = parse_classic(long, &user(), 5).unwrap_err().text;
        assert!(!text.contains("secret"));
    }

    #[test]
    fn only_nul_is_taken_out_and_characters_are_counted_not_bytes() {
        let parse = |text: &str| parse_classic(text, &user(), 5);
        let frame = r#"{"type":"message","content":"a\u0000\tb\u0001","userid":"alice","x":[1]}"#;
        assert_eq!(parse(frame).unwrap(), "a\tb\u{1}");
        let frame = r#"{"type":"message","content":"ééééé"}"#;
        assert_eq!(parse(frame).unwrap(), "ééééé");
    }

    #[test]
    fn a_classic_client_gets_the_classic_fields_and_no_others() {
        let payload = br#"{"v":1,"type":"response","content":"h\u00e9 \"x\"","userid":"alice",
            "timestamp":"2024-01-01T12:00:00Z","processing_time_ms":12.5,"correlation_id":"c",
            "message_id":"m","conversation_id":"default","position":"a~0~1.4","n":3,"n_id":"z"}"#;
        let frame = Published::parse(payload).unwrap();
        assert_eq!(
            frame.to_classic(&user()).unwrap(),
            r#"{"type":"response","content":"h\u00e9 \"x\"","userid":"alice","timestamp":"2024-01-01T12:00:00Z","processing_time_ms":12.5,"correlation_id":"c","message_id":"m"}"#
        );
        let payload = br#"{"v":1,"type":"error","content":"part","message":"Cancelled",
            "userid":"alice","code":"cancelled","correlation_id":"c","message_id":"m"}"#;
        let frame = Published::parse(payload).unwrap();
        assert_eq!(
            frame.to_classic(&user()).unwrap(),
            r#"{"type":"error","message":"Cancelled","userid":"alice","code":"cancelled","correlation_id":"c"}"#
        );
        let payload = br#"{"type":"delta","content":"x"}"#;
        assert!(
            Published::parse(payload)
                .unwrap()
                .to_classic(&user())
                .is_none()
        );
    }
}
