//! Checks the limits on what a user may request, for `admit`. `limits.lua` does the same on Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use super::UserState;
use crate::fanout::admissions::DAY_MS;
use crate::fanout::embedded::codec::{Reader, Writer};
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys::{self, Tag};
use crate::fanout::{Limit, Result};
use crate::protocol::ids::ConversationId;
use crate::store::{Batch, Table};

impl UserState {
    /// Checks all limits for one more message. Returns the limit that the message would exceed. If
    /// it exceeds none, counts it against the rate limit and returns `None`.
    pub(super) fn check_limits(
        &self,
        batch: &mut Batch,
        conversation: &ConversationId,
        context: &StoreContext<'_>,
    ) -> Result<Option<Limit>> {
        let limits = &context.bounds.limits;
        if limits.max_pending > 0 && self.pending_count(context) >= limits.max_pending as usize {
            return Ok(Some(Limit::Pending));
        }
        if limits.conversations > 0 && self.exceeds_conversations(conversation, context)? {
            return Ok(Some(Limit::Conversations));
        }
        if limits.daily_tokens > 0 && self.tokens_today(context)? >= limits.daily_tokens {
            let remaining_ms = DAY_MS - context.now_ms.rem_euclid(DAY_MS);
            let remaining = Duration::from_millis(remaining_ms.max(0) as u64);
            return Ok(Some(Limit::Tokens(remaining)));
        }
        if limits.requests > 0 {
            return self.check_rate_limit(batch, context);
        }
        Ok(None)
    }

    /// Counts a message against the rate limit, or returns the limit if the message exceeds it.
    ///
    /// The rate limit is a token bucket, stored as the time in microseconds at which the bucket is
    /// full again. Each message moves this time by `window / requests`. A message that would move
    /// it further than one window ahead exceeds the limit.
    fn check_rate_limit(
        &self,
        batch: &mut Batch,
        context: &StoreContext<'_>,
    ) -> Result<Option<Limit>> {
        let limits = &context.bounds.limits;
        let window_us = limits.window.as_micros().max(1) as i64;
        let message_share_us = (window_us / i64::from(limits.requests)).max(1);
        let now_us = context.now_ms.saturating_mul(1000);
        let key = keys::user_entry(&self.user, Tag::RateLimit, b"");
        let full_at_us = match context.store.get(Table::Users, &key)? {
            Some(value) => {
                let mut reader = Reader::new(&value);
                reader.number()?;
                reader.number()?.max(now_us)
            }
            None => now_us,
        };
        let next_full_at_us = full_at_us + message_share_us;
        let wait_us = next_full_at_us - window_us - now_us;
        if wait_us > 0 {
            let wait = Duration::from_millis((wait_us as u64).div_ceil(1000));
            return Ok(Some(Limit::Rate(wait)));
        }
        let ends_ms = next_full_at_us / 1000 + 1;
        let value = Writer::with_capacity(16)
            .number(ends_ms)
            .number(next_full_at_us);
        batch.put(Table::Users, key, value.finish());
        Ok(None)
    }

    /// Whether a message would begin a conversation above the limit. A conversation that has only
    /// pending messages counts too, because its first outcome creates it in the history.
    fn exceeds_conversations(
        &self,
        conversation: &ConversationId,
        context: &StoreContext<'_>,
    ) -> Result<bool> {
        let limit = context.bounds.limits.conversations as usize;
        let (from, to) = keys::turns(&self.user, conversation);
        let first = context.store.scan(Table::History, &from, &to, 1, false)?;
        if !first.is_empty() {
            return Ok(false);
        }
        let mut names: BTreeSet<ConversationId> =
            self.conversation_names(context)?.into_iter().collect();
        // The pending messages are read only if they can decide whether the limit is exceeded.
        if names.len() < limit && names.len() + self.pending.len() >= limit {
            let pending = self.pending_messages(context)?.into_iter();
            names.extend(pending.map(|message| message.conversation));
        }
        Ok(names.len() >= limit && !names.contains(conversation))
    }
}
