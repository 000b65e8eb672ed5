//! Converts terminal records into the frames that clients receive, for the handler.

use std::sync::Arc;

use crate::fanout::TurnStatus;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::log_record::Record;
use crate::protocol::position::Position;
use crate::protocol::record::{TerminalKind, TerminalRecord, UnreadableRecord, header};
use crate::protocol::timestamp::now_rfc3339;
use crate::protocol::trace_context::TraceContext;

/// A terminal record, parsed and ready for delivery.
pub(super) struct TerminalFrame {
    /// The parsed record.
    pub(super) terminal: TerminalRecord,
    /// Identifies the answered message. Derived from the record's location in the log where the
    /// record has no `message_id`.
    pub(super) message_id: MessageId,
    /// The JSON that clients receive, with the position. [`append_trace`] adds the trace.
    pub(super) json: String,
}

/// Parses a record into a frame. Fields that only the relay and the fan-out may set are removed.
/// Fails where the value is no terminal record.
pub(super) fn parse_record(
    record: &Record,
    position: &Position,
) -> Result<TerminalFrame, UnreadableRecord> {
    let value = record.value.trim_ascii();
    if value.first() != Some(&b'{') {
        return Err(UnreadableRecord("not a JSON object".into()));
    }
    let mut terminal = TerminalRecord::parse(value)?;
    let message_id = terminal
        .message_id
        .clone()
        .unwrap_or_else(|| record.derived_message_id());
    let has_reserved_fields = terminal.position.is_some()
        || terminal.has_traceparent
        || terminal.n.is_some()
        || terminal.n_id.is_some();
    let json = if has_reserved_fields || terminal.correlation_id.is_empty() {
        terminal.position = None;
        if terminal.correlation_id.is_empty() {
            // An original gateway stops delivering after a frame without a correlation id.
            let from_header = record.header_text(header::CORRELATION_ID);
            terminal.correlation_id = from_header.unwrap_or(message_id.as_str()).to_string();
        }
        terminal.to_json()
    } else {
        // The value is passed on unchanged, so that unknown fields reach the client.
        String::from_utf8(value.to_vec()).map_err(|_| UnreadableRecord("not UTF-8".into()))?
    };
    let json = append_position(&json, position);
    Ok(TerminalFrame {
        terminal,
        message_id,
        json,
    })
}

/// Builds an error frame for a record that cannot be delivered, from the record's key and headers.
/// `None` where key and headers do not name both user and message.
pub(super) fn error_frame(
    record: &Record,
    code: ErrorCode,
    position: &Position,
) -> Option<TerminalFrame> {
    let user = std::str::from_utf8(record.key.as_deref()?).ok()?;
    let message_id = MessageId::parse(record.header_text(header::MESSAGE_ID)?).ok()?;
    let terminal = TerminalRecord {
        v: 1,
        kind: TerminalKind::Error,
        content: None,
        parts: None,
        message: Some(code.text().to_owned()),
        userid: UserId::parse(user).ok()?,
        timestamp: Some(now_rfc3339()),
        processing_time_ms: None,
        correlation_id: record
            .header_text(header::CORRELATION_ID)
            .unwrap_or(message_id.as_str())
            .to_owned(),
        message_id: Some(message_id.clone()),
        id: None,
        conversation_id: None,
        code: Some(code),
        retryable: Some(code.is_retryable()),
        retry_after_ms: None,
        finish_reason: None,
        model: None,
        usage: None,
        attempt: None,
        position: None,
        has_traceparent: false,
        n: None,
        n_id: None,
    };
    let json = append_position(&terminal.to_json(), position);
    Some(TerminalFrame {
        terminal,
        message_id,
        json,
    })
}

/// Adds the field `position` to a JSON object.
fn append_position(object: &str, position: &Position) -> String {
    let unclosed = object.trim_end().strip_suffix('}').unwrap_or(object);
    format!("{unclosed},\"position\":\"{position}\"}}")
}

/// Adds the field `traceparent` to a JSON object, so that gateway and client continue the trace.
/// Returns the object unchanged where there is no trace.
pub(super) fn append_trace(mut object: String, trace: Option<&TraceContext>) -> String {
    if let Some(trace) = trace
        && object.ends_with('}')
    {
        object.pop();
        object.push_str(",\"traceparent\":\"");
        object.push_str(&trace.traceparent());
        object.push_str("\"}");
    }
    object
}

/// The text that the history stores as the answer: the answer's text, or the error's text where
/// there is no answer.
pub(super) fn turn_text(terminal: &TerminalRecord) -> String {
    terminal
        .content
        .clone()
        .or_else(|| terminal.message.clone())
        .unwrap_or_default()
}

/// The parts that the history stores with the answer, as a JSON array. `None` if the record has
/// none, or something else in their place.
pub(super) fn turn_parts(terminal: &TerminalRecord) -> Option<Arc<str>> {
    let parts = terminal.parts.as_ref()?.get();
    parts.starts_with('[').then(|| parts.into())
}

pub(super) fn turn_status(terminal: &TerminalRecord) -> TurnStatus {
    match (terminal.kind, terminal.code) {
        (TerminalKind::Response, _) => TurnStatus::Answered,
        (TerminalKind::Error, Some(ErrorCode::Cancelled)) => TurnStatus::Cancelled,
        (TerminalKind::Error, _) => TurnStatus::Failed,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::protocol::position::Epoch;

    fn parse(value: &str) -> Result<(TerminalFrame, Value), UnreadableRecord> {
        let record = Record {
            topic: "responses".into(),
            partition: 2,
            offset: 7,
            timestamp_ms: 1,
            key: Some(Bytes::from_static(b"alice")),
            value: Bytes::from(value.to_owned()),
            null_value: false,
            headers: vec![],
        };
        let frame = parse_record(&record, &position())?;
        let json = serde_json::from_str(&frame.json).unwrap();
        Ok((frame, json))
    }

    fn position() -> Position {
        Position {
            epoch: Epoch::new("c", "0", 2),
            offset: 7,
        }
    }

    #[test]
    fn unknown_fields_reach_the_client_and_the_position_is_added() {
        let value = r#"{"type":"response","content":"hi","userid":"alice","correlation_id":"c","new":[1]} "#;
        let (_, json) = parse(value).unwrap();
        assert_eq!(json["new"][0], 1);
        assert_eq!(json["position"], position().to_string());
    }

    #[test]
    fn reserved_fields_of_a_record_are_replaced() {
        let value = r#"{"type":"response","content":"hi","userid":"alice","correlation_id":"c","position":"x.9","n":4,"traceparent":null}"#;
        let (_, json) = parse(value).unwrap();
        assert_eq!(json.get("traceparent"), None);
        assert_eq!(json["position"], position().to_string());
        assert_eq!(json.get("n"), None);
    }

    #[test]
    fn parts_of_every_kind_reach_client_and_history_unchanged() {
        let parts = r#"[{"kind":"image","meta":{"w":7.50}},{"kind":"text","length":2}]"#;
        // A frame without a correlation id is encoded again.
        for correlation_id in [r#","correlation_id":"c""#, ""] {
            let (frame, _) = parse(&format!(
                r#"{{"type":"response","content":"hi","parts":{parts},"userid":"alice"{correlation_id}}}"#
            ))
            .unwrap();
            assert!(frame.json.contains(parts), "{}", frame.json);
            assert_eq!(turn_parts(&frame.terminal).as_deref(), Some(parts));
        }
    }

    #[test]
    fn history_gets_only_a_list_as_parts() {
        for parts in [
            "",
            r#","parts":null"#,
            r#","parts":7"#,
            r#","parts":{"a":[]}"#,
        ] {
            let value = format!(r#"{{"type":"response","content":"hi","userid":"alice"{parts}}}"#);
            let (frame, _) = parse(&value).unwrap();
            assert_eq!(turn_parts(&frame.terminal), None, "{value}");
        }
    }

    #[test]
    fn every_frame_has_a_correlation_id() {
        let value = r#"{"type":"response","content":"hi","userid":"alice"}"#;
        let (frame, json) = parse(value).unwrap();
        assert_eq!(json["correlation_id"], frame.message_id.as_str());
    }

    #[test]
    fn records_other_than_terminal_objects_are_unreadable() {
        for value in [
            "",
            "[]",
            "7",
            "{",
            r#"{"type":"delta","userid":"alice"}"#,
            r#"{"type":"error"}"#,
        ] {
            assert!(parse(value).is_err(), "{value}");
        }
    }
}
