//! Whether a token opens the door for a user (protocol.md section 5).

use std::time::Duration;

use subtle::ConstantTimeEq;

use super::Gateway;
use super::reply::Refusal;
use crate::config::settings::AuthMode;
use crate::protocol::ids::UserId;

/// Equal, in a time that does not depend on where they differ.
pub(super) fn same_secret(given: &str, expected: &str) -> bool {
    given.as_bytes().ct_eq(expected.as_bytes()).into()
}

/// Lets the bearer of `token` in as `user`, or says why not. Returns how long the token is good,
/// where that is known.
pub(super) async fn check_token(
    gateway: &Gateway,
    user: &UserId,
    token: Option<&str>,
) -> Result<Option<Duration>, Refusal> {
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Err(Refusal::unauthorized("`token` is missing"));
    };
    match gateway.settings.auth {
        AuthMode::Open => Ok(None),
        AuthMode::Stored => match gateway.fanout.stored_token(user).await {
            Ok(Some((stored, left))) if same_secret(token, &stored) => {
                Ok(Some(Duration::from_secs(left)))
            }
            Ok(_) => Err(Refusal::unauthorized("`token` is not valid for this user")),
            Err(error) => {
                gateway.counters.redis_error("stored_token");
                tracing::warn!(%error, "a token could not be looked up");
                Err(Refusal::unavailable("tokens can't be looked up now"))
            }
        },
    }
}
