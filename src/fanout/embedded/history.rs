//! The turns of conversations: in the order in which they came, each found by its message.

use std::time::Duration;

use super::codec::{Reader, Writer, damaged};
use super::keys;
use super::user::{LastTurn, UserState, expired};
use super::users::World;
use crate::fanout::{
    Appended, HistoryRequest, HistoryResponse, HistoryVersion, MANY_TURNS, Result, Turn, TurnStatus,
};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::store::{Batch, Table};

/// Turns that are read from the store at once.
const PAGE: usize = 32;

fn encode(turn: &Turn) -> Vec<u8> {
    let question = turn.question.as_deref().unwrap_or_default();
    let status = match turn.status {
        TurnStatus::Answered => 0,
        TurnStatus::Cancelled => 1,
        TurnStatus::Failed => 2,
    };
    Writer::with_capacity(question.len() + turn.answer.len() + 64)
        .number(turn.at_ms)
        .text(turn.message_id.as_str())
        .byte(status)
        .byte(u8::from(turn.question.is_some()))
        .text(question)
        .rest(&turn.answer)
}

pub(super) fn decode(value: &[u8]) -> Result<Turn> {
    let mut reader = Reader::new(value);
    let at_ms = reader.number()?;
    let message_id = MessageId::parse(reader.text()?).map_err(|_| damaged())?;
    let status = match reader.byte()? {
        0 => TurnStatus::Answered,
        1 => TurnStatus::Cancelled,
        2 => TurnStatus::Failed,
        _ => return Err(damaged()),
    };
    let asked = reader.byte()? != 0;
    let question = reader.text()?.to_owned();
    Ok(Turn {
        message_id,
        question: asked.then_some(question),
        answer: reader.rest()?.to_owned(),
        status,
        at_ms,
    })
}

/// When the turn of this value was stored and whose message it answers.
pub(super) fn age_and_message(value: &[u8]) -> Result<(i64, MessageId)> {
    let mut reader = Reader::new(value);
    let at_ms = reader.number()?;
    let message = MessageId::parse(reader.text()?).map_err(|_| damaged())?;
    Ok((at_ms, message))
}

fn mark(last: LastTurn) -> HistoryVersion {
    HistoryVersion(last.state.to_string())
}

/// A message's end as the history is to have it.
pub(super) struct Told<'a> {
    /// What the user wrote, where it is known.
    pub(super) question: Option<&'a str>,
    /// What the user was told.
    pub(super) answer: &'a str,
    /// How it ended.
    pub(super) status: TurnStatus,
}

impl UserState {
    /// The turn of a message, if it is there, and its number.
    pub(super) fn turn(
        &self,
        conversation: &ConversationId,
        message: &MessageId,
        world: &World<'_>,
    ) -> Result<Option<(u64, Turn)>> {
        let key = keys::turn_of(&self.user, conversation, message);
        let Some(sequence) = world.store.get(Table::History, &key)? else {
            return Ok(None);
        };
        let sequence = keys::number(&sequence).ok_or_else(damaged)?;
        let key = keys::turn(&self.user, conversation, sequence);
        match world.store.get(Table::History, &key)? {
            Some(value) => Ok(Some((sequence, decode(&value)?))),
            None => Ok(None),
        }
    }

    /// The conversation's newest turn.
    fn last_turn(&mut self, conversation: &ConversationId, world: &World<'_>) -> Result<LastTurn> {
        if let Some(last) = self.last_turn.get(conversation) {
            return Ok(*last);
        }
        let (from, to) = keys::turns(&self.user, conversation);
        let last = world.store.scan(Table::History, &from, &to, 1, true)?;
        let sequence = match last.first() {
            Some((key, _)) => keys::parse_turn(key).ok_or_else(damaged)?.2,
            None => 0,
        };
        Ok(self.note_last_turn(conversation, sequence, world))
    }

    /// The history as a `begin` asks for it.
    pub(super) fn recall(
        &mut self,
        conversation: &ConversationId,
        recall: &HistoryRequest,
        world: &World<'_>,
    ) -> Result<HistoryResponse> {
        let mark = mark(self.last_turn(conversation, world)?);
        if recall.known_version.as_ref() == Some(&mark) {
            return Ok(HistoryResponse::Unchanged);
        }
        let turns = self.context(conversation, recall.limit, recall.max_age, world)?;
        Ok(HistoryResponse::Turns(mark, turns))
    }

    /// Puts a message's end into the history: over its turn, where it has one, and otherwise as
    /// the newest; then, where nothing else changed, it says so. A question that is there stays.
    pub(super) fn put_turn(
        &mut self,
        batch: &mut Batch,
        conversation: &ConversationId,
        message: &MessageId,
        told: &Told<'_>,
        world: &World<'_>,
    ) -> Result<Option<Appended>> {
        let mut turn = Turn {
            message_id: message.clone(),
            question: told.question.map(str::to_owned),
            answer: told.answer.to_owned(),
            status: told.status,
            at_ms: world.now_ms,
        };
        if let Some((sequence, old)) = self.turn(conversation, message, world)? {
            turn.question = old.question.or(turn.question);
            turn.at_ms = old.at_ms;
            let key = keys::turn(&self.user, conversation, sequence);
            batch.put(Table::History, key, encode(&turn));
            self.last_turn.remove(conversation);
            return Ok(None);
        }
        let before = self.last_turn(conversation, world)?;
        let sequence = before.sequence + 1;
        let key = keys::turn(&self.user, conversation, sequence);
        batch.put(Table::History, key, encode(&turn));
        let key = keys::turn_of(&self.user, conversation, message);
        batch.put(Table::History, key, sequence.to_be_bytes());
        let now = self.note_last_turn(conversation, sequence, world);
        let appended = Appended {
            before: mark(before),
            after: mark(now),
            at_ms: turn.at_ms,
        };
        // Numbers have no gaps: where one comes, the one that falls out of the bound is known.
        // (After the bound was lowered, the rest of it goes by age.)
        if let Some(out) = sequence.checked_sub(world.bounds.history_turns as u64) {
            let key = keys::turn(&self.user, conversation, out);
            if let Some(value) = world.store.get(Table::History, &key)? {
                let (_, message) = age_and_message(&value)?;
                batch.delete(Table::History, key);
                batch.delete(
                    Table::History,
                    keys::turn_of(&self.user, conversation, &message),
                );
                if world.bounds.history_turns < MANY_TURNS {
                    return Ok(None);
                }
            }
        }
        Ok(Some(appended))
    }

    /// See [`crate::fanout::Fanout::context`].
    pub(super) fn context(
        &self,
        conversation: &ConversationId,
        limit: usize,
        max_age: Duration,
        world: &World<'_>,
    ) -> Result<Vec<Turn>> {
        let mut turns = Vec::new();
        let (from, mut to) = keys::turns(&self.user, conversation);
        let mut seen = 0;
        while turns.len() < limit && seen < world.bounds.history_turns {
            let page = world.store.scan(Table::History, &from, &to, PAGE, true)?;
            for (_, value) in &page {
                let turn = decode(value)?;
                let too_old = expired(turn.at_ms, world.bounds.history_ttl, world.now_ms)
                    || turns.is_empty() && expired(turn.at_ms, max_age, world.now_ms);
                seen += 1;
                if too_old || turns.len() >= limit || seen > world.bounds.history_turns {
                    turns.reverse();
                    return Ok(turns);
                }
                if turn.status != TurnStatus::Failed {
                    turns.push(turn);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => to.clone_from(key),
                _ => break,
            }
        }
        turns.reverse();
        Ok(turns)
    }

    /// Removes those of these turns that are too old.
    pub(super) fn expire_turns(
        &self,
        turns: &[(ConversationId, u64)],
        world: &World<'_>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        for (conversation, sequence) in turns {
            let key = keys::turn(&self.user, conversation, *sequence);
            let Some(value) = world.store.get(Table::History, &key)? else {
                continue;
            };
            let (at_ms, message) = age_and_message(&value)?;
            if expired(at_ms, world.bounds.history_ttl, world.now_ms) {
                batch.delete(Table::History, key);
                batch.delete(
                    Table::History,
                    keys::turn_of(&self.user, conversation, &message),
                );
            }
        }
        if !batch.is_empty() {
            world.store.commit(batch)?;
        }
        Ok(())
    }
}
