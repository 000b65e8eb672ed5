//! Decides whether a token admits its bearer as a user, by `AUTH_MODE`.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::error::TokenError;
use super::jwt;
use super::token::same_secret;
use crate::config::settings::AuthMode;
use crate::gateway::context::Gateway;
use crate::gateway::http::response::HttpError;
use crate::gateway::outbound::OutboundQueue;
use crate::gateway::session::Grant;
use crate::protocol::close::CloseReason;
use crate::protocol::ids::UserId;
use crate::protocol::timestamp::now_ms;

/// Maximum duration of a grant: longer than any connection lives, and within the range of tokio's
/// timers.
const MAX_GRANT_DURATION: Duration = Duration::from_secs(366 * 86_400);

fn expiring_grant(expires_in: Duration, granted_at_ms: i64, from_stored_token: bool) -> Grant {
    Grant {
        expires_at: Some(Instant::now() + expires_in.min(MAX_GRANT_DURATION)),
        granted_at_ms,
        from_stored_token,
    }
}

/// Closes a connection when its token expires. Returns when the connection closes, and at once if
/// the token never expires.
pub(in crate::gateway) async fn close_on_expiry(
    expires_at: Option<Instant>,
    outbound: &OutboundQueue,
) {
    let Some(expires_at) = expires_at else {
        return;
    };
    tokio::select! {
        () = tokio::time::sleep_until(expires_at) => outbound.close(CloseReason::Unauthorized),
        () = outbound.wait_until_closing() => {}
    }
}

/// Checks that `token` admits its bearer as `user`.
pub(in crate::gateway) async fn check_token(
    gateway: &Gateway,
    user: &UserId,
    token: Option<&str>,
) -> Result<Grant, HttpError> {
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Err(HttpError::unauthorized("`token` is missing"));
    };
    match gateway.settings.auth {
        AuthMode::Open => Ok(Grant {
            granted_at_ms: now_ms(),
            ..Grant::default()
        }),
        AuthMode::Stored => check_stored_token(gateway, user, token).await,
        AuthMode::Jwt => check_signed_token(gateway, user, token).await,
    }
}

async fn check_stored_token(
    gateway: &Gateway,
    user: &UserId,
    token: &str,
) -> Result<Grant, HttpError> {
    // The time is read before the lookup, so that a revocation during the lookup ends the grant.
    let granted_at_ms = now_ms();
    match gateway.fanout.stored_token(user).await {
        Ok(Some((stored, expires_in_s))) if same_secret(token, &stored) => Ok(expiring_grant(
            Duration::from_secs(expires_in_s),
            granted_at_ms,
            true,
        )),
        Ok(_) => Err(HttpError::unauthorized(
            "`token` is not valid for this user",
        )),
        Err(error) => {
            gateway.metrics.count_fanout_error("stored_token");
            tracing::warn!(%error, "token lookup failed, the fan-out is unavailable; check redis");
            Err(HttpError::unavailable("tokens can't be looked up now"))
        }
    }
}

async fn check_signed_token(
    gateway: &Gateway,
    user: &UserId,
    token: &str,
) -> Result<Grant, HttpError> {
    let Some(verifier) = &gateway.verifier else {
        return Err(HttpError::unavailable("tokens can't be checked now"));
    };
    let verified = match verifier.verify(token, user).await {
        Ok(verified) => verified,
        Err(TokenError::Invalid(reason)) => return Err(HttpError::unauthorized(reason)),
        Err(TokenError::WrongUser) => {
            return Err(HttpError::forbidden("`token` is another user's"));
        }
        Err(TokenError::KeysUnavailable) => {
            return Err(HttpError::unavailable("tokens can't be checked now"));
        }
    };
    // A token without `iat` could be of any age, so every revocation ends its grant.
    let granted_at_ms = verified.issued_at_ms.unwrap_or(i64::MIN);
    check_not_revoked(gateway, user, granted_at_ms).await?;
    let expires_in = verified.expires_at.duration_since(SystemTime::now());
    Ok(expiring_grant(
        expires_in.unwrap_or_default(),
        granted_at_ms,
        false,
    ))
}

async fn check_not_revoked(
    gateway: &Gateway,
    user: &UserId,
    issued_at_ms: i64,
) -> Result<(), HttpError> {
    match gateway.fanout.revoked_at(user).await {
        Ok(Some(revoked_at_ms)) if issued_at_ms <= revoked_at_ms => {
            Err(HttpError::unauthorized("`token` has been revoked"))
        }
        Ok(_) => Ok(()),
        Err(error) => {
            gateway.metrics.count_fanout_error("revoked_at");
            tracing::warn!(
                %error,
                "revocation lookup failed, the fan-out is unavailable; check redis"
            );
            Err(HttpError::unavailable("tokens can't be looked up now"))
        }
    }
}

/// Returns the user that a signed token names, without verifying the token. The caller has to check
/// the token for this user afterwards. `None` if the token names no valid user, or if `AUTH_MODE`
/// is not `jwt`.
pub(in crate::gateway) fn unverified_user(
    gateway: &Gateway,
    token: Option<&str>,
) -> Option<UserId> {
    gateway.verifier.as_ref()?;
    UserId::parse(&jwt::unverified_subject(token?)?).ok()
}
