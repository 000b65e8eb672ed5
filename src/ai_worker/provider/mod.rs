//! Calls the model for the worker: the [`Provider`] trait, and its implementations for an
//! OpenAI-compatible API and for the built-in demo model.

mod answer_stream;
mod chunk;
pub mod demo;
mod error;
mod message;
pub(crate) mod metrics;
pub mod openai;
mod sse;
mod throttle;
mod tool_calls;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::Serialize;

use crate::protocol::error_code::ErrorCode;
use crate::protocol::parts::{PartKind, PartMeta};
use crate::protocol::record::Usage;

/// The author of a message in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The operator, who gives the model instructions.
    System,
    /// The user, who asks the questions.
    User,
    /// The model, which answers.
    Assistant,
}

/// One message of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// The author of the message.
    pub role: Role,
    /// The text of the message.
    pub content: String,
}

/// A prompt and its parameters.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// Name of the model (`OPENAI_MODEL`).
    pub model: String,
    /// Instructions, earlier turns and the question, in this order.
    pub messages: Vec<ChatMessage>,
    /// Maximum number of tokens of the answer.
    pub max_tokens: u32,
    /// Sampling temperature.
    pub temperature: f64,
}

/// A piece of a part, as the model writes it: text, properties, or both. The text contains no NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartDelta {
    /// The part that the piece belongs to.
    pub key: PartKey,
    /// The part's properties. Of the pieces of one part, those of the first count.
    pub meta: Option<PartMeta>,
    /// Text to append to the part.
    pub text: String,
}

impl PartDelta {
    /// A piece of a part without properties.
    pub fn new(key: PartKey, text: impl Into<String>) -> Self {
        Self {
            key,
            meta: None,
            text: text.into(),
        }
    }
}

/// Identifies the part of an answer that a piece belongs to, as far as the model's API says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKey {
    /// Text of the answer.
    Text,
    /// The model's refusal.
    Refusal,
    /// What the model thought.
    Reasoning,
    /// The tool call with this number in the answer. Pieces of several calls may be interleaved.
    ToolCall(u32),
    /// A source. Each piece is a part of its own.
    Source,
    /// Other data. Each piece is a part of its own.
    Data,
}

impl PartKey {
    /// What the part contains.
    pub fn kind(self) -> PartKind {
        match self {
            Self::Text => PartKind::Text,
            Self::Refusal => PartKind::Refusal,
            Self::Reasoning => PartKind::Reasoning,
            Self::ToolCall(_) => PartKind::ToolCall,
            Self::Source => PartKind::Source,
            Self::Data => PartKind::Data,
        }
    }

    /// Whether a part of this key is complete with its first piece.
    pub fn is_complete_at_once(self) -> bool {
        matches!(self, Self::Source | Self::Data)
    }
}

/// An event of an answer stream.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// The next piece of one of the answer's parts.
    Delta(PartDelta),
    /// The number of tokens that the call used. At most one such event, before `Finished`.
    Usage(Usage),
    /// The answer is complete. Always the last event: a stream that fails ends with an `Err`
    /// instead.
    Finished {
        /// The provider's finish reason (`stop`, `length`, …).
        reason: String,
        /// The model that answered; `None` where the provider does not name it.
        model: Option<String>,
    },
}

/// Why a call produced no complete answer. `detail` is safe to log, because it contains neither the
/// text of messages nor the API key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct ModelError {
    /// The error code for the user when no retry follows.
    pub code: ErrorCode,
    /// Whether another call may succeed.
    pub retryable: bool,
    /// Minimum delay before another call, if the provider requests one.
    pub retry_after: Option<Duration>,
    /// Description for logs and dead letters.
    pub detail: String,
    /// Value of the label `error_type` of `ai_consumer_openai_errors_total`, from a fixed set.
    pub kind: &'static str,
}

/// The stream of an answer's events. Dropping the stream closes the connection to the provider.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, ModelError>>;

/// Generates answers from prompts.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Makes one call, without retries. Waits first while the calls of this worker are throttled
    /// (after a 429). Returns when the provider has accepted the request; the returned stream
    /// enforces the time-outs for the first token and between tokens.
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError>;
}
