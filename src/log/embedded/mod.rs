//! The log of one process, on its local store.
//!
//! A record gets its place when it is appended; one thread writes what has gathered meanwhile as
//! one batch, waits for the disk once, then acknowledges all of it and shows it to readers. Nobody
//! ever reads a record that the disk could still lose, so no offset is ever given out twice.

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
mod keeper;
mod topic;
mod writer;

use consumer::Member;
use keeper::Keeper;
use topic::Topic;
use writer::{Append, Writer};

/// A record's key, value and headers, in bytes; as a Kafka broker's default.
const MAX_RECORD: usize = 1 << 20;

/// Where new messages arrive: refused while the disk has too little room. Everything else goes
/// on, so that what was accepted is finished and its place becomes free.
const INBOUND: &str = "incoming_messages";

/// The embedded log; clones share it. When the last clone is dropped, what was appended is
/// written, and readers stay without new records.
#[derive(Clone)]
pub struct EmbeddedLog {
    core: Arc<Core>,
    produce_timeout: Duration,
    _threads: Arc<Threads>,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLog")
            .field("id", &self.core.id)
            .finish_non_exhaustive()
    }
}

/// What the log's threads share.
struct Core {
    store: Store,
    id: String,
    partitions: u32,
    topics: RwLock<HashMap<String, Arc<Topic>>>,
    writer: Writer,
    keeper: Keeper,
}

struct Threads {
    core: Arc<Core>,
    handles: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.core.writer.stop();
        self.core.keeper.stop();
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

fn unavailable(error: StoreError) -> LogError {
    LogError::Unavailable(error.to_string())
}

impl EmbeddedLog {
    /// The log in this store. Reads each topic's ends and offsets; blocks for as long.
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
        let core = Arc::new(Core::open(store, partitions).map_err(unavailable)?);
        let retention = settings.retention;
        let mut threads = Threads {
            core: Arc::clone(&core),
            handles: Vec::new(),
        };
        let mut spawn = |name: &str, run: Box<dyn FnOnce(&Core) + Send>| {
            let core = Arc::clone(&core);
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || run(&core))
                .map(|handle| threads.handles.push(handle))
                .map_err(|e| LogError::Unavailable(format!("thread {name}: {e}")))
        };
        spawn("log-writer", Box::new(|core| core.writer.run(&core.store)))?;
        spawn(
            "log-keeper",
            Box::new(move |core| core.keeper.run(core, retention)),
        )?;
        Ok(Self {
            core,
            produce_timeout,
            _threads: Arc::new(threads),
        })
    }
}

impl Core {
    fn open(store: Store, partitions: u32) -> Result<Self, StoreError> {
        let id = if let Some(id) = store.get(Table::LogState, codec::ID)? {
            String::from_utf8_lossy(&id).into_owned()
        } else {
            let id = uuid::Uuid::new_v4().simple().to_string();
            let mut batch = Batch::default();
            batch.put(Table::LogState, codec::ID, id.as_bytes());
            // Nothing waits for the disk: the first record that does has this before it.
            store.commit(batch)?;
            id
        };
        let mut topics = HashMap::new();
        let mut from = codec::TOPIC.to_vec();
        loop {
            let page = store.scan(Table::LogState, &from, codec::TOPIC_END, 100, false)?;
            let Some((last, _)) = page.last() else { break };
            from = [&last[..], &[0]].concat();
            for (key, value) in page {
                let name = String::from_utf8_lossy(&key[codec::TOPIC.len()..]).into_owned();
                let (id, partitions) = codec::decode_topic(&value)
                    .ok_or_else(|| StoreError(format!("topic {name} is damaged")))?;
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
            keeper: Keeper::default(),
        })
    }

    fn known(&self, name: &str) -> Option<Arc<Topic>> {
        let topics = self.topics.read();
        topics.get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read();
        topics.values().cloned().collect()
    }

    /// The topic, made when it is missing.
    fn topic(&self, name: &str) -> Result<Arc<Topic>, StoreError> {
        if let Some(topic) = self.known(name) {
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
        // Nothing waits for the disk: the first record that does has this before it.
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
        let refuse = |error| ready(Err(error)).boxed();
        let size = codec::size(&record);
        if size > MAX_RECORD {
            return refuse(AppendError::Refused(format!(
                "{size} bytes, and at most {MAX_RECORD} are allowed"
            )));
        }
        if topic == INBOUND
            && let Err(error) = self.core.store.room()
        {
            return refuse(AppendError::Unknown(error.to_string()));
        }
        let topic = match self.core.topic(topic) {
            Ok(topic) => topic,
            Err(error) => return refuse(AppendError::Unknown(error.to_string())),
        };
        let appended = self.core.writer.append(&self.core.store, &topic, record);
        let answer = match appended {
            Ok(Append::Done(place)) => return ready(Ok(place)).boxed(),
            Ok(Append::Waits(answer)) => answer,
            Ok(Append::Full) => {
                return refuse(AppendError::Unknown(
                    "too much waits for the disk, try again later".into(),
                ));
            }
            Err(error) => return refuse(AppendError::Unknown(error.to_string())),
        };
        let deadline = tokio::time::Instant::now() + self.produce_timeout;
        async move {
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(place)) => Ok(place),
                Ok(Err(_)) => Err(AppendError::Unknown("the log was closed".into())),
                Err(_) => Err(AppendError::Unknown("the disk is too slow, or full".into())),
            }
        }
        .boxed()
    }

    fn consumer(&self, group: &str, topic: &str) -> Result<Box<dyn Consumer>, LogError> {
        let topic = self.core.topic(topic).map_err(unavailable)?;
        Ok(Box::new(Member::join(
            self.core.store.clone(),
            topic,
            group,
        )))
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        for spec in topics {
            self.core.topic(&spec.name).map_err(unavailable)?;
        }
        // Replicas and partitions of the specification are a server's; this log has its own.
        Ok(Vec::new())
    }

    async fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, LogError> {
        let found = self.core.known(topic).filter(|topic| {
            usize::try_from(partition).is_ok_and(|index| index < topic.partitions.len())
        });
        let Some(found) = found else {
            return Err(LogError::Unavailable(format!(
                "there is no partition {partition} of {topic}"
            )));
        };
        let store = self.core.store.clone();
        tokio::task::spawn_blocking(move || found.offset_at(&store, partition, timestamp_ms))
            .await
            .map_err(|e| LogError::Unavailable(e.to_string()))?
            .map_err(unavailable)
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        Ok(self.core.id.clone())
    }

    async fn check(&self) -> Result<(), LogError> {
        self.core.store.check().map_err(unavailable)
    }

    async fn flush(&self) {
        let written = self.core.writer.barrier();
        let _ = tokio::time::timeout(self.produce_timeout, written).await;
    }
}

#[async_trait]
impl LogBrowser for EmbeddedLog {
    async fn partition_ranges(&self, topic: &str) -> Result<Vec<PartitionRange>, LogError> {
        let Some(topic) = self.core.known(topic) else {
            return Ok(Vec::new());
        };
        Ok((0..)
            .zip(&topic.partitions)
            .map(|(partition, part)| PartitionRange {
                partition,
                start: part.start.load(Ordering::Acquire),
                end: part.end(),
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
        let Some(topic) = self.core.known(topic) else {
            return Ok(Vec::new());
        };
        let part = usize::try_from(partition)
            .ok()
            .and_then(|index| topic.partitions.get(index));
        let Some(to) = part.map(|part| to.min(part.end())) else {
            return Ok(Vec::new());
        };
        let store = self.core.store.clone();
        let reading = move || topic.read(&store, partition, from, to, max_bytes.max(1));
        tokio::task::spawn_blocking(reading)
            .await
            .map_err(|e| LogError::Unavailable(e.to_string()))?
            .map_err(unavailable)
    }
}
