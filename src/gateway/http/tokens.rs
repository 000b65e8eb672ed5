//! `POST /token` issues a user's token, stored or signed; `DELETE /token` revokes all tokens of a
//! user (protocol.md sections 4 and 5).

use hyper::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::origin;
use super::query::{Head, Query};
use super::response::{HttpError, HttpResponse, forbid_caching, json_response};
use crate::config::settings::{AuthMode, JwtSettings, TokenEndpoint};
use crate::gateway::auth;
use crate::gateway::context::Gateway;
use crate::protocol::ids::UserId;

/// Checks that the request carries `key` as its bearer token.
pub(super) fn check_admin_key(request: &Head, key: &SecretString) -> Result<(), HttpError> {
    let presented = auth::bearer_token(request.headers()).unwrap_or_default();
    if auth::same_secret(presented, key.expose_secret()) {
        Ok(())
    } else {
        Err(HttpError::unauthorized("the admin key is missing or wrong"))
    }
}

fn issued_response(user: &UserId, token: &str, expires_in_s: u64) -> HttpResponse {
    let body = json!({"token": token, "userid": user, "expires_in": expires_in_s});
    let mut response = json_response(StatusCode::OK, &body);
    forbid_caching(&mut response);
    response
}

pub(super) async fn issue(gateway: &Gateway, request: &Head) -> Result<HttpResponse, HttpError> {
    let settings = &gateway.settings;
    // With public keys, tokens can be verified but not signed, so the route does not exist.
    if settings.auth == AuthMode::Jwt && !settings.jwt.as_ref().is_some_and(JwtSettings::can_sign) {
        return Err(HttpError::not_found());
    }
    match &settings.token_endpoint {
        TokenEndpoint::Off => return Err(HttpError::not_found()),
        TokenEndpoint::Admin(key) => check_admin_key(request, key)?,
        TokenEndpoint::Open => {}
    }
    if gateway.drain.is_cancelled() {
        return Err(HttpError::unavailable("this gateway is stopping"));
    }
    let user = Query::parse(request.uri()).user()?;
    if settings.auth == AuthMode::Jwt {
        let jwt = settings.jwt.as_ref();
        let token = jwt.and_then(|jwt| auth::jwt::issue(jwt, &user, settings.token_ttl));
        let token = token.ok_or(HttpError::unavailable("tokens can't be issued now"))?;
        let expires_in_s = settings.token_ttl.as_secs().max(1);
        return Ok(issued_response(&user, &token, expires_in_s));
    }
    let stored = gateway
        .fanout
        .issue_token(&user, &auth::random_token(), settings.token_ttl)
        .await;
    match stored {
        Ok((token, expires_in_s)) => Ok(issued_response(&user, &token, expires_in_s)),
        Err(error) => {
            gateway.metrics.count_fanout_error("issue_token");
            tracing::warn!(%error, "token not issued, the fan-out is unavailable; check redis");
            Err(HttpError::unavailable("tokens can't be issued now"))
        }
    }
}

/// Revokes all tokens of a user. Every gateway closes the connections that were opened with these
/// tokens.
pub(super) async fn revoke(gateway: &Gateway, request: &Head) -> Result<HttpResponse, HttpError> {
    let Some(key) = &gateway.settings.admin_key else {
        return Err(HttpError::not_found());
    };
    check_admin_key(request, key)?;
    let user = Query::parse(request.uri()).user()?;
    if let Err(error) = gateway.fanout.revoke(&user).await {
        gateway.metrics.count_fanout_error("revoke");
        tracing::warn!(
            %error, user = user.as_str(),
            "unknown whether the user's tokens were revoked, repeat the request"
        );
        return Err(HttpError::unavailable(
            "unknown whether the tokens were revoked; repeat the request",
        ));
    }
    tracing::info!(user = user.as_str(), "tokens revoked");
    Ok(json_response(
        StatusCode::OK,
        &json!({"userid": user, "revoked": true}),
    ))
}

/// Answers a browser's preflight for `POST /token`.
pub(super) fn preflight(gateway: &Gateway, request: &Head) -> Result<HttpResponse, HttpError> {
    // A route that is off does not exist, so the response is a 404 for every origin.
    if matches!(gateway.settings.token_endpoint, TokenEndpoint::Off) {
        return Err(HttpError::not_found());
    }
    origin::check(gateway, request.headers())?;
    Ok(origin::preflight(
        gateway,
        request.headers(),
        "POST, OPTIONS",
    ))
}
