//! Stored access tokens and their revocation, called by gateways and the command line.

use std::time::Duration;

use async_trait::async_trait;

use super::error::Result;
use crate::protocol::ids::UserId;

/// Prefix of the frame that [`Tokens::revoke`] publishes. It is never forwarded to clients.
pub const REVOKED_FRAME: &str = r#"{"type":"revoked","#;

/// Builds the frame that announces a revocation to all gateways.
pub(super) fn revoked_frame(user: &UserId, at_ms: i64) -> String {
    format!(r#"{REVOKED_FRAME}"userid":"{user}","at_ms":{at_ms}}}"#)
}

/// Issues and revokes access tokens.
#[async_trait]
pub trait Tokens: Send + Sync + 'static {
    /// The user's stored token and its remaining lifetime in seconds; `None` where there is none
    /// (the key is `token:alice`, as in the original system).
    async fn stored_token(&self, user: &UserId) -> Result<Option<(String, u64)>>;

    /// Stores `candidate` for `ttl` unless the user already has a token. Returns the stored token
    /// and its remaining lifetime in seconds.
    async fn issue_token(
        &self,
        user: &UserId,
        candidate: &str,
        ttl: Duration,
    ) -> Result<(String, u64)>;

    /// Revokes all tokens of a user: removes the stored one, records the time so that signed tokens
    /// issued before are refused, and makes all gateways close the user's connections. Uses this
    /// process's clock, as the tokens' own times do. A failed call may have been carried out in
    /// part: repeat it.
    async fn revoke(&self, user: &UserId) -> Result<()>;

    /// When the user's tokens were last revoked, in milliseconds since the Unix epoch; `None` for
    /// never.
    async fn revoked_at(&self, user: &UserId) -> Result<Option<i64>>;
}
