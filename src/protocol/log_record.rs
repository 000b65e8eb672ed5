//! A record of the log, as every layer sees it: which engine holds it makes no difference here.

use std::sync::Arc;

use bytes::Bytes;

use super::ids::MessageId;

/// A record's headers in the order in which they were written. A name may occur more than once.
pub type Headers = Vec<(String, Bytes)>;

/// A record that is to be appended to the log.
#[derive(Debug, Clone, Default)]
pub struct NewRecord {
    /// Decides the partition, by the log's partitioner. `None` leaves the choice to the log.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// The record has no payload at all (a tombstone in Kafka), and `value` is empty. Set only to
    /// copy a record that was read this way. The embedded log stores an empty payload instead.
    pub null_value: bool,
    /// Metadata that can be read without decoding the value.
    pub headers: Headers,
}

/// A record that was read from the log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, from 0.
    pub partition: i32,
    /// The offset in the partition, from 0. Offsets ascend and may have gaps.
    pub offset: i64,
    /// When the record was appended, in milliseconds since the Unix epoch by the log's clock.
    pub timestamp_ms: i64,
    /// The key; `None` for a record that was appended without one.
    pub key: Option<Bytes>,
    /// The payload; empty where the record has none.
    pub value: Bytes,
    /// The record has no payload at all (a tombstone in Kafka).
    pub null_value: bool,
    /// Metadata that can be read without decoding the value.
    pub headers: Headers,
}

/// What a record costs in memory beside its key, value and headers, in bytes: an estimate.
const RECORD_OVERHEAD_BYTES: usize = 128;

impl Record {
    /// The value of the last header with this name. `None` if there is none or it is not UTF-8.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The message id for a record that carries none, derived from where and when it was appended:
    /// reading the record again gives the same id (protocol.md section 2).
    pub fn derived_message_id(&self) -> MessageId {
        MessageId::from_record(&self.topic, self.partition, self.offset, self.timestamp_ms)
    }

    /// Estimated memory that the record occupies, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(k, v)| k.len() + v.len()).sum();
        self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + headers + RECORD_OVERHEAD_BYTES
    }
}
