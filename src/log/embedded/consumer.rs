//! A member of a consumer group: delivers the records of its partitions in turn, and reads them
//! from the cache of the newest records or from the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::group::{Group, RebalanceChange};
use super::topic::Topic;
use crate::log::{Consumer, ConsumerEvent, LogError};
use crate::protocol::log_record::Record;
use crate::store::{Store, StoreError};

/// Prefetching from a partition stops once the prefetched records have this size in bytes.
const PREFETCH_BYTES: usize = 256 << 10;
/// Interval at which a waiting member checks whether another member has stopped polling.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which the group revokes a partition from a member that was asked to release it and
/// has not polled since.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// Maximum time for which [`Consumer::close`] waits for the last commit.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before a failed read of the store is retried. A store that has failed needs this time to
/// reopen itself.
const READ_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The read position in one assigned partition.
#[derive(Debug)]
struct PartitionCursor {
    /// The next offset to prefetch.
    next_offset: i64,
    prefetched: VecDeque<Record>,
    /// Number of the seek or assignment that set the position. The result of a read of the store
    /// that began before it is discarded.
    seek_number: u64,
}

/// A read of the store in progress. The consumer owns it, so that it survives when a call of `next`
/// is cancelled.
#[derive(Debug)]
struct Fetch {
    partition: i32,
    /// The cursor's `seek_number` when the read began.
    seek_number: u64,
    /// The offset below which the read reads records.
    end: i64,
    task: JoinHandle<Result<Vec<Record>, StoreError>>,
}

/// A member of a consumer group on one topic.
#[derive(Debug)]
pub(super) struct EmbeddedConsumer {
    store: Store,
    topic: Arc<Topic>,
    group: Arc<Group>,
    member_id: u64,
    is_closed: bool,
    /// The group's version when every change of this member's assignment had been reported.
    group_version: u64,
    /// Notified by [`Topic::change_sender`].
    change_receiver: watch::Receiver<()>,
    cursors: BTreeMap<i32, PartitionCursor>,
    /// The partition of the last delivered record. The search for the next record starts with the
    /// next partition.
    last_partition: i32,
    is_paused: bool,
    fetch: Option<Fetch>,
    /// Number of seeks and assigned partitions so far.
    seek_count: u64,
}

impl EmbeddedConsumer {
    pub(super) fn join(store: Store, topic: Arc<Topic>, group: &str) -> Self {
        let group = topic.group(group);
        let change_receiver = topic.change_sender.subscribe();
        let member_id = group.join();
        topic.change_sender.send_replace(());
        Self {
            store,
            topic,
            group,
            member_id,
            is_closed: false,
            group_version: 0,
            change_receiver,
            cursors: BTreeMap::new(),
            last_partition: 0,
            is_paused: false,
            fetch: None,
            seek_count: 0,
        }
    }

    fn log_start(&self, partition: i32) -> i64 {
        self.topic.partitions[partition as usize]
            .start
            .load(Ordering::Acquire)
    }

    /// Applies the next change of this member's assignment to the cursors, and returns the event
    /// that reports it. `None` if nothing has changed.
    fn next_change(&mut self) -> Option<ConsumerEvent> {
        let version = self.group.version();
        if version == self.group_version {
            return None;
        }
        match self.group.next_change(self.member_id) {
            Some(RebalanceChange::Revoked(partitions)) => {
                for partition in &partitions {
                    self.cursors.remove(partition);
                }
                // Wakes the members that wait for these partitions.
                self.topic.change_sender.send_replace(());
                Some(ConsumerEvent::Revoked(partitions))
            }
            Some(RebalanceChange::Assigned(assignments)) => {
                for assignment in &assignments {
                    self.seek_count += 1;
                    let cursor = PartitionCursor {
                        next_offset: assignment
                            .committed_offset
                            .unwrap_or_else(|| self.log_start(assignment.partition)),
                        prefetched: VecDeque::new(),
                        seek_number: self.seek_count,
                    };
                    self.cursors.insert(assignment.partition, cursor);
                }
                Some(ConsumerEvent::Assigned(assignments))
            }
            None => {
                // The call itself changes the version if it released partitions whose assignment
                // was not reported yet. Wakes the members that wait for these partitions.
                if self.group.version() == version {
                    self.group_version = version;
                } else {
                    self.topic.change_sender.send_replace(());
                }
                None
            }
        }
    }

    /// The assigned partitions in the order in which they are searched for the next record:
    /// round-robin, so that no partition starves another.
    fn partitions_in_turn(&self) -> Vec<i32> {
        let after = self.cursors.range(self.last_partition + 1..);
        let before = self.cursors.range(..=self.last_partition);
        after
            .chain(before)
            .map(|(partition, _)| *partition)
            .collect()
    }

    fn pop_prefetched(&mut self) -> Option<Record> {
        for partition in self.partitions_in_turn() {
            if let Some(cursor) = self.cursors.get_mut(&partition)
                && let Some(record) = cursor.prefetched.pop_front()
            {
                self.last_partition = partition;
                return Some(record);
            }
        }
        None
    }

    /// Prefetches records of partitions that have none prefetched: from the cache of the newest
    /// records, or by starting a read of the store if none is in progress. Returns whether records
    /// were prefetched from the cache.
    fn prefetch(&mut self) -> bool {
        let mut has_prefetched = false;
        for index in self.partitions_in_turn() {
            let partition = &self.topic.partitions[index as usize];
            let start = partition.start.load(Ordering::Acquire);
            let Some(cursor) = self.cursors.get_mut(&index) else {
                continue;
            };
            cursor.next_offset = cursor.next_offset.max(start);
            let end = partition.end();
            if !cursor.prefetched.is_empty() || cursor.next_offset >= end {
                continue;
            }
            if let Some(records) = partition.cached_records(cursor.next_offset, PREFETCH_BYTES) {
                // Offsets may have gaps. If there is no record, every offset up to `end` belongs to
                // a gap and is skipped.
                cursor.next_offset = records.last().map_or(end, |record| record.offset + 1);
                has_prefetched |= !records.is_empty();
                cursor.prefetched = records.into();
            } else if self.fetch.is_none() {
                let (store, topic) = (self.store.clone(), Arc::clone(&self.topic));
                let from = cursor.next_offset;
                self.fetch = Some(Fetch {
                    partition: index,
                    seek_number: cursor.seek_number,
                    end,
                    task: tokio::task::spawn_blocking(move || {
                        topic.read(&store, index, from, end, PREFETCH_BYTES)
                    }),
                });
            }
        }
        has_prefetched
    }

    /// Adds the result of the finished read to the cursor of its partition, unless the partition
    /// was revoked or its position was set anew. Returns false if the read failed.
    fn complete_fetch(&mut self, result: Result<Vec<Record>, StoreError>) -> bool {
        let Some(fetch) = self.fetch.take() else {
            return true;
        };
        match result {
            Ok(records) => {
                if let Some(cursor) = self.cursors.get_mut(&fetch.partition)
                    && cursor.seek_number == fetch.seek_number
                {
                    cursor.next_offset =
                        records.last().map_or(fetch.end, |record| record.offset + 1);
                    cursor.prefetched.extend(records);
                }
                true
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    topic = %self.topic.name,
                    "records could not be read, retrying; check the disk if it stays"
                );
                false
            }
        }
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            // Lets other tasks run now and then: as long as records are available, this function
            // returns without another await.
            tokio::task::coop::consume_budget().await;
            // Marked before the state is read, so that a change after that ends the wait below.
            self.change_receiver.mark_unchanged();
            if let Some(event) = self.next_change() {
                return event;
            }
            if !self.is_paused {
                if let Some(record) = self.pop_prefetched() {
                    return ConsumerEvent::Record(record);
                }
                if self.prefetch() {
                    continue;
                }
            }
            tokio::select! {
                result = async {
                    match &mut self.fetch {
                        Some(fetch) => (&mut fetch.task).await,
                        None => std::future::pending().await,
                    }
                } => {
                    let result = result.unwrap_or_else(|e| Err(StoreError(e.to_string())));
                    if !self.complete_fetch(result) {
                        tokio::time::sleep(READ_RETRY_INTERVAL).await;
                    }
                }
                // `changed` returns no error, because this member keeps the topic, which owns the
                // sender. The loop then reads the state again.
                _ = self.change_receiver.changed() => {}
                () = tokio::time::sleep(EXPIRY_CHECK_INTERVAL) => {
                    if self.group.revoke_expired(SESSION_TIMEOUT) {
                        self.topic.change_sender.send_replace(());
                    }
                }
            }
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        self.group
            .store_offset(self.member_id, partition, next_offset);
    }

    fn pause(&mut self) {
        self.is_paused = true;
    }

    fn resume(&mut self) {
        self.is_paused = false;
    }

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        self.seek_count += 1;
        let Some(cursor) = self.cursors.get_mut(&partition) else {
            return Err(LogError::Unavailable(format!(
                "partition {partition} of {} is not assigned to this member",
                self.topic.name
            )));
        };
        cursor.next_offset = offset.max(0);
        cursor.prefetched.clear();
        cursor.seek_number = self.seek_count;
        Ok(())
    }

    async fn close(mut self: Box<Self>) {
        self.is_closed = true;
        self.group.leave(self.member_id, true);
        self.topic.change_sender.send_replace(());
        let (store, topic) = (self.store.clone(), Arc::clone(&self.topic));
        let final_commit = async {
            let blocking_store = store.clone();
            let commit = tokio::task::spawn_blocking(move || topic.commit_offsets(&blocking_store))
                .await
                .unwrap_or_else(|e| Err(StoreError(e.to_string())))?;
            match commit {
                Some(ticket) => store.wait_durable(ticket).await,
                None => Ok(()),
            }
        };
        let topic = &self.topic.name;
        match tokio::time::timeout(CLOSE_TIMEOUT, final_commit).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    %error,
                    %topic,
                    "the last offsets could not be committed, their records will be delivered \
                     again; no action is needed"
                );
            }
            Err(_) => {
                tracing::warn!(
                    %topic,
                    "the last offsets were not committed in time, their records may be delivered \
                     again; no action is needed"
                );
            }
        }
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        if !self.is_closed {
            self.group.leave(self.member_id, false);
            self.topic.change_sender.send_replace(());
        }
    }
}
