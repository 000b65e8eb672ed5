//! Builds and parses the records of a dead-letter topic: dead letters, and the settlements that
//! mark dead letters as replayed or dropped.

use bytes::Bytes;

use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::header::MESSAGE_ID;

/// The headers of dead letters, in addition to the original record's headers, and of settlements.
pub mod header {
    /// Prefix of the names below. A dead letter omits the original record's headers with this
    /// prefix.
    pub const PREFIX: &str = "dlq.";
    /// Why the original record could not be processed.
    pub const REASON: &str = "dlq.reason";
    /// How often processing of the original record was tried.
    pub const ATTEMPTS: &str = "dlq.attempts";
    /// Topic of the original record.
    pub const TOPIC: &str = "dlq.topic";
    /// Partition of the original record.
    pub const PARTITION: &str = "dlq.partition";
    /// Offset of the original record.
    pub const OFFSET: &str = "dlq.offset";
    /// Log timestamp of the original record, in milliseconds since the Unix epoch.
    pub const TIMESTAMP: &str = "dlq.timestamp";
    /// Size in bytes of the original record's value. Present only if the dead letter omits the
    /// value, because the log refused the record together with the headers above. The original
    /// record has the value for as long as its topic retains the record.
    pub const VALUE_LEFT_OUT: &str = "dlq.value_left_out";
    /// On settlements: `partition/offset` of the dead letter that is settled. The header occurs
    /// once for the dead letter and once for each of its duplicates.
    pub const SETTLED: &str = "dlq.settled";
    /// On settlements: the action that settled the dead letter, `replay` or `drop`.
    pub const SETTLED_BY: &str = "dlq.settled_by";
}

/// Maximum length in characters of a dead letter's reason. A longer reason is truncated.
const MAX_REASON_CHARS: usize = 500;

/// The dead letter of `record`: the same key and value, with headers that describe the failure.
pub(crate) fn dead_letter(record: &Record, reason: &str, attempts: u32) -> NewRecord {
    let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
    let mut headers = record.headers.clone();
    // The record's author must not be able to forge a reason or to settle other dead letters.
    headers.retain(|(name, _)| !name.starts_with(header::PREFIX));
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), Bytes::from(value)));
    add(header::REASON, reason);
    add(header::ATTEMPTS, attempts.to_string());
    add(header::TOPIC, record.topic.to_string());
    add(header::PARTITION, record.partition.to_string());
    add(header::OFFSET, record.offset.to_string());
    add(header::TIMESTAMP, record.timestamp_ms.to_string());
    NewRecord {
        key: record.key.clone(),
        value: record.value.clone(),
        null_value: record.null_value,
        headers,
    }
}

/// The same dead letter with an empty value and a header with the size of the omitted value.
pub(crate) fn dead_letter_without_value(dead_letter: &NewRecord) -> NewRecord {
    let mut headers = dead_letter.headers.clone();
    let size = Bytes::from(dead_letter.value.len().to_string());
    headers.push((header::VALUE_LEFT_OUT.to_owned(), size));
    NewRecord {
        key: dead_letter.key.clone(),
        value: Bytes::new(),
        null_value: false,
        headers,
    }
}

/// The content of a settlement record: the settled dead letter, its duplicates, and its resolution.
pub(super) struct Settlement {
    /// Partition and offset of the settled dead letter and of each of its duplicates.
    pub(super) offsets: Vec<(i32, i64)>,
    /// The id of the message that replays the dead letter. `None` if the dead letter was dropped.
    pub(super) replayed_as: Option<String>,
}

impl Settlement {
    /// Parses a settlement. `None` if the record is a dead letter. A dead letter that has copied a
    /// settlement's headers from a message is recognized by its value or its other `dlq.` headers.
    pub(super) fn from_record(record: &Record) -> Option<Self> {
        let is_settlement_header =
            |name: &str| matches!(name, header::SETTLED | header::SETTLED_BY);
        let mut names = record.headers.iter().map(|(name, _)| name.as_str());
        let is_settlement = record.value.is_empty()
            && record.header_text(header::SETTLED).is_some()
            && record.header_text(header::SETTLED_BY).is_some()
            && names.all(|name| is_settlement_header(name) || !name.starts_with(header::PREFIX));
        if !is_settlement {
            return None;
        }
        let parse_offset = |value: &Bytes| {
            let (partition, offset) = std::str::from_utf8(value).ok()?.split_once('/')?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        };
        let settled = record
            .headers
            .iter()
            .filter(|(name, _)| name == header::SETTLED);
        let is_replay = record.header_text(header::SETTLED_BY) == Some("replay");
        Some(Self {
            offsets: settled
                .filter_map(|(_, value)| parse_offset(value))
                .collect(),
            replayed_as: record
                .header_text(MESSAGE_ID)
                .filter(|_| is_replay)
                .map(str::to_owned),
        })
    }

    /// The headers of the settlement record.
    pub(super) fn to_headers(&self) -> Vec<(String, Bytes)> {
        let settled = self.offsets.iter().map(|(partition, offset)| {
            let value = Bytes::from(format!("{partition}/{offset}"));
            (header::SETTLED.to_owned(), value)
        });
        let mut headers: Vec<(String, Bytes)> = settled.collect();
        let mut add = |name: &str, value: &str| {
            headers.push((name.to_owned(), Bytes::from(value.to_owned())));
        };
        match &self.replayed_as {
            Some(message_id) => {
                add(header::SETTLED_BY, "replay");
                add(MESSAGE_ID, message_id);
            }
            None => add(header::SETTLED_BY, "drop"),
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_cannot_forge_headers_of_dead_letters_and_settlements() {
        let bytes = |text: &str| Bytes::from(text.to_owned());
        let headers = [
            ("dlq.settled", "3/0"),
            ("dlq.settled_by", "drop"),
            ("dlq.topic", "elsewhere"),
            ("message_id", "m"),
        ];
        let record = Record {
            topic: "incoming_messages".into(),
            partition: 3,
            offset: 9,
            timestamp_ms: 1,
            key: None,
            value: bytes("x"),
            null_value: false,
            headers: headers.map(|(n, v)| (n.to_owned(), bytes(v))).to_vec(),
        };
        let headers = dead_letter(&record, "unreadable record: x", 1).headers;
        let values = |name: &str| {
            let matching = headers.iter().filter(|(other, _)| other == name);
            matching.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(values("message_id"), [bytes("m")]);
        assert_eq!(values(header::TOPIC), [bytes("incoming_messages")]);
        assert!(values("dlq.settled").is_empty() && values("dlq.settled_by").is_empty());
    }
}
