//! `chatmesh token`: issues, verifies and revokes tokens like a gateway with the same configuration.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};

use crate::config::Config;
use crate::config::settings::{AuthMode, JwtSettings};
use crate::fanout::Tokens as _;
use crate::fanout::redis::RedisFanout;
use crate::gateway::auth::jwt::{self, JwtVerifier};
use crate::gateway::auth::{TokenError, random_token, same_secret};
use crate::protocol::ids::UserId;

const OPEN_MODE: &str = "AUTH_MODE=open accepts every token: there is nothing to issue or verify";

/// Connects to the configured Redis. An address is required, because a Redis on the default address may
/// not be that of the gateways.
fn connect_redis(config: &Config) -> anyhow::Result<RedisFanout> {
    ensure!(
        config.has_redis_address(),
        "set REDIS_URL or REDIS_HOST to the Redis of the gateways; an all-in-one has none: there, \
         POST and DELETE /token with the admin key issue and revoke tokens"
    );
    RedisFanout::connect(&config.redis()).context("the Redis client can't be created")
}

fn redis_unavailable(config: &Config) -> String {
    format!("Redis at {} is unavailable", config.redis_address())
}

fn jwt_settings(jwt: Option<&JwtSettings>) -> anyhow::Result<&JwtSettings> {
    jwt.context("AUTH_MODE=jwt has no keys")
}

/// Issues a token for a user.
///
/// # Errors
/// The mode issues no tokens here, or Redis is unavailable.
pub(crate) async fn issue(config: &Config, user: &UserId) -> anyhow::Result<String> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN_MODE),
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
            Ok(issued.with_context(|| redis_unavailable(config))?.0)
        }
    }
}

/// A valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValidToken {
    /// Remaining lifetime.
    pub(crate) expires_in: Duration,
    /// Whether Redis was asked that the token is not revoked.
    pub(crate) is_revocation_checked: bool,
}

/// Verifies a token. A revocation of a signed token is known only to Redis, so it is checked only if the
/// address of Redis is configured.
///
/// # Errors
/// The token is invalid, or Redis or the keys are unavailable.
pub(crate) async fn verify(
    config: &Config,
    user: &UserId,
    token: &str,
) -> anyhow::Result<ValidToken> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN_MODE),
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
            let revoked = connect_redis(config)?.revoked_at(user).await;
            let revoked = revoked.with_context(|| redis_unavailable(config))?;
            let since_ms = verified.issued_ms.unwrap_or(i64::MIN);
            if revoked.is_some_and(|at_ms| since_ms <= at_ms) {
                bail!("`token` has been revoked");
            }
            Ok(ValidToken {
                expires_in,
                is_revocation_checked: true,
            })
        }
        AuthMode::Stored => {
            let stored = connect_redis(config)?.stored_token(user).await;
            match stored.with_context(|| redis_unavailable(config))? {
                Some((stored, seconds)) if same_secret(token, &stored) => Ok(ValidToken {
                    expires_in: Duration::from_secs(seconds),
                    is_revocation_checked: true,
                }),
                _ => bail!("`token` is not valid for this user"),
            }
        }
    }
}

/// Revokes all tokens of a user.
///
/// # Errors
/// Redis is unavailable.
pub(crate) async fn revoke(config: &Config, user: &UserId) -> anyhow::Result<()> {
    let revoked = connect_redis(config)?.revoke(user).await;
    revoked.with_context(|| format!("{}: repeat the command", redis_unavailable(config)))
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
