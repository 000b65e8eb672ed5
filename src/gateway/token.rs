//! `POST /token`: gives out the stored token of a user (protocol.md sections 4 and 5).

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::request::Parts as RequestParts;
use rand::Rng as _;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::history::bearer;
use super::reply::{Refusal, Reply, json_reply};
use super::{Gateway, auth, handshake, origin};
use crate::config::settings::TokenEndpoint;

/// 258 bits; the length and the alphabet of the original's tokens.
fn random_token() -> String {
    const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = rand::rng();
    (0..43)
        .map(|_| char::from(URL_SAFE[random.random_range(0..URL_SAFE.len())]))
        .collect()
}

pub(super) async fn issue(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    match &gateway.settings.token_endpoint {
        TokenEndpoint::Off => return Err(Refusal::not_found()),
        TokenEndpoint::Admin(key) => {
            let given = bearer(&request.headers).unwrap_or_default();
            if !auth::same_secret(given, key.expose_secret()) {
                return Err(Refusal::unauthorized("the admin key is missing or wrong"));
            }
        }
        TokenEndpoint::Open => {}
    }
    if gateway.drain.is_cancelled() {
        return Err(Refusal::unavailable("this gateway is stopping"));
    }
    let user = handshake::Query::of(&request.uri).user()?;
    let issued = gateway
        .fanout
        .issue_token(&user, &random_token(), gateway.settings.token_ttl)
        .await;
    match issued {
        Ok((token, expires_in)) => {
            let mut reply = json_reply(
                StatusCode::OK,
                &json!({"token": token, "userid": user, "expires_in": expires_in}),
            );
            reply
                .headers_mut()
                .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(reply)
        }
        Err(error) => {
            gateway.counters.redis_error("issue_token");
            tracing::warn!(%error, "a token could not be issued");
            Err(Refusal::unavailable("tokens can't be issued now"))
        }
    }
}

/// Answers a browser that asks whether a page may `POST /token`.
pub(super) fn preflight(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    if matches!(gateway.settings.token_endpoint, TokenEndpoint::Off) {
        return Err(Refusal::not_found());
    }
    origin::check(gateway, &request.headers)?;
    Ok(origin::preflight(
        gateway,
        &request.headers,
        "POST, OPTIONS",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_originals_form_and_is_never_the_same() {
        let token = random_token();
        assert_eq!(token.len(), 43);
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(token.bytes().all(safe));
        assert_ne!(token, random_token());
    }
}
