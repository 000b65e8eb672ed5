//! Sends HTTP requests to the server, and obtains and keeps the user's token.

use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::error::ClientError;
use super::options::{Options, Token};
use crate::http_client;
use crate::protocol::wire::http::{ErrorBody, IssuedToken};

/// Maximum time of each step of a request: to connect, to receive the head of the response, and to
/// read its body.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The token for servers that issue no tokens, because they accept every token (`AUTH_MODE=open`).
const PLACEHOLDER_TOKEN: &str = "anonymous";

/// Sends requests to the server, and obtains the user's token.
#[derive(Debug)]
pub(super) struct ServerApi {
    pub(super) options: Options,
    http: reqwest::Client,
    /// The current token; `None` before the first token and after the server has rejected a token.
    token: Mutex<Option<SecretString>>,
}

impl ServerApi {
    pub(super) fn new(options: Options) -> Result<Self, ClientError> {
        let http = http_client::builder_for(&options.server)
            .connect_timeout(STEP_TIMEOUT)
            // HTTP/2 has no upgrade to WebSocket.
            .http1_only()
            .build()
            .map_err(|error| ClientError::Setup(root_cause(&error)))?;
        Ok(Self {
            http,
            options,
            token: Mutex::default(),
        })
    }

    /// The URL of a route, with the user in the query.
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

    /// Sends a request. A response with any status is a success.
    ///
    /// # Errors
    /// The server does not respond.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let unreachable = |reason: String| ClientError::Unreachable {
            server: self.address(),
            reason,
        };
        match tokio::time::timeout(STEP_TIMEOUT, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let reason = root_cause(&error.without_url());
                // rustls reports `InvalidContentType` if the response is not TLS, so the server
                // probably expects plain HTTP.
                if self.options.server.scheme() == "https" && reason.contains("InvalidContentType")
                {
                    return Err(self.unexpected("seems to speak http: write http:// or ws://"));
                }
                Err(unreachable(reason))
            }
            Err(_) => Err(unreachable("it does not answer".into())),
        }
    }

    /// The server's address for error texts.
    pub(super) fn address(&self) -> String {
        self.options
            .server
            .as_str()
            .trim_end_matches('/')
            .to_owned()
    }

    /// Returns the current token. If there is no current token, obtains a token from the configured
    /// source.
    ///
    /// # Errors
    /// No token can be obtained.
    pub(super) async fn token(&self) -> Result<SecretString, ClientError> {
        let current = self.token.lock().clone();
        if let Some(token) = current {
            return Ok(token);
        }
        let token = match &self.options.token {
            Token::Fixed(token) => token.clone(),
            Token::Callback(fetch) => fetch().await.map_err(ClientError::Unauthorized)?,
            Token::Server(admin_key) => self.fetch_token(admin_key.as_ref()).await?,
        };
        *self.token.lock() = Some(token.clone());
        Ok(token)
    }

    /// Discards the current token, which the server has rejected. Returns whether another token can
    /// be obtained.
    pub(super) fn discard_token(&self) -> bool {
        *self.token.lock() = None;
        !matches!(self.options.token, Token::Fixed(_))
    }

    /// Whether the current token is the placeholder, because the server issued no token.
    pub(super) fn has_placeholder_token(&self) -> bool {
        let is_placeholder = |token: &SecretString| token.expose_secret() == PLACEHOLDER_TOKEN;
        matches!(self.options.token, Token::Server(_))
            && self.token.lock().as_ref().is_some_and(is_placeholder)
    }

    async fn fetch_token(
        &self,
        admin_key: Option<&SecretString>,
    ) -> Result<SecretString, ClientError> {
        let mut request = self.request(Method::POST, self.url(&["token"]));
        if let Some(key) = admin_key {
            request = request.bearer_auth(key.expose_secret());
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {
                let issued: IssuedToken = self.body(response).await?;
                Ok(issued.token.into())
            }
            // The route is disabled, or needs an admin key that the client does not have. The
            // placeholder works if the server accepts every token.
            StatusCode::NOT_FOUND => Ok(SecretString::from(PLACEHOLDER_TOKEN)),
            StatusCode::UNAUTHORIZED if admin_key.is_none() => {
                Ok(SecretString::from(PLACEHOLDER_TOKEN))
            }
            _ => Err(self.error_from(response).await),
        }
    }

    /// Reads the body of a response and decodes it from JSON.
    pub(super) async fn body<T: serde::de::DeserializeOwned>(
        &self,
        response: Response,
    ) -> Result<T, ClientError> {
        let body = tokio::time::timeout(STEP_TIMEOUT, response.json()).await;
        body.map_err(|_| self.unexpected("does not finish its response"))?
            .map_err(|_| self.unexpected("does not answer as a chatmesh does"))
    }

    /// Creates the error about a response that chatmesh would not send. `what` continues a sentence
    /// that begins with the server's address.
    pub(super) fn unexpected(&self, what: &str) -> ClientError {
        ClientError::UnexpectedResponse(format!("{} {what}", self.address()))
    }

    /// Converts a response with an error status into an error.
    pub(super) async fn error_from(&self, response: Response) -> ClientError {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let body = tokio::time::timeout(STEP_TIMEOUT, response.json::<ErrorBody>()).await;
        let message = body.ok().and_then(Result::ok).map(|body| body.message);
        let reason = message.unwrap_or_else(|| format!("it answered {status}"));
        match status {
            StatusCode::UNAUTHORIZED => ClientError::Unauthorized(reason),
            StatusCode::FORBIDDEN => ClientError::Forbidden(reason),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => ClientError::Busy {
                reason,
                retry_after: retry_after.map(Duration::from_secs),
            },
            _ => self.unexpected(&format!("rejects the request: {reason}")),
        }
    }
}

/// Returns the text of the innermost cause, because it is the most specific text, such as
/// "connection refused".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
