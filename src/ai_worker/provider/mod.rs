//! What answers: an OpenAI-compatible API, or the built-in demo model.

mod answer;
mod chunk;
pub mod demo;
mod error;
pub(crate) mod metrics;
pub mod openai;
mod sse;
mod throttle;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::Serialize;

use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Usage;

/// Who speaks in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The operator's instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What.
    pub content: String,
}

/// What is asked of a model.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// The model's name.
    pub model: String,
    /// Instructions, earlier turns, the question.
    pub messages: Vec<ChatMessage>,
    /// Limit of the answer.
    pub max_tokens: u32,
    /// Sampling temperature.
    pub temperature: f64,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// More text; never empty.
    Text(String),
    /// What the answer used; comes at most once, before `Finished`.
    Usage(Usage),
    /// The answer is whole. Always the last event; a stream that ends without it has failed, and
    /// says so by an `Err`.
    Finished {
        /// The provider's reason (`stop`, `length`, …).
        reason: String,
        /// The model that answered, where the provider says so.
        model: Option<String>,
    },
}

/// Why a call gave no whole answer. `detail` is for logs and holds neither content nor key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct ModelError {
    /// What the user is told when no attempt is left.
    pub code: ErrorCode,
    /// Whether another attempt may bring more.
    pub retryable: bool,
    /// How long the provider asks to wait before it.
    pub retry_after: Option<Duration>,
    /// What happened, for people.
    pub detail: String,
    /// The label of `ai_consumer_openai_errors_total`: one of a fixed set.
    pub kind: &'static str,
}

/// An answer being written. Dropping it closes the provider's connection.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, ModelError>>;

/// Something that answers prompts.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// One call, one attempt: no retries inside. Waits first while all calls of this worker are
    /// slowed down (after a 429). Returns when the provider has accepted the request; the
    /// time-outs for the first token and between tokens are kept by the stream.
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError>;
}
