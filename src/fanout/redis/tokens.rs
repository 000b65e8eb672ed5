//! The calls of [`Tokens`] on Redis: stored access tokens and their revocation.

use std::time::Duration;

use async_trait::async_trait;
use fred::types::Value;

use super::args::{number, random_id, text};
use super::reply::{Reply, unreadable_reply_error};
use super::{RedisFanout, channel};
use crate::fanout::tokens::revoked_frame;
use crate::fanout::{Result, Tokens};
use crate::protocol::ids::UserId;
use crate::protocol::timestamp::now_ms;

/// Decodes a token and its remaining lifetime in seconds. Returns `None` if there is no token.
fn decode_token(mut reply: Reply) -> Result<Option<(String, u64)>> {
    if reply.is_empty() {
        return Ok(None);
    }
    let token = reply.text()?;
    let seconds: i64 = reply.parse("time to live")?;
    // The time is negative for a token that was stored without an expiry. Such a token gets the
    // longest lifetime.
    let seconds_left = u64::try_from(seconds).unwrap_or(u64::from(u32::MAX));
    Ok(Some((token, seconds_left)))
}

#[async_trait]
impl Tokens for RedisFanout {
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>> {
        let args = vec![text(""), text("0")];
        let key = channel::token_key(user);
        decode_token(self.run(&self.scripts.issue_token, &[&key], args).await?)
    }

    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)> {
        let args = vec![text(candidate), number(ttl.as_secs().max(1))];
        let key = channel::token_key(user);
        decode_token(self.run(&self.scripts.issue_token, &[&key], args).await?)?
            .ok_or_else(|| unreadable_reply_error("token"))
    }

    async fn revoke(&self, user: &UserId) -> Result<()> {
        // Two scripts run, because the token is in another slot than the user's other keys. The
        // token is removed first: a connection that uses it after that is refused, and the
        // revocation that follows closes the connections that used it before.
        let key = channel::token_key(user);
        self.run(&self.scripts.drop_token, &[&key], Vec::new())
            .await?;
        let at_ms = now_ms();
        let args = vec![
            random_id(),
            number(at_ms),
            Value::from(revoked_frame(user, at_ms)),
        ];
        self.run_for(&self.scripts.revoke, user, args)
            .await
            .map(|_| ())
    }

    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>> {
        let script = &self.scripts.revoked_at;
        let mut reply = self.run_for(script, user, Vec::new()).await?;
        match reply.optional_text()? {
            Some(at_ms) => at_ms
                .parse()
                .map(Some)
                .map_err(|_| unreadable_reply_error("time")),
            None => Ok(None),
        }
    }
}
