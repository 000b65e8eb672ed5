//! `chatmesh token`: issues, verifies and revokes tokens as a gateway with the same configuration
//! does.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};

use crate::config::Config;
use crate::config::settings::{AuthMode, JwtSettings};
use crate::fanout::Tokens as _;
use crate::fanout::redis::RedisFanout;
use crate::gateway::auth::jwt::{self, JwtVerifier};
use crate::gateway::auth::{TokenError, random_token, same_secret};
use crate::protocol::ids::UserId;

const OPEN_MODE_ERROR: &str =
    "AUTH_MODE=open accepts every token: there is nothing to issue or verify";

/// Connects to the configured Redis. Fails if no address is configured, because a Redis at the
/// default address may not be the Redis of the gateways.
fn connect_redis(config: &Config) -> anyhow::Result<RedisFanout> {
    ensure!(
        config.has_redis_address(),
        "set REDIS_URL or REDIS_HOST to the Redis of the gateways; an all-in-one has none: there, \
         POST and DELETE /token with the admin key issue and revoke tokens"
    );
    RedisFanout::connect(&config.redis()).context("the Redis client can't be created")
}

fn redis_unavailable_text(config: &Config) -> String {
    format!("Redis at {} is unavailable", config.redis_address())
}

fn jwt_settings(jwt: Option<&JwtSettings>) -> anyhow::Result<&JwtSettings> {
    jwt.context("AUTH_MODE=jwt has no keys")
}

/// Issues a token for a user.
///
/// # Errors
/// Tokens of this `AUTH_MODE` can't be issued here, or Redis is unavailable.
pub(crate) async fn issue(config: &Config, user: &UserId) -> anyhow::Result<String> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN_MODE_ERROR),
        AuthMode::Jwt => jwt::issue(
            jwt_settings(settings.jwt.as_ref())?,
            user,
            settings.token_ttl,
        )
        .context("only with auth.jwt_secret (JWT_SECRET) can tokens be signed here"),
        AuthMode::Stored => {
            let issued = connect_redis(config)?
                .issue_token(user, &random_token(), settings.token_ttl)
                .await;
            Ok(issued.with_context(|| redis_unavailable_text(config))?.0)
        }
    }
}

/// The result of verifying a valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValidToken {
    /// Remaining lifetime of the token.
    pub(crate) expires_in: Duration,
    /// Whether Redis was asked if the token is revoked. False for a signed token if no address of
    /// Redis is configured.
    pub(crate) is_revocation_checked: bool,
}

/// Verifies a token. Only Redis knows whether a signed token is revoked, so this is checked only if
/// an address of Redis is configured.
///
/// # Errors
/// `AUTH_MODE` is `open`, the token is invalid or revoked, or Redis or the keys are unavailable.
pub(crate) async fn verify(
    config: &Config,
    user: &UserId,
    token: &str,
) -> anyhow::Result<ValidToken> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN_MODE_ERROR),
        AuthMode::Jwt => {
            let verifier = JwtVerifier::new(jwt_settings(settings.jwt.as_ref())?)?;
            let verified = match verifier.verify(token, user).await {
                Ok(verified) => verified,
                Err(TokenError::Invalid(why)) => bail!(why),
                Err(TokenError::WrongUser) => bail!("`token` is another user's"),
                Err(TokenError::KeysUnavailable) => bail!("the keys can't be fetched"),
            };
            let expires_in = verified.expires_at.duration_since(SystemTime::now());
            let expires_in = expires_in.unwrap_or_default();
            if !config.has_redis_address() {
                return Ok(ValidToken {
                    expires_in,
                    is_revocation_checked: false,
                });
            }
            let revoked_at_ms = connect_redis(config)?.revoked_at(user).await;
            let revoked_at_ms = revoked_at_ms.with_context(|| redis_unavailable_text(config))?;
            // A token without the time of its issue counts as older than any revocation.
            let issued_at_ms = verified.issued_at_ms.unwrap_or(i64::MIN);
            if revoked_at_ms.is_some_and(|revoked_at_ms| issued_at_ms <= revoked_at_ms) {
                bail!("`token` has been revoked");
            }
            Ok(ValidToken {
                expires_in,
                is_revocation_checked: true,
            })
        }
        AuthMode::Stored => {
            let stored = connect_redis(config)?.stored_token(user).await;
            match stored.with_context(|| redis_unavailable_text(config))? {
                Some((stored, ttl_seconds)) if same_secret(token, &stored) => Ok(ValidToken {
                    expires_in: Duration::from_secs(ttl_seconds),
                    is_revocation_checked: true,
                }),
                Some(_) => bail!("`token` is not the user's current token"),
                None => {
                    bail!("the user has no token: none was issued, or it expired or was revoked")
                }
            }
        }
    }
}

/// Revokes all tokens of a user.
///
/// # Errors
/// No address of Redis is configured, or Redis is unavailable.
pub(crate) async fn revoke(config: &Config, user: &UserId) -> anyhow::Result<()> {
    let revoked = connect_redis(config)?.revoke(user).await;
    revoked.with_context(|| format!("{}: repeat the command", redis_unavailable_text(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Role, Sources};

    fn config(environment: &[(&str, &str)]) -> Config {
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let sources = Sources {
            environment,
            ..Sources::default()
        };
        Config::load(Role::Gateway, &sources).unwrap()
    }

    #[tokio::test]
    async fn redis_without_a_configured_address_is_not_used() {
        let user = UserId::parse("alice").unwrap();
        let stored = config(&[]);
        for error in [
            issue(&stored, &user).await.unwrap_err(),
            verify(&stored, &user, "x").await.unwrap_err(),
            revoke(&stored, &user).await.unwrap_err(),
        ] {
            let error = format!("{error:#}");
            assert!(
                error.contains("REDIS_URL") && error.contains("/token"),
                "{error}"
            );
        }
        let secret = "0123456789abcdef0123456789abcdef";
        let signed = config(&[("AUTH_MODE", "jwt"), ("JWT_SECRET", secret)]);
        let token = issue(&signed, &user).await.unwrap();
        let valid = verify(&signed, &user, &token).await.unwrap();
        assert!(!valid.is_revocation_checked && valid.expires_in > Duration::from_secs(3600));
        assert!(revoke(&signed, &user).await.is_err());
    }
}
