//! Reads message id, user and correlation id of the original record from a dead letter.

use serde_json::Value;

use super::address::Source;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::log_record::Record;
use crate::protocol::record::{Question, header};

/// The id of the message that the original record carried. It is read from the record's header, its
/// question or its JSON value, in this order; a record without an id gets one that is derived from
/// its original location.
pub(super) fn message_id(record: &Record, source: &Source) -> MessageId {
    let from_header = record
        .header_text(header::MESSAGE_ID)
        .and_then(|id| MessageId::parse(id).ok());
    // An id that is derived from the location must be derived from the original location, so the
    // record is parsed as if it were in its source topic.
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

/// The user to whom the record belongs, from its key or its JSON value. `None` if neither contains
/// a valid user id.
pub(super) fn user(record: &Record) -> Option<UserId> {
    let from_key = || UserId::parse(std::str::from_utf8(record.key.as_deref()?).ok()?).ok();
    let from_value = || UserId::parse(&json_field(record, "userid")?).ok();
    from_key().or_else(from_value)
}

/// The correlation id, from the record's header or its JSON value. `None` if it has none.
pub(super) fn correlation_id(record: &Record) -> Option<String> {
    record
        .header_text(header::CORRELATION_ID)
        .map(str::to_owned)
        .or_else(|| json_field(record, "correlation_id"))
}

/// A string field of the record's JSON value. `None` if there is no such field.
fn json_field(record: &Record, name: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(&record.value).ok()?;
    Some(value.get(name)?.as_str()?.to_owned())
}
