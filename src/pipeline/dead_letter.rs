//! Dead letters: records that can't be worked on, kept as they were (protocol.md section 2).

use std::sync::Arc;

use bytes::Bytes;

use super::{Stopped, Work};
use crate::log::{AppendError, Log};
use crate::protocol::log_record::{NewRecord, Record};

/// Names of the headers that a dead letter carries beside the record's own.
pub mod header {
    /// All of them, and those of settlements, begin so. A record's own ones that do are left out.
    pub const OURS: &str = "dlq.";
    /// Why.
    pub const REASON: &str = "dlq.reason";
    /// How often it was tried.
    pub const ATTEMPTS: &str = "dlq.attempts";
    /// Where the record was.
    pub const TOPIC: &str = "dlq.topic";
    /// Its partition.
    pub const PARTITION: &str = "dlq.partition";
    /// Its offset.
    pub const OFFSET: &str = "dlq.offset";
    /// When it was appended there, milliseconds since the Unix epoch.
    pub const TIMESTAMP: &str = "dlq.timestamp";
    /// How many bytes the value had, where it was left out because the log refused it with the
    /// headers above: it is to be had where the record was, for as long as that topic keeps it.
    pub const VALUE_LEFT_OUT: &str = "dlq.value_left_out";
}

/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 500;

/// Writes dead letters to one topic.
#[derive(Clone)]
pub struct DeadLetters {
    log: Arc<dyn Log>,
    topic: String,
}

impl DeadLetters {
    /// `topic` is the dead-letter topic itself.
    pub fn new(log: Arc<dyn Log>, topic: String) -> Self {
        Self { log, topic }
    }

    /// Puts `record` there and waits until the log has acknowledged it, however long that takes:
    /// a record is there twice rather than not at all.
    pub async fn put(
        &self,
        record: &Record,
        reason: &str,
        attempts: u32,
        work: &mut Work,
    ) -> Result<(), Stopped> {
        let letter = letter(record, reason, attempts);
        let letter = &letter;
        work.until("dead letter", || async move {
            match self.log.append(&self.topic, letter.clone()).await {
                // A record as large as its topic allows is too large with our headers. Tried as
                // it is for ever, it would keep all that comes after it from being committed.
                Err(AppendError::Refused(_)) if !letter.value.is_empty() => {
                    self.log.append(&self.topic, without_value(letter)).await
                }
                result => result,
            }
        })
        .await?;
        tracing::warn!(
            topic = %record.topic,
            partition = record.partition,
            offset = record.offset,
            message_id = record.header_text("message_id"),
            correlation_id = record.header_text("correlation_id"),
            reason,
            attempts,
            dead_letters = %self.topic,
            "record put into the dead-letter topic"
        );
        Ok(())
    }
}

fn without_value(letter: &NewRecord) -> NewRecord {
    let mut headers = letter.headers.clone();
    let length = Bytes::from(letter.value.len().to_string());
    headers.push((header::VALUE_LEFT_OUT.to_owned(), length));
    NewRecord {
        key: letter.key.clone(),
        value: Bytes::new(),
        null_value: false,
        headers,
    }
}

fn letter(record: &Record, reason: &str, attempts: u32) -> NewRecord {
    let reason: String = reason.chars().take(MAX_REASON).collect();
    let mut headers = record.headers.clone();
    // Whoever wrote the record must not say what became of it, nor settle somebody's letter.
    headers.retain(|(name, _)| !name.starts_with(header::OURS));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_cannot_bring_headers_that_only_dead_letters_and_settlements_have() {
        let text = |text: &str| Bytes::from(text.to_owned());
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
            value: text("x"),
            null_value: false,
            headers: headers.map(|(n, v)| (n.to_owned(), text(v))).to_vec(),
        };
        let headers = letter(&record, "unreadable record: x", 1).headers;
        let of = |name: &str| {
            let of = headers.iter().filter(|(other, _)| other == name);
            of.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("message_id"), [text("m")]);
        assert_eq!(of(header::TOPIC), [text("incoming_messages")]);
        assert!(of("dlq.settled").is_empty() && of("dlq.settled_by").is_empty());
    }
}
