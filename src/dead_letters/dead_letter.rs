//! A dead letter as it is listed: where the record came from and why it failed, but not the content
//! that the user wrote.

use serde::{Deserialize, Serialize};

use super::address::{Address, Source};
use super::format::header as dlq;
use super::original;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::log_record::Record;
use crate::protocol::record::header;
use crate::protocol::timestamp::rfc3339;

/// A record that could not be processed, without its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The dead letter's location in the dead-letter topic.
    pub address: Address,
    /// When the dead letter was appended to the dead-letter topic, in the format of RFC 3339.
    pub at: String,
    /// When the dead letter was appended to the dead-letter topic, in milliseconds since the Unix
    /// epoch.
    pub at_ms: i64,
    /// The kind of failure: a `code` of `error` frames, or `unreadable`.
    pub code: String,
    /// Why the record could not be processed, as the worker or relay reported it.
    pub reason: String,
    /// How often processing of the record was tried; 0 if that is unknown.
    pub attempts: u32,
    /// Id of the user to whom the record belongs. `None` if the record names no user.
    pub userid: Option<String>,
    /// Id of the message that the record carries.
    pub message_id: String,
    /// Correlation id of the message, which its log lines carry. `None` if the record has none.
    pub correlation_id: Option<String>,
    /// Location of the original record.
    pub source: Source,
    /// Id of the message that the original record replayed. `None` if the record was no replay.
    pub replay_of: Option<String>,
    /// Size in bytes of the record's value, if the value was too large for the dead-letter topic
    /// and was omitted. `None` if the dead letter has the value.
    pub value_left_out: Option<u64>,
    /// Addresses of the duplicates of this dead letter. A duplicate exists if a process crashed
    /// after it had appended the dead letter, and the record was delivered again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Address>,
}

impl DeadLetter {
    /// Reads the fields from a record of a dead-letter topic. Duplicates are added later.
    pub(super) fn from_record(record: &Record) -> Self {
        let number = |name: &str| {
            record
                .header_text(name)
                .and_then(|text| text.parse::<i64>().ok())
        };
        let topic = record.header_text(dlq::TOPIC);
        let topic = topic
            .or_else(|| record.topic.strip_suffix(".dlq"))
            .unwrap_or_default();
        // A record that another program appended has no `dlq.` headers. Its own location is then
        // used as its source.
        let source = Source {
            topic: topic.to_owned(),
            partition: number(dlq::PARTITION).map_or(record.partition, |n| n as i32),
            offset: number(dlq::OFFSET).unwrap_or(record.offset),
            timestamp_ms: number(dlq::TIMESTAMP).unwrap_or(record.timestamp_ms),
        };
        let reason = record
            .header_text(dlq::REASON)
            .unwrap_or("unknown")
            .to_owned();
        Self {
            address: Address {
                topic: record.topic.to_string(),
                partition: record.partition,
                offset: record.offset,
            },
            at: rfc3339(record.timestamp_ms),
            at_ms: record.timestamp_ms,
            code: code_of_reason(&reason).to_owned(),
            attempts: number(dlq::ATTEMPTS).map_or(0, |n| n as u32),
            userid: original::user(record).map(|user| user.to_string()),
            message_id: original::message_id(record, &source).to_string(),
            correlation_id: original::correlation_id(record),
            replay_of: record.header_text(header::REPLAY_OF).map(str::to_owned),
            value_left_out: number(dlq::VALUE_LEFT_OUT).map(|n| n as u64),
            copies: Vec::new(),
            reason,
            source,
        }
    }

    /// The addresses of the dead letter and of its duplicates.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.copies)
    }
}

/// The error code with which a reason begins, or `unreadable` for the reason of an unreadable
/// record. `internal` for any other reason.
fn code_of_reason(reason: &str) -> &'static str {
    let reason = reason.strip_prefix("ended before: ").unwrap_or(reason);
    let first_part = reason.split(':').next().unwrap_or_default();
    let codes = ErrorCode::TERMINAL.iter().map(|code| code.as_str());
    if let Some(code) = codes.into_iter().find(|code| *code == first_part) {
        return code;
    }
    if first_part.starts_with("unreadable record") {
        "unreadable"
    } else {
        ErrorCode::Internal.as_str()
    }
}

/// Selects dead letters. Each field that is `None` selects all of them.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Selects the dead letters of this dead-letter topic.
    pub topic: Option<String>,
    /// Selects the dead letters that were appended at or after this time, in milliseconds since the
    /// Unix epoch.
    pub since_ms: Option<i64>,
    /// Selects the dead letters with this code.
    pub code: Option<String>,
    /// Maximum number of selected dead letters, from the oldest on.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether the dead letter has the filter's code and time. The caller applies topic and limit.
    pub(super) fn matches(&self, dead_letter: &DeadLetter) -> bool {
        self.code
            .as_ref()
            .is_none_or(|code| *code == dead_letter.code)
            && self
                .since_ms
                .is_none_or(|since_ms| dead_letter.at_ms >= since_ms)
    }
}
