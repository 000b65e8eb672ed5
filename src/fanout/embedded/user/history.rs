//! Writes the turns of conversations and reads the model's context. The turns of a conversation are
//! stored by a sequence number, in the order in which they were appended, with an index by message.

use std::sync::Arc;
use std::time::Duration;

use super::UserState;
use crate::fanout::answers::LARGE_HISTORY_TURNS;
use crate::fanout::embedded::codec::{Reader, Writer, damaged_entry_error};
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys;
use crate::fanout::{
    HistoryRequest, HistoryResponse, HistoryVersion, Result, Turn, TurnAppend, TurnStatus,
};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::store::{Batch, Table};

/// Maximum number of turns per scan of the store.
pub(super) const PAGE_TURNS: usize = 32;

/// Maximum number of conversations of a user whose [`HistoryHead`] is in memory.
const MAX_CACHED_HEADS: usize = 32;

/// The newest turn and the version of a conversation's history.
#[derive(Debug, Clone, Copy)]
pub(super) struct HistoryHead {
    /// Sequence number of the newest turn; 0 if the conversation has no turns.
    sequence: u64,
    /// Version of the history: a new random number after each change.
    version: u64,
}

impl HistoryHead {
    fn history_version(self) -> HistoryVersion {
        HistoryVersion(self.version.to_string())
    }
}

/// The content of a turn to write.
pub(super) struct TurnContent<'a> {
    /// The text that the user wrote; `None` if the call does not have it.
    pub(super) question: Option<&'a str>,
    /// The answer's text.
    pub(super) answer: &'a str,
    /// JSON array of the answer's parts; `None` if the answer is one part of text.
    pub(super) parts: Option<&'a Arc<str>>,
    pub(super) status: TurnStatus,
}

/// Bit in the flags of a stored turn: the turn has a question.
const HAS_QUESTION: u8 = 1;

/// Bit in the flags of a stored turn: the answer's parts stand between question and answer. Stores
/// of layout 1 have no such turns.
const HAS_PARTS: u8 = 2;

fn encode_turn(turn: &Turn) -> Vec<u8> {
    let question = turn.question.as_deref().unwrap_or_default();
    let parts = turn.parts.as_deref();
    let status = match turn.status {
        TurnStatus::Answered => 0,
        TurnStatus::Cancelled => 1,
        TurnStatus::Failed => 2,
    };
    let mut flags = 0;
    if turn.question.is_some() {
        flags |= HAS_QUESTION;
    }
    if parts.is_some() {
        flags |= HAS_PARTS;
    }
    let bytes = question.len() + parts.map_or(0, str::len) + turn.answer.len();
    let mut writer = Writer::with_capacity(bytes + 64)
        .number(turn.at_ms)
        .text(turn.message_id.as_str())
        .byte(status)
        .byte(flags)
        .text(question);
    if let Some(parts) = parts {
        writer = writer.text(parts);
    }
    writer.finish_with(&turn.answer)
}

pub(super) fn decode_turn(value: &[u8]) -> Result<Turn> {
    let mut reader = Reader::new(value);
    let at_ms = reader.number()?;
    let message_id = MessageId::parse(reader.text()?).map_err(|_| damaged_entry_error())?;
    let status = match reader.byte()? {
        0 => TurnStatus::Answered,
        1 => TurnStatus::Cancelled,
        2 => TurnStatus::Failed,
        _ => return Err(damaged_entry_error()),
    };
    let flags = reader.byte()?;
    if flags & !(HAS_QUESTION | HAS_PARTS) != 0 {
        return Err(damaged_entry_error());
    }
    let question = reader.text()?;
    let question = (flags & HAS_QUESTION != 0).then(|| question.to_owned());
    let parts = if flags & HAS_PARTS == 0 {
        None
    } else {
        Some(reader.text()?.into())
    };
    Ok(Turn {
        message_id,
        question,
        answer: reader.remainder()?.to_owned(),
        parts,
        status,
        at_ms,
    })
}

/// Decodes only the beginning of a stored turn: when the turn was stored, in milliseconds since the
/// Unix epoch, and the message that it belongs to.
pub(in crate::fanout::embedded) fn turn_header(value: &[u8]) -> Result<(i64, MessageId)> {
    let mut reader = Reader::new(value);
    let at_ms = reader.number()?;
    let message = MessageId::parse(reader.text()?).map_err(|_| damaged_entry_error())?;
    Ok((at_ms, message))
}

impl UserState {
    /// The turn of a message with its sequence number; `None` if the message has no turn.
    pub(super) fn turn(
        &self,
        conversation: &ConversationId,
        message: &MessageId,
        context: &StoreContext<'_>,
    ) -> Result<Option<(u64, Turn)>> {
        let key = keys::turn_index(&self.user, conversation, message);
        let Some(sequence) = context.store.get(Table::History, &key)? else {
            return Ok(None);
        };
        let sequence = keys::parse_number(&sequence).ok_or_else(damaged_entry_error)?;
        let key = keys::turn(&self.user, conversation, sequence);
        match context.store.get(Table::History, &key)? {
            Some(value) => Ok(Some((sequence, decode_turn(&value)?))),
            None => Ok(None),
        }
    }

    /// The newest turn and the version of a conversation's history. They are read from the store
    /// and cached, if they are not in the cache.
    fn history_head(
        &mut self,
        conversation: &ConversationId,
        context: &StoreContext<'_>,
    ) -> Result<HistoryHead> {
        if let Some(head) = self.history_heads.get(conversation) {
            return Ok(*head);
        }
        let (from, to) = keys::turns(&self.user, conversation);
        let newest = context.store.scan(Table::History, &from, &to, 1, true)?;
        let sequence = match newest.first() {
            Some((key, _)) => keys::parse_turn(key).ok_or_else(damaged_entry_error)?.2,
            None => 0,
        };
        Ok(self.cache_history_head(conversation, sequence, context))
    }

    /// Caches the sequence number of a conversation's newest turn with a new version of its
    /// history. Returns the cached head.
    fn cache_history_head(
        &mut self,
        conversation: &ConversationId,
        sequence: u64,
        context: &StoreContext<'_>,
    ) -> HistoryHead {
        let head = HistoryHead {
            sequence,
            version: (context.random)(),
        };
        if let Some(cached) = self.history_heads.get_mut(conversation) {
            *cached = head;
            return head;
        }
        if self.history_heads.len() >= MAX_CACHED_HEADS {
            self.history_heads.clear();
        }
        self.history_heads.insert(conversation.clone(), head);
        head
    }

    /// The turns that a `begin` requests.
    pub(super) fn requested_history(
        &mut self,
        conversation: &ConversationId,
        request: &HistoryRequest,
        context: &StoreContext<'_>,
    ) -> Result<HistoryResponse> {
        let version = self.history_head(conversation, context)?.history_version();
        if request.known_version.as_ref() == Some(&version) {
            return Ok(HistoryResponse::Unchanged);
        }
        let turns = self.context(
            conversation,
            request.limit,
            request.max_newest_turn_age,
            context,
        )?;
        Ok(HistoryResponse::Turns(version, turns))
    }

    /// Writes the turn of a message. If the message has a turn, replaces its answer, parts and
    /// status and keeps its question; otherwise appends the turn. Returns the append, if it is the
    /// only change to the history.
    pub(super) fn put_turn(
        &mut self,
        batch: &mut Batch,
        conversation: &ConversationId,
        message: &MessageId,
        content: &TurnContent<'_>,
        context: &StoreContext<'_>,
    ) -> Result<Option<TurnAppend>> {
        let mut turn = Turn {
            message_id: message.clone(),
            question: content.question.map(str::to_owned),
            answer: content.answer.to_owned(),
            parts: content.parts.cloned(),
            status: content.status,
            at_ms: context.now_ms,
        };
        if let Some((sequence, existing)) = self.turn(conversation, message, context)? {
            turn.question = existing.question.or(turn.question);
            turn.at_ms = existing.at_ms;
            let key = keys::turn(&self.user, conversation, sequence);
            batch.put(Table::History, key, encode_turn(&turn));
            self.history_heads.remove(conversation);
            return Ok(None);
        }
        let before = self.history_head(conversation, context)?;
        let sequence = before.sequence + 1;
        let key = keys::turn(&self.user, conversation, sequence);
        batch.put(Table::History, key, encode_turn(&turn));
        let key = keys::turn_index(&self.user, conversation, message);
        batch.put(Table::History, key, sequence.to_be_bytes());
        let after = self.cache_history_head(conversation, sequence, context);
        let is_trimmed = self.trim_oldest_turn(batch, conversation, sequence, context)?;
        if is_trimmed && context.bounds.history_turns < LARGE_HISTORY_TURNS {
            return Ok(None);
        }
        Ok(Some(TurnAppend {
            version_before: before.history_version(),
            version_after: after.history_version(),
            at_ms: turn.at_ms,
        }))
    }

    /// Removes the turn that exceeds `history_turns` after the append of the turn with the sequence
    /// number `newest`, and returns whether there was such a turn. Sequence numbers have no gaps,
    /// so an append makes at most one turn exceed the limit. After the limit was lowered, other
    /// turns above it stay until they expire.
    fn trim_oldest_turn(
        &self,
        batch: &mut Batch,
        conversation: &ConversationId,
        newest: u64,
        context: &StoreContext<'_>,
    ) -> Result<bool> {
        let Some(oldest) = newest.checked_sub(context.bounds.history_turns as u64) else {
            return Ok(false);
        };
        let key = keys::turn(&self.user, conversation, oldest);
        let Some(value) = context.store.get(Table::History, &key)? else {
            return Ok(false);
        };
        let (_, message) = turn_header(&value)?;
        batch.delete(Table::History, key);
        let index = keys::turn_index(&self.user, conversation, &message);
        batch.delete(Table::History, index);
        Ok(true)
    }

    /// See [`crate::fanout::Answers::context`].
    pub(in crate::fanout::embedded) fn context(
        &self,
        conversation: &ConversationId,
        limit: usize,
        max_newest_turn_age: Duration,
        context: &StoreContext<'_>,
    ) -> Result<Vec<Turn>> {
        let bounds = context.bounds;
        let mut turns = Vec::new();
        let (from, mut to) = keys::turns(&self.user, conversation);
        let mut scanned = 0;
        while turns.len() < limit && scanned < bounds.history_turns {
            let page = context
                .store
                .scan(Table::History, &from, &to, PAGE_TURNS, true)?;
            for (_, value) in &page {
                let turn = decode_turn(value)?;
                let is_expired = context.is_expired(turn.at_ms, bounds.history_ttl)
                    || turns.is_empty() && context.is_expired(turn.at_ms, max_newest_turn_age);
                scanned += 1;
                if is_expired || turns.len() >= limit || scanned > bounds.history_turns {
                    turns.reverse();
                    return Ok(turns);
                }
                if turn.status != TurnStatus::Failed {
                    turns.push(turn);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE_TURNS => to.clone_from(key),
                _ => break,
            }
        }
        turns.reverse();
        Ok(turns)
    }

    /// Removes the turns with these sequence numbers if they have expired.
    pub(in crate::fanout::embedded) fn expire_turns(
        &self,
        turns: &[(ConversationId, u64)],
        context: &StoreContext<'_>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        for (conversation, sequence) in turns {
            let key = keys::turn(&self.user, conversation, *sequence);
            let Some(value) = context.store.get(Table::History, &key)? else {
                continue;
            };
            let (at_ms, message) = turn_header(&value)?;
            if context.is_expired(at_ms, context.bounds.history_ttl) {
                batch.delete(Table::History, key);
                let index = keys::turn_index(&self.user, conversation, &message);
                batch.delete(Table::History, index);
            }
        }
        if !batch.is_empty() {
            context.store.commit(batch)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(question: Option<&str>, parts: Option<&str>) -> Turn {
        Turn {
            message_id: MessageId::parse("m").unwrap(),
            question: question.map(str::to_owned),
            answer: "answer".into(),
            parts: parts.map(Into::into),
            status: TurnStatus::Cancelled,
            at_ms: 7,
        }
    }

    #[test]
    fn turn_is_decoded_as_it_was_encoded() {
        for question in [None, Some(""), Some("hi?")] {
            for parts in [None, Some("[]"), Some(r#"[{"kind":"text","length":6}]"#)] {
                let turn = turn(question, parts);
                assert_eq!(decode_turn(&encode_turn(&turn)).unwrap(), turn);
            }
        }
    }

    #[test]
    fn turn_without_parts_is_encoded_as_in_layout_1() {
        for (question, has_question) in [(None, 0), (Some("hi?"), 1)] {
            let expected = Writer::with_capacity(64)
                .number(7)
                .text("m")
                .byte(1)
                .byte(has_question)
                .text(question.unwrap_or_default())
                .finish_with("answer");
            assert_eq!(encode_turn(&turn(question, None)), expected);
            assert_eq!(decode_turn(&expected).unwrap(), turn(question, None));
        }
    }

    #[test]
    fn turn_with_unknown_flags_is_refused() {
        let value = Writer::with_capacity(64)
            .number(7)
            .text("m")
            .byte(0)
            .byte(4)
            .text("")
            .finish_with("answer");
        assert!(decode_turn(&value).is_err());
    }
}
