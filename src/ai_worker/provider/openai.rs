//! Calls the chat completions API of OpenAI or of a compatible server (vLLM, Ollama, llama.cpp,
//! LiteLLM).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::answer_stream::{AnswerStream, CallMetrics, Timeouts};
use super::error::{self, ApiError, RetryHint, kind};
use super::metrics::ProviderMetrics;
use super::sse::{self, MAX_EVENT_BYTES, SseEvent, StreamError};
use super::throttle::Throttle;
use super::{ChatMessage, ModelError, ModelRequest, ModelStream, Provider};
use crate::config::settings::ModelApiSettings;

/// Maximum number of bytes that are read of a refusal's body.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Time for which a refusal's body is awaited after the status has arrived.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time for connecting, so that an unreachable host is detected before a long first-token
/// time-out.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no client can be created from the settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The API key contains characters that are not allowed in a header.
    #[error(
        "OPENAI_API_KEY contains characters that an HTTP header cannot carry: check it for line \
         breaks"
    )]
    ApiKey,
    /// The base URL is not an HTTP address.
    #[error("OPENAI_BASE_URL must begin with http:// or https://")]
    BaseUrl,
    /// The TLS setup failed, usually because certificates are missing.
    #[error("cannot set up HTTPS: {0}; check that CA certificates are installed")]
    Client(String),
}

/// The client of an OpenAI-compatible API. A process has only one, because it owns the connection
/// pool, and the throttle that slows down all calls after a 429.
#[derive(Debug)]
pub struct OpenAi {
    client: Client,
    url: Url,
    timeouts: Timeouts,
    throttle: Arc<Throttle>,
    metrics: Arc<ProviderMetrics>,
    quirks: ServerQuirks,
}

/// The request fields that the server has refused. They are remembered until the process ends.
#[derive(Debug, Default)]
struct ServerQuirks {
    omits_stream_options: AtomicBool,
    uses_max_completion_tokens: AtomicBool,
    omits_temperature: AtomicBool,
}

/// Which fields one request omits or renames, initially as [`ServerQuirks`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RequestVariant {
    omits_stream_options: bool,
    uses_max_completion_tokens: bool,
    omits_temperature: bool,
}

#[derive(Serialize)]
struct RequestBody<'a> {
    model: &'a str,
    messages: &'a [ChatMessage],
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// Why a request got no answer: the server responded with an error status, or the request was not
/// delivered.
struct Refusal {
    error: ModelError,
    /// The status of the response; `200 OK` where the request was not delivered.
    status: StatusCode,
    api_error: ApiError,
}

impl OpenAi {
    /// Creates the client without connecting. Metrics go to the recorder that is installed at this
    /// time.
    pub fn new(settings: &ModelApiSettings) -> Result<Self, BuildError> {
        let base = &settings.base_url;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(BuildError::BaseUrl);
        }
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| BuildError::BaseUrl)?
            .pop_if_empty()
            .extend(["chat", "completions"]);

        let metrics = Arc::new(ProviderMetrics::new(&kind::ALL));
        let throttle = Throttle::new(metrics.throttled.clone(), metrics.spacing.clone());
        Ok(Self {
            client: http_client(settings)?,
            url,
            timeouts: Timeouts {
                first_token: settings.first_token_timeout,
                idle: settings.idle_timeout,
            },
            throttle: Arc::new(throttle),
            metrics,
            quirks: ServerQuirks::default(),
        })
    }

    async fn send(
        &self,
        request: &ModelRequest,
        variant: RequestVariant,
    ) -> Result<Response, Refusal> {
        let max_tokens = Some(request.max_tokens);
        let body = RequestBody {
            model: &request.model,
            messages: &request.messages,
            stream: true,
            stream_options: (!variant.omits_stream_options).then_some(StreamOptions {
                include_usage: true,
            }),
            max_tokens: max_tokens.filter(|_| !variant.uses_max_completion_tokens),
            max_completion_tokens: max_tokens.filter(|_| variant.uses_max_completion_tokens),
            temperature: Some(request.temperature).filter(|_| !variant.omits_temperature),
        };
        let request = self.client.post(self.url.clone()).json(&body);
        let response = request.send().await.map_err(|error| Refusal {
            error: error::connection_error(error),
            status: StatusCode::OK,
            api_error: ApiError::default(),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let hint = RetryHint::from_headers(response.headers(), OffsetDateTime::now_utc());
        let deadline = Instant::now() + ERROR_BODY_TIMEOUT;
        // A truncated body is used too, because its start may name the refused field.
        let (body, _) = read_body(response, MAX_ERROR_BYTES, deadline).await;
        let api_error = ApiError::from_body(&body);
        tracing::debug!(
            status = status.as_u16(),
            message = api_error.message(),
            "the model API refused a request"
        );
        Err(Refusal {
            error: error::refusal_error(status.as_u16(), &api_error, hint),
            status,
            api_error,
        })
    }

    /// Sends the request. If the server refuses one of its fields, sends it again with that field
    /// omitted or renamed: the cause of such a refusal is the server's version, not the message.
    async fn send_adapted(&self, request: &ModelRequest) -> Result<Response, ModelError> {
        let mut variant = self.quirks.variant();
        loop {
            match self.send(request, variant).await {
                Ok(response) => {
                    self.quirks.remember(variant);
                    return Ok(response);
                }
                Err(refusal) => {
                    variant = variant.adapt_to(&refusal).ok_or(refusal.error)?;
                }
            }
        }
    }
}

impl ServerQuirks {
    fn variant(&self) -> RequestVariant {
        RequestVariant {
            omits_stream_options: self.omits_stream_options.load(Ordering::Relaxed),
            uses_max_completion_tokens: self.uses_max_completion_tokens.load(Ordering::Relaxed),
            omits_temperature: self.omits_temperature.load(Ordering::Relaxed),
        }
    }

    /// Remembers a variant that the server accepted. Flags are set, and never cleared.
    fn remember(&self, variant: RequestVariant) {
        for (flag, value) in [
            (&self.omits_stream_options, variant.omits_stream_options),
            (
                &self.uses_max_completion_tokens,
                variant.uses_max_completion_tokens,
            ),
            (&self.omits_temperature, variant.omits_temperature),
        ] {
            if value {
                flag.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl RequestVariant {
    /// The variant to try after a refusal; `None` where the cause of the refusal is none of the
    /// fields that a variant can change.
    fn adapt_to(self, refusal: &Refusal) -> Option<Self> {
        if !matches!(refusal.status.as_u16(), 400 | 422) {
            return None;
        }
        let mut next = self;
        if refusal.api_error.mentions_field("stream_options") {
            next.omits_stream_options = true;
        } else if refusal
            .api_error
            .message()
            .contains("max_completion_tokens")
        {
            next.uses_max_completion_tokens = true;
        } else if refusal.api_error.is_unsupported("temperature") {
            next.omits_temperature = true;
        }
        (next != self).then_some(next)
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError> {
        let permit = self.throttle.acquire().await;
        let mut metrics = CallMetrics::new(&self.metrics, &request.model);
        let first_token_by = Instant::now() + self.timeouts.first_token;
        let sent = timeout_at(first_token_by, self.send_adapted(request)).await;
        let response = sent.unwrap_or_else(|_| {
            let after = self.timeouts.first_token;
            Err(error::timeout_error(kind::FIRST_TOKEN_TIMEOUT, after))
        });
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                if error.kind == kind::RATE_LIMITED {
                    self.throttle
                        .on_rate_limited(permit, error.retry_after, rand::random());
                }
                metrics.record_failure(&error);
                return Err(error);
            }
        };
        self.throttle.on_accepted(permit);
        let events = if is_json(response.headers()) {
            // The server does not stream, or it sent an error with a success status.
            stream::once(read_json_event(response, first_token_by)).boxed()
        } else {
            sse::events(
                response
                    .bytes_stream()
                    .map(|piece| piece.map_err(reqwest::Error::without_url)),
            )
        };
        Ok(AnswerStream::start(
            events,
            self.timeouts,
            first_token_by,
            metrics,
            Arc::clone(&self.throttle),
            permit,
        ))
    }
}

fn http_client(settings: &ModelApiSettings) -> Result<Client, BuildError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    if let Some(key) = &settings.api_key {
        let value = format!("Bearer {}", key.expose_secret().trim());
        let mut value = HeaderValue::from_str(&value).map_err(|_| BuildError::ApiKey)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    crate::http_client::builder_for(&settings.base_url)
        .default_headers(headers)
        .connect_timeout(settings.first_token_timeout.min(MAX_CONNECT_TIMEOUT))
        // Over HTTP/1.1 each concurrent answer occupies a connection, so there may be hundreds.
        // Idle connections are kept, so that the next answers reuse them.
        .pool_max_idle_per_host(1024)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(30))
        // Detects a dead HTTP/2 connection, which would stall all answers on it.
        .http2_keep_alive_interval(Duration::from_secs(15))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| BuildError::Client(error::error_chain(&error)))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    value.is_some_and(|value| value.trim_start().starts_with("application/json"))
}

/// Reads a body that is one JSON object instead of a stream, as the data of one event.
async fn read_json_event(response: Response, deadline: Instant) -> Result<SseEvent, StreamError> {
    let (body, end) = read_body(response, MAX_EVENT_BYTES, deadline).await;
    end?;
    match String::from_utf8(body) {
        Ok(data) => Ok(SseEvent {
            data,
            is_error: false,
        }),
        Err(_) => Err(StreamError::Malformed("the body is not UTF-8".to_owned())),
    }
}

/// Reads at most `max_bytes` of a body, until `deadline`. Returns the bytes that arrived, and an
/// error where they are not the whole body.
async fn read_body(
    response: Response,
    max_bytes: usize,
    deadline: Instant,
) -> (Vec<u8>, Result<(), StreamError>) {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    loop {
        let piece: Bytes = match timeout_at(deadline, pieces.next()).await {
            Ok(None) => return (body, Ok(())),
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(error))) => {
                let detail = error::error_chain(&error.without_url());
                return (body, Err(StreamError::Connection(detail)));
            }
            Err(_) => {
                let error = StreamError::Connection("the body did not arrive in time".to_owned());
                return (body, Err(error));
            }
        };
        let remaining_bytes = max_bytes - body.len();
        body.extend_from_slice(&piece[..piece.len().min(remaining_bytes)]);
        if piece.len() > remaining_bytes {
            let error = StreamError::Malformed(format!("the body has more than {max_bytes} bytes"));
            return (body, Err(error));
        }
    }
}

#[cfg(test)]
mod tests;
