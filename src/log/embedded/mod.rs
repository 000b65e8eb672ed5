//! The embedded log: the log of a single process, in its local store.
//!
//! A record gets its offset when it is appended. One thread writes all records that have queued up
//! as one batch, syncs the disk once, then acknowledges the records and makes them visible to
//! readers. A reader never sees a record that the disk could still lose, so no reader ever sees two
//! records with one offset.
//!
//! - `writer`: the write path
//! - `topic`, `group`, `consumer`: partitions, consumer groups and their members
//! - `maintenance`: committing offsets and removing expired records in the background
//! - `codec`: the encoding of keys and values in the store's tables

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::RwLock;

use super::{
    AppendError, Consumer, Log, LogBrowser, LogError, LogOffset, NewRecord, PartitionRange, Record,
    TopicSpec,
};
use crate::config::settings::EmbeddedSettings;
use crate::store::{Batch, Store, StoreError, Table};

mod codec;
mod consumer;
mod group;
mod maintenance;
mod topic;
mod writer;

use consumer::EmbeddedConsumer;
use maintenance::Maintenance;
use topic::Topic;
use writer::{AppendStatus, Writer};

/// Maximum size in bytes of a record's key, value and headers together. It equals a Kafka broker's
/// default.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// The topic of new messages, which are refused while the disk has too little free space. Every
/// other topic still accepts records, so that accepted messages are finished and free their space.
const INBOUND_TOPIC: &str = "incoming_messages";

/// A handle to the embedded log. Clones share one log. Dropping the last clone stops the log's
/// threads, after the queued records were written if the disk works. Consumers that still exist
/// then deliver the written records, and wait without end for further records.
#[derive(Clone)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    produce_timeout: Duration,
    _threads: Arc<Threads>,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLog")
            .field("id", &self.shared.id)
            .finish_non_exhaustive()
    }
}

/// The state that all clones of the log and its threads share.
struct Shared {
    store: Store,
    /// The id that [`Log::cluster_id`] returns.
    id: String,
    /// Number of partitions of a topic that is created from now on.
    partitions: u32,
    topics: RwLock<HashMap<String, Arc<Topic>>>,
    writer: Writer,
    maintenance: Maintenance,
}

/// Stops and joins the log's threads when dropped.
struct Threads {
    shared: Arc<Shared>,
    join_handles: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.writer.stop();
        self.shared.maintenance.stop();
        for handle in self.join_handles.drain(..) {
            let _ = handle.join();
        }
    }
}

fn unavailable(error: StoreError) -> LogError {
    LogError::Unavailable(error.to_string())
}

impl EmbeddedLog {
    /// Opens the log in this store. Blocks while it reads the topics and the committed offsets.
    pub fn open(
        store: Store,
        settings: &EmbeddedSettings,
        produce_timeout: Duration,
    ) -> Result<Self, LogError> {
        let partitions = u32::try_from(settings.partitions)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| {
                LogError::Configuration("EMBEDDED_PARTITIONS must be at least 1".into())
            })?;
        let shared = Arc::new(Shared::open(store, partitions).map_err(unavailable)?);
        let retention = settings.retention;
        let mut threads = Threads {
            shared: Arc::clone(&shared),
            join_handles: Vec::new(),
        };
        let mut spawn = |name: &str, run: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || run(&shared))
                .map(|handle| threads.join_handles.push(handle))
                .map_err(|e| {
                    LogError::Unavailable(format!("the thread {name} could not be started: {e}"))
                })
        };
        spawn("log-writer", Box::new(|log| log.writer.run(&log.store)))?;
        spawn(
            "log-maintenance",
            Box::new(move |log| log.maintenance.run(log, retention)),
        )?;
        Ok(Self {
            shared,
            produce_timeout,
            _threads: Arc::new(threads),
        })
    }
}

impl Shared {
    fn open(store: Store, partitions: u32) -> Result<Self, StoreError> {
        let id = if let Some(id) = store.get(Table::LogState, codec::LOG_ID_KEY)? {
            String::from_utf8_lossy(&id).into_owned()
        } else {
            let id = uuid::Uuid::new_v4().simple().to_string();
            let mut batch = Batch::default();
            batch.put(Table::LogState, codec::LOG_ID_KEY, id.as_bytes());
            // This commit needs no sync of its own: commits reach the disk in order, so the sync of
            // the first record includes it.
            store.commit(batch)?;
            id
        };
        let mut topics = HashMap::new();
        let mut from = codec::TOPIC_PREFIX.to_vec();
        loop {
            let page = store.scan(Table::LogState, &from, codec::TOPIC_END, 100, false)?;
            let Some((last, _)) = page.last() else { break };
            from = [&last[..], &[0]].concat();
            for (key, value) in page {
                let name = String::from_utf8_lossy(&key[codec::TOPIC_PREFIX.len()..]).into_owned();
                let (id, partitions) = codec::decode_topic(&value).ok_or_else(|| {
                    StoreError(format!(
                        "the entry of topic {name} is damaged; restore a backup of the data \
                             directory"
                    ))
                })?;
                let topic = Topic::open(&store, &name, id, partitions)?;
                topics.insert(name, Arc::new(topic));
            }
        }
        Ok(Self {
            store,
            id,
            partitions,
            topics: RwLock::new(topics),
            writer: Writer::default(),
            maintenance: Maintenance::default(),
        })
    }

    fn find_topic(&self, name: &str) -> Option<Arc<Topic>> {
        let topics = self.topics.read();
        topics.get(name).cloned()
    }

    fn all_topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read();
        topics.values().cloned().collect()
    }

    /// The topic with this name, created if it does not exist.
    fn find_or_create_topic(&self, name: &str) -> Result<Arc<Topic>, StoreError> {
        if let Some(topic) = self.find_topic(name) {
            return Ok(topic);
        }
        let mut topics = self.topics.write();
        if let Some(topic) = topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        let id = topics.values().map(|topic| topic.id + 1).max().unwrap_or(0);
        let mut batch = Batch::default();
        batch.put(
            Table::LogState,
            codec::topic_key(name),
            codec::encode_topic(id, self.partitions),
        );
        // This commit needs no sync of its own: commits reach the disk in order, so the sync of the
        // topic's first record includes it.
        self.store.commit(batch)?;
        let topic = Arc::new(Topic::open(&self.store, name, id, self.partitions)?);
        topics.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let fail = |error| ready(Err(error)).boxed();
        let size = codec::record_size(&record);
        if size > MAX_RECORD_BYTES {
            return fail(AppendError::Refused(format!(
                "the record has {size} bytes, and at most {MAX_RECORD_BYTES} are allowed"
            )));
        }
        if topic == INBOUND_TOPIC
            && let Err(error) = self.shared.store.check_free_space()
        {
            return fail(AppendError::Unknown(error.to_string()));
        }
        let topic = match self.shared.find_or_create_topic(topic) {
            Ok(topic) => topic,
            Err(error) => return fail(AppendError::Unknown(error.to_string())),
        };
        let store = &self.shared.store;
        let receiver = match self.shared.writer.append(store, &topic, record) {
            Ok(AppendStatus::Appended(offset)) => return ready(Ok(offset)).boxed(),
            Ok(AppendStatus::Queued(receiver)) => receiver,
            Ok(AppendStatus::QueueFull) => {
                return fail(AppendError::Unknown(
                    "too many records wait for the disk; send the message again later".into(),
                ));
            }
            Err(error) => return fail(AppendError::Unknown(error.to_string())),
        };
        let deadline = tokio::time::Instant::now() + self.produce_timeout;
        async move {
            match tokio::time::timeout_at(deadline, receiver).await {
                Ok(Ok(offset)) => Ok(offset),
                Ok(Err(_)) => Err(AppendError::Unknown("the log was closed".into())),
                Err(_) => Err(AppendError::Unknown(
                    "the disk did not finish the write in time: it is too slow or full".into(),
                )),
            }
        }
        .boxed()
    }

    fn consumer(&self, group: &str, topic: &str) -> Result<Box<dyn Consumer>, LogError> {
        let topic = self
            .shared
            .find_or_create_topic(topic)
            .map_err(unavailable)?;
        Ok(Box::new(EmbeddedConsumer::join(
            self.shared.store.clone(),
            topic,
            group,
        )))
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        for spec in topics {
            self.shared
                .find_or_create_topic(&spec.name)
                .map_err(unavailable)?;
        }
        // The numbers of partitions and replicas in `topics` apply to Kafka. The embedded log has
        // no replicas, and EMBEDDED_PARTITIONS partitions in each topic.
        Ok(Vec::new())
    }

    async fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, LogError> {
        let found = self.shared.find_topic(topic).filter(|topic| {
            usize::try_from(partition).is_ok_and(|index| index < topic.partitions.len())
        });
        let Some(found) = found else {
            return Err(LogError::Unavailable(format!(
                "partition {partition} of topic {topic} does not exist"
            )));
        };
        let store = self.shared.store.clone();
        tokio::task::spawn_blocking(move || found.offset_at(&store, partition, timestamp_ms))
            .await
            .map_err(|e| LogError::Unavailable(e.to_string()))?
            .map_err(unavailable)
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        Ok(self.shared.id.clone())
    }

    async fn check(&self) -> Result<(), LogError> {
        self.shared.store.check().map_err(unavailable)
    }

    async fn flush(&self) {
        let barrier = self.shared.writer.barrier();
        let _ = tokio::time::timeout(self.produce_timeout, barrier).await;
    }
}

#[async_trait]
impl LogBrowser for EmbeddedLog {
    async fn partition_ranges(&self, topic: &str) -> Result<Vec<PartitionRange>, LogError> {
        let Some(topic) = self.shared.find_topic(topic) else {
            return Ok(Vec::new());
        };
        Ok((0..)
            .zip(&topic.partitions)
            .map(|(index, partition)| PartitionRange {
                partition: index,
                start: partition.start.load(Ordering::Acquire),
                end: partition.end(),
            })
            .collect())
    }

    async fn read(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError> {
        let Some(topic) = self.shared.find_topic(topic) else {
            return Ok(Vec::new());
        };
        let found = usize::try_from(partition)
            .ok()
            .and_then(|index| topic.partitions.get(index));
        let Some(to) = found.map(|found| to.min(found.end())) else {
            return Ok(Vec::new());
        };
        let store = self.shared.store.clone();
        let reading = move || topic.read(&store, partition, from, to, max_bytes.max(1));
        tokio::task::spawn_blocking(reading)
            .await
            .map_err(|e| LogError::Unavailable(e.to_string()))?
            .map_err(unavailable)
    }
}
