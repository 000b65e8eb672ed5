//! A dead letter as it is listed: everything except the content that its user wrote.

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
    /// Its location in the dead-letter topic.
    pub address: Address,
    /// When it was appended to the dead-letter topic, RFC 3339.
    pub at: String,
    /// The same time in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The kind of failure: a `code` of `error` frames, or `unreadable`.
    pub code: String,
    /// Why it could not be processed, as the worker or relay reported it.
    pub reason: String,
    /// How often processing was tried; 0 where that is unknown.
    pub attempts: u32,
    /// The user it belongs to; `None` where the record names none.
    pub userid: Option<String>,
    /// Id of the message it carries.
    pub message_id: String,
    /// The correlation id that the logs of this message carry.
    pub correlation_id: Option<String>,
    /// Location of the original record.
    pub source: Source,
    /// The message that this one replayed, where it was a replay itself.
    pub replay_of: Option<String>,
    /// Size in bytes of a value that was too large for the dead-letter topic and was omitted.
    pub value_left_out: Option<u64>,
    /// Duplicates of this dead letter, from processes that crashed after writing one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Address>,
}

impl DeadLetter {
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
        // A record of another program has no `dlq.` headers; its own location is its source then.
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

    /// The addresses of the dead letter and of its copies.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.copies)
    }
}

/// The error code that a reason starts with; `internal` where it starts with none.
fn code_of_reason(reason: &str) -> &'static str {
    let word = reason.strip_prefix("ended before: ").unwrap_or(reason);
    let word = word.split(':').next().unwrap_or_default();
    let codes = ErrorCode::TERMINAL.iter().map(|code| code.as_str());
    if let Some(code) = codes.into_iter().find(|code| *code == word) {
        return code;
    }
    if word.starts_with("unreadable record") {
        "unreadable"
    } else {
        ErrorCode::Internal.as_str()
    }
}

/// Selects dead letters. An empty filter selects all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of this dead-letter topic.
    pub topic: Option<String>,
    /// Only those appended at or after this time, in milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Only those with this code.
    pub code: Option<String>,
    /// At most this many, the oldest first.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether code and time match. Topic and limit are applied by the caller.
    pub(super) fn matches(&self, dead_letter: &DeadLetter) -> bool {
        self.code
            .as_ref()
            .is_none_or(|code| *code == dead_letter.code)
            && self
                .since_ms
                .is_none_or(|since_ms| dead_letter.at_ms >= since_ms)
    }
}
