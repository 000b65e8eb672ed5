//! Encodes and decodes the records of `incoming_messages` and `responses`, and has the names of
//! their headers (protocol.md section 2).

use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::error_code::ErrorCode;
use super::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use super::parts::FinishedPart;
use super::trace_context::TraceContext;
use crate::protocol::log_record::{Headers, Record};

/// Names of record headers.
pub mod header {
    /// Header with the message's identity.
    pub const MESSAGE_ID: &str = "message_id";
    /// Header with the id that correlates the log lines of all roles.
    pub const CORRELATION_ID: &str = "correlation_id";
    /// Header with the trace and the parent span of a W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// Header with the vendor-specific part of a W3C trace context.
    pub const TRACESTATE: &str = "tracestate";
    /// Header of a replayed record, with the `message_id` of its dead letter (protocol.md section
    /// 2.4).
    pub const REPLAY_OF: &str = "replay_of";
}

/// The trace context in a record's headers. `None` if the record has no `traceparent`, or an
/// invalid value.
pub fn trace_from_headers(record: &Record) -> Option<TraceContext> {
    let traceparent = record.header_text(header::TRACEPARENT)?;
    TraceContext::parse(traceparent, record.header_text(header::TRACESTATE))
}

/// Appends a trace context to the headers of a new record. Does nothing without a trace context.
pub fn add_trace_headers(headers: &mut Headers, trace: Option<&TraceContext>) {
    let Some(trace) = trace else {
        return;
    };
    headers.push((header::TRACEPARENT.to_owned(), trace.traceparent().into()));
    if let Some(state) = trace.tracestate() {
        let state = Bytes::copy_from_slice(state.as_bytes());
        headers.push((header::TRACESTATE.to_owned(), state));
    }
}

/// The value of a record of `incoming_messages`: a user's message.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "QuestionRecord", extend("required" = ["content", "userid"]))]
pub struct QuestionRecord<'a> {
    /// Version of the schema: 1.
    pub v: u8,
    /// Always `message`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message"))]
    pub kind: &'static str,
    /// The text of the message.
    pub content: &'a str,
    /// The user who sent the message.
    pub userid: &'a UserId,
    /// When the gateway received the message, RFC 3339.
    pub timestamp: String,
    /// `SERVER_ID` of the gateway that received the message.
    pub server_id: &'a str,
    /// Id that correlates the log lines of all roles.
    pub correlation_id: &'a str,
    /// The message's identity.
    pub message_id: &'a MessageId,
    /// The client's identifier of the message, if the client has chosen an identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a ClientMessageId>,
    /// The message's conversation.
    pub conversation_id: &'a ConversationId,
    /// Whether a client receives the answer while it is generated. If not, no deltas are published.
    pub stream: bool,
}

/// A user's message, decoded from a record of `incoming_messages`. Fields that the record does not
/// have are derived or set to their defaults.
#[derive(Debug, Clone)]
pub struct Question {
    /// The message's identity, derived if the record names none.
    pub message_id: MessageId,
    /// The client's identifier of the message, if the client has chosen an identifier.
    pub id: Option<ClientMessageId>,
    /// The user who sent the message.
    pub user: UserId,
    /// The message's conversation.
    pub conversation: ConversationId,
    /// The text of the message.
    pub content: Arc<str>,
    /// Id that correlates the log lines of all roles. Equals `message_id` if the record names no
    /// such id, so it is never empty.
    pub correlation_id: Arc<str>,
    /// Whether a client receives the answer while it is generated. If not, no deltas are published.
    pub stream: bool,
    /// When the log appended the record, in milliseconds since the Unix epoch by the log's clock.
    pub appended_ms: i64,
}

/// The error of a record that cannot be decoded. The text becomes the dead letter's reason and
/// never quotes the record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable record: {0}")]
pub struct UnreadableRecord(pub String);

/// The fields of a record of `incoming_messages`, before missing fields are derived.
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

fn unreadable_record(error: &serde_json::Error) -> UnreadableRecord {
    // serde_json's own error text can quote the value, so it is not passed on.
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
    /// Decodes a record of `incoming_messages`. Records of the original system, which have fewer
    /// fields, are valid.
    ///
    /// # Errors
    /// The value is not a JSON object, or a field is missing or invalid.
    pub fn parse(record: &Record) -> Result<Self, UnreadableRecord> {
        // serde accepts an array for a struct when the elements fit the fields in order, so arrays
        // are refused here.
        if record.value.trim_ascii_start().first() != Some(&b'{') {
            return Err(UnreadableRecord("not a JSON object".into()));
        }
        let raw: RawQuestion =
            serde_json::from_slice(&record.value).map_err(|error| unreadable_record(&error))?;
        if raw.kind.as_deref().is_some_and(|kind| kind != "message") {
            return Err(UnreadableRecord("type is not `message`".into()));
        }
        let message_id = raw
            .message_id
            .or_else(|| {
                raw.id
                    .as_ref()
                    .map(|id| MessageId::from_client_id(&raw.userid, id))
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

/// Tokens that the model used for one answer, as counted by its API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens in the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens in the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Tokens in prompt and answer.
    #[serde(default)]
    pub total_tokens: u64,
}

/// The `type` of a terminal record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TerminalKind {
    /// The record has the complete answer.
    Response,
    /// The message failed or, if the code is `cancelled`, was cancelled.
    Error,
}

/// The value of a record of `responses`: the terminal frame of a message, from which the frames for
/// clients are made.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TerminalRecord")]
pub struct TerminalRecord {
    /// Version of the schema: 1, or 0 if a service of the original system wrote the record.
    #[serde(default)]
    pub v: u8,
    /// Whether the message was answered or failed.
    #[serde(rename = "type")]
    pub kind: TerminalKind,
    /// The text of the answer. If the message was cancelled, the text that was generated before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The parts of the answer, in order. Absent if the answer is one part of text, or empty.
    // Not decoded, so that the record of a later version with other parts is delivered unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<FinishedPart>>")]
    pub parts: Option<Box<RawValue>>,
    /// Human-readable reason of a failure or cancellation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The user who sent the message.
    pub userid: UserId,
    /// When the answer ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Milliseconds from the start of processing in the worker to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_time_ms: Option<u64>,
    /// Id that correlates the log lines of all roles. Always a string, because a gateway of the
    /// original system fails without it.
    #[serde(default)]
    pub correlation_id: String,
    /// The message's identity. Absent only if a worker of the original system wrote the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The client's identifier of the message, if the client has chosen an identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClientMessageId>,
    /// The message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// Machine-readable reason of a failure; `cancelled` if the message was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Whether the same content, sent as a new message, may be answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Milliseconds to wait before a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The provider's reason for ending the answer, or `length` if the answer reached
    /// `MAX_ANSWER_BYTES` or 256 parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The tokens used, as counted by the model's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Number of the attempt that produced this record, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Position of the record in `responses`. The relay adds it to the frame; it is never in the
    /// log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Whether the frame has a `traceparent`. The relay adds that field to the frame; it is never
    /// in the log.
    #[serde(
        rename = "traceparent",
        default,
        skip_serializing,
        deserialize_with = "is_present"
    )]
    #[schemars(
        with = "Option<String>",
        description = "W3C trace context of the message. The relay adds it to the frame; it is never in the log."
    )]
    pub has_traceparent: bool,
    /// Number of the frame among all frames on the user's two channels. The fan-out adds it to a
    /// published frame; it is never in the log.
    #[serde(default, skip_serializing)]
    pub n: Option<u64>,
    /// Random id of the counter that `n` belongs to. The fan-out adds it, too.
    #[serde(default, skip_serializing)]
    pub n_id: Option<String>,
}

fn is_present<'de, D: Deserializer<'de>>(field: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(field).map(|_| true)
}

impl TerminalRecord {
    /// Decodes a record of `responses` or a published terminal frame.
    ///
    /// # Errors
    /// The value is not a JSON object, or a field is missing or invalid.
    pub fn parse(value: &[u8]) -> Result<Self, UnreadableRecord> {
        serde_json::from_slice(value).map_err(|error| unreadable_record(&error))
    }

    /// Creates a terminal frame of `kind` for `question`: with the question's ids and the current
    /// time, and without all other fields.
    pub fn new(question: &Question, kind: TerminalKind) -> Self {
        Self {
            v: 1,
            kind,
            content: None,
            parts: None,
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
            has_traceparent: false,
            n: None,
            n_id: None,
        }
    }

    /// Creates the terminal frame of a message that failed with `code`, with the code's default
    /// text.
    pub fn failure(question: &Question, code: ErrorCode) -> Self {
        Self {
            message: Some(code.text().to_owned()),
            code: Some(code),
            retryable: Some(code.is_retryable()),
            ..Self::new(question, TerminalKind::Error)
        }
    }

    /// Encodes the frame as JSON.
    pub fn to_json(&self) -> String {
        super::encode_json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_terminal_record_are_passed_on_unchanged() {
        let json = concat!(
            r#"{"v":1,"type":"response","content":"Hi","#,
            r#""parts":[{"kind":"image", "meta":{"w":7.50}},{"kind":"text","length":2}],"#,
            r#""userid":"alice","correlation_id":"c"}"#,
        );
        let terminal = TerminalRecord::parse(json.as_bytes()).unwrap();
        assert_eq!(terminal.clone().to_json(), json);
    }

    #[test]
    fn terminal_record_without_parts_has_none() {
        for parts in ["", r#","parts":null"#] {
            let json = format!(r#"{{"v":1,"type":"response","userid":"alice"{parts}}}"#);
            let terminal = TerminalRecord::parse(json.as_bytes()).unwrap();
            assert!(terminal.parts.is_none(), "{json}");
            assert!(!terminal.to_json().contains("parts"), "{json}");
        }
    }
}
