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
    stream: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<&'a RawValue>,
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
    parts: Option<&'a RawValue>,
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

/// The frame `delta` with the fields of an opening, in the order in which
/// [`delta_frame`](super::delta_frame) writes them.
#[derive(Serialize)]
struct OpeningFrame<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_end: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation_id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a RawValue>,
}

/// Encodes the `delta` that opens a part.
fn encode_opening(frame: &PublishedFrame<'_>) -> String {
    encode_json(&OpeningFrame {
        r#type: "delta",
        message_id: frame.message_id.as_ref(),
        stream: frame.stream,
        part: frame.part,
        offset: frame.offset,
        end: frame.end,
        kind: frame.part_kind,
        meta: frame.meta,
        previous_end: frame.previous_end,
        attempt: frame.attempt,
        id: frame.id,
        conversation_id: frame.conversation_id,
        content: frame.content,
    })
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
    if frame.kind() == FrameKind::Delta {
        return Some(encode_opening(frame));
    }
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
            parts: frame.parts,
            finish_reason: frame.finish_reason,
            model: frame.model,
            usage: frame.usage,
            ..terminal
        },
        FrameKind::Cancelled => Frame {
            kind: "cancelled",
            content: frame.content,
            parts: frame.parts,
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
        FrameKind::Restarted => Frame {
            kind: "restarted",
            stream: frame.stream,
            attempt: frame.attempt,
            ..base
        },
        FrameKind::Delta | FrameKind::Other => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::{ClientMessageId, ConversationId, StreamId};
    use crate::protocol::parts::TextRange;
    use crate::protocol::v1::{DeltaTarget, PartOpening, delta_frame};

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
            encode(r#"{"v":1,"type":"delta","message_id":"m","stream":"s.1","part":1,"offset":0,"end":6,"kind":"tool_call","meta":{"id":"a","name":"f"},"previous_end":3,"attempt":1,"id":"i","conversation_id":"c","content":",\"n\":1","secret":1,"userid":"alice","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"delta","message_id":"m","stream":"s.1","part":1,"offset":0,"end":6,"kind":"tool_call","meta":{"id":"a","name":"f"},"previous_end":3,"attempt":1,"id":"i","conversation_id":"c","content":",\"n\":1"}"#
        );
        assert_eq!(
            encode(r#"{"type":"restarted","userid":"alice","message_id":"m","id":"i","conversation_id":"c","stream":"s.2","attempt":2,"n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"restarted","userid":"alice","message_id":"m","id":"i","conversation_id":"c","stream":"s.2","attempt":2}"#
        );
        assert_eq!(
            encode(r#"{"v":1,"type":"response","userid":"alice","message_id":"m","conversation_id":"c","content":"Hi","parts":[{"kind":"new","x":1},{"kind":"text","length":2}],"position":"a~0~1.4","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"response","userid":"alice","message_id":"m","conversation_id":"c","content":"Hi","parts":[{"kind":"new","x":1},{"kind":"text","length":2}],"position":"a~0~1.4"}"#
        );
        assert_eq!(
            encode(r#"{"v":1,"type":"error","code":"cancelled","message":"Cancelled","content":"part","parts":[{"kind":"text","length":4}],"userid":"alice","message_id":"m","conversation_id":"c","correlation_id":"k","retryable":false,"position":"a~0~1.4","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"cancelled","userid":"alice","message_id":"m","conversation_id":"c","content":"part","parts":[{"kind":"text","length":4}],"correlation_id":"k","position":"a~0~1.4"}"#
        );
        assert_eq!(
            encode(r#"{"type":"accepted","userid":"alice","message_id":"m","conversation_id":"c","content":"q","origin":"o","n":3,"n_id":"z"}"#).unwrap(),
            r#"{"type":"accepted","userid":"alice","message_id":"m","conversation_id":"c","content":"q"}"#
        );
        assert_eq!(encode(r#"{"type":"cancel","message_id":"m"}"#), None);
    }

    #[test]
    fn opening_is_encoded_as_the_worker_encodes_its_deltas() {
        let target = DeltaTarget {
            message_id: &MessageId::parse("m").unwrap(),
            id: Some(&ClientMessageId::parse("i").unwrap()),
            conversation: &ConversationId::parse("c").unwrap(),
            stream: &StreamId::parse("s.1").unwrap(),
            attempt: 1,
        };
        let range = TextRange {
            part: 1,
            offset: 0,
            end: 2,
        };
        let meta = RawValue::from_string(r#"{"name":"f"}"#.into()).unwrap();
        let opening = PartOpening {
            kind: "data",
            meta: Some(&meta),
            previous_end: Some(7),
        };
        let json = delta_frame(target, range, Some(opening), "{}");
        let published = json.replace(
            "\"content\":\"{}\"",
            "\"content\":\"{}\",\"n\":4,\"n_id\":\"z\"",
        );
        let frame = PublishedFrame::parse(published.as_bytes()).unwrap();
        assert_eq!(encode_published(&frame, &user()), Some(json));
        let opening = frame.opening().unwrap();
        assert_eq!(opening.stream.as_str(), "s.1");
        assert_eq!((opening.range, opening.previous_end), (range, Some(7)));
    }

    #[test]
    fn frame_without_a_valid_field_of_an_opening_opens_no_part() {
        let opening = r#"{"type":"delta","message_id":"m","stream":"s.1","part":0,"offset":0,"end":2,"kind":"text","attempt":1,"content":"Hi"}"#;
        let is_opening = |json: &str| {
            let frame = PublishedFrame::parse(json.as_bytes()).unwrap();
            frame.opening().is_some()
        };
        assert!(is_opening(opening));
        for (valid, invalid) in [
            (r#""type":"delta""#, r#""type":"restarted""#),
            (r#","kind":"text""#, ""),
            (r#""stream":"s.1""#, r#""stream":"a b""#),
            (r#""part":0"#, r#""part":-1"#),
            (r#","offset":0"#, ""),
            (r#""end":2"#, r#""end":"2""#),
        ] {
            assert!(!is_opening(&opening.replace(valid, invalid)), "{invalid}");
        }
    }
}
