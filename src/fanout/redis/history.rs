//! The calls of [`History`] on Redis: `conversations`, `history` and `forget`.

use async_trait::async_trait;

use super::args::{number, text};
use super::reply::Reply;
use super::turn::decode_turns;
use super::{RedisFanout, unexpected_reply_error};
use crate::fanout::{ConversationEntry, History, Result, Turn};
use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// Number of messages after which one run of the `forget` script starts no further conversation. A
/// run blocks Redis for some milliseconds, and other calls are executed between two runs.
const FORGET_BATCH: usize = 1000;

/// Decodes an entry of the list of conversations.
fn decode_entry(mut fields: Reply) -> Result<ConversationEntry> {
    Ok(ConversationEntry {
        conversation: fields.conversation()?,
        turns: fields.parse("number of turns")?,
        updated_ms: fields.parse("time")?,
    })
}

#[async_trait]
impl History for RedisFanout {
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        let args = vec![
            text(after.map_or("", ConversationId::as_str)),
            number(limit),
        ];
        let script = &self.scripts.conversations;
        let mut reply = self.run_for(script, user, args).await?;
        let mut entries = Vec::new();
        while !reply.is_empty() {
            entries.push(decode_entry(reply.list()?)?);
        }
        Ok(entries)
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        let args = vec![
            text(conversation.as_str()),
            text(before.map_or("", MessageId::as_str)),
            number(self.limit_turns(limit)),
        ];
        let mut reply = self.run_for(&self.scripts.turns, user, args).await?;
        match reply.text()?.as_str() {
            "gone" => Ok(None),
            "turns" => decode_turns(reply.list()?).map(Some),
            word => Err(unexpected_reply_error(word)),
        }
    }

    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool> {
        let args = vec![
            text(conversation.map_or("", ConversationId::as_str)),
            number(FORGET_BATCH),
        ];
        let mut is_found = false;
        // Each run forgets what is still stored, so repeating the call completes a call that failed
        // between two runs.
        loop {
            let script = &self.scripts.forget;
            let mut reply = self.run_for(script, user, args.clone()).await?;
            let count: u64 = reply.parse("count")?;
            is_found |= count > 0;
            if reply.text()? != "1" {
                return Ok(is_found);
            }
        }
    }
}
