//! The thread that puts appended records into the store: many at a time, in the order in which
//! they were appended, and shown to readers when they are on disk.
//!
//! Where there is no disk, whoever appends puts its record into the store itself: handing it to the
//! thread, and back, would be most of what it costs.

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

/// What callers may have handed over and the disk has not taken, in bytes.
const MAX_QUEUED: usize = 256 << 20;
/// What goes to the store at once, in bytes: bounds a reader's wait for the first of them.
const MAX_BATCH: usize = 4 << 20;
const RETRY: Duration = Duration::from_millis(200);

struct Appended {
    topic: Arc<Topic>,
    record: Record,
    answer: oneshot::Sender<LogOffset>,
}

enum Item {
    Record(Appended),
    /// Answered when everything before it is on disk.
    Barrier(oneshot::Sender<()>),
}

impl Item {
    fn size(&self) -> usize {
        match self {
            Self::Record(appended) => appended.record.size(),
            Self::Barrier(_) => 0,
        }
    }
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    stop: bool,
}

/// What became of a record.
pub(super) enum Append {
    /// It is in the log.
    Done(LogOffset),
    /// It has its place, and is told when it is on disk.
    Waits(oneshot::Receiver<LogOffset>),
    /// Too much waits.
    Full,
}

/// Between those who append and the thread.
#[derive(Default)]
pub(super) struct Writer {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Writer {
    /// Takes the record's place in the order of its partition.
    pub(super) fn append(
        &self,
        store: &Store,
        topic: &Arc<Topic>,
        record: NewRecord,
    ) -> Result<Append, StoreError> {
        let index = topic.place(record.key.as_deref());
        let partition = &topic.partitions[index];
        // Held until the record is queued, or in the log: so each partition's are in order.
        let mut head = partition.head.lock();
        let timestamp_ms = now_ms().max(head.last_ms);
        let record = Record {
            topic: Arc::clone(&topic.name),
            partition: index as i32,
            offset: head.next,
            timestamp_ms,
            key: record.key,
            value: record.value,
            null_value: false,
            headers: record.headers,
        };
        if store.is_in_memory() {
            let place = LogOffset {
                partition: record.partition,
                offset: record.offset,
            };
            let mut batch = Batch::default();
            put(&mut batch, topic, &record);
            store.commit(batch)?;
            head.next += 1;
            head.last_ms = timestamp_ms;
            partition.publish(record);
            drop(head);
            topic.changed.send_replace(());
            return Ok(Append::Done(place));
        }
        let (answer, receiver) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.bytes + record.size() > MAX_QUEUED {
            return Ok(Append::Full);
        }
        head.next += 1;
        head.last_ms = timestamp_ms;
        queue.bytes += record.size();
        queue.items.push_back(Item::Record(Appended {
            topic: Arc::clone(topic),
            record,
            answer,
        }));
        drop(queue);
        drop(head);
        self.wake.notify_one();
        Ok(Append::Waits(receiver))
    }

    /// Answers when everything appended before is on disk.
    pub(super) fn barrier(&self) -> oneshot::Receiver<()> {
        let (answer, receiver) = oneshot::channel();
        self.queue.lock().items.push_back(Item::Barrier(answer));
        self.wake.notify_one();
        receiver
    }

    /// Lets the thread end when the queue is empty, or the store refuses.
    pub(super) fn stop(&self) {
        self.queue.lock().stop = true;
        self.wake.notify_one();
    }

    /// The next items; `None` at the end.
    fn take(&self) -> Option<Vec<Item>> {
        let mut queue = self.queue.lock();
        loop {
            if !queue.items.is_empty() {
                let mut bytes = 0;
                let mut items = Vec::new();
                while bytes < MAX_BATCH
                    && let Some(item) = queue.items.pop_front()
                {
                    bytes += item.size();
                    items.push(item);
                }
                return Some(items);
            }
            if queue.stop {
                return None;
            }
            self.wake.wait(&mut queue);
        }
    }

    /// The thread.
    pub(super) fn run(&self, store: &Store) {
        while let Some(items) = self.take() {
            let written: usize = items.iter().map(Item::size).sum();
            let done = self.write(store, &items);
            self.queue.lock().bytes -= written;
            if !done {
                // Whoever waits learns by the dropped channel that it is not known.
                return;
            }
            publish(items);
        }
    }

    /// Until it is on disk. Writing the same again is harmless: the offset is the key. False when
    /// told to stop before.
    fn write(&self, store: &Store, items: &[Item]) -> bool {
        let mut failed = false;
        loop {
            let mut batch = Batch::default();
            for item in items {
                if let Item::Record(Appended { topic, record, .. }) = item {
                    put(&mut batch, topic, record);
                }
            }
            if batch.is_empty() {
                return true;
            }
            let result = store
                .commit(batch)
                .and_then(|ticket| store.synced_blocking(ticket));
            let Err(error) = result else {
                if failed {
                    tracing::info!("appended records are written again");
                }
                return true;
            };
            if !failed {
                tracing::warn!(%error, "appended records could not be written, trying again until they are");
            }
            failed = true;
            let mut queue = self.queue.lock();
            self.wake
                .wait_while_for(&mut queue, |queue| !queue.stop, RETRY);
            if queue.stop {
                return false;
            }
        }
    }
}

fn put(batch: &mut Batch, topic: &Topic, record: &Record) {
    let key = codec::record_key(topic.id, record.partition, record.offset);
    batch.put(Table::Log, key, codec::encode(record));
}

fn publish(items: Vec<Item>) {
    let mut topics: Vec<Arc<Topic>> = Vec::new();
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Item::Record(appended) => {
                let Appended {
                    topic,
                    record,
                    answer,
                    ..
                } = appended;
                let place = LogOffset {
                    partition: record.partition,
                    offset: record.offset,
                };
                topic.partitions[record.partition as usize].publish(record);
                answers.push((answer, place));
                if !topics.iter().any(|other| Arc::ptr_eq(other, &topic)) {
                    topics.push(topic);
                }
            }
            Item::Barrier(answer) => {
                let _ = answer.send(());
            }
        }
    }
    for topic in topics {
        topic.changed.send_replace(());
    }
    for (answer, place) in answers {
        let _ = answer.send(place);
    }
}
