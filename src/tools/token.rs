//! `chatmesh token`: users' tokens from the command line, as a gateway of the same configuration
//! would make and judge them.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::config::settings::{AuthMode, JwtSettings};
use crate::fanout::Fanout as _;
use crate::fanout::redis::RedisFanout;
use crate::gateway::auth::jwt::{self, Denied, Verifier};
use crate::gateway::auth::{random_token, same_secret};
use crate::protocol::ids::UserId;

const OPEN: &str = "AUTH_MODE=open takes every token: there is nothing to make or to look at";

fn redis(config: &Config) -> anyhow::Result<RedisFanout> {
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

/// How long a token is good for.
pub(crate) async fn verify(
    config: &Config,
    user: &UserId,
    token: &str,
) -> anyhow::Result<Duration> {
    let settings = config.gateway();
    match settings.auth {
        AuthMode::Open => bail!(OPEN),
        AuthMode::Jwt => {
            let verifier = Verifier::new(signed(settings.jwt.as_ref())?)?;
            let verified = match verifier.verify(token, user).await {
                Ok(verified) => verified,
                Err(Denied::Invalid(why)) => bail!(why),
                Err(Denied::WrongUser) => bail!("`token` is another user's"),
                Err(Denied::KeysAway) => bail!("the keys can't be fetched"),
            };
            let revoked = redis(config)?.revoked_at(user).await;
            let revoked = revoked.with_context(|| away(config))?;
            let since_ms = verified.issued_ms.unwrap_or(i64::MIN);
            if revoked.is_some_and(|at_ms| since_ms <= at_ms) {
                bail!("`token` has been revoked");
            }
            let left = verified.ends.duration_since(SystemTime::now());
            Ok(left.unwrap_or_default())
        }
        AuthMode::Stored => {
            let stored = redis(config)?.stored_token(user).await;
            match stored.with_context(|| away(config))? {
                Some((stored, left)) if same_secret(token, &stored) => {
                    Ok(Duration::from_secs(left))
                }
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
