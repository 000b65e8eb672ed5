//! What the scripts' answers mean.

use super::frame::read_pending;
use super::reply::{Reply, unreadable};
use crate::fanout::{ConversationEntry, InFlight, Look, Outcome, Result, Turn, TurnStatus};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId};

fn status_of(code: &str) -> Result<TurnStatus> {
    match code {
        "a" => Ok(TurnStatus::Answered),
        "c" => Ok(TurnStatus::Cancelled),
        "f" => Ok(TurnStatus::Failed),
        _ => Err(unreadable("status of a turn")),
    }
}

pub(super) fn read_outcome(reply: &mut Reply) -> Result<Outcome> {
    Ok(Outcome {
        frame: reply.text()?,
        delivered: reply.position()?,
    })
}

fn message_id(text: &str) -> Result<MessageId> {
    MessageId::parse(text).map_err(|_| unreadable("message id"))
}

fn read_in_flight(mut fields: Reply) -> Result<InFlight> {
    Ok(InFlight {
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

pub(super) fn read_look(mut reply: Reply) -> Result<Look> {
    let mut look = Look {
        n: reply.parse("counter")?,
        n_id: reply.text()?,
        end: reply.position()?.ok_or_else(|| unreadable("position"))?,
        recovered: reply.text()? == "1",
        more: reply.text()? == "1",
        frames: Vec::new(),
        in_flight: Vec::new(),
        pending: Vec::new(),
    };
    let mut frames = reply.list()?;
    while !frames.is_empty() {
        let position = frames.position()?.ok_or_else(|| unreadable("position"))?;
        look.frames.push((position, frames.text()?));
    }
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

pub(super) fn read_turn(mut fields: Reply) -> Result<Turn> {
    Ok(Turn {
        message_id: message_id(&fields.text()?)?,
        status: status_of(&fields.text()?)?,
        question: fields.optional()?,
        answer: fields.text()?,
        at_ms: fields.parse("time")?,
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
