//! What the scripts' answers mean.

use super::frame::read_pending;
use super::reply::{Reply, unreadable};
use crate::fanout::{
    Appended, ConversationEntry, DeliveredOutcome, HistoryResponse, HistoryVersion, MessageRef,
    Result, StoredOutcome, Turn, TurnStatus, UserView,
};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId};
use crate::protocol::open_message::InFlightAnswer;
use crate::protocol::position::Position;

fn status_of(code: &str) -> Result<TurnStatus> {
    match code {
        "a" => Ok(TurnStatus::Answered),
        "c" => Ok(TurnStatus::Cancelled),
        "f" => Ok(TurnStatus::Failed),
        _ => Err(unreadable("status of a turn")),
    }
}

pub(super) fn read_outcome(reply: &mut Reply) -> Result<StoredOutcome> {
    Ok(StoredOutcome {
        frame: reply.text()?,
        delivered_at: reply.position()?,
    })
}

fn message_id(text: &str) -> Result<MessageId> {
    MessageId::parse(text).map_err(|_| unreadable("message id"))
}

fn read_in_flight(mut fields: Reply) -> Result<InFlightAnswer> {
    Ok(InFlightAnswer {
        message_id: message_id(&fields.text()?)?,
        id: match fields.text()?.as_str() {
            "" => None,
            id => Some(ClientMessageId::parse(id).map_err(|_| unreadable("client's id"))?),
        },
        conversation: conversation(&fields.text()?)?,
        attempt: fields.parse("attempt")?,
        index: fields.parse("index")?,
        text: fields.text()?,
    })
}

pub(super) fn read_look(mut reply: Reply) -> Result<UserView> {
    let mut look = UserView {
        n: reply.parse("counter")?,
        n_id: reply.text()?,
        end: reply.position()?.ok_or_else(|| unreadable("position"))?,
        recovered: reply.text()? == "1",
        has_more: reply.text()? == "1",
        rebuilt_up_to: reply.position()?,
        frames: Vec::new(),
        in_flight: Vec::new(),
        pending: Vec::new(),
    };
    look.frames = read_frames(reply.list()?)?;
    let mut answers = reply.list()?;
    while !answers.is_empty() {
        look.in_flight.push(read_in_flight(answers.list()?)?);
    }
    look.in_flight
        .sort_by(|one, other| one.message_id.cmp(&other.message_id));
    let mut pending = reply.list()?;
    while !pending.is_empty() {
        let message = message_id(&pending.text()?)?;
        look.pending.push(read_pending(message, &pending.text()?)?);
    }
    Ok(look)
}

/// Position, frame.
fn read_frames(mut reply: Reply) -> Result<Vec<(Position, String)>> {
    let mut frames = Vec::new();
    while !reply.is_empty() {
        let position = reply.position()?.ok_or_else(|| unreadable("position"))?;
        frames.push((position, reply.text()?));
    }
    Ok(frames)
}

/// Ends as `delivered.lua` has them: message, position, frame (empty: it was forgotten).
pub(super) fn read_delivered(mut reply: Reply) -> Result<Vec<DeliveredOutcome>> {
    let mut ends = Vec::new();
    while !reply.is_empty() {
        ends.push(DeliveredOutcome {
            message_id: message_id(&reply.text()?)?,
            position: reply.position()?.ok_or_else(|| unreadable("position"))?,
            frame: Some(reply.text()?).filter(|frame| !frame.is_empty()),
        });
    }
    Ok(ends)
}

/// Turns as `turn.lua` has them: message, turn, time in microseconds.
pub(super) fn read_turns(mut reply: Reply) -> Result<Vec<Turn>> {
    let mut turns = Vec::new();
    while !reply.is_empty() {
        let message_id = message_id(&reply.text()?)?;
        let turn = reply.text()?;
        let at_us: i64 = reply.parse("time of a turn")?;
        turns.push(read_turn(message_id, &turn, at_us).ok_or_else(|| unreadable("turn"))?);
    }
    Ok(turns)
}

/// A conversation's state, and its turns, newest first, unless this is the `known` one.
pub(super) fn read_history(
    mut reply: Reply,
    known: Option<&HistoryVersion>,
) -> Result<Option<HistoryResponse>> {
    if reply.is_empty() {
        return Ok(None);
    }
    let mark = HistoryVersion(reply.text()?);
    if reply.is_empty() && known == Some(&mark) {
        return Ok(Some(HistoryResponse::Unchanged));
    }
    // Without a known one the empty one is taken for it: there are no turns.
    let mut turns = if reply.is_empty() {
        Vec::new()
    } else {
        read_turns(reply.list()?)?
    };
    turns.reverse();
    Ok(Some(HistoryResponse::Turns(mark, turns)))
}

/// A conversation's state before, and the time of the turn that it has more.
pub(super) fn read_appended(mut reply: Reply, subject: &MessageRef) -> Result<Option<Appended>> {
    if reply.is_empty() {
        return Ok(None);
    }
    let before = HistoryVersion(reply.text()?);
    let at_us: i64 = reply.parse("time of a turn")?;
    Ok(Some(Appended {
        before,
        after: HistoryVersion(format!("{} {at_us}", subject.message_id)),
        at_ms: at_us / 1000,
    }))
}

fn read_turn(message_id: MessageId, turn: &str, at_us: i64) -> Option<Turn> {
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
        status: status_of(status).ok()?,
        question,
        answer: answer.to_owned(),
        at_ms: at_us / 1000,
    })
}

pub(super) fn read_token(mut reply: Reply) -> Result<Option<(String, u64)>> {
    if reply.is_empty() {
        return Ok(None);
    }
    let token = reply.text()?;
    let seconds: i64 = reply.parse("time to live")?;
    // A token that somebody stored without an end is as good as one with a far end.
    let left = u64::try_from(seconds).unwrap_or(u64::from(u32::MAX));
    Ok(Some((token, left)))
}

pub(super) fn read_entry(mut fields: Reply) -> Result<ConversationEntry> {
    Ok(ConversationEntry {
        conversation: conversation(&fields.text()?)?,
        turns: fields.parse("number of turns")?,
        updated_ms: fields.parse("time")?,
    })
}

fn conversation(text: &str) -> Result<ConversationId> {
    ConversationId::parse(text).map_err(|_| unreadable("conversation"))
}
