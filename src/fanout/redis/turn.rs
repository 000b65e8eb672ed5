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

/// Decodes a stored turn: status, length of the question in bytes (`-` for none), `:`, question and
/// answer. Returns `None` if the text does not have this form.
fn decode_turn(message_id: MessageId, turn: &str, at_us: i64) -> Option<Turn> {
    let (status, length_and_texts) = turn.split_at_checked(1)?;
    let (length, texts) = length_and_texts.split_once(':')?;
    let (question, answer) = match length {
        "-" => (None, texts),
        length => {
            let (question, answer) = texts.split_at_checked(length.parse().ok()?)?;
            (Some(question.to_owned()), answer)
        }
    };
    Some(Turn {
        message_id,
        status: decode_status(status)?,
        question,
        answer: answer.to_owned(),
        at_ms: at_us / 1000,
    })
}
