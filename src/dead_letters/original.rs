//! Reads the identity of the original record: its message, its user, its correlation id.

use serde_json::Value;

use super::address::Source;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::log_record::Record;
use crate::protocol::record::{Question, header};

/// The id of the message that the original record carried: from its header, its question, its JSON
/// value, or derived from its location.
pub(super) fn message_id(record: &Record, source: &Source) -> MessageId {
    let from_header = record
        .header_text(header::MESSAGE_ID)
        .and_then(|id| MessageId::parse(id).ok());
    // Ids are derived from the location, so the record is read as if it were at its source.
    let original = Record {
        topic: source.topic.as_str().into(),
        partition: source.partition,
        offset: source.offset,
        timestamp_ms: source.timestamp_ms,
        ..record.clone()
    };
    from_header
        .or_else(|| {
            Question::parse(&original)
                .ok()
                .map(|question| question.message_id)
        })
        .or_else(|| MessageId::parse(&json_field(record, "message_id")?).ok())
        .unwrap_or_else(|| original.derived_message_id())
}

/// The user that the record belongs to, from its key or its JSON value. `None` where it names none.
pub(super) fn user(record: &Record) -> Option<UserId> {
    let from_key = || UserId::parse(std::str::from_utf8(record.key.as_deref()?).ok()?).ok();
    let from_value = || UserId::parse(&json_field(record, "userid")?).ok();
    from_key().or_else(from_value)
}

/// The correlation id, from its header or its JSON value.
pub(super) fn correlation_id(record: &Record) -> Option<String> {
    record
        .header_text(header::CORRELATION_ID)
        .map(str::to_owned)
        .or_else(|| json_field(record, "correlation_id"))
}

fn json_field(record: &Record, name: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(&record.value).ok()?;
    Some(value.get(name)?.as_str()?.to_owned())
}
