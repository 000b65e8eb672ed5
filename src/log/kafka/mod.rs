//! The log on Apache Kafka, by librdkafka.
//!
//! - `properties`: what the clients are told
//! - `producer`, `delivery`: appending, in the order of the calls, and what became of it
//! - `consumer`, `rebalance`: reading as a member of a group
//! - `admin`: topics
//! - `browse`, `inspect`: what operators look at, without joining a group
//! - `lag`, `report`: metrics and logs
//!
//! librdkafka reconnects by itself and for ever; nothing here gives up because a broker is away.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use self::consumer::KafkaConsumer;
use self::producer::Producer;
use self::properties::Properties;
use super::{
    AppendError, Consumer, Log, LogBrowser, LogError, LogOffset, NewRecord, PartitionRange, Record,
    TopicSpec,
};
use crate::config::settings::KafkaSettings;

mod admin;
mod browse;
mod consumer;
mod delivery;
pub mod inspect;
mod lag;
pub(crate) mod metrics;
mod orphan;
mod producer;
mod properties;
mod rebalance;
mod report;
#[cfg(test)]
mod tests;

/// Within this [`Log::check`] has its answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long any other question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The client that looks up offsets by time stays connected for this long after its last use: a
/// rewind asks for every partition in turn.
const LOOKUP_LINGER: Duration = Duration::from_secs(5);

type Check = Shared<BoxFuture<'static, Result<(), LogError>>>;

/// A Kafka cluster.
pub struct KafkaLog {
    properties: Properties,
    producer: Producer,
    cluster_id: OnceCell<String>,
    /// A check that is under way: who asks meanwhile gets its answer.
    checking: Mutex<Option<Check>>,
    lookup: Mutex<Weak<BaseConsumer>>,
}

impl KafkaLog {
    /// Checks what [`KafkaLog::connect`] would refuse, without making a client.
    pub fn validate(settings: &KafkaSettings) -> Result<(), LogError> {
        let properties = Properties::new(settings)?;
        // What contradicts another property shows when a client is made.
        let refused = |error: KafkaError| {
            LogError::Configuration(format!(
                "the kafka client cannot be made: {}; check KAFKA_PROPERTIES",
                properties.redact(&error.to_string())
            ))
        };
        let producer: Result<BaseProducer, _> = properties.producer().create();
        let consumer: Result<BaseConsumer, _> = properties.consumer("validate").create();
        producer.map(drop).map_err(refused)?;
        consumer.map(drop).map_err(refused)
    }

    /// Makes the clients; call it within a Tokio runtime. Returns at once: the brokers need not be
    /// there yet. An entry of `KAFKA_PROPERTIES` that librdkafka doesn't take, or that contradicts
    /// another, is a [`LogError::Configuration`] that names it.
    pub fn connect(settings: &KafkaSettings) -> Result<Self, LogError> {
        let properties = Properties::new(settings)?;
        let producer = Producer::new(properties.clone())?;
        Ok(Self {
            properties,
            producer,
            cluster_id: OnceCell::new(),
            checking: Mutex::default(),
            lookup: Mutex::default(),
        })
    }

    /// A client without a group. Its queue is served by nobody, so it is let go when idle.
    fn lookup(&self) -> Result<Arc<BaseConsumer>, LogError> {
        let mut lookup = self.lookup.lock();
        if let Some(client) = lookup.upgrade() {
            return Ok(client);
        }
        let client: BaseConsumer = self.properties.client().create().map_err(|error| {
            LogError::Configuration(format!(
                "the kafka client cannot be made: {}; check KAFKA_PROPERTIES",
                self.properties.redact(&error.to_string())
            ))
        })?;
        let client = Arc::new(client);
        *lookup = Arc::downgrade(&client);
        let idle = Arc::clone(&client);
        tokio::spawn(async move {
            sleep(LOOKUP_LINGER).await;
            spawn_blocking(move || drop(idle));
        });
        Ok(client)
    }
}

fn unavailable(error: impl std::fmt::Display) -> LogError {
    LogError::Unavailable(format!("kafka does not answer: {error}"))
}

#[async_trait]
impl Log for KafkaLog {
    fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        self.producer.append(topic, record)
    }

    fn consumer(&self, group: &str, topic: &str) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(KafkaConsumer::join(
            &self.properties,
            group,
            topic,
        )?))
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        admin::ensure_topics(&self.properties, self.producer.client()?, topics).await
    }

    async fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, LogError> {
        let client = self.lookup()?;
        let mut times = TopicPartitionList::with_capacity(1);
        // The time goes where the offset comes back.
        times
            .add_partition_offset(topic, partition, Offset::Offset(timestamp_ms.max(0)))
            .map_err(unavailable)?;
        let answer = spawn_blocking(move || client.offsets_for_times(times, ASK_TIMEOUT))
            .await
            .map_err(unavailable)?
            .map_err(unavailable)?;
        let found = answer
            .find_partition(topic, partition)
            .ok_or_else(|| unavailable("the partition is missing in the answer"))?;
        found.error().map_err(unavailable)?;
        Ok(match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        let id = self.cluster_id.get_or_try_init(|| async {
            let client = self.producer.client()?;
            spawn_blocking(move || client.client().fetch_cluster_id(ASK_TIMEOUT))
                .await
                .map_err(unavailable)?
                .ok_or_else(|| unavailable("its cluster id is not known yet"))
        });
        id.await.cloned()
    }

    async fn check(&self) -> Result<(), LogError> {
        self.producer.revive();
        let client = self.producer.client()?;
        let check = {
            let mut checking = self.checking.lock();
            match &*checking {
                Some(check) if check.peek().is_none() => check.clone(),
                _ => {
                    let asking =
                        spawn_blocking(move || client.client().fetch_metadata(None, CHECK_TIMEOUT));
                    let answer = async move {
                        asking.await.map_err(unavailable)?.map_err(unavailable)?;
                        Ok(())
                    };
                    let check = answer.boxed().shared();
                    // Driven also when who asked has gone, so that no old answer is left over.
                    tokio::spawn(check.clone());
                    checking.insert(check).clone()
                }
            }
        };
        let late = |_| Err(unavailable("nothing heard within 2 seconds"));
        timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(late)
    }

    async fn flush(&self) {
        self.producer.flush().await;
    }
}

#[async_trait]
impl LogBrowser for KafkaLog {
    async fn partition_ranges(&self, topic: &str) -> Result<Vec<PartitionRange>, LogError> {
        let (client, topic) = (self.lookup()?, topic.to_owned());
        spawn_blocking(move || browse::partition_ranges(&client, &topic))
            .await
            .map_err(unavailable)?
    }

    async fn read(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError> {
        let (properties, topic) = (self.properties.clone(), topic.to_owned());
        spawn_blocking(move || browse::read(&properties, &topic, partition, from, to, max_bytes))
            .await
            .map_err(unavailable)?
    }
}
