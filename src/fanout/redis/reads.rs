//! The calls of [`Reads`] on Redis: `read` and `delivered_outcomes`.

use async_trait::async_trait;

use super::RedisFanout;
use super::args::{flag, number, random_id, text};
use super::frame::decode_pending;
use super::pieces::join_elements;
use super::reply::{Reply, unreadable_reply_error};
use crate::fanout::{DeliveredOutcome, ReadRequest, Reads, Result, UserView};
use crate::protocol::ids::{ClientMessageId, MessageId, StreamId, UserId};
use crate::protocol::open_message::{InFlightAnswer, PendingMessage};
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;

/// Decodes the reply of `read.lua`.
fn decode_view(mut reply: Reply) -> Result<UserView> {
    let n = reply.parse("counter")?;
    let counter = reply.text()?;
    Ok(UserView {
        number: SequenceNumber::new(&counter, n),
        end: reply
            .position()?
            .ok_or_else(|| unreadable_reply_error("position"))?,
        recovered: reply.text()? == "1",
        has_more: reply.text()? == "1",
        rebuilt_up_to: reply.position()?,
        frames: decode_frames(reply.list()?)?,
        in_flight: decode_answers(reply.list()?)?,
        pending: decode_pending_messages(reply.list()?)?,
    })
}

/// Decodes a flat list that alternates between a position and the frame at that position.
fn decode_frames(mut reply: Reply) -> Result<Vec<(Position, String)>> {
    let mut frames = Vec::new();
    while !reply.is_empty() {
        let position = reply
            .position()?
            .ok_or_else(|| unreadable_reply_error("position"))?;
        frames.push((position, reply.text()?));
    }
    Ok(frames)
}

/// Decodes a list of answers in flight, and sorts them by message id.
fn decode_answers(mut reply: Reply) -> Result<Vec<InFlightAnswer>> {
    let mut answers = Vec::new();
    while !reply.is_empty() {
        answers.push(decode_answer(reply.list()?)?);
    }
    answers.sort_by(|left, right| left.message_id.cmp(&right.message_id));
    Ok(answers)
}

fn decode_answer(mut fields: Reply) -> Result<InFlightAnswer> {
    Ok(InFlightAnswer {
        message_id: fields.message_id()?,
        id: match fields.text()?.as_str() {
            "" => None,
            id => Some(
                ClientMessageId::parse(id).map_err(|_| unreadable_reply_error("client's id"))?,
            ),
        },
        conversation: fields.conversation()?,
        attempt: fields.parse("attempt")?,
        stream: StreamId::parse(&fields.text()?).map_err(|_| unreadable_reply_error("stream"))?,
        parts: join_elements(fields.list()?)?,
    })
}

/// Decodes a flat list that alternates between a message id and the JSON of its pending entry.
fn decode_pending_messages(mut reply: Reply) -> Result<Vec<PendingMessage>> {
    let mut messages = Vec::new();
    while !reply.is_empty() {
        let message = reply.message_id()?;
        messages.push(decode_pending(message, &reply.text()?)?);
    }
    Ok(messages)
}

/// Decodes a flat list of three values per outcome: message id, position and frame. An empty frame
/// means that the message was forgotten.
fn decode_delivered(mut reply: Reply) -> Result<Vec<DeliveredOutcome>> {
    let mut outcomes = Vec::new();
    while !reply.is_empty() {
        outcomes.push(DeliveredOutcome {
            message_id: reply.message_id()?,
            position: reply
                .position()?
                .ok_or_else(|| unreadable_reply_error("position"))?,
            frame: Some(reply.text()?).filter(|frame| !frame.is_empty()),
        });
    }
    Ok(outcomes)
}

#[async_trait]
impl Reads for RedisFanout {
    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        let (epoch, offset) = match &call.after {
            Some(after) => (text(after.epoch.as_str()), number(after.offset)),
            None => (text(""), text("")),
        };
        let args = vec![
            random_id(),
            random_id(),
            epoch,
            offset,
            number(call.max_bytes),
            flag(call.from_start && call.after.is_none()),
        ];
        decode_view(self.run_for(&self.scripts.read, &call.user, args).await?)
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let args = messages.iter().map(|id| text(id.as_str())).collect();
        decode_delivered(self.run_for(&self.scripts.delivered, user, args).await?)
    }
}
