//! Builds the record that replays a dead letter.

use bytes::Bytes;
use serde_json::Value;

use super::dead_letter::DeadLetter;
use super::format::header as dlq;
use super::original;
use crate::protocol::ids::MessageId;
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::header;

/// The record that replays a dead letter when it is appended to the source topic: `record` with the
/// new `message_id`, and with the original message id as `replay_of`. The client's `id` is removed,
/// because clients would assign the replay's answer to the message that has already ended.
pub(super) fn replay_record(
    record: &Record,
    dead_letter: &DeadLetter,
    message_id: &MessageId,
) -> NewRecord {
    let original_id = original::message_id(record, &dead_letter.source);
    let is_replaced = |name: &str| {
        name.starts_with(dlq::PREFIX) || name == header::MESSAGE_ID || name == header::REPLAY_OF
    };
    let mut headers = record.headers.clone();
    headers.retain(|(name, _)| !is_replaced(name));
    let to_bytes = |id: &MessageId| Bytes::from(id.as_str().to_owned());
    headers.push((header::MESSAGE_ID.to_owned(), to_bytes(message_id)));
    headers.push((header::REPLAY_OF.to_owned(), to_bytes(&original_id)));
    let value = match serde_json::from_slice::<Value>(&record.value) {
        Ok(Value::Object(mut object)) => {
            object.remove("id");
            object.insert("message_id".into(), message_id.as_str().into());
            object.insert("replay_of".into(), original_id.as_str().into());
            Bytes::from(Value::Object(object).to_string())
        }
        // This version cannot read the value. It is replayed unchanged, because a newer version may
        // be able to read it.
        _ => record.value.clone(),
    };
    NewRecord {
        key: record.key.clone(),
        null_value: record.null_value && value.is_empty(),
        value,
        headers,
    }
}
