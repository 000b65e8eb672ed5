//! Decodes the frames that workers, relays and gateways publish on a user's fan-out channels, so
//! that the gateway can deliver them to the user's connections.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::encode_json;
use super::error_code::ErrorCode;
use super::ids::{ConversationId, MessageId, StreamId};
use super::parts::TextRange;
use super::trace_context::TraceContext;

/// The type of a published frame. `cancelled` is a type of its own here, although it is published
/// as an `error` with that code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Terminal frame: the complete answer.
    Response,
    /// Terminal frame: the message failed.
    Error,
    /// Terminal frame: the message was cancelled.
    Cancelled,
    /// The log has acknowledged a message of this user.
    Accepted,
    /// A piece of an answer. The gateway decodes only the first piece of a part, its opening; it
    /// forwards every later piece as it was published ([`DeltaHead`](super::v1::DeltaHead)).
    Delta,
    /// A new attempt begins; clients discard the parts so far.
    Restarted,
    /// A frame that is never sent to clients.
    Other,
}

/// Where the opening of a part, which is the first `delta` of the part, lies in its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedOpening {
    /// The stream of the attempt that generates the part.
    pub stream: StreamId,
    /// Where the first piece of the part's text lies.
    pub range: TextRange,
    /// Length of the previous part in UTF-16 code units; `None` for the first part.
    pub previous_end: Option<u32>,
}

/// A frame published on one of a user's channels, with the fields that connections need. Fields
/// that are only copied into the client's frame stay undecoded (`RawValue`), which keeps the
/// delivery of large answers cheap.
///
/// Almost every field is optional, because a service of the original system may have published the
/// frame.
#[derive(Debug, Deserialize)]
pub struct PublishedFrame<'a> {
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) processing_time_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) code: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) conversation_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) attempt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) part: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) offset: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) end: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "kind")]
    pub(super) part_kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) meta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) previous_end: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) parts: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) retryable: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) retry_after_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    /// The user that the frame names. The channel decides which user receives the frame.
    #[serde(borrow, default)]
    pub userid: Option<Cow<'a, str>>,
    /// Id that correlates the log lines of all roles. It also identifies the message of a terminal
    /// frame without `message_id`.
    #[serde(borrow, default)]
    pub correlation_id: Option<Cow<'a, str>>,
    /// The message's identity. `None` if a worker of the original system wrote the frame.
    #[serde(default)]
    pub message_id: Option<MessageId>,
    /// Position of a terminal frame in `responses`. `None` if a relay of the original system
    /// published it.
    #[serde(borrow, default)]
    pub position: Option<Cow<'a, str>>,
    /// W3C trace context of the message, in a terminal frame.
    #[serde(borrow, default)]
    pub(super) traceparent: Option<&'a RawValue>,
    /// In `accepted`: the random id of the connection that sent the message.
    #[serde(borrow, default)]
    pub origin: Option<Cow<'a, str>>,
    /// Number of the frame among all frames on the user's two channels, by which a gap is detected.
    /// `None` if a service of the original system published the frame.
    #[serde(default)]
    pub n: Option<u64>,
    /// Random id of the counter that `n` belongs to. When the fan-out has lost the counter, it
    /// begins a counter with a new id.
    #[serde(borrow, default)]
    pub n_id: Option<Cow<'a, str>>,
}

impl<'a> PublishedFrame<'a> {
    /// Decodes the payload of a fan-out message.
    ///
    /// # Errors
    /// The payload is not a JSON object with a `type`.
    pub fn parse(payload: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }

    /// The message's trace context. `None` if the frame has no `traceparent`, or an invalid value.
    pub fn trace(&self) -> Option<TraceContext> {
        // A valid traceparent has no character that JSON escapes, so the raw text is its value.
        let field = self.traceparent?.get().strip_prefix('"')?;
        TraceContext::parse(field.strip_suffix('"')?, None)
    }

    /// The message's conversation. A frame of the original system names no conversation and belongs
    /// to the default conversation. `None` if the name is invalid.
    pub fn conversation(&self) -> Option<ConversationId> {
        let Some(raw) = self.conversation_id else {
            return Some(ConversationId::default_conversation());
        };
        let text: Cow<'_, str> = serde_json::from_str(raw.get()).ok()?;
        ConversationId::parse(&text).ok()
    }

    /// The stream that an opening or `restarted` names. `None` if the frame names none, or an
    /// invalid one.
    pub fn stream(&self) -> Option<StreamId> {
        decode(self.stream)
    }

    /// Where the part lies that this `delta` opens. `None` if the frame is no opening, or if one of
    /// its fields is invalid.
    pub fn opening(&self) -> Option<PublishedOpening> {
        if self.kind() != FrameKind::Delta || self.part_kind.is_none() {
            return None;
        }
        Some(PublishedOpening {
            stream: self.stream()?,
            range: TextRange {
                part: decode(self.part)?,
                offset: decode(self.offset)?,
                end: decode(self.end)?,
            },
            previous_end: decode(self.previous_end),
        })
    }

    /// The type of the frame, with `cancelled` as a type of its own.
    pub fn kind(&self) -> FrameKind {
        match &*self.type_name {
            "response" => FrameKind::Response,
            "error" if self.code.is_some_and(|code| code.get() == r#""cancelled""#) => {
                FrameKind::Cancelled
            }
            "error" => FrameKind::Error,
            "accepted" => FrameKind::Accepted,
            "delta" => FrameKind::Delta,
            "restarted" => FrameKind::Restarted,
            _ => FrameKind::Other,
        }
    }

    /// Whether the frame is terminal: it ends its message.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self.kind(),
            FrameKind::Response | FrameKind::Error | FrameKind::Cancelled
        )
    }
}

/// Decodes a field. `None` if the frame does not have it, or if it has another form.
fn decode<T: DeserializeOwned>(field: Option<&RawValue>) -> Option<T> {
    serde_json::from_str(field?.get()).ok()
}

/// The terminal frame that a gateway makes for a forgotten message (its conversation was deleted)
/// when a client still waits for the answer: an `error` with the code `cancelled` and no content,
/// in the form in which a relay publishes it.
pub fn forgotten_message_frame(message_id: &MessageId, correlation_id: &str) -> String {
    #[derive(Serialize)]
    struct ForgottenFrame<'a> {
        r#type: &'static str,
        code: ErrorCode,
        message: &'static str,
        correlation_id: &'a str,
        message_id: &'a MessageId,
    }
    encode_json(&ForgottenFrame {
        r#type: "error",
        code: ErrorCode::Cancelled,
        message: ErrorCode::Cancelled.text(),
        correlation_id,
        message_id,
    })
}
