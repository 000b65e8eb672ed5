//! The calls that gateways and the command line make to issue stored access tokens and to revoke
//! all tokens of a user.

use std::time::Duration;

use async_trait::async_trait;

use super::error::Result;
use crate::protocol::ids::UserId;

/// First part of the JSON that [`Tokens::revoke`] publishes. Gateways never forward it to clients.
pub const REVOKED_FRAME: &str = r#"{"type":"revoked","#;

/// Builds the JSON of the frame that announces a revocation to all gateways.
pub(super) fn revoked_frame(user: &UserId, at_ms: i64) -> String {
    format!(r#"{REVOKED_FRAME}"userid":"{user}","at_ms":{at_ms}}}"#)
}

/// Issues and revokes access tokens.
#[async_trait]
pub trait Tokens: Send + Sync + 'static {
    /// The user's stored token and its remaining lifetime in seconds; `None` if the user has no
    /// valid stored token. The key in Redis is `token:alice`, as in the original system.
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>>;

    /// Stores the token `candidate` for `ttl` unless the user already has a valid stored token.
    /// Returns the stored token and its remaining lifetime in seconds.
    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)>;

    /// Revokes all tokens of a user: removes the stored token, records the time so that gateways
    /// refuse signed tokens that were issued before, and makes all gateways close the user's
    /// connections. The time is that of this process's clock, because a token's issue time is not
    /// from the fan-out's clock either. A failed call may have been carried out in part, so the
    /// caller repeats it.
    async fn revoke(&self, user: &UserId) -> Result<()>;

    /// When the user's tokens were last revoked, in milliseconds since the Unix epoch; `None` for
    /// never.
    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>>;
}
