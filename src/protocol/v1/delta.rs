//! Encodes the frame `delta`, and reads the head of a published one. The worker publishes a delta
//! as clients receive it, so that a gateway forwards the bytes without decoding the rest.

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::encode_json;
use super::super::ids::{ClientMessageId, ConversationId, MessageId, StreamId};
use super::super::parts::TextRange;

/// The frame `delta`: a piece of a part's text. The order of the fields is that of the JSON, on
/// which [`DeltaHead::parse`] relies.
#[derive(Serialize)]
struct DeltaFrame<'a> {
    r#type: &'static str,
    message_id: &'a MessageId,
    stream: &'a StreamId,
    part: u32,
    offset: u32,
    end: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_end: Option<u32>,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    content: &'a str,
}

/// The fields with which the first `delta` of a part, its opening, describes the part.
#[derive(Debug, Clone, Copy)]
pub struct PartOpening<'a> {
    /// What the part contains.
    pub kind: &'a str,
    /// JSON object with the part's properties; `None` if it has none.
    pub meta: Option<&'a RawValue>,
    /// Length of the previous part in UTF-16 code units; `None` for the first part.
    pub previous_end: Option<u32>,
}

/// The message and the attempt that a `delta` belongs to.
#[derive(Debug, Clone, Copy)]
pub struct DeltaTarget<'a> {
    /// The message that is being answered.
    pub message_id: &'a MessageId,
    /// The identifier that the client has chosen for the message, if any.
    pub id: Option<&'a ClientMessageId>,
    /// The conversation that the message belongs to.
    pub conversation: &'a ConversationId,
    /// The stream of the attempt.
    pub stream: &'a StreamId,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

/// Encodes a `delta`. With `opening`, it is the first one of its part.
pub fn delta_frame(
    target: DeltaTarget<'_>,
    range: TextRange,
    opening: Option<PartOpening<'_>>,
    content: &str,
) -> String {
    encode_json(&DeltaFrame {
        r#type: "delta",
        message_id: target.message_id,
        stream: target.stream,
        part: range.part,
        offset: range.offset,
        end: range.end,
        kind: opening.map(|opening| opening.kind),
        meta: opening.and_then(|opening| opening.meta),
        previous_end: opening.and_then(|opening| opening.previous_end),
        attempt: target.attempt,
        id: target.id,
        conversation_id: target.conversation,
        content,
    })
}

/// The fields of a published `delta` that a gateway needs, read from the beginning of the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaHead<'a> {
    /// The message that is being answered.
    pub message_id: &'a str,
    /// The stream of the attempt that generates the text.
    pub stream: &'a str,
    /// Where the piece lies in the answer.
    pub range: TextRange,
}

impl<'a> DeltaHead<'a> {
    /// Reads the head of a `delta` that is no opening. `None` for an opening and for any other
    /// frame: those are decoded as a whole.
    pub fn parse(json: &'a str) -> Option<Self> {
        let rest = json.strip_prefix(r#"{"type":"delta","message_id":""#)?;
        let (message_id, rest) = rest.split_once('"')?;
        let (stream, rest) = rest.strip_prefix(r#","stream":""#)?.split_once('"')?;
        let (part, rest) = number(rest.strip_prefix(r#","part":"#)?)?;
        let (offset, rest) = number(rest.strip_prefix(r#","offset":"#)?)?;
        let (end, rest) = number(rest.strip_prefix(r#","end":"#)?)?;
        // An opening continues with `kind`.
        rest.strip_prefix(r#","attempt":"#)?;
        Some(Self {
            message_id,
            stream,
            range: TextRange { part, offset, end },
        })
    }
}

/// Splits a number off the beginning of `text`.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit())?;
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opening: Option<PartOpening<'_>>) -> String {
        let target = DeltaTarget {
            message_id: &MessageId::parse("m").unwrap(),
            id: Some(&ClientMessageId::parse("i").unwrap()),
            conversation: &ConversationId::parse("c").unwrap(),
            stream: &StreamId::parse("s.1").unwrap(),
            attempt: 2,
        };
        let range = TextRange {
            part: 1,
            offset: 3,
            end: 5,
        };
        delta_frame(target, range, opening, "l\"o")
    }

    #[test]
    fn delta_begins_with_the_fields_that_a_gateway_reads() {
        let json = frame(None);
        assert_eq!(
            json,
            r#"{"type":"delta","message_id":"m","stream":"s.1","part":1,"offset":3,"end":5,"attempt":2,"id":"i","conversation_id":"c","content":"l\"o"}"#
        );
        let head = DeltaHead::parse(&json).unwrap();
        assert_eq!((head.message_id, head.stream), ("m", "s.1"));
        assert_eq!(
            (head.range.part, head.range.offset, head.range.end),
            (1, 3, 5)
        );
    }

    #[test]
    fn opening_describes_its_part_and_is_not_read_by_its_head() {
        let meta = RawValue::from_string(r#"{"name":"f"}"#.into()).unwrap();
        let json = frame(Some(PartOpening {
            kind: "tool_call",
            meta: Some(&meta),
            previous_end: Some(7),
        }));
        assert_eq!(
            json,
            r#"{"type":"delta","message_id":"m","stream":"s.1","part":1,"offset":3,"end":5,"kind":"tool_call","meta":{"name":"f"},"previous_end":7,"attempt":2,"id":"i","conversation_id":"c","content":"l\"o"}"#
        );
        assert_eq!(DeltaHead::parse(&json), None);
    }

    #[test]
    fn other_frames_and_malformed_heads_are_not_read() {
        for json in [
            "",
            r#"{"type":"restarted","message_id":"m"}"#,
            r#"{"type":"delta","message_id":"m","stream":"s","part":1,"offset":3,"end":5}"#,
            r#"{"type":"delta","message_id":"m","stream":"s","part":-1,"offset":3,"end":5,"attempt":1}"#,
            r#"{"type":"delta","message_id":"m","stream":"s","part":99999999999,"offset":3,"end":5,"attempt":1}"#,
            r#"{"type":"delta","message_id":"m","part":1,"offset":3,"end":5,"attempt":1}"#,
        ] {
            assert_eq!(DeltaHead::parse(json), None, "{json}");
        }
    }
}
