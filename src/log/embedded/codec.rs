//! The encoding of the embedded log's records and metadata as keys and values of the store's
//! tables.

use bytes::{Buf, Bytes};

use crate::protocol::log_record::{Headers, NewRecord, Record};

/// The key of a record in [`crate::store::Table::Log`]. Keys sort by topic, partition and offset.
pub(super) fn record_key(topic: u32, partition: i32, offset: i64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&topic.to_be_bytes());
    key[4..8].copy_from_slice(&partition.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The offset in a record's key. `None` if `key` is too short to be a record's key.
pub(super) fn record_offset(key: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(key.get(8..16)?.try_into().ok()?))
}

/// The part of a record that its value in the store encodes. Its key in the store encodes topic,
/// partition and offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StoredRecord {
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Bytes>,
    pub(super) value: Bytes,
    pub(super) headers: Headers,
}

/// Encodes a [`StoredRecord`]: the timestamp; a byte that is 1 if a key follows; the number of
/// headers and the headers; the value, up to the end. Each key, header name and header value is
/// preceded by its length. Numbers are little-endian, and all but the timestamp have 4 bytes.
pub(super) fn encode_record(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(record.size());
    out.extend(record.timestamp_ms.to_le_bytes());
    let put_bytes = |bytes: &[u8], out: &mut Vec<u8>| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    match &record.key {
        Some(key) => {
            out.push(1);
            put_bytes(key, &mut out);
        }
        None => out.push(0),
    }
    out.extend((record.headers.len() as u32).to_le_bytes());
    for (name, value) in &record.headers {
        put_bytes(name.as_bytes(), &mut out);
        put_bytes(value, &mut out);
    }
    out.extend(&record.value);
    out
}

/// Decodes a value that [`encode_record`] returned. `None` if `bytes` is malformed.
pub(super) fn decode_record(bytes: Vec<u8>) -> Option<StoredRecord> {
    fn get_bytes(bytes: &mut Bytes) -> Option<Bytes> {
        let length = bytes.try_get_u32_le().ok()? as usize;
        (length <= bytes.len()).then(|| bytes.split_to(length))
    }
    let mut bytes = Bytes::from(bytes);
    let timestamp_ms = bytes.try_get_i64_le().ok()?;
    let key = match bytes.try_get_u8().ok()? {
        0 => None,
        _ => Some(get_bytes(&mut bytes)?),
    };
    let count = bytes.try_get_u32_le().ok()? as usize;
    let mut headers = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let name = String::from_utf8(get_bytes(&mut bytes)?.to_vec()).ok()?;
        headers.push((name, get_bytes(&mut bytes)?));
    }
    Some(StoredRecord {
        timestamp_ms,
        key,
        value: bytes,
        headers,
    })
}

/// The timestamp of an encoded record, in milliseconds since the Unix epoch. Nothing else of the
/// record is decoded. `None` if `bytes` is too short.
pub(super) fn record_timestamp(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// The size in bytes that counts against the log's limit: key, value, headers, and 8 bytes for the
/// lengths of each header.
pub(super) fn record_size(record: &NewRecord) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 8)
        .sum();
    record.value.len() + record.key.as_ref().map_or(0, Bytes::len) + headers
}

/// The key of the log's id in [`crate::store::Table::LogState`], like every key below.
pub(super) const LOG_ID_KEY: &[u8] = b"id";
/// The prefix of the keys of topics. The topic's name follows it.
pub(super) const TOPIC_PREFIX: &[u8] = b"t";
/// The lowest key above the keys of all topics.
pub(super) const TOPIC_END: &[u8] = b"u";

/// The key of a topic's numeric id and number of partitions.
pub(super) fn topic_key(name: &str) -> Vec<u8> {
    [TOPIC_PREFIX, name.as_bytes()].concat()
}

/// Encodes a topic's numeric id and number of partitions.
pub(super) fn encode_topic(id: u32, partitions: u32) -> Vec<u8> {
    [id.to_le_bytes(), partitions.to_le_bytes()].concat()
}

/// Decodes a topic's numeric id and number of partitions. `None` if `bytes` is too short.
pub(super) fn decode_topic(mut bytes: &[u8]) -> Option<(u32, u32)> {
    Some((bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?))
}

/// The key of a partition's log start. It has a value once records of the partition were removed.
pub(super) fn log_start_key(topic: u32, partition: i32) -> Vec<u8> {
    [&b"f"[..], &topic.to_be_bytes(), &partition.to_be_bytes()].concat()
}

/// Encodes a partition's log start: the lowest retained offset, and the timestamp of the last
/// removed record, in milliseconds since the Unix epoch.
pub(super) fn encode_log_start(start: i64, timestamp_ms: i64) -> Vec<u8> {
    [start.to_le_bytes(), timestamp_ms.to_le_bytes()].concat()
}

/// Decodes what [`encode_log_start`] encoded. `None` if `bytes` is too short.
pub(super) fn decode_log_start(mut bytes: &[u8]) -> Option<(i64, i64)> {
    Some((bytes.try_get_i64_le().ok()?, bytes.try_get_i64_le().ok()?))
}

/// The prefix of the keys of a topic's committed offsets. Partition and group follow it.
pub(super) fn commit_prefix(topic: u32) -> Vec<u8> {
    [&b"c"[..], &topic.to_be_bytes()].concat()
}

/// The key of the offset that a group has committed for a partition.
pub(super) fn commit_key(topic: u32, partition: i32, group: &str) -> Vec<u8> {
    [
        &commit_prefix(topic)[..],
        &partition.to_be_bytes(),
        group.as_bytes(),
    ]
    .concat()
}

/// The partition and the group in a key that [`commit_key`] returned. `None` if `key` is malformed.
pub(super) fn decode_commit_key(key: &[u8]) -> Option<(i32, &str)> {
    let partition = i32::from_be_bytes(key.get(5..9)?.try_into().ok()?);
    Some((partition, std::str::from_utf8(&key[9..]).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn record_is_decoded_as_it_was_encoded(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            value in proptest::collection::vec(any::<u8>(), 0..200),
            headers in proptest::collection::vec(
                (".{0,10}", proptest::collection::vec(any::<u8>(), 0..20)), 0..4),
            timestamp_ms in any::<i64>(),
        ) {
            let record = Record {
                topic: "t".into(),
                partition: 0,
                offset: 0,
                timestamp_ms,
                key: key.map(Bytes::from),
                value: value.into(),
                null_value: false,
                headers: headers.into_iter().map(|(n, v)| (n, v.into())).collect(),
            };
            let bytes = encode_record(&record);
            prop_assert_eq!(record_timestamp(&bytes), Some(timestamp_ms));
            let Record { key, value, headers, .. } = record;
            let expected = StoredRecord { timestamp_ms, key, value, headers };
            prop_assert_eq!(decode_record(bytes), Some(expected));
        }

        #[test]
        fn other_bytes_do_not_panic_when_decoded(
            bytes in proptest::collection::vec(any::<u8>(), 0..60)
        ) {
            let _ = decode_record(bytes);
        }
    }
}
