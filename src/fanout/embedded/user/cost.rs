//! Counts the model tokens that a user has used today, for the daily limit.

use super::UserState;
use crate::fanout::Result;
use crate::fanout::admissions::DAY_MS;
use crate::fanout::embedded::codec::{Reader, Writer};
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys::{self, Tag};
use crate::store::{Batch, Table};

impl UserState {
    /// Number of model tokens that the user has used on this UTC day.
    pub(super) fn tokens_today(&self, context: &StoreContext<'_>) -> Result<u64> {
        let key = keys::user_entry(&self.user, Tag::TokensToday, b"");
        let Some(value) = context.store.get(Table::Users, &key)? else {
            return Ok(0);
        };
        let mut reader = Reader::new(&value);
        let ends_ms = reader.number()?;
        let tokens = reader.number()?;
        Ok(if ends_ms > context.now_ms {
            tokens as u64
        } else {
            0
        })
    }

    /// Adds the model tokens that an answer has cost, if users have a daily limit.
    pub(super) fn count_tokens(
        &self,
        batch: &mut Batch,
        tokens: u64,
        context: &StoreContext<'_>,
    ) -> Result<()> {
        if tokens == 0 || context.bounds.limits.daily_tokens == 0 {
            return Ok(());
        }
        let sum = self.tokens_today(context)?.saturating_add(tokens);
        let ends_ms = (context.now_ms.div_euclid(DAY_MS) + 1) * DAY_MS;
        let value = Writer::with_capacity(16)
            .number(ends_ms)
            .number(i64::try_from(sum).unwrap_or(i64::MAX));
        let key = keys::user_entry(&self.user, Tag::TokensToday, b"");
        batch.put(Table::Users, key, value.finish());
        Ok(())
    }
}
