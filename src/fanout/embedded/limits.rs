//! How much a user may ask for: as `limits.lua` on Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use super::codec::{Reader, Writer};
use super::keys::{self, Tag};
use super::user::{UserState, expired};
use super::users::World;
use crate::fanout::{DAY_MS, Limit, Result};
use crate::protocol::ids::ConversationId;
use crate::store::{Batch, Table};

fn from_ms(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0) as u64)
}

impl UserState {
    /// Which limit one more message would pass; where none, it is counted.
    pub(super) fn over_limit(
        &self,
        batch: &mut Batch,
        conversation: &ConversationId,
        world: &World<'_>,
    ) -> Result<Option<Limit>> {
        let limits = &world.bounds.limits;
        if limits.max_pending > 0 {
            let ttl = world.bounds.pending_ttl;
            let alive = self.pending.values();
            let alive = alive.filter(|one| !expired(one.at_ms, ttl, world.now_ms));
            if alive.count() >= limits.max_pending as usize {
                return Ok(Some(Limit::Pending));
            }
        }
        if limits.conversations > 0 && self.one_too_many(conversation, world)? {
            return Ok(Some(Limit::Conversations));
        }
        if limits.daily_tokens > 0 && self.cost(world)? >= limits.daily_tokens {
            let left = DAY_MS - world.now_ms.rem_euclid(DAY_MS);
            return Ok(Some(Limit::Tokens(from_ms(left))));
        }
        if limits.requests > 0 {
            let window = limits.window.as_micros().max(1) as i64;
            let share = (window / i64::from(limits.requests)).max(1);
            let now = world.now_ms.saturating_mul(1000);
            let key = keys::user(&self.user, Tag::Rate, b"");
            let free = match world.store.get(Table::Users, &key)? {
                Some(value) => {
                    let mut reader = Reader::new(&value);
                    reader.number()?;
                    reader.number()?.max(now)
                }
                None => now,
            };
            let wait = free + share - window - now;
            if wait > 0 {
                let wait = Duration::from_millis((wait as u64).div_ceil(1000));
                return Ok(Some(Limit::Rate(wait)));
            }
            let ends_ms = (free + share) / 1000 + 1;
            let value = Writer::with_capacity(16)
                .number(ends_ms)
                .number(free + share);
            batch.put(Table::Users, key, value.finish());
        }
        Ok(None)
    }

    /// Whether a message would begin a conversation above the limit. Those that only pending
    /// messages are in count as well: each will be there when its message has ended.
    fn one_too_many(&self, conversation: &ConversationId, world: &World<'_>) -> Result<bool> {
        let most = world.bounds.limits.conversations as usize;
        let (from, to) = keys::turns(&self.user, conversation);
        let known = world.store.scan(Table::History, &from, &to, 1, false)?;
        if !known.is_empty() {
            return Ok(false);
        }
        let mut names: BTreeSet<ConversationId> =
            self.conversation_names(world)?.into_iter().collect();
        // Only who is near the limit pays for the look at each.
        if names.len() < most && names.len() + self.pending.len() >= most {
            let pending = self.pending(world)?.into_iter();
            names.extend(pending.map(|one| one.conversation));
        }
        Ok(names.len() >= most && !names.contains(conversation))
    }

    /// The tokens of today.
    fn cost(&self, world: &World<'_>) -> Result<u64> {
        let key = keys::user(&self.user, Tag::Cost, b"");
        let Some(value) = world.store.get(Table::Users, &key)? else {
            return Ok(0);
        };
        let mut reader = Reader::new(&value);
        let ends_ms = reader.number()?;
        let tokens = reader.number()?;
        Ok(if ends_ms > world.now_ms {
            tokens as u64
        } else {
            0
        })
    }

    /// Counts what an answer has cost.
    pub(super) fn count_tokens(
        &self,
        batch: &mut Batch,
        tokens: u64,
        world: &World<'_>,
    ) -> Result<()> {
        if tokens == 0 || world.bounds.limits.daily_tokens == 0 {
            return Ok(());
        }
        let sum = self.cost(world)?.saturating_add(tokens);
        let ends_ms = (world.now_ms.div_euclid(DAY_MS) + 1) * DAY_MS;
        let value = Writer::with_capacity(16)
            .number(ends_ms)
            .number(i64::try_from(sum).unwrap_or(i64::MAX));
        batch.put(
            Table::Users,
            keys::user(&self.user, Tag::Cost, b""),
            value.finish(),
        );
        Ok(())
    }
}
