//! The log on Apache Kafka, through librdkafka.
//!
//! - `properties` configures the clients.
//! - `producer`, `delivery` append records in the order of the calls and report the result.
//! - `consumer`, `rebalance` read records as a member of a group.
//! - `admin` creates and checks topics.
//! - `browser`, `inspect` read topics and the cluster's state without joining a group.
//! - `broker_watchdog` detects a client that librdkafka cannot reconnect.
//! - `metrics`, `lag`, `report` are the clients' metrics and logs.
//!
//! librdkafka reconnects without limit (except in the case of `broker_watchdog`), so requests fail
//! only for as long as the brokers are unreachable.

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
mod broker_watchdog;
mod browser;
mod consumer;
mod delivery;
pub mod inspect;
mod lag;
pub(crate) mod metrics;
mod producer;
mod properties;
mod rebalance;
mod report;
#[cfg(test)]
mod tests;

/// Time limit of [`Log::check`].
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit of other requests for metadata, offsets or the cluster id.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which the metadata client is kept after it was created. A rewind looks up an offset in
/// every partition in turn, and these requests share one connection.
const METADATA_CLIENT_LIFETIME: Duration = Duration::from_secs(5);

/// The result of a check in progress, for any number of callers.
type SharedCheck = Shared<BoxFuture<'static, Result<(), LogError>>>;

/// A log on a Kafka cluster: one producer, and a consumer for each call of [`Log::consumer`].
pub struct KafkaLog {
    properties: Properties,
    producer: Producer,
    cluster_id: OnceCell<String>,
    /// The last check. Calls that arrive while it is in progress share its result.
    check_in_progress: Mutex<Option<SharedCheck>>,
    /// The client that [`KafkaLog::metadata_client`] returns, for as long as it exists.
    metadata_client: Mutex<Weak<BaseConsumer>>,
}

impl KafkaLog {
    /// Returns the error with which [`KafkaLog::connect`] or [`Log::consumer`] would refuse these
    /// settings, without connecting.
    pub fn validate(settings: &KafkaSettings) -> Result<(), LogError> {
        let properties = Properties::new(settings)?;
        // Properties that contradict each other are refused only when a client is created.
        let refused = |error: KafkaError| properties.creation_error("client", &error);
        let producer: Result<BaseProducer, _> = properties.producer().create();
        let consumer: Result<BaseConsumer, _> = properties.consumer("validate").create();
        producer.map(drop).map_err(refused)?;
        consumer.map(drop).map_err(refused)
    }

    /// Creates the clients. Must be called inside a Tokio runtime. Returns at once, even if no
    /// broker is reachable yet. An entry of `KAFKA_PROPERTIES` that librdkafka refuses, or that
    /// contradicts another, is a [`LogError::Configuration`] that names it.
    pub fn connect(settings: &KafkaSettings) -> Result<Self, LogError> {
        let properties = Properties::new(settings)?;
        let producer = Producer::new(properties.clone())?;
        Ok(Self {
            properties,
            producer,
            cluster_id: OnceCell::new(),
            check_in_progress: Mutex::default(),
            metadata_client: Mutex::default(),
        })
    }

    /// A client without a group, for metadata requests. Nothing polls the client's queue, so the
    /// client is dropped after [`METADATA_CLIENT_LIFETIME`] and created again when needed.
    fn metadata_client(&self) -> Result<Arc<BaseConsumer>, LogError> {
        let mut current = self.metadata_client.lock();
        if let Some(client) = current.upgrade() {
            return Ok(client);
        }
        let created: Result<BaseConsumer, KafkaError> = self.properties.client().create();
        let client = created.map_err(|error| self.properties.creation_error("client", &error))?;
        let client = Arc::new(client);
        *current = Arc::downgrade(&client);
        let expiring = Arc::clone(&client);
        tokio::spawn(async move {
            sleep(METADATA_CLIENT_LIFETIME).await;
            spawn_blocking(move || drop(expiring));
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
        let client = self.metadata_client()?;
        let mut times = TopicPartitionList::with_capacity(1);
        // The request carries the timestamp in the field in which the answer carries the offset.
        times
            .add_partition_offset(topic, partition, Offset::Offset(timestamp_ms.max(0)))
            .map_err(unavailable)?;
        let answer = spawn_blocking(move || client.offsets_for_times(times, REQUEST_TIMEOUT))
            .await
            .map_err(unavailable)?
            .map_err(unavailable)?;
        let found = answer
            .find_partition(topic, partition)
            .ok_or_else(|| unavailable("the answer lacks the partition"))?;
        found.error().map_err(unavailable)?;
        Ok(match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        let id = self.cluster_id.get_or_try_init(|| async {
            let client = self.producer.client()?;
            spawn_blocking(move || client.client().fetch_cluster_id(REQUEST_TIMEOUT))
                .await
                .map_err(unavailable)?
                .ok_or_else(|| unavailable("its cluster id is not known yet"))
        });
        id.await.cloned()
    }

    async fn check(&self) -> Result<(), LogError> {
        self.producer.recreate_if_disconnected();
        let client = self.producer.client()?;
        let check = {
            let mut in_progress = self.check_in_progress.lock();
            match &*in_progress {
                Some(check) if check.peek().is_none() => check.clone(),
                _ => {
                    let request =
                        spawn_blocking(move || client.client().fetch_metadata(None, CHECK_TIMEOUT));
                    let result = async move {
                        request.await.map_err(unavailable)?.map_err(unavailable)?;
                        Ok(())
                    };
                    let check = result.boxed().shared();
                    // A task drives the check to its end even if every caller is dropped.
                    // Otherwise a later call would join it and get an outdated result.
                    tokio::spawn(check.clone());
                    in_progress.insert(check).clone()
                }
            }
        };
        let late = |_| Err(unavailable("no answer within 2 seconds"));
        timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(late)
    }

    async fn flush(&self) {
        self.producer.flush().await;
    }
}

#[async_trait]
impl LogBrowser for KafkaLog {
    async fn partition_ranges(&self, topic: &str) -> Result<Vec<PartitionRange>, LogError> {
        let (client, topic) = (self.metadata_client()?, topic.to_owned());
        spawn_blocking(move || browser::partition_ranges(&client, &topic))
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
        spawn_blocking(move || browser::read(&properties, &topic, partition, from, to, max_bytes))
            .await
            .map_err(unavailable)?
    }
}
