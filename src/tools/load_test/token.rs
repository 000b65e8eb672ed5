//! Supplies the clients with tokens: all clients use the same token, or each client requests its
//! own token from the server.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::target::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the token of each client comes from.
#[derive(Debug, Clone)]
pub(super) enum TokenSource {
    /// All clients use this token.
    Fixed(String),
    /// Each client requests its own token by `POST /token`.
    Endpoint {
        client: reqwest::Client,
        admin_key: Option<String>,
    },
}

#[derive(Deserialize)]
struct IssuedToken {
    token: String,
}

impl TokenSource {
    /// Uses the `given` token. Without it, finds out by a `POST /token` for `user` whether the
    /// server issues tokens.
    pub(super) async fn detect(
        target: &Target,
        given: Option<String>,
        admin_key: Option<String>,
        user: &str,
    ) -> anyhow::Result<Self> {
        if let Some(token) = given {
            return Ok(Self::Fixed(token));
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            // Targets are never https, so the client needs no root certificates, and starts on
            // machines that have none.
            .tls_certs_only([])
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()?;
        let server = target.url.authority();
        let response = send_request(&client, target, admin_key.as_deref(), user).await;
        let response = response.with_context(|| format!("{server} does not answer"))?;
        match response.status().as_u16() {
            200 => Ok(Self::Endpoint { client, admin_key }),
            401 | 403 if admin_key.is_some() => {
                bail!("{server} rejects this admin key for POST /token; check --admin-key")
            }
            401 | 403 => bail!("{server} issues tokens for its admin key only; set --admin-key"),
            // A server without this endpoint may accept any token, so all clients use the same
            // text.
            404 | 405 => Ok(Self::Fixed("load-test".to_owned())),
            status => bail!("{server} answers POST /token with {status}"),
        }
    }

    /// Returns the token of a user, and requests it from the server if the server issues tokens.
    pub(super) async fn token_for(&self, target: &Target, user: &str) -> anyhow::Result<String> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::Endpoint { client, admin_key } => {
                let response = send_request(client, target, admin_key.as_deref(), user).await;
                let response = response.context("POST /token failed")?;
                let response = response.error_for_status().map_err(|error| {
                    let status = error.status().map_or(0, |status| status.as_u16());
                    anyhow::anyhow!("POST /token: {status}")
                })?;
                let issued: IssuedToken = response.json().await.context("POST /token failed")?;
                Ok(issued.token)
            }
        }
    }
}

async fn send_request(
    client: &reqwest::Client,
    target: &Target,
    admin_key: Option<&str>,
    user: &str,
) -> reqwest::Result<reqwest::Response> {
    let mut request = client.post(target.token_url(user));
    if let Some(key) = admin_key {
        request = request.bearer_auth(key);
    }
    request.send().await
}
