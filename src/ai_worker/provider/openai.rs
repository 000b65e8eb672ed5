//! Chat completions of an OpenAI-compatible API: OpenAI itself, vLLM, Ollama, llama.cpp, LiteLLM.

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

use super::answer::{Answer, CallRecord, Patience};
use super::error::{self, Advice, Reported, kind};
use super::metrics::ProviderMetrics;
use super::sse::{self, Broken, Event, MAX_EVENT_BYTES};
use super::throttle::Throttle;
use super::{ChatMessage, ModelError, ModelRequest, ModelStream, Provider};
use crate::config::settings::ModelApiSettings;
use crate::http_client;

/// The most that is read of a refusal's body.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// How long a refusal's body is waited for; its status is known already.
const ERROR_BODY_PATIENCE: Duration = Duration::from_secs(1);
/// A host that can't be reached is known as such before a long first-token time-out is over.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings make no client.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// It can't stand in a header.
    #[error("OPENAI_API_KEY holds characters that a header can't carry: check it for line breaks")]
    ApiKey,
    /// Not a web address.
    #[error("OPENAI_BASE_URL must begin with http:// or https://")]
    BaseUrl,
    /// Mostly missing certificates.
    #[error("cannot set up HTTPS, are CA certificates installed: {0}")]
    Client(String),
}

/// An OpenAI-compatible API. One per process: it holds the connections, and the throttle that
/// slows all calls after a 429.
#[derive(Debug)]
pub struct OpenAi {
    client: Client,
    url: Url,
    patience: Patience,
    throttle: Arc<Throttle>,
    metrics: Arc<ProviderMetrics>,
    dialect: Dialect,
}

/// What the server has turned out not to take, remembered for the process's life.
#[derive(Debug, Default)]
struct Dialect {
    no_stream_options: AtomicBool,
    max_completion_tokens: AtomicBool,
    no_temperature: AtomicBool,
}

/// [`Dialect`] for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    no_stream_options: bool,
    max_completion_tokens: bool,
    no_temperature: bool,
}

#[derive(Serialize)]
struct Body<'a> {
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

/// A call that was answered with an error status.
struct Refusal {
    error: ModelError,
    status: StatusCode,
    reported: Reported,
}

impl OpenAi {
    /// Sets up the client; connects to nothing yet. Metrics go to the recorder that is installed
    /// by then.
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
            client: client(settings)?,
            url,
            patience: Patience {
                first_token: settings.first_token_timeout,
                idle: settings.idle_timeout,
            },
            throttle: Arc::new(throttle),
            metrics,
            dialect: Dialect::default(),
        })
    }

    async fn send(&self, request: &ModelRequest, variant: Variant) -> Result<Response, Refusal> {
        let max_tokens = Some(request.max_tokens);
        let body = Body {
            model: &request.model,
            messages: &request.messages,
            stream: true,
            stream_options: (!variant.no_stream_options).then_some(StreamOptions {
                include_usage: true,
            }),
            max_tokens: max_tokens.filter(|_| !variant.max_completion_tokens),
            max_completion_tokens: max_tokens.filter(|_| variant.max_completion_tokens),
            temperature: Some(request.temperature).filter(|_| !variant.no_temperature),
        };
        let request = self.client.post(self.url.clone()).json(&body);
        let response = request.send().await.map_err(|error| Refusal {
            error: error::connection(error),
            status: StatusCode::OK,
            reported: Reported::default(),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let advice = Advice::of(response.headers(), OffsetDateTime::now_utc());
        let until = Instant::now() + ERROR_BODY_PATIENCE;
        // A cut body may still say enough.
        let (body, _) = read(response, MAX_ERROR_BYTES, until).await;
        let reported = Reported::of_body(&body);
        tracing::debug!(
            status = status.as_u16(),
            message = reported.message(),
            "the model's API refuses"
        );
        Err(Refusal {
            error: error::refused(status.as_u16(), &reported, advice),
            status,
            reported,
        })
    }

    /// Sends the request, once more for each field that the server turns out not to take: such a
    /// refusal is about the server's age, not about the message.
    async fn send_as_it_takes(&self, request: &ModelRequest) -> Result<Response, ModelError> {
        let mut variant = self.dialect.variant();
        loop {
            match self.send(request, variant).await {
                Ok(response) => {
                    self.dialect.learn(variant);
                    return Ok(response);
                }
                Err(refusal) => {
                    variant = variant.after(&refusal).ok_or(refusal.error)?;
                }
            }
        }
    }
}

impl Dialect {
    fn variant(&self) -> Variant {
        Variant {
            no_stream_options: self.no_stream_options.load(Ordering::Relaxed),
            max_completion_tokens: self.max_completion_tokens.load(Ordering::Relaxed),
            no_temperature: self.no_temperature.load(Ordering::Relaxed),
        }
    }

    /// Remembers what was taken; only ever adds.
    fn learn(&self, variant: Variant) {
        for (flag, value) in [
            (&self.no_stream_options, variant.no_stream_options),
            (&self.max_completion_tokens, variant.max_completion_tokens),
            (&self.no_temperature, variant.no_temperature),
        ] {
            if value {
                flag.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Variant {
    /// What to try after a refusal; `None` where it is about something else.
    fn after(self, refusal: &Refusal) -> Option<Self> {
        if !matches!(refusal.status.as_u16(), 400 | 422) {
            return None;
        }
        let mut next = self;
        if refusal.reported.is_about("stream_options") {
            next.no_stream_options = true;
        } else if refusal.reported.message().contains("max_completion_tokens") {
            next.max_completion_tokens = true;
        } else if refusal.reported.is_unsupported("temperature") {
            next.no_temperature = true;
        }
        (next != self).then_some(next)
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError> {
        let pass = self.throttle.wait().await;
        let mut record = CallRecord::new(&self.metrics, &request.model);
        let first_token_by = Instant::now() + self.patience.first_token;
        let sent = timeout_at(first_token_by, self.send_as_it_takes(request)).await;
        let response = sent.unwrap_or_else(|_| {
            let after = self.patience.first_token;
            Err(error::timeout(kind::FIRST_TOKEN_TIMEOUT, after))
        });
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                if error.kind == kind::RATE_LIMITED {
                    self.throttle
                        .refused(pass, error.retry_after, rand::random());
                }
                record.failed(&error);
                return Err(error);
            }
        };
        self.throttle.accepted(pass);
        let events = if is_json(response.headers()) {
            // The server doesn't stream, or its error came with a good status.
            stream::once(whole(response, first_token_by)).boxed()
        } else {
            sse::events(
                response
                    .bytes_stream()
                    .map(|piece| piece.map_err(reqwest::Error::without_url)),
            )
        };
        Ok(Answer::stream(
            events,
            self.patience,
            first_token_by,
            record,
            Arc::clone(&self.throttle),
            pass,
        ))
    }
}

fn client(settings: &ModelApiSettings) -> Result<Client, BuildError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    if let Some(key) = &settings.api_key {
        let value = format!("Bearer {}", key.expose_secret().trim());
        let mut value = HeaderValue::from_str(&value).map_err(|_| BuildError::ApiKey)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    http_client::for_server(&settings.base_url)
        .default_headers(headers)
        .connect_timeout(settings.first_token_timeout.min(MAX_CONNECT_TIMEOUT))
        // Hundreds of answers at once over HTTP/1.1 keep their connections for the next ones.
        .pool_max_idle_per_host(1024)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(30))
        // A dead HTTP/2 connection would take all its answers with it.
        .http2_keep_alive_interval(Duration::from_secs(15))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| BuildError::Client(error::chain(&error)))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    value.is_some_and(|value| value.trim_start().starts_with("application/json"))
}

/// A body that is one JSON object instead of a stream of them.
async fn whole(response: Response, until: Instant) -> Result<Event, Broken> {
    let (body, end) = read(response, MAX_EVENT_BYTES, until).await;
    end?;
    match String::from_utf8(body) {
        Ok(data) => Ok(Event {
            data,
            is_error: false,
        }),
        Err(_) => Err(Broken::Malformed("a body that is not UTF-8".to_owned())),
    }
}

/// What there is of a body, and whether it is all of it.
async fn read(response: Response, limit: usize, until: Instant) -> (Vec<u8>, Result<(), Broken>) {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    loop {
        let piece: Bytes = match timeout_at(until, pieces.next()).await {
            Ok(None) => return (body, Ok(())),
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(error))) => {
                let detail = error::chain(&error.without_url());
                return (body, Err(Broken::Connection(detail)));
            }
            Err(_) => {
                let broken = Broken::Connection("the body did not come in time".to_owned());
                return (body, Err(broken));
            }
        };
        let room = limit - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() > room {
            let broken = Broken::Malformed(format!("a body of more than {limit} bytes"));
            return (body, Err(broken));
        }
    }
}

#[cfg(test)]
mod tests;
