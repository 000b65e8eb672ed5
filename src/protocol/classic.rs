//! The classic protocol as the gateway reads and writes it (protocol.md section 1.1).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::encode_json;
use super::error_code::ErrorCode;
use super::ids::{MessageId, UserId};
use super::published::{FrameKind, PublishedFrame};
use super::validation::{Rejection, parse_object, validate_content};

/// A frame of a classic client, before it is validated.
#[derive(Deserialize)]
struct UncheckedFrame<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    userid: Option<Cow<'a, str>>,
}

/// Parses and validates a client's frame of type `message`, and returns its content without NUL
/// characters. Unknown fields are ignored.
///
/// # Errors
/// The frame is invalid. Contains code and text of the `error` frame that the client receives.
pub fn parse_message(
    text: &str,
    user: &UserId,
    max_content_chars: usize,
) -> Result<String, Rejection> {
    let frame: UncheckedFrame<'_> = parse_object(
        text,
        "a JSON object with the texts `type`, `content` is expected",
    )?;
    if frame.kind.as_deref() != Some("message") {
        return Err(Rejection::invalid("`type` must be `message`"));
    }
    if frame
        .userid
        .as_deref()
        .is_some_and(|named| named != user.as_str())
    {
        return Err(Rejection::invalid("`userid` must be the connection's"));
    }
    validate_content(frame.content, max_content_chars)
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

/// Encodes a published frame for a classic connection of `user`, with exactly the fields of section
/// 1.1. `None` for frame types that the classic protocol does not have.
pub fn encode_published(frame: &PublishedFrame<'_>, user: &UserId) -> Option<String> {
    let correlation_id = frame.correlation_id.as_deref().unwrap_or_default();
    match frame.kind() {
        FrameKind::Response => Some(encode_json(&ClassicResponse {
            r#type: "response",
            content: frame.content,
            userid: user,
            timestamp: frame.timestamp,
            processing_time_ms: frame.processing_time_ms,
            correlation_id,
            message_id: frame.message_id.as_ref(),
        })),
        FrameKind::Error | FrameKind::Cancelled => Some(match frame.message {
            Some(message) => encode_json(&ClassicError {
                r#type: "error",
                message,
                userid: user,
                code: frame.code,
                correlation_id,
            }),
            None => encode_json(&ClassicError {
                r#type: "error",
                message: ErrorCode::Unavailable.text(),
                userid: user,
                code: frame.code,
                correlation_id,
            }),
        }),
        _ => None,
    }
}

/// Encodes the `error` frame for a frame or message that the gateway rejects.
pub fn error_frame(user: &UserId, code: ErrorCode, text: &str, correlation_id: &str) -> String {
    encode_json(&ClassicError {
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

    fn rejection_code(text: &str) -> ErrorCode {
        let rejection = parse_message(text, &user(), 5).unwrap_err();
        assert!(
            rejection.text.starts_with("Invalid message"),
            "{rejection:?}"
        );
        rejection.code
    }

    #[test]
    fn array_is_rejected() {
        let user = UserId::parse("alice").unwrap();
        for bad in [
            r#"["message","hi"]"#,
            r#" ["message","hi",null]"#,
            "[]",
            "7",
        ] {
            let rejection = parse_message(bad, &user, 100).unwrap_err();
            assert!(
                rejection.text.contains("a JSON object"),
                "{bad}: {}",
                rejection.text
            );
        }
    }

    #[test]
    fn invalid_frame_is_rejected_without_quoting_it() {
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
            assert_eq!(rejection_code(bad), ErrorCode::InvalidMessage, "{bad}");
        }
        let long = r#"{"type":"message","content":"secret"}"#;
        assert_eq!(rejection_code(long), ErrorCode::TooLarge);
        let text = parse_message(long, &user(), 5).unwrap_err().text;
        assert!(!text.contains("secret"));
    }

    #[test]
    fn only_nul_is_removed_and_the_limit_counts_characters() {
        let parse = |text: &str| parse_message(text, &user(), 5);
        let frame = r#"{"type":"message","content":"a\u0000\tb\u0001","userid":"alice","x":[1]}"#;
        assert_eq!(parse(frame).unwrap(), "a\tb\u{1}");
        let frame = r#"{"type":"message","content":"ééééé"}"#;
        assert_eq!(parse(frame).unwrap(), "ééééé");
    }

    #[test]
    fn published_frame_is_encoded_with_the_classic_fields_only() {
        let payload = br#"{"v":1,"type":"response","content":"h\u00e9 \"x\"","userid":"alice",
            "timestamp":"2024-01-01T12:00:00Z","processing_time_ms":12.5,"correlation_id":"c",
            "message_id":"m","conversation_id":"default","position":"a~0~1.4","n":3,"n_id":"z"}"#;
        let frame = PublishedFrame::parse(payload).unwrap();
        assert_eq!(
            encode_published(&frame, &user()).unwrap(),
            r#"{"type":"response","content":"h\u00e9 \"x\"","userid":"alice","timestamp":"2024-01-01T12:00:00Z","processing_time_ms":12.5,"correlation_id":"c","message_id":"m"}"#
        );
        let payload = br#"{"v":1,"type":"error","content":"part","message":"Cancelled",
            "userid":"alice","code":"cancelled","correlation_id":"c","message_id":"m"}"#;
        let frame = PublishedFrame::parse(payload).unwrap();
        assert_eq!(
            encode_published(&frame, &user()).unwrap(),
            r#"{"type":"error","message":"Cancelled","userid":"alice","code":"cancelled","correlation_id":"c"}"#
        );
        let payload = br#"{"type":"delta","content":"x"}"#;
        assert!(encode_published(&PublishedFrame::parse(payload).unwrap(), &user()).is_none());
    }
}
