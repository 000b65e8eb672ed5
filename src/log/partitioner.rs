//! The partitioner: computes the partition of a record from its key.
//!
//! The result is the same as with Kafka's Java clients and with librdkafka's partitioner
//! `murmur2_random`, so a key's records are in the same partition whichever program appends them.

use bytes::Bytes;

/// The partition, from 0, of a record with this key in a topic with `partitions` partitions, which
/// must not be 0.
pub fn partition_for_key(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions
}

/// A key that [`partition_for_key`] maps to `partition` in a topic with `partitions` partitions.
/// Serves to append a record to a given partition.
pub fn key_for_partition(partition: i32, partitions: usize) -> Bytes {
    // The hash spreads keys evenly, so a matching key is found long before the bound of the range,
    // and the default below is never returned.
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
