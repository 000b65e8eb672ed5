//! Turns of the history as the scripts store and return them (`turn.lua`).

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

/// Decodes a list of message, turn and time in microseconds.
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

/// Decodes status, length of the question (`-` for none), `:`, question and answer.
fn decode_turn(message_id: MessageId, turn: &str, at_us: i64) -> Option<Turn> {
    let (status, rest) = turn.split_at_checked(1)?;
    let (length, texts) = rest.split_once(':')?;
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
