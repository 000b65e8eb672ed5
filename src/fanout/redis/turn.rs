//! Encodes and decodes turns of the history in the form in which the scripts store and return them
//! (`turn.lua`).

use super::reply::{Reply, unreadable_reply_error};
use crate::fanout::{Result, Turn, TurnStatus};
use crate::protocol::ids::MessageId;

pub(super) fn status_code(status: TurnStatus) -> &'static str {
    match status {
        TurnStatus::Answered => "a",
        TurnStatus::Cancelled => "c",
        TurnStatus::Failed => "f",
    }
}

fn decode_status(code: &str) -> Option<TurnStatus> {
    match code {
        "a" => Some(TurnStatus::Answered),
        "c" => Some(TurnStatus::Cancelled),
        "f" => Some(TurnStatus::Failed),
        _ => None,
    }
}

/// Decodes a flat list of three values per turn: message id, turn, and time in microseconds.
pub(super) fn decode_turns(mut reply: Reply) -> Result<Vec<Turn>> {
    let mut turns = Vec::new();
    while !reply.is_empty() {
        let message_id = reply.message_id()?;
        let turn = reply.text()?;
        let at_us: i64 = reply.parse("time of a turn")?;
        turns.push(
            decode_turn(message_id, &turn, at_us).ok_or_else(|| unreadable_reply_error("turn"))?,
        );
    }
    Ok(turns)
}

/// Decodes a stored turn (`turn.lua`): status, length of the question in bytes (`-` for none), `:`,
/// question and answer. In a turn with parts, the length of the answer in bytes stands before the
/// colon, behind a comma, and the parts stand behind the answer. Returns `None` if the text does not
/// have this form.
fn decode_turn(message_id: MessageId, turn: &str, at_us: i64) -> Option<Turn> {
    let (status, lengths_and_texts) = turn.split_at_checked(1)?;
    let (lengths, texts) = lengths_and_texts.split_once(':')?;
    let (question_length, answer_length) = match lengths.split_once(',') {
        Some((question_length, answer_length)) => (question_length, Some(answer_length)),
        None => (lengths, None),
    };
    let (question, texts) = match question_length {
        "-" => (None, texts),
        length => {
            let (question, texts) = texts.split_at_checked(length.parse().ok()?)?;
            (Some(question.to_owned()), texts)
        }
    };
    let (answer, parts) = match answer_length {
        None => (texts, None),
        Some(length) => {
            let (answer, parts) = texts.split_at_checked(length.parse().ok()?)?;
            (answer, Some(parts.into()))
        }
    };
    Some(Turn {
        message_id,
        status: decode_status(status)?,
        question,
        answer: answer.to_owned(),
        parts,
        at_ms: at_us / 1000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(turn: &str) -> Option<Turn> {
        decode_turn(MessageId::parse("m").unwrap(), turn, 7_000)
    }

    #[test]
    fn turn_is_decoded_with_and_without_question_and_parts() {
        let parts = r#"[{"kind":"text","length":3}]"#;
        for (turn, question, answer, has_parts) in [
            ("a2:Q?Yes".to_owned(), Some("Q?"), "Yes", false),
            ("c-:1,2:3".to_owned(), None, "1,2:3", false),
            ("f0:".to_owned(), Some(""), "", false),
            (format!("a3,6:é:a:b,ü{parts}"), Some("é:"), "a:b,ü", true),
            (format!("a2,3:Q?Yes{parts}"), Some("Q?"), "Yes", true),
            (format!("c-,0:{parts}"), None, "", true),
        ] {
            let decoded = decode(&turn).unwrap();
            assert_eq!(decoded.question.as_deref(), question, "{turn}");
            assert_eq!(decoded.answer, answer, "{turn}");
            assert_eq!(
                decoded.parts.as_deref(),
                has_parts.then_some(parts),
                "{turn}"
            );
            assert_eq!(decoded.at_ms, 7);
        }
    }

    #[test]
    fn malformed_turn_is_refused() {
        for turn in [
            "",
            "a",
            "a1",
            "x-:",
            "a9:short",
            "a-,9:short",
            "a1,:qa",
            "a,1:qa",
            "é-:",
        ] {
            assert_eq!(decode(turn), None, "{turn}");
        }
    }
}
