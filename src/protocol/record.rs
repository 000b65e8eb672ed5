//! The JSON values of the two topics (protocol.md section 2).

use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::error_code::ErrorCode;
use super::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use super::trace_context::TraceContext;
use crate::protocol::log_record::{Headers, Record};

/// Names of the headers that records carry beside their value.
pub mod header {
    /// The message's identity.
    pub const MESSAGE_ID: &str = "message_id";
    /// By which logs of all roles are followed.
    pub const CORRELATION_ID: &str = "correlation_id";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// What goes with it.
    pub const TRACESTATE: &str = "tracestate";
    /// The message of which this one is a replay (protocol.md section 7).
    pub const REPLAY_OF: &str = "replay_of";
}

/// The trace that a record belongs to, where its headers say so.
pub fn trace_of(record: &Record) -> Option<TraceContext> {
    let traceparent = record.header_text(header::TRACEPARENT)?;
    TraceContext::parse(traceparent, record.header_text(header::TRACESTATE))
}

/// Puts a trace into the headers of a record that is to be written.
pub fn add_trace(headers: &mut Headers, trace: Option<&TraceContext>) {
    let Some(trace) = trace else {
        return;
    };
    headers.push((header::TRACEPARENT.to_owned(), trace.traceparent().into()));
    if let Some(state) = trace.tracestate() {
        let state = Bytes::copy_from_slice(state.as_bytes());
        headers.push((header::TRACESTATE.to_owned(), state));
    }
}

/// What a user asked: a record of `incoming_messages`, as it is written.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "QuestionRecord", extend("required" = ["content", "userid"]))]
pub struct QuestionRecord<'a> {
    /// Version of the schema: 1.
    pub v: u8,
    /// Always `message`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message"))]
    pub kind: &'static str,
    /// The text.
    pub content: &'a str,
    /// Whose.
    pub userid: &'a UserId,
    /// When the gateway took it, RFC 3339.
    pub timestamp: String,
    /// The gateway that took it.
    pub server_id: &'a str,
    /// By which logs are followed.
    pub correlation_id: &'a str,
    /// The message's identity.
    pub message_id: &'a MessageId,
    /// The client's own identifier, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a ClientMessageId>,
    /// The conversation.
    pub conversation_id: &'a ConversationId,
    /// Whether anybody watches the answer being written.
    pub stream: bool,
}

/// What a user asked, as it was read: complete, whatever the record left out.
#[derive(Debug, Clone)]
pub struct Question {
    /// The message's identity; derived where the record has none.
    pub message_id: MessageId,
    /// The client's own identifier, where there is one.
    pub id: Option<ClientMessageId>,
    /// Whose.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// The text.
    pub content: Arc<str>,
    /// By which logs are followed; never empty.
    pub correlation_id: Arc<str>,
    /// Whether anybody watches the answer being written.
    pub stream: bool,
    /// When the log took it, milliseconds since the Unix epoch by the log's clock.
    pub appended_ms: i64,
}

/// Why a record can't be read; the text is the dead letter's reason and holds no content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable record: {0}")]
pub struct UnreadableRecord(pub String);

#[derive(Deserialize)]
struct RawQuestion {
    #[serde(rename = "type")]
    kind: Option<String>,
    content: String,
    userid: UserId,
    correlation_id: Option<String>,
    message_id: Option<MessageId>,
    id: Option<ClientMessageId>,
    conversation_id: Option<ConversationId>,
    #[serde(default)]
    stream: bool,
}

fn unreadable(error: &serde_json::Error) -> UnreadableRecord {
    // serde_json's own text can quote the value, which is content.
    UnreadableRecord(format!(
        "{} at line {} column {}",
        match error.classify() {
            serde_json::error::Category::Data => "a field is missing or has the wrong type or form",
            _ => "not JSON",
        },
        error.line(),
        error.column()
    ))
}

impl Question {
    /// Reads a record of `incoming_messages`. Only the original's fields need be there.
    pub fn parse(record: &Record) -> Result<Self, UnreadableRecord> {
        // An array would do for serde.
        if record.value.trim_ascii_start().first() != Some(&b'{') {
            return Err(UnreadableRecord("not a JSON object".into()));
        }
        let raw: RawQuestion = serde_json::from_slice(&record.value).map_err(|e| unreadable(&e))?;
        if raw.kind.as_deref().is_some_and(|kind| kind != "message") {
            return Err(UnreadableRecord("type is not `message`".into()));
        }
        let message_id = raw
            .message_id
            .or_else(|| {
                raw.id
                    .as_ref()
                    .map(|id| MessageId::of_client(&raw.userid, id))
            })
            .unwrap_or_else(|| record.derived_message_id());
        let correlation_id = raw
            .correlation_id
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| message_id.as_str().to_owned());
        Ok(Self {
            id: raw.id,
            user: raw.userid,
            conversation: raw
                .conversation_id
                .unwrap_or_else(ConversationId::default_conversation),
            content: raw.content.into(),
            correlation_id: correlation_id.into(),
            stream: raw.stream,
            appended_ms: record.timestamp_ms,
            message_id,
        })
    }
}

/// What the model used, as its API counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default)]
    pub total_tokens: u64,
}

/// `type` of a terminal record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TerminalKind {
    /// The whole answer.
    Response,
    /// A failure, or (by its code) a cancelled answer.
    Error,
}

/// How a message ended: a record of `responses`, and the frame that clients get of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TerminalRecord")]
pub struct Terminal {
    /// Version of the schema: 1; 0 where an original service wrote it.
    #[serde(default)]
    pub v: u8,
    /// Answer or failure.
    #[serde(rename = "type")]
    pub kind: TerminalKind,
    /// The answer; of a cancelled one the text so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A failure's text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whose.
    pub userid: UserId,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// From the worker's taking of the message to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<u64>,
    /// By which logs are followed; an original gateway needs it to be a string, always.
    #[serde(default)]
    pub correlation_id: String,
    /// The message; absent only where an original worker wrote the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The client's own identifier, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// What went wrong, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Whether sending it as a new message may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// After how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The provider's reason to end, or `length` where `MAX_ANSWER_BYTES` ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The attempt that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Where the record is in `responses`: added by the relay, never in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Whether it names a trace: added by the relay to the frame, never in the log.
    #[serde(
        rename = "traceparent",
        default,
        skip_serializing,
        deserialize_with = "is_there"
    )]
    #[schemars(
        with = "Option<String>",
        description = "Its trace (W3C trace context): added by the relay to the frame, never in the log."
    )]
    pub names_trace: bool,
    /// Number of the frame over both of the user's channels: added by the fan-out.
    #[serde(default, skip_serializing)]
    pub n: Option<u64>,
    /// The random id of the counter that `n` is of.
    #[serde(default, skip_serializing)]
    pub n_id: Option<String>,
}

fn is_there<'de, D: Deserializer<'de>>(field: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(field).map(|_| true)
}

impl Terminal {
    /// Reads a record of `responses` or a published terminal frame.
    pub fn parse(value: &[u8]) -> Result<Self, UnreadableRecord> {
        serde_json::from_slice(value).map_err(|e| unreadable(&e))
    }

    /// An end of `kind` for `question` at this moment, everything else still open.
    pub fn of(question: &Question, kind: TerminalKind) -> Self {
        Self {
            v: 1,
            kind,
            content: None,
            message: None,
            userid: question.user.clone(),
            timestamp: Some(super::timestamp::now_rfc3339()),
            processing_time_ms: None,
            correlation_id: question.correlation_id.to_string(),
            message_id: Some(question.message_id.clone()),
            id: question.id.clone(),
            conversation_id: Some(question.conversation.clone()),
            code: None,
            retryable: None,
            retry_after_ms: None,
            finish_reason: None,
            model: None,
            usage: None,
            attempt: None,
            position: None,
            names_trace: false,
            n: None,
            n_id: None,
        }
    }

    /// A failure with `code` and its text.
    pub fn failure(question: &Question, code: ErrorCode) -> Self {
        Self {
            message: Some(code.text().to_owned()),
            code: Some(code),
            retryable: Some(code.retryable()),
            ..Self::of(question, TerminalKind::Error)
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        // Only maps with other keys than strings can fail, and there are none.
        serde_json::to_string(self).unwrap_or_default()
    }
}
