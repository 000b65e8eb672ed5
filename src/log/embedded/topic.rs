//! A topic's partitions: where they begin and end, and their newest records.

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

/// Newest records of a partition that readers get without asking the store, in bytes.
const TAIL_BYTES: usize = 1 << 20;
/// Records looked at in one read of the store.
const SCAN: usize = 256;

/// Where the next record goes.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) next: i64,
    pub(super) last_ms: i64,
}

#[derive(Debug)]
struct Tail {
    records: VecDeque<Record>,
    bytes: usize,
    /// Everything from here to the durable end is in `records`.
    from: i64,
}

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) head: Mutex<Head>,
    /// The first offset that was not removed.
    pub(super) start: AtomicI64,
    /// Readers see what is below.
    durable: AtomicI64,
    tail: Mutex<Tail>,
}

impl Partition {
    fn open(store: &Store, topic: u32, partition: i32) -> Result<Self, StoreError> {
        let floor = store.get(Table::LogState, &codec::floor_key(topic, partition))?;
        let (start, removed_ms) = floor
            .and_then(|bytes| codec::decode_floor(&bytes))
            .unwrap_or((0, 0));
        let last = store.scan(
            Table::Log,
            &codec::record_key(topic, partition, start),
            &codec::record_key(topic, partition, i64::MAX),
            1,
            true,
        )?;
        let (next, last_ms) = last
            .first()
            .and_then(|(key, value)| {
                Some((codec::record_offset(key)? + 1, codec::timestamp(value)?))
            })
            .unwrap_or((start, removed_ms));
        Ok(Self {
            head: Mutex::new(Head { next, last_ms }),
            start: AtomicI64::new(start),
            durable: AtomicI64::new(next),
            tail: Mutex::new(Tail {
                records: VecDeque::new(),
                bytes: 0,
                from: next,
            }),
        })
    }

    /// The offset after the last record that readers may see.
    pub(super) fn end(&self) -> i64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The record is on disk: shows it. Called in the order of offsets.
    pub(super) fn publish(&self, record: Record) {
        let next = record.offset + 1;
        let mut tail = self.tail.lock();
        tail.bytes += record.size();
        tail.records.push_back(record);
        while tail.bytes > TAIL_BYTES {
            let Some(oldest) = tail.records.pop_front() else {
                break;
            };
            tail.bytes -= oldest.size();
            tail.from = oldest.offset + 1;
        }
        drop(tail);
        self.durable.store(next, Ordering::Release);
    }

    /// Records from `from` on out of memory; `None` where the store has to be asked.
    pub(super) fn recent(&self, from: i64, max_bytes: usize) -> Option<Vec<Record>> {
        let tail = self.tail.lock();
        if from < tail.from {
            return None;
        }
        let first = tail.records.partition_point(|r| r.offset < from);
        let mut bytes = 0;
        Some(
            tail.records
                .range(first..)
                .take_while(|record| {
                    let more = bytes < max_bytes;
                    bytes += record.size();
                    more
                })
                .cloned()
                .collect(),
        )
    }
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) id: u32,
    pub(super) partitions: Vec<Partition>,
    /// Tells every reader to look again: new records, or another share of the partitions.
    pub(super) changed: watch::Sender<()>,
    groups: Mutex<HashMap<String, Arc<Group>>>,
    /// Held while offsets are written, so that an older one never overwrites a newer one.
    committing: Mutex<()>,
    round_robin: AtomicUsize,
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
        let mut committed: HashMap<String, Vec<Option<i64>>> = HashMap::new();
        let mut from = codec::commit_prefix(id);
        let to = codec::commit_prefix(id + 1);
        loop {
            let page = store.scan(Table::LogState, &from, &to, SCAN, false)?;
            let Some((last, _)) = page.last() else { break };
            from = [&last[..], &[0]].concat();
            for (key, value) in page {
                let offset = value.try_into().ok().map(i64::from_le_bytes);
                if let (Some((partition, group)), Some(offset)) =
                    (codec::decode_commit_key(&key), offset)
                    && let Some(slot) = committed
                        .entry(group.to_owned())
                        .or_insert_with(|| vec![None; partitions.len()])
                        .get_mut(partition as usize)
                {
                    *slot = Some(offset);
                }
            }
        }
        let groups = committed
            .into_iter()
            .map(|(group, offsets)| (group, Arc::new(Group::new(offsets))))
            .collect();
        Ok(Self {
            name: name.into(),
            id,
            partitions,
            changed: watch::Sender::new(()),
            groups: Mutex::new(groups),
            committing: Mutex::default(),
            round_robin: AtomicUsize::new(0),
        })
    }

    /// The partition of a record with this key.
    pub(super) fn place(&self, key: Option<&[u8]>) -> usize {
        match key {
            Some(key) => partition_for_key(key, self.partitions.len()),
            None => self.round_robin.fetch_add(1, Ordering::Relaxed) % self.partitions.len(),
        }
    }

    pub(super) fn group(&self, name: &str) -> Arc<Group> {
        let mut groups = self.groups.lock();
        Arc::clone(
            groups
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(Group::new(vec![None; self.partitions.len()]))),
        )
    }

    /// Writes what groups have finished since the last time; in the system's buffers on return.
    /// `None` where there was nothing.
    pub(super) fn commit_offsets(&self, store: &Store) -> Result<Option<Ticket>, StoreError> {
        let _committing = self.committing.lock();
        let groups: Vec<(String, Arc<Group>)> = self
            .groups
            .lock()
            .iter()
            .map(|(name, group)| (name.clone(), Arc::clone(group)))
            .collect();
        let mut batch = Batch::default();
        let mut taken = Vec::new();
        for (name, group) in groups {
            for (partition, offset) in group.take_finished() {
                let key = codec::commit_key(self.id, partition, &name);
                batch.put(Table::LogState, key, offset.to_le_bytes());
                taken.push((Arc::clone(&group), partition));
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        store.commit(batch).map(Some).inspect_err(|_| {
            for (group, partition) in &taken {
                group.not_written(*partition);
            }
        })
    }

    /// Reads records of `from..end` from the store, at least one where there is one.
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
        // Large records are read few at a time: the bound is on bytes.
        let mut limit = 8;
        while bytes < max_bytes {
            let page = store.scan(
                Table::Log,
                &codec::record_key(self.id, partition, from),
                &codec::record_key(self.id, partition, end),
                limit,
                false,
            )?;
            let whole = page.len() == limit;
            for (key, value) in page {
                let Some(offset) = codec::record_offset(&key) else {
                    continue;
                };
                from = offset + 1;
                let stored = codec::decode(value).ok_or_else(|| {
                    StoreError(format!(
                        "record {offset} of {} partition {partition} is damaged",
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
            if !whole {
                break;
            }
            let average = (bytes / records.len().max(1)).max(1);
            limit = (max_bytes.saturating_sub(bytes) / average).clamp(1, SCAN);
        }
        Ok(records)
    }

    /// The first record at or after a time.
    pub(super) fn offset_at(
        &self,
        store: &Store,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, StoreError> {
        let part = &self.partitions[partition as usize];
        let (mut low, mut high) = (part.start.load(Ordering::Acquire), part.end());
        let mut found = None;
        // Times never go back within a partition.
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
                Some((codec::record_offset(key)?, codec::timestamp(value)?))
            });
            match record {
                Some((offset, at)) if at >= timestamp_ms => {
                    found = Some(offset);
                    high = middle;
                }
                Some((offset, _)) => low = offset + 1,
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// Removes records that every group has finished and that are from before `before_ms`;
    /// `limit` at most. Says how many it removed.
    pub(super) fn remove_old(
        &self,
        store: &Store,
        partition: i32,
        before_ms: i64,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let part = &self.partitions[partition as usize];
        let finished = self
            .groups
            .lock()
            .values()
            .filter_map(|group| group.written(partition))
            .min();
        let Some(finished) = finished else {
            // Nobody reads it: dead letters, for instance.
            return Ok(0);
        };
        let start = part.start.load(Ordering::Acquire);
        let end = finished.min(part.end());
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
            match (codec::record_offset(&key), codec::timestamp(&value)) {
                (Some(offset), Some(at)) if at < before_ms => last = Some((offset, at)),
                _ => break,
            }
            batch.delete(Table::Log, key);
            removed += 1;
        }
        if let Some((offset, at)) = last {
            batch.put(
                Table::LogState,
                codec::floor_key(self.id, partition),
                codec::encode_floor(offset + 1, at),
            );
            store.commit(batch)?;
            part.start.store(offset + 1, Ordering::Release);
        }
        Ok(removed)
    }
}
