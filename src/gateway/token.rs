//! `POST /token` gives out a user's token, stored or signed; `DELETE /token` revokes them
//! (protocol.md sections 4 and 5).

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::request::Parts as RequestParts;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::reply::{Refusal, Reply, json_reply};
use super::{Gateway, auth, handshake, origin};
use crate::config::settings::{AuthMode, JwtSettings, TokenEndpoint};
use crate::protocol::ids::UserId;

pub(super) fn admin(request: &RequestParts, key: &SecretString) -> Result<(), Refusal> {
    let given = auth::bearer(&request.headers).unwrap_or_default();
    if auth::same_secret(given, key.expose_secret()) {
        Ok(())
    } else {
        Err(Refusal::unauthorized("the admin key is missing or wrong"))
    }
}

fn issued(user: &UserId, token: &str, expires_in: u64) -> Reply {
    let body = json!({"token": token, "userid": user, "expires_in": expires_in});
    let mut reply = json_reply(StatusCode::OK, &body);
    reply
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

pub(super) async fn issue(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    let settings = &gateway.settings;
    // Nothing that could sign one.
    if settings.auth == AuthMode::Jwt && !settings.jwt.as_ref().is_some_and(JwtSettings::signs) {
        return Err(Refusal::not_found());
    }
    match &gateway.settings.token_endpoint {
        TokenEndpoint::Off => return Err(Refusal::not_found()),
        TokenEndpoint::Admin(key) => {
            admin(request, key)?;
        }
        TokenEndpoint::Open => {}
    }
    if gateway.drain.is_cancelled() {
        return Err(Refusal::unavailable("this gateway is stopping"));
    }
    let user = handshake::Query::of(&request.uri).user()?;
    if settings.auth == AuthMode::Jwt {
        let token = settings.jwt.as_ref();
        let token = token.and_then(|jwt| auth::jwt::issue(jwt, &user, settings.token_ttl));
        let token = token.ok_or(Refusal::unavailable("tokens can't be issued now"))?;
        return Ok(issued(&user, &token, settings.token_ttl.as_secs().max(1)));
    }
    let stored = gateway
        .fanout
        .issue_token(&user, &auth::random_token(), settings.token_ttl)
        .await;
    match stored {
        Ok((token, expires_in)) => Ok(issued(&user, &token, expires_in)),
        Err(error) => {
            gateway.counters.redis_error("issue_token");
            tracing::warn!(%error, "a token could not be issued");
            Err(Refusal::unavailable("tokens can't be issued now"))
        }
    }
}

/// Ends what the user's tokens open, everywhere.
pub(super) async fn revoke(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    let Some(key) = &gateway.settings.admin_key else {
        return Err(Refusal::not_found());
    };
    admin(request, key)?;
    let user = handshake::Query::of(&request.uri).user()?;
    if let Err(error) = gateway.fanout.revoke(&user).await {
        gateway.counters.redis_error("revoke");
        tracing::warn!(%error, "tokens could not be revoked");
        return Err(Refusal::unavailable(
            "it is not known whether the tokens were revoked, repeat it",
        ));
    }
    tracing::info!(user = user.as_str(), "tokens revoked");
    Ok(json_reply(
        StatusCode::OK,
        &json!({"userid": user, "revoked": true}),
    ))
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
