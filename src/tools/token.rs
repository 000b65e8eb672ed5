//! `chatmesh token`: users' tokens from the command line, as a gateway of the same configuration
//! would make and judge them.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};

use crate::config::Config;
use crate::config::settings::{AuthMode, JwtSettings};
use crate::fanout::Tokens as _;
use crate::fanout::redis::RedisFanout;
use crate::gateway::auth::jwt::{self, JwtVerifier};
use crate::gateway::auth::{TokenError, random_token, same_secret};
use crate::protocol::ids::UserId;

const OPEN: &str = "AUTH_MODE=open takes every token: there is nothing to make or to look at";

/// Where nobody said where Redis is, one that happens to run here is not the one that is meant.
fn redis(config: &Config) -> anyhow::Result<RedisFanout> {
    ensure!(
        config.names_redis(),
        "set REDIS_URL or REDIS_HOST to the Redis of the gateways; an all-in-one has none: there, \
         POST and DELETE /token with the admin key make and end tokens"
    );
    RedisFanout::connect(&config.redis()).context("Redis's client can't be made")
}

fn away(config: &Config) -> String {
    format!("Redis at {} can't be asked", config.redis_place())
}

fn signed(jwt: Option<&JwtSettings>) -> anyhow::Result<&JwtSettings> {
    jwt.context("AUTH_MODE=jwt has no keys")
}

/// A token for a user.
pub(crate) async fn issue(config: &Config, user: &UserId) -> anyhow::Result<String> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN),
        AuthMode::Jwt => jwt::issue(signed(settings.jwt.as_ref())?, user, settings.token_ttl)
            .context("only with auth.jwt_secret (JWT_SECRET) can tokens be signed here"),
        AuthMode::Stored => {
            let issued = redis(config)?
                .issue_token(user, &random_token(), settings.token_ttl)
                .await;
            Ok(issued.with_context(|| away(config))?.0)
        }
    }
}

/// A token that is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Good {
    /// For how long.
    pub(crate) left: Duration,
    /// Whether it was looked up that it was not revoked.
    pub(crate) looked_up: bool,
}

/// Whether a token is good. A signed one says so itself; whether it was revoked is looked up where
/// it is known where Redis is.
pub(crate) async fn verify(config: &Config, user: &UserId, token: &str) -> anyhow::Result<Good> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN),
        AuthMode::Jwt => {
            let verifier = JwtVerifier::new(signed(settings.jwt.as_ref())?)?;
            let verified = match verifier.verify(token, user).await {
                Ok(verified) => verified,
                Err(TokenError::Invalid(why)) => bail!(why),
                Err(TokenError::WrongUser) => bail!("`token` is another user's"),
                Err(TokenError::KeysUnavailable) => bail!("the keys can't be fetched"),
            };
            let left = verified.expires_at.duration_since(SystemTime::now());
            let left = left.unwrap_or_default();
            if !config.names_redis() {
                return Ok(Good {
                    left,
                    looked_up: false,
                });
            }
            let revoked = redis(config)?.revoked_at(user).await;
            let revoked = revoked.with_context(|| away(config))?;
            let since_ms = verified.issued_ms.unwrap_or(i64::MIN);
            if revoked.is_some_and(|at_ms| since_ms <= at_ms) {
                bail!("`token` has been revoked");
            }
            Ok(Good {
                left,
                looked_up: true,
            })
        }
        AuthMode::Stored => {
            let stored = redis(config)?.stored_token(user).await;
            match stored.with_context(|| away(config))? {
                Some((stored, left)) if same_secret(token, &stored) => Ok(Good {
                    left: Duration::from_secs(left),
                    looked_up: true,
                }),
                _ => bail!("`token` is not valid for this user"),
            }
        }
    }
}

/// Ends the tokens of a user everywhere.
pub(crate) async fn revoke(config: &Config, user: &UserId) -> anyhow::Result<()> {
    let revoked = redis(config)?.revoke(user).await;
    revoked.with_context(|| format!("{}: repeat it", away(config)))
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
    async fn no_redis_is_asked_that_nobody_named() {
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
        let good = verify(&signed, &user, &token).await.unwrap();
        assert!(!good.looked_up && good.left > Duration::from_secs(3600));
        assert!(revoke(&signed, &user).await.is_err());
    }
}
