//! Whether a token opens the door for a user (protocol.md section 5).

use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use rand::Rng as _;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::context::Gateway;
use super::http::response::HttpError;
use super::outbound::OutboundQueue;
use super::session::Grant;
use crate::config::settings::AuthMode;
use crate::protocol::close::CloseReason;
use crate::protocol::ids::UserId;
use crate::protocol::timestamp::now_ms;

mod jwks;
pub(crate) mod jwt;

pub use jwt::KeyError;
use jwt::TokenError;

/// Longer than any connection lives, and within what timers can say.
const FAR: Duration = Duration::from_secs(366 * 86_400);

/// Equal, in a time that does not depend on where they differ.
pub(crate) fn same_secret(given: &str, expected: &str) -> bool {
    given.as_bytes().ct_eq(expected.as_bytes()).into()
}

/// A token in the original's form: 43 characters, 258 bits.
pub(crate) fn random_token() -> String {
    const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = rand::rng();
    (0..43)
        .map(|_| char::from(URL_SAFE[random.random_range(0..URL_SAFE.len())]))
        .collect()
}

/// What `Authorization: Bearer` brings.
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// The token of a request: in the query as the original's, as `Authorization: Bearer`, or as the
/// subprotocol entry `bearer.TOKEN` of a browser, which can set no header.
pub(super) fn token_from_request<'a>(
    query: Option<&'a str>,
    headers: &'a HeaderMap,
) -> Option<&'a str> {
    let offered = || {
        headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(|entry| entry.trim().strip_prefix("bearer."))
    };
    query
        .filter(|token| !token.is_empty())
        .or_else(|| bearer_token(headers))
        .or_else(offered)
        .filter(|token| !token.is_empty())
}

/// Closes a socket when its token ends. Returns at the latest when it closes.
pub(super) async fn close_on_expiry(ends: Option<Instant>, outbound: &OutboundQueue) {
    let Some(ends) = ends else {
        return;
    };
    tokio::select! {
        () = tokio::time::sleep_until(ends) => outbound.close(CloseReason::Unauthorized),
        () = outbound.wait_until_closing() => {}
    }
}

/// Lets the bearer of `token` in as `user`, or says why not.
pub(super) async fn check_token(
    gateway: &Gateway,
    user: &UserId,
    token: Option<&str>,
) -> Result<Grant, HttpError> {
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Err(HttpError::unauthorized("`token` is missing"));
    };
    let granted_at_ms = now_ms();
    match gateway.settings.auth {
        AuthMode::Open => Ok(Grant {
            granted_at_ms,
            ..Grant::default()
        }),
        AuthMode::Stored => match gateway.fanout.stored_token(user).await {
            Ok(Some((stored, seconds))) if same_secret(token, &stored) => Ok(Grant {
                expires_at: Some(Instant::now() + Duration::from_secs(seconds).min(FAR)),
                granted_at_ms,
                from_stored_token: true,
            }),
            Ok(_) => Err(HttpError::unauthorized(
                "`token` is not valid for this user",
            )),
            Err(error) => {
                gateway.metrics.count_fanout_error("stored_token");
                tracing::warn!(%error, "a token could not be looked up");
                Err(HttpError::unavailable("tokens can't be looked up now"))
            }
        },
        AuthMode::Jwt => {
            let Some(verifier) = &gateway.verifier else {
                return Err(HttpError::unavailable("tokens can't be checked now"));
            };
            match verifier.verify(token, user).await {
                Ok(verified) => {
                    let granted_at_ms = verified.issued_ms.unwrap_or(i64::MIN);
                    check_not_revoked(gateway, user, granted_at_ms).await?;
                    let left = verified.expires_at.duration_since(SystemTime::now());
                    Ok(Grant {
                        expires_at: Some(Instant::now() + left.unwrap_or_default().min(FAR)),
                        granted_at_ms,
                        from_stored_token: false,
                    })
                }
                Err(TokenError::Invalid(why)) => Err(HttpError::unauthorized(why)),
                Err(TokenError::WrongUser) => {
                    Err(HttpError::forbidden("`token` is another user's"))
                }
                Err(TokenError::KeysUnavailable) => {
                    Err(HttpError::unavailable("tokens can't be checked now"))
                }
            }
        }
    }
}

async fn check_not_revoked(
    gateway: &Gateway,
    user: &UserId,
    since_ms: i64,
) -> Result<(), HttpError> {
    match gateway.fanout.revoked_at(user).await {
        Ok(Some(at_ms)) if since_ms <= at_ms => {
            Err(HttpError::unauthorized("`token` has been revoked"))
        }
        Ok(_) => Ok(()),
        Err(error) => {
            gateway.metrics.count_fanout_error("revoked_at");
            tracing::warn!(%error, "revocations could not be looked up");
            Err(HttpError::unavailable("tokens can't be looked up now"))
        }
    }
}

/// Whose a signed token says that it is, where a request does not say it: to be checked for this
/// user then.
pub(super) fn claimed_user(gateway: &Gateway, token: Option<&str>) -> Option<UserId> {
    gateway.verifier.as_ref()?;
    UserId::parse(&jwt::claimed_subject(token?)?).ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn a_token_has_the_originals_form_and_is_never_the_same() {
        let token = random_token();
        assert_eq!(token.len(), 43);
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(token.bytes().all(safe));
        assert_ne!(token, random_token());
    }

    #[test]
    fn a_token_is_found_wherever_a_client_may_put_it() {
        let headers = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            headers
        };
        let none = HeaderMap::new();
        assert_eq!(token_from_request(None, &none), None);
        assert_eq!(token_from_request(Some(""), &none), None);
        assert_eq!(token_from_request(Some("q"), &none), Some("q"));
        let basic = headers("authorization", "Basic abc");
        assert_eq!(token_from_request(None, &basic), None);
        let header = headers("authorization", "bearer  h");
        assert_eq!(token_from_request(None, &header), Some("h"));
        assert_eq!(token_from_request(Some("q"), &header), Some("q"));
        let offered = headers("sec-websocket-protocol", "chatmesh.v1, bearer.a.b-c_d");
        assert_eq!(token_from_request(None, &offered), Some("a.b-c_d"));
        let empty = headers("sec-websocket-protocol", "bearer.");
        assert_eq!(token_from_request(None, &empty), None);
    }
}
