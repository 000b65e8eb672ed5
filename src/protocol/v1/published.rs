//! Encodes the frames that the gateway receives from the fan-out for `chatmesh.v1` connections.

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::encode_json;
use super::super::error_code::ErrorCode;
use super::super::ids::{MessageId, UserId};
use super::super::published::{FrameKind, PublishedFrame};

/// All fields that a frame about a message can have, in the order in which they are written. Each
/// type of frame leaves the fields that it does not have `None`.
#[derive(Serialize, Default, Clone, Copy)]
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
    message: Option<ErrorText<'a>>,
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

/// The human-readable text of an `error` frame.
#[derive(Serialize, Clone, Copy)]
#[serde(untagged)]
enum ErrorText<'a> {
    /// The text in the published frame, undecoded.
    Published(&'a RawValue),
    /// The text for a published frame that has none.
    Default(&'static str),
}

/// Encodes a published frame for a `chatmesh.v1` connection of `user`, with exactly the fields of
/// section 1.2: internal fields such as `n` and `origin` are left out. `None` if the frame is of a
/// type that clients do not receive.
pub fn encode_published(frame: &PublishedFrame<'_>, user: &UserId) -> Option<String> {
    let base = Frame {
        userid: Some(user),
        message_id: frame.message_id.as_ref(),
        id: frame.id,
        conversation_id: frame.conversation_id,
        ..Frame::default()
    };
    let terminal = Frame {
        correlation_id: frame.correlation_id.as_deref(),
        timestamp: frame.timestamp,
        processing_time_ms: frame.processing_time_ms,
        attempt: frame.attempt,
        position: frame.position.as_deref(),
        traceparent: frame.traceparent,
        ..base
    };
    Some(encode_json(&match frame.kind() {
        FrameKind::Response => Frame {
            kind: "response",
            content: frame.content,
            finish_reason: frame.finish_reason,
            model: frame.model,
            usage: frame.usage,
            ..terminal
        },
        FrameKind::Cancelled => Frame {
            kind: "cancelled",
            content: frame.content,
            ..terminal
        },
        FrameKind::Error => Frame {
            kind: "error",
            code: frame.code,
            message: Some(frame.message.map_or_else(
                || ErrorText::Default(ErrorCode::Unavailable.text()),
                ErrorText::Published,
            )),
            retryable: frame.retryable,
            retry_after_ms: frame.retry_after_ms,
            ..terminal
        },
        FrameKind::Accepted => Frame {
            kind: "accepted",
            content: frame.content,
            ..base
        },
        FrameKind::Delta | FrameKind::Restarted => Frame {
            kind: if frame.kind() == FrameKind::Delta {
                "delta"
            } else {
                "restarted"
            },
            index: frame.index,
            attempt: frame.attempt,
            content: frame.content,
            ..base
        },
        FrameKind::Other => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> UserId {
        UserId::parse("alice").unwrap()
    }

    #[test]
    fn published_frame_is_encoded_with_the_documented_fields_only() {
        let encode = |payload: &str| {
            let frame = PublishedFrame::parse(payload.as_bytes()).unwrap();
            encode_published(&frame, &user())
        };
        assert_eq!(
            encode(r#"{"v":1,"type":"delta","userid":"alice","message_id":"m","id":"i","conversation_id":"c","attempt":1,"index":0,"content":",\"n\":1","secret":1,"n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"delta","userid":"alice","message_id":"m","id":"i","conversation_id":"c","attempt":1,"index":0,"content":",\"n\":1"}"#
        );
        assert_eq!(
            encode(r#"{"v":1,"type":"error","code":"cancelled","message":"Cancelled","content":"part","userid":"alice","message_id":"m","conversation_id":"c","correlation_id":"k","retryable":false,"position":"a~0~1.4","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"cancelled","userid":"alice","message_id":"m","conversation_id":"c","content":"part","correlation_id":"k","position":"a~0~1.4"}"#
        );
        assert_eq!(
            encode(r#"{"type":"accepted","userid":"alice","message_id":"m","conversation_id":"c","content":"q","origin":"o","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"accepted","userid":"alice","message_id":"m","conversation_id":"c","content":"q"}"#
        );
        assert_eq!(encode(r#"{"type":"cancel","message_id":"m"}"#), None);
    }
}
