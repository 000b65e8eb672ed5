//! The calls of [`Tokens`] on the local store: stored access tokens and their revocation.

use std::time::Duration;

use async_trait::async_trait;

use super::EmbeddedFanout;
use super::codec::{Reader, Writer};
use super::context::millis;
use super::keys::{self, Tag};
use crate::fanout::tokens::revoked_frame;
use crate::fanout::{Channel, Result, Tokens};
use crate::protocol::ids::UserId;
use crate::protocol::timestamp;
use crate::store::{Batch, Store, Table};

/// The time from `now_ms` to `ends_ms` in seconds, rounded up; 0 if it is over.
fn seconds_left(ends_ms: i64, now_ms: i64) -> u64 {
    (ends_ms.saturating_sub(now_ms).max(0) as u64).div_ceil(1000)
}

/// The user's stored token and its remaining lifetime in seconds; `None` if there is none or it has
/// expired.
fn valid_token(store: &Store, user: &UserId, now_ms: i64) -> Result<Option<(String, u64)>> {
    let Some(value) = store.get(Table::Users, &keys::user_entry(user, Tag::Token, b""))? else {
        return Ok(None);
    };
    let mut reader = Reader::new(&value);
    let ends_ms = reader.number()?;
    let token = reader.remainder()?.to_owned();
    Ok((ends_ms > now_ms).then(|| (token, seconds_left(ends_ms, now_ms))))
}

/// When the user's tokens were last revoked, in milliseconds since the Unix epoch; `None` for
/// never.
fn last_revocation_ms(store: &Store, user: &UserId) -> Result<Option<i64>> {
    match store.get(Table::Users, &keys::user_entry(user, Tag::Revocation, b""))? {
        Some(value) => Ok(Some(Reader::new(&value).number()?)),
        None => Ok(None),
    }
}

#[async_trait]
impl Tokens for EmbeddedFanout {
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        valid_token(&self.users.store, user, self.users.now_ms())
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        self.users.with_state(user, |_, context| {
            if let Some(existing) = valid_token(context.store, user, context.now_ms)? {
                return Ok(existing);
            }
            let ends_ms = context.now_ms.saturating_add(millis(ttl));
            let value = Writer::with_capacity(candidate.len() + 8)
                .number(ends_ms)
                .finish_with(candidate);
            let mut batch = Batch::default();
            batch.put(Table::Users, keys::user_entry(user, Tag::Token, b""), value);
            context.store.commit(batch)?;
            Ok((candidate.to_owned(), seconds_left(ends_ms, context.now_ms)))
        })
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        let at_ms = timestamp::now_ms();
        self.users.with_state(user, |state, context| {
            let previous_ms = last_revocation_ms(context.store, user)?;
            let latest_ms = previous_ms.map_or(at_ms, |previous| previous.max(at_ms));
            let mut batch = Batch::default();
            let key = keys::user_entry(user, Tag::Revocation, b"");
            batch.put(Table::Users, key, latest_ms.to_be_bytes());
            batch.delete(Table::Users, keys::user_entry(user, Tag::Token, b""));
            context.store.commit(batch)?;
            state.publish(Channel::Terminal, &revoked_frame(user, at_ms));
            Ok(())
        })
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        last_revocation_ms(&self.users.store, user)
    }
}
