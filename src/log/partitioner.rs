//! The partitioner: which partition a record with a key belongs to.
//!
//! It computes what Java's Kafka clients compute, and what librdkafka computes under the name
//! `murmur2_random`, so that a key leads to the same partition whoever appends the record.

use bytes::Bytes;

/// The partition, from 0, that a record with this key belongs to among `partitions` of them.
/// `partitions` must not be 0.
pub fn partition_for_key(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions
}

/// A key that [`partition_for_key`] maps to this partition among `partitions` of them: for records
/// that must be appended to a given partition.
pub fn key_for_partition(partition: i32, partitions: usize) -> Bytes {
    // The hash spreads keys evenly, so a match is found long before this bound.
    let key = (0..1_000_000_u32)
        .map(|n| format!("partition-{partition}-{n}"))
        .find(|key| partition_for_key(key.as_bytes(), partitions) == partition as usize);
    Bytes::from(key.unwrap_or_default())
}

/// Murmur2 with the seed that Kafka's clients use.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ (data.len() as u32);
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let remainder = chunks.remainder();
    if !remainder.is_empty() {
        for (i, byte) in remainder.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_equal_those_in_the_test_of_kafkas_java_client() {
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash as u32, "{key}");
        }
    }

    #[test]
    fn key_for_a_partition_leads_to_it() {
        for partitions in [1, 2, 3, 12, 100] {
            for partition in 0..partitions {
                let key = key_for_partition(partition, partitions as usize);
                assert_eq!(
                    partition_for_key(&key, partitions as usize),
                    partition as usize
                );
            }
        }
    }
}
