//! The server, over HTTP: addresses, tokens, requests.

use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::error::ClientError;
use super::options::{Options, Token};
use crate::http_client;
use crate::protocol::wire::http::{IssuedToken, Refused};

/// A request, until its answer begins; and connecting.
const TIMEOUT: Duration = Duration::from_secs(10);

/// For a server that takes any token and gives out none.
const ANY: &str = "anonymous";

#[derive(Debug)]
pub(super) struct Link {
    pub(super) options: Options,
    http: reqwest::Client,
    token: Mutex<Option<SecretString>>,
}

impl Link {
    pub(super) fn new(options: Options) -> Result<Self, ClientError> {
        let http = http_client::builder_for(&options.server)
            .connect_timeout(TIMEOUT)
            // Upgrades are of HTTP/1.1.
            .http1_only()
            .build()
            .map_err(|error| ClientError::Setup(causes(&error)))?;
        Ok(Self {
            http,
            options,
            token: Mutex::default(),
        })
    }

    /// Below the server's address, with the user in the query.
    pub(super) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.options.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url.query_pairs_mut()
            .append_pair("userid", self.options.user.as_str());
        url
    }

    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends it. Only that nothing answers is an error here.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable {
            server: self.place(),
            why,
        };
        match tokio::time::timeout(TIMEOUT, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let why = causes(&error.without_url());
                // Of rustls: what came back is no TLS at all.
                if self.options.server.scheme() == "https" && why.contains("InvalidContentType") {
                    return Err(self.strange("seems to speak http: write http:// or ws://"));
                }
                Err(unreachable(why))
            }
            Err(_) => Err(unreachable("it does not answer".into())),
        }
    }

    pub(super) fn place(&self) -> String {
        self.options
            .server
            .as_str()
            .trim_end_matches('/')
            .to_owned()
    }

    /// The one at hand, or a new one.
    pub(super) async fn token(&self) -> Result<SecretString, ClientError> {
        let known = self.known().clone();
        if let Some(token) = known {
            return Ok(token);
        }
        let token = match &self.options.token {
            Token::Given(token) => token.clone(),
            Token::Callback(fetch) => fetch().await.map_err(ClientError::Unauthorized)?,
            Token::Server(key) => self.fetch(key.as_ref()).await?,
        };
        *self.known() = Some(token.clone());
        Ok(token)
    }

    /// Throws away a token that was not taken; whether another can be had.
    pub(super) fn renew(&self) -> bool {
        *self.known() = None;
        !matches!(self.options.token, Token::Given(_))
    }

    /// Whether the token at hand is none, tried since there was no other.
    pub(super) fn anonymous(&self) -> bool {
        let any = |token: &SecretString| token.expose_secret() == ANY;
        matches!(self.options.token, Token::Server(_)) && self.known().as_ref().is_some_and(any)
    }

    fn known(&self) -> parking_lot::MutexGuard<'_, Option<SecretString>> {
        self.token.lock()
    }

    async fn fetch(&self, key: Option<&SecretString>) -> Result<SecretString, ClientError> {
        let mut request = self.request(Method::POST, self.url(&["token"]));
        if let Some(key) = key {
            request = request.bearer_auth(key.expose_secret());
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {
                let issued: IssuedToken = self.body(response).await?;
                Ok(issued.token.into())
            }
            // No such route, or not for us: tokens come from elsewhere, or any will do.
            StatusCode::NOT_FOUND => Ok(SecretString::from(ANY)),
            StatusCode::UNAUTHORIZED if key.is_none() => Ok(SecretString::from(ANY)),
            _ => Err(self.refusal(response).await),
        }
    }

    pub(super) async fn body<T: serde::de::DeserializeOwned>(
        &self,
        response: Response,
    ) -> Result<T, ClientError> {
        let body = tokio::time::timeout(TIMEOUT, response.json()).await;
        body.map_err(|_| self.strange("does not finish its answer"))?
            .map_err(|_| self.strange("does not answer as a chatmesh does"))
    }

    pub(super) fn strange(&self, what: &str) -> ClientError {
        ClientError::Unexpected(format!("{} {what}", self.place()))
    }

    /// What an answer that is none of the expected says.
    pub(super) async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
        let said = tokio::time::timeout(TIMEOUT, response.json::<Refused>()).await;
        let said = said
            .ok()
            .and_then(Result::ok)
            .map(|refused| refused.message);
        let why = said.unwrap_or_else(|| format!("it answered {status}"));
        match status {
            StatusCode::UNAUTHORIZED => ClientError::Unauthorized(why),
            StatusCode::FORBIDDEN => ClientError::Forbidden(why),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => ClientError::Busy {
                why,
                retry_after: after.map(Duration::from_secs),
            },
            _ => self.strange(&format!("does not do that: {why}")),
        }
    }
}

/// The innermost cause says most ("connection refused").
fn causes(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
