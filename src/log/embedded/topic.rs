//! The topics of the embedded log: their partitions, their consumer groups, and reading records.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::codec;
use super::group::Group;
use crate::log::partitioner::partition_for_key;
use crate::protocol::log_record::Record;
use crate::store::{Batch, Store, StoreError, Table, Ticket};

/// Maximum size in bytes of the cache of a partition's newest records. Consumers get these records
/// without a read of the store.
const CACHE_BYTES: usize = 1 << 20;
/// Maximum number of entries in one scan of the store.
const MAX_SCAN_ENTRIES: usize = 256;

/// The values from which the next appended record of a partition gets its offset and timestamp.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) next_offset: i64,
    /// Timestamp of the last appended record, in milliseconds since the Unix epoch. The next
    /// record's timestamp is not lower.
    pub(super) last_timestamp_ms: i64,
}

/// The cache of the newest visible records of a partition.
#[derive(Debug)]
struct RecordCache {
    records: VecDeque<Record>,
    /// Size of `records`, in bytes.
    bytes: usize,
    /// `records` contains every visible record at or above this offset.
    complete_from: i64,
}

/// One partition: its offsets and its newest records.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) head: Mutex<Head>,
    /// The offset of the oldest retained record, or of the next record if none is retained.
    pub(super) start: AtomicI64,
    /// Readers see only records below this offset. These records are on disk, unless the store is
    /// in memory.
    visible_end: AtomicI64,
    cache: Mutex<RecordCache>,
}

impl Partition {
    fn open(store: &Store, topic: u32, partition: i32) -> Result<Self, StoreError> {
        let log_start = store.get(Table::LogState, &codec::log_start_key(topic, partition))?;
        let (start, removed_ms) = log_start
            .and_then(|bytes| codec::decode_log_start(&bytes))
            .unwrap_or((0, 0));
        let last = store.scan(
            Table::Log,
            &codec::record_key(topic, partition, start),
            &codec::record_key(topic, partition, i64::MAX),
            1,
            true,
        )?;
        let (next_offset, last_timestamp_ms) = last
            .first()
            .and_then(|(key, value)| {
                Some((
                    codec::record_offset(key)? + 1,
                    codec::record_timestamp(value)?,
                ))
            })
            .unwrap_or((start, removed_ms));
        Ok(Self {
            head: Mutex::new(Head {
                next_offset,
                last_timestamp_ms,
            }),
            start: AtomicI64::new(start),
            visible_end: AtomicI64::new(next_offset),
            cache: Mutex::new(RecordCache {
                records: VecDeque::new(),
                bytes: 0,
                complete_from: next_offset,
            }),
        })
    }

    /// The offset after the last record that readers can see.
    pub(super) fn end(&self) -> i64 {
        self.visible_end.load(Ordering::Acquire)
    }

    /// Makes a record visible to readers at once. The caller must have committed it to the store,
    /// and must publish records in the order of their offsets.
    pub(super) fn publish(&self, record: Record) {
        let next = record.offset + 1;
        let mut cache = self.cache.lock();
        cache.bytes += record.size();
        cache.records.push_back(record);
        while cache.bytes > CACHE_BYTES {
            let Some(oldest) = cache.records.pop_front() else {
                break;
            };
            cache.bytes -= oldest.size();
            cache.complete_from = oldest.offset + 1;
        }
        drop(cache);
        self.visible_end.store(next, Ordering::Release);
    }

    /// The cached records from offset `from` on, until their size reaches `max_bytes`. `None` if
    /// the cache does not go back to `from`, so that the records must be read from the store.
    pub(super) fn cached_records(&self, from: i64, max_bytes: usize) -> Option<Vec<Record>> {
        let cache = self.cache.lock();
        if from < cache.complete_from {
            return None;
        }
        let first = cache.records.partition_point(|r| r.offset < from);
        let mut bytes = 0;
        Some(
            cache
                .records
                .range(first..)
                .take_while(|record| {
                    let has_room = bytes < max_bytes;
                    bytes += record.size();
                    has_room
                })
                .cloned()
                .collect(),
        )
    }
}

/// A topic: its partitions and the groups that consume it.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) id: u32,
    pub(super) partitions: Vec<Partition>,
    /// Wakes every consumer of the topic, because there are new records or a group was rebalanced.
    pub(super) change_sender: watch::Sender<()>,
    groups: Mutex<HashMap<String, Arc<Group>>>,
    /// Held while offsets are written, so that an older commit never overwrites a newer one.
    commit_lock: Mutex<()>,
    /// Number of records without a key so far. It selects the partition of the next such record.
    keyless_records: AtomicUsize,
}

impl Topic {
    pub(super) fn open(
        store: &Store,
        name: &str,
        id: u32,
        partitions: u32,
    ) -> Result<Self, StoreError> {
        let partitions: Vec<Partition> = (0..partitions as i32)
            .map(|partition| Partition::open(store, id, partition))
            .collect::<Result<_, _>>()?;
        let mut committed_offsets: HashMap<String, Vec<Option<i64>>> = HashMap::new();
        let mut from = codec::commit_prefix(id);
        let to = codec::commit_prefix(id + 1);
        loop {
            let page = store.scan(Table::LogState, &from, &to, MAX_SCAN_ENTRIES, false)?;
            let Some((last, _)) = page.last() else { break };
            from = [&last[..], &[0]].concat();
            for (key, value) in page {
                let offset = value.try_into().ok().map(i64::from_le_bytes);
                if let (Some((partition, group)), Some(offset)) =
                    (codec::decode_commit_key(&key), offset)
                    && let Some(slot) = committed_offsets
                        .entry(group.to_owned())
                        .or_insert_with(|| vec![None; partitions.len()])
                        .get_mut(partition as usize)
                {
                    *slot = Some(offset);
                }
            }
        }
        let groups = committed_offsets
            .into_iter()
            .map(|(group, offsets)| (group, Arc::new(Group::new(offsets))))
            .collect();
        Ok(Self {
            name: name.into(),
            id,
            partitions,
            change_sender: watch::Sender::new(()),
            groups: Mutex::new(groups),
            commit_lock: Mutex::default(),
            keyless_records: AtomicUsize::new(0),
        })
    }

    /// The partition of a record with this key. Records without a key get the partitions in
    /// round-robin order.
    pub(super) fn select_partition(&self, key: Option<&[u8]>) -> usize {
        match key {
            Some(key) => partition_for_key(key, self.partitions.len()),
            None => self.keyless_records.fetch_add(1, Ordering::Relaxed) % self.partitions.len(),
        }
    }

    /// The group with this name, created if it does not exist.
    pub(super) fn group(&self, name: &str) -> Arc<Group> {
        let mut groups = self.groups.lock();
        Arc::clone(
            groups
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(Group::new(vec![None; self.partitions.len()]))),
        )
    }

    /// Commits the offsets that consumers stored since the last call. Returns the ticket of the
    /// commit, which is not on disk yet, or `None` if there was nothing to commit.
    pub(super) fn commit_offsets(&self, store: &Store) -> Result<Option<Ticket>, StoreError> {
        let _guard = self.commit_lock.lock();
        let groups: Vec<(String, Arc<Group>)> = self
            .groups
            .lock()
            .iter()
            .map(|(name, group)| (name.clone(), Arc::clone(group)))
            .collect();
        let mut batch = Batch::default();
        let mut batched = Vec::new();
        for (name, group) in groups {
            for (partition, offset) in group.commit_stored() {
                let key = codec::commit_key(self.id, partition, &name);
                batch.put(Table::LogState, key, offset.to_le_bytes());
                batched.push((Arc::clone(&group), partition));
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        store.commit(batch).map(Some).inspect_err(|_| {
            for (group, partition) in &batched {
                group.mark_unpersisted(*partition);
            }
        })
    }

    /// Reads records with offsets in `from..end` from the store, and stops once their size reaches
    /// `max_bytes`. The result is empty only if there is no such record.
    pub(super) fn read(
        &self,
        store: &Store,
        partition: i32,
        from: i64,
        end: i64,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        let (mut from, mut bytes) = (from, 0);
        // The first scan reads few records, because their average size is not known yet: a full
        // scan of large records would exceed `max_bytes` by far.
        let mut limit = 8;
        while bytes < max_bytes {
            let page = store.scan(
                Table::Log,
                &codec::record_key(self.id, partition, from),
                &codec::record_key(self.id, partition, end),
                limit,
                false,
            )?;
            let is_full_page = page.len() == limit;
            for (key, value) in page {
                let Some(offset) = codec::record_offset(&key) else {
                    continue;
                };
                from = offset + 1;
                let stored = codec::decode_record(value).ok_or_else(|| {
                    StoreError(format!(
                        "record {offset} of {} partition {partition} is damaged; restore a backup of \
                         the data directory",
                        self.name
                    ))
                })?;
                let record = Record {
                    topic: Arc::clone(&self.name),
                    partition,
                    offset,
                    timestamp_ms: stored.timestamp_ms,
                    key: stored.key,
                    value: stored.value,
                    null_value: false,
                    headers: stored.headers,
                };
                bytes += record.size();
                records.push(record);
            }
            if !is_full_page {
                break;
            }
            let average = (bytes / records.len().max(1)).max(1);
            limit = (max_bytes.saturating_sub(bytes) / average).clamp(1, MAX_SCAN_ENTRIES);
        }
        Ok(records)
    }

    /// The offset of the first record with a timestamp at or after `timestamp_ms`. `None` if every
    /// record is older.
    pub(super) fn offset_at(
        &self,
        store: &Store,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, StoreError> {
        let state = &self.partitions[partition as usize];
        let (mut low, mut high) = (state.start.load(Ordering::Acquire), state.end());
        let mut found = None;
        // A binary search is possible, because timestamps never decrease within a partition.
        while low < high {
            let middle = low + (high - low) / 2;
            let first = store.scan(
                Table::Log,
                &codec::record_key(self.id, partition, middle),
                &codec::record_key(self.id, partition, high),
                1,
                false,
            )?;
            let record = first.first().and_then(|(key, value)| {
                Some((codec::record_offset(key)?, codec::record_timestamp(value)?))
            });
            match record {
                Some((offset, timestamp)) if timestamp >= timestamp_ms => {
                    found = Some(offset);
                    high = middle;
                }
                Some((offset, _)) => low = offset + 1,
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// Removes at most `limit` records that every group has finished and that are older than
    /// `before_ms`. Returns how many it removed.
    pub(super) fn remove_expired(
        &self,
        store: &Store,
        partition: i32,
        before_ms: i64,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let state = &self.partitions[partition as usize];
        let finished = self
            .groups
            .lock()
            .values()
            .filter_map(|group| group.persisted_offset(partition))
            .min();
        let Some(finished) = finished else {
            // No group consumes this topic, as with dead letters: its records never expire.
            return Ok(0);
        };
        let start = state.start.load(Ordering::Acquire);
        let end = finished.min(state.end());
        let page = store.scan(
            Table::Log,
            &codec::record_key(self.id, partition, start),
            &codec::record_key(self.id, partition, end.max(start)),
            limit,
            false,
        )?;
        let mut batch = Batch::default();
        let mut last = None;
        let mut removed = 0;
        for (key, value) in page {
            match (codec::record_offset(&key), codec::record_timestamp(&value)) {
                (Some(offset), Some(timestamp)) if timestamp < before_ms => {
                    last = Some((offset, timestamp));
                }
                _ => break,
            }
            batch.delete(Table::Log, key);
            removed += 1;
        }
        if let Some((offset, timestamp)) = last {
            batch.put(
                Table::LogState,
                codec::log_start_key(self.id, partition),
                codec::encode_log_start(offset + 1, timestamp),
            );
            store.commit(batch)?;
            state.start.store(offset + 1, Ordering::Release);
        }
        Ok(removed)
    }
}
