//! How topics, records and offsets are written in the store's tables.

use bytes::{Buf, Bytes};

use crate::protocol::log_record::{Headers, NewRecord, Record};

/// Where a partition's records begin, for `offset`; ascending with it.
pub(super) fn record_key(topic: u32, partition: i32, offset: i64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&topic.to_be_bytes());
    key[4..8].copy_from_slice(&partition.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The offset in a record's key.
pub(super) fn record_offset(key: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(key.get(8..16)?.try_into().ok()?))
}

/// A record as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Bytes>,
    pub(super) value: Bytes,
    pub(super) headers: Headers,
}

/// Time, flag and key, headers, and the value to the end; lengths are 4 bytes, little-endian.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(record.size());
    out.extend(record.timestamp_ms.to_le_bytes());
    let piece = |bytes: &[u8], out: &mut Vec<u8>| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    match &record.key {
        Some(key) => {
            out.push(1);
            piece(key, &mut out);
        }
        None => out.push(0),
    }
    out.extend((record.headers.len() as u32).to_le_bytes());
    for (name, value) in &record.headers {
        piece(name.as_bytes(), &mut out);
        piece(value, &mut out);
    }
    out.extend(&record.value);
    out
}

/// The reverse; `None` for bytes that [`encode`] did not write.
pub(super) fn decode(bytes: Vec<u8>) -> Option<Stored> {
    fn piece(bytes: &mut Bytes) -> Option<Bytes> {
        let length = bytes.try_get_u32_le().ok()? as usize;
        (length <= bytes.len()).then(|| bytes.split_to(length))
    }
    let mut bytes = Bytes::from(bytes);
    let timestamp_ms = bytes.try_get_i64_le().ok()?;
    let key = match bytes.try_get_u8().ok()? {
        0 => None,
        _ => Some(piece(&mut bytes)?),
    };
    let count = bytes.try_get_u32_le().ok()? as usize;
    let mut headers = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let name = String::from_utf8(piece(&mut bytes)?.to_vec()).ok()?;
        headers.push((name, piece(&mut bytes)?));
    }
    Some(Stored {
        timestamp_ms,
        key,
        value: bytes,
        headers,
    })
}

/// The time of an encoded record.
pub(super) fn timestamp(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// What counts against the limit of a record, in bytes.
pub(super) fn size(record: &NewRecord) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 8)
        .sum();
    record.value.len() + record.key.as_ref().map_or(0, Bytes::len) + headers
}

/// Key of the log's id.
pub(super) const ID: &[u8] = b"id";
/// What keys of topics begin with; the name follows.
pub(super) const TOPIC: &[u8] = b"t";
/// The first key after those of topics.
pub(super) const TOPIC_END: &[u8] = b"u";

/// Key of a topic.
pub(super) fn topic_key(name: &str) -> Vec<u8> {
    [TOPIC, name.as_bytes()].concat()
}

/// Number and partitions of a topic.
pub(super) fn encode_topic(id: u32, partitions: u32) -> Vec<u8> {
    [id.to_le_bytes(), partitions.to_le_bytes()].concat()
}

/// The reverse.
pub(super) fn decode_topic(mut bytes: &[u8]) -> Option<(u32, u32)> {
    Some((bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?))
}

/// Key of what is known of a partition whose records were removed.
pub(super) fn floor_key(topic: u32, partition: i32) -> Vec<u8> {
    [&b"f"[..], &topic.to_be_bytes(), &partition.to_be_bytes()].concat()
}

/// The first offset that was not removed, and the time of the last one that was.
pub(super) fn encode_floor(start: i64, timestamp_ms: i64) -> Vec<u8> {
    [start.to_le_bytes(), timestamp_ms.to_le_bytes()].concat()
}

/// The reverse.
pub(super) fn decode_floor(mut bytes: &[u8]) -> Option<(i64, i64)> {
    Some((bytes.try_get_i64_le().ok()?, bytes.try_get_i64_le().ok()?))
}

/// What keys of a topic's committed offsets begin with.
pub(super) fn commit_prefix(topic: u32) -> Vec<u8> {
    [&b"c"[..], &topic.to_be_bytes()].concat()
}

/// Key of a committed offset.
pub(super) fn commit_key(topic: u32, partition: i32, group: &str) -> Vec<u8> {
    [
        &commit_prefix(topic)[..],
        &partition.to_be_bytes(),
        group.as_bytes(),
    ]
    .concat()
}

/// Partition and group of such a key.
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
        fn a_record_reads_back_as_it_was_written(
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
            let bytes = encode(&record);
            prop_assert_eq!(timestamp(&bytes), Some(timestamp_ms));
            let Record { key, value, headers, .. } = record;
            let expected = Stored { timestamp_ms, key, value, headers };
            prop_assert_eq!(decode(bytes), Some(expected));
        }

        #[test]
        fn bytes_that_are_no_record_are_none_and_no_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..60)
        ) {
            let _ = decode(bytes);
        }
    }
}
