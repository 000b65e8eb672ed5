//! Encodes the text of an answer in flight that a connection is missing.

use crate::protocol::open_message::InFlightAnswer;
use crate::protocol::parts::{TextRange, byte_index_of_utf16};
use crate::protocol::v1::{DeltaTarget, PartOpening, delta_frame};

/// Encodes one `delta` for each part of which a client has less than `answer`, in the order of the
/// parts. The client has `received` code units of each part of the same stream. A part that the
/// client does not have is sent as its opening. Returns `None` where the client can't continue its
/// text by deltas, because it has more than `answer`: it then needs a snapshot.
pub(super) fn missing_deltas(answer: &InFlightAnswer, received: &[u32]) -> Option<Vec<String>> {
    if received.len() > answer.parts.len() {
        return None;
    }
    let target = DeltaTarget {
        message_id: &answer.message_id,
        id: answer.id.as_ref(),
        conversation: &answer.conversation,
        stream: &answer.stream,
        attempt: answer.attempt,
    };
    let mut frames = Vec::new();
    let mut previous_end = None;
    for (part, number) in answer.parts.iter().zip(0_u32..) {
        let received = received.get(number as usize).copied();
        let offset = received.unwrap_or(0);
        if offset > part.length {
            return None;
        }
        let opening = PartOpening {
            kind: &part.kind,
            // Properties that are no JSON are left out: without them the frame is still readable.
            meta: part
                .meta
                .as_deref()
                .and_then(|meta| serde_json::from_str(meta).ok()),
            previous_end,
        };
        let opening = received.is_none().then_some(opening);
        if opening.is_some() || offset < part.length {
            let range = TextRange {
                part: number,
                offset,
                end: part.length,
            };
            // A piece never ends inside a character, so the offset is at the beginning of one.
            let text = &part.text[byte_index_of_utf16(&part.text, offset)?..];
            frames.push(delta_frame(target, range, opening, text));
        }
        previous_end = Some(part.length);
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::{ConversationId, MessageId, StreamId};
    use crate::protocol::open_message::InFlightPart;
    use crate::protocol::parts::utf16_len;
    use serde_json::Value;

    fn answer(parts: &[(&str, &str)]) -> InFlightAnswer {
        InFlightAnswer {
            message_id: MessageId::parse("m").unwrap(),
            id: None,
            conversation: ConversationId::default_conversation(),
            attempt: 1,
            stream: StreamId::parse("s.1").unwrap(),
            parts: parts
                .iter()
                .map(|(kind, text)| InFlightPart {
                    kind: (*kind).into(),
                    meta: (*kind == "source").then(|| r#"{"url":"u"}"#.into()),
                    length: utf16_len(text),
                    text: (*text).into(),
                })
                .collect(),
        }
    }

    /// The fields of the frames that say which text is sent.
    fn described(frames: &[String]) -> Vec<String> {
        let describe = |frame: &String| {
            let frame: Value = serde_json::from_str(frame).unwrap();
            let field = |name: &str| match &frame[name] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let names = [
                "part",
                "offset",
                "end",
                "kind",
                "meta",
                "previous_end",
                "content",
            ];
            names.map(field).join(" ")
        };
        frames.iter().map(describe).collect()
    }

    #[test]
    fn only_the_missing_code_units_are_sent() {
        // A character outside the basic plane, a letter with a combining accent, an empty part.
        let answer = answer(&[("reasoning", "h𝄞m"), ("source", ""), ("text", "e\u{301}𝄞!")]);
        let frames = |received: &[u32]| missing_deltas(&answer, received).map(|f| described(&f));
        assert_eq!(
            frames(&[]).unwrap(),
            [
                "0 0 4 reasoning - - h𝄞m",
                r#"1 0 0 source {"url":"u"} 4 "#,
                "2 0 5 text - 0 e\u{301}𝄞!",
            ]
        );
        assert_eq!(
            frames(&[3]).unwrap(),
            [
                "0 3 4 - - - m",
                r#"1 0 0 source {"url":"u"} 4 "#,
                "2 0 5 text - 0 e\u{301}𝄞!",
            ]
        );
        assert_eq!(frames(&[4, 0]).unwrap(), ["2 0 5 text - 0 e\u{301}𝄞!"]);
        assert_eq!(frames(&[4, 0, 1]).unwrap(), ["2 1 5 - - - \u{301}𝄞!"]);
        assert_eq!(frames(&[4, 0, 2]).unwrap(), ["2 2 5 - - - 𝄞!"]);
        assert_eq!(frames(&[4, 0, 5]).unwrap(), [""; 0]);
    }

    #[test]
    fn client_that_has_other_text_needs_a_snapshot() {
        let answer = answer(&[("text", "𝄞a"), ("text", "b")]);
        for received in [&[3, 2][..], &[4][..], &[3, 1, 0][..], &[1][..]] {
            assert!(missing_deltas(&answer, received).is_none(), "{received:?}");
        }
    }
}
