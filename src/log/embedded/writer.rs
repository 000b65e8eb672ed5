//! The write path: a thread writes appended records to the store in batches, in the order of the
//! appends, and makes them visible to readers once they are on disk.
//!
//! With a store in memory, each append writes its own record, because passing the record to the
//! thread and waiting for it would cost more than the write.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::codec;
use super::topic::Topic;
use crate::log::LogOffset;
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::timestamp::now_ms;
use crate::store::{Batch, Store, StoreError, Table};

/// Maximum size in bytes of the records that are queued and not on disk yet.
const MAX_QUEUED_BYTES: usize = 256 << 20;
/// Size in bytes at which a batch takes no more records. The size of a batch determines how long
/// readers wait for the batch's first record.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Delay before a failed batch is written again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A record that has its offset and is not on disk yet.
struct QueuedRecord {
    topic: Arc<Topic>,
    record: Record,
    /// Receives the record's offset once the record is on disk.
    reply: oneshot::Sender<LogOffset>,
}

/// An entry of the writer's queue.
enum QueueItem {
    Record(QueuedRecord),
    /// A request to be notified when every record that was queued before it is on disk.
    Barrier(oneshot::Sender<()>),
}

impl QueueItem {
    fn size(&self) -> usize {
        match self {
            Self::Record(queued) => queued.record.size(),
            Self::Barrier(_) => 0,
        }
    }
}

/// The writer's queue, behind its lock.
#[derive(Default)]
struct Queue {
    items: VecDeque<QueueItem>,
    /// Size in bytes of the queued records and of the records in the batch being written.
    bytes: usize,
    is_stopped: bool,
}

/// The immediate result of an append.
pub(super) enum AppendStatus {
    /// The record is in the log, which is in memory.
    Appended(LogOffset),
    /// The record has its offset. The channel delivers the offset once the record is on disk, and
    /// closes without it if the log is closed first.
    Queued(oneshot::Receiver<LogOffset>),
    /// The queue is full, and the record was dropped.
    QueueFull,
}

/// The queue of records between the callers of [`Writer::append`] and the writer thread.
#[derive(Default)]
pub(super) struct Writer {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Writer {
    /// Assigns the record the next offset of its partition. Then queues it for the writer thread,
    /// or writes it itself if the store is in memory.
    pub(super) fn append(
        &self,
        store: &Store,
        topic: &Arc<Topic>,
        record: NewRecord,
    ) -> Result<AppendStatus, StoreError> {
        let index = topic.select_partition(record.key.as_deref());
        let partition = &topic.partitions[index];
        // The lock is held until the record is queued or written, so that the records of a
        // partition are written in the order of their offsets.
        let mut head = partition.head.lock();
        let timestamp_ms = now_ms().max(head.last_timestamp_ms);
        let record = Record {
            topic: Arc::clone(&topic.name),
            partition: index as i32,
            offset: head.next_offset,
            timestamp_ms,
            key: record.key,
            value: record.value,
            null_value: false,
            headers: record.headers,
        };
        if store.is_in_memory() {
            let offset = LogOffset {
                partition: record.partition,
                offset: record.offset,
            };
            let mut batch = Batch::default();
            add_to_batch(&mut batch, topic, &record);
            store.commit(batch)?;
            head.next_offset += 1;
            head.last_timestamp_ms = timestamp_ms;
            partition.publish(record);
            drop(head);
            topic.change_sender.send_replace(());
            return Ok(AppendStatus::Appended(offset));
        }
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.bytes + record.size() > MAX_QUEUED_BYTES {
            return Ok(AppendStatus::QueueFull);
        }
        head.next_offset += 1;
        head.last_timestamp_ms = timestamp_ms;
        queue.bytes += record.size();
        queue.items.push_back(QueueItem::Record(QueuedRecord {
            topic: Arc::clone(topic),
            record,
            reply,
        }));
        drop(queue);
        drop(head);
        self.wake.notify_one();
        Ok(AppendStatus::Queued(receiver))
    }

    /// Returns a channel that is notified when every record appended before the call is on disk.
    pub(super) fn barrier(&self) -> oneshot::Receiver<()> {
        let (reply, receiver) = oneshot::channel();
        let barrier = QueueItem::Barrier(reply);
        self.queue.lock().items.push_back(barrier);
        self.wake.notify_one();
        receiver
    }

    /// Makes the writer thread end once the queue is empty, or at the first failed write.
    pub(super) fn stop(&self) {
        self.queue.lock().is_stopped = true;
        self.wake.notify_one();
    }

    /// Waits for items, and removes one batch of them from the queue. `None` if the queue is empty
    /// and [`Writer::stop`] was called.
    fn dequeue(&self) -> Option<Vec<QueueItem>> {
        let mut queue = self.queue.lock();
        loop {
            if !queue.items.is_empty() {
                let mut bytes = 0;
                let mut items = Vec::new();
                while bytes < MAX_BATCH_BYTES
                    && let Some(item) = queue.items.pop_front()
                {
                    bytes += item.size();
                    items.push(item);
                }
                return Some(items);
            }
            if queue.is_stopped {
                return None;
            }
            self.wake.wait(&mut queue);
        }
    }

    /// The body of the writer thread. Returns after [`Writer::stop`].
    pub(super) fn run(&self, store: &Store) {
        while let Some(items) = self.dequeue() {
            let bytes: usize = items.iter().map(QueueItem::size).sum();
            let is_written = self.write(store, &items);
            self.queue.lock().bytes -= bytes;
            if !is_written {
                // Dropping the items closes their channels, so their appends fail as `Unknown`.
                return;
            }
            publish_and_reply(items);
        }
    }

    /// Writes the records of these items, and retries until they are on disk. Writing a record
    /// twice is harmless, because its offset is the key. Returns false if the writer was stopped
    /// before a write succeeded.
    fn write(&self, store: &Store, items: &[QueueItem]) -> bool {
        let mut has_failed = false;
        loop {
            let mut batch = Batch::default();
            for item in items {
                if let QueueItem::Record(QueuedRecord { topic, record, .. }) = item {
                    add_to_batch(&mut batch, topic, record);
                }
            }
            if batch.is_empty() {
                return true;
            }
            let result = store
                .commit(batch)
                .and_then(|ticket| store.wait_durable_blocking(ticket));
            let Err(error) = result else {
                if has_failed {
                    tracing::info!("appending to the log works again");
                }
                return true;
            };
            if !has_failed {
                tracing::warn!(
                    %error,
                    "appended records could not be written, retrying until they are; check the disk"
                );
            }
            has_failed = true;
            let mut queue = self.queue.lock();
            self.wake
                .wait_while_for(&mut queue, |queue| !queue.is_stopped, RETRY_INTERVAL);
            if queue.is_stopped {
                return false;
            }
        }
    }
}

fn add_to_batch(batch: &mut Batch, topic: &Topic, record: &Record) {
    let key = codec::record_key(topic.id, record.partition, record.offset);
    batch.put(Table::Log, key, codec::encode_record(record));
}

/// Makes written records visible to readers, wakes the consumers, and acknowledges the appends.
fn publish_and_reply(items: Vec<QueueItem>) {
    let mut topics: Vec<Arc<Topic>> = Vec::new();
    let mut replies = Vec::with_capacity(items.len());
    for item in items {
        match item {
            QueueItem::Record(queued) => {
                let QueuedRecord {
                    topic,
                    record,
                    reply,
                } = queued;
                let offset = LogOffset {
                    partition: record.partition,
                    offset: record.offset,
                };
                topic.partitions[record.partition as usize].publish(record);
                replies.push((reply, offset));
                if !topics.iter().any(|other| Arc::ptr_eq(other, &topic)) {
                    topics.push(topic);
                }
            }
            QueueItem::Barrier(reply) => {
                let _ = reply.send(());
            }
        }
    }
    for topic in topics {
        topic.change_sender.send_replace(());
    }
    for (reply, offset) in replies {
        let _ = reply.send(offset);
    }
}
