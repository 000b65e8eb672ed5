//! What a dead letter's record is about, and what goes back into its topic.

use bytes::Bytes;
use serde_json::Value;

use super::{Letter, Source, dlq};
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::{Question, header};

/// The identity of the message that a record of its topic was about.
pub(super) fn identity(record: &Record, source: &Source) -> MessageId {
    let known = record
        .header_text(header::MESSAGE_ID)
        .and_then(|id| MessageId::parse(id).ok());
    let place = Record {
        topic: source.topic.as_str().into(),
        partition: source.partition,
        offset: source.offset,
        timestamp_ms: source.timestamp_ms,
        ..record.clone()
    };
    known
        .or_else(|| {
            Question::parse(&place)
                .ok()
                .map(|question| question.message_id)
        })
        .or_else(|| {
            let value: Value = serde_json::from_slice(&record.value).ok()?;
            MessageId::parse(value.get("message_id")?.as_str()?).ok()
        })
        .unwrap_or_else(|| place.derived_message_id())
}

/// What goes back into the topic: the record with another identity, which names the old one. The
/// client's `id` stays behind, since with it the client would take this for the message that has
/// ended.
pub(super) fn replayed(record: &Record, letter: &Letter, message_id: &MessageId) -> NewRecord {
    let old = identity(record, &letter.source);
    let ours = |name: &str| {
        name.starts_with(dlq::OURS) || name == header::MESSAGE_ID || name == header::REPLAY_OF
    };
    let mut headers = record.headers.clone();
    headers.retain(|(name, _)| !ours(name));
    let text = |id: &MessageId| Bytes::from(id.as_str().to_owned());
    headers.push((header::MESSAGE_ID.to_owned(), text(message_id)));
    headers.push((header::REPLAY_OF.to_owned(), text(&old)));
    let value = match serde_json::from_slice::<Value>(&record.value) {
        Ok(Value::Object(mut object)) => {
            object.remove("id");
            object.insert("message_id".into(), message_id.as_str().into());
            object.insert("replay_of".into(), old.as_str().into());
            Bytes::from(Value::Object(object).to_string())
        }
        // Not readable here; a newer version may read it.
        _ => record.value.clone(),
    };
    NewRecord {
        key: record.key.clone(),
        null_value: record.null_value && value.is_empty(),
        value,
        headers,
    }
}

/// Whose a record is, where it says so.
pub(super) fn user_of(record: &Record) -> Option<UserId> {
    let by_key = || UserId::parse(std::str::from_utf8(record.key.as_deref()?).ok()?).ok();
    let by_value = || {
        let value: Value = serde_json::from_slice(&record.value).ok()?;
        UserId::parse(value.get("userid")?.as_str()?).ok()
    };
    by_key().or_else(by_value)
}
