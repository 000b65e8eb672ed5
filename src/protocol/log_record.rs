//! The records of the log, in the form in which every layer uses them. Both engines of the log,
//! Kafka and the embedded log, append and return records in this form.

use std::sync::Arc;

use bytes::Bytes;

use super::ids::MessageId;

/// A record's headers in the order in which they were written. A name may occur more than once.
pub type Headers = Vec<(String, Bytes)>;

/// A record that is to be appended to the log.
#[derive(Debug, Clone, Default)]
pub struct NewRecord {
    /// The key, from which the log's partitioner computes the partition. With `None` the log
    /// chooses any partition.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// Whether the record has no payload at all (a tombstone in Kafka); `value` is empty then. Set
    /// only to copy a record that was read without a payload. The embedded log stores an empty
    /// payload instead.
    pub null_value: bool,
    /// Metadata that can be read without decoding the value.
    pub headers: Headers,
}

/// A record that was read from the log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The topic that the record was read from.
    pub topic: Arc<str>,
    /// The number of the partition, from 0.
    pub partition: i32,
    /// The offset in the partition, from 0. Offsets ascend and may have gaps.
    pub offset: i64,
    /// When the record was appended, in milliseconds since the Unix epoch by the log's clock.
    pub timestamp_ms: i64,
    /// The key; `None` for a record that was appended without one.
    pub key: Option<Bytes>,
    /// The payload; empty where the record has none.
    pub value: Bytes,
    /// Whether the record has no payload at all (a tombstone in Kafka).
    pub null_value: bool,
    /// Metadata that can be read without decoding the value.
    pub headers: Headers,
}

/// Estimated size in bytes of a record in memory, without its key, value and headers.
const RECORD_OVERHEAD_BYTES: usize = 128;

impl Record {
    /// The value of the last header with this name. `None` if there is none or it is not UTF-8.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The message id of a record that names none. It is derived from the record's topic,
    /// partition, offset and timestamp, so reading the record again gives the same id (protocol.md
    /// section 2).
    pub fn derived_message_id(&self) -> MessageId {
        MessageId::from_record(&self.topic, self.partition, self.offset, self.timestamp_ms)
    }

    /// Estimated size of the record in memory, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(k, v)| k.len() + v.len()).sum();
        self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + headers + RECORD_OVERHEAD_BYTES
    }
}
