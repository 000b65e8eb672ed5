//! A Kafka client that does not use chatmesh's code, as another program would access Kafka.

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, StreamConsumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::time::Instant;

/// Blocks until a client receives metadata from the broker. Returns false if none arrives within
/// the limit.
pub(super) fn metadata_within(bootstrap: &str, limit: Duration) -> bool {
    let deadline = std::time::Instant::now() + limit;
    while std::time::Instant::now() < deadline {
        // Each attempt has a new client, because a failed client retries at growing intervals.
        let client: Result<BaseConsumer, _> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("log_level", "0")
            .create();
        if client.is_ok_and(|c| c.fetch_metadata(None, Duration::from_secs(1)).is_ok()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    false
}

/// A record as another program reads it.
#[derive(Debug, Clone)]
pub(crate) struct KafkaRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<String>,
    pub(crate) value: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl KafkaRecord {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.value)
            .unwrap_or_else(|e| panic!("a record is not JSON ({e}): {}", self.value))
    }

    fn from_message<M: Message>(message: &M) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().map_or_else(BTreeMap::new, |headers| {
            headers
                .iter()
                .map(|header| {
                    (
                        header.key.to_owned(),
                        text(header.value.unwrap_or_default()),
                    )
                })
                .collect()
        });
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(text),
            value: text(message.payload().unwrap_or_default()),
            headers,
        }
    }
}

/// A client of one broker.
#[derive(Clone)]
pub(crate) struct KafkaClient {
    bootstrap: String,
    producer: FutureProducer,
}

impl KafkaClient {
    pub(crate) fn new(bootstrap: &str) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
            producer: ClientConfig::new()
                .set("bootstrap.servers", bootstrap)
                .create()
                .expect("a producer"),
        }
    }

    pub(crate) async fn create_topic(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .expect("an admin client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let results = admin
            .create_topics([&topic], &AdminOptions::new())
            .await
            .expect("create a topic");
        for result in results {
            result.expect("create a topic");
        }
    }

    /// Increases the number of partitions of a topic to `partitions`.
    pub(crate) async fn add_partitions(&self, topic: &str, partitions: usize) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .expect("an admin client");
        let results = admin
            .create_partitions(
                [&NewPartitions::new(topic, partitions)],
                &AdminOptions::new(),
            )
            .await
            .expect("add partitions");
        for result in results {
            result.expect("add partitions");
        }
    }

    /// Appends a record and waits for the acknowledgement. Returns partition and offset.
    pub(crate) async fn produce(
        &self,
        topic: &str,
        key: Option<&str>,
        value: &str,
        headers: &[(&str, &str)],
    ) -> (i32, i64) {
        let mut owned_headers = OwnedHeaders::new();
        for (key, value) in headers {
            owned_headers = owned_headers.insert(Header {
                key,
                value: Some(*value),
            });
        }
        let mut record = FutureRecord::<str, str>::to(topic).payload(value);
        if let Some(key) = key {
            record = record.key(key);
        }
        if !headers.is_empty() {
            record = record.headers(owned_headers);
        }
        let result = self.producer.send(record, Duration::from_secs(30)).await;
        let delivery = result.expect("produce a record");
        (delivery.partition, delivery.offset)
    }

    /// Reads a topic from its beginning, until `count` records are read or the limit is over.
    pub(crate) async fn read(
        &self,
        topic: &str,
        count: usize,
        limit: Duration,
    ) -> Vec<KafkaRecord> {
        let (bootstrap, topic) = (self.bootstrap.clone(), topic.to_owned());
        let read = tokio::task::spawn_blocking(move || read_all(&bootstrap, &topic, count, limit));
        read.await.expect("read a topic")
    }

    /// The number of records that the group has not committed. If the group never committed, all
    /// records count.
    pub(crate) async fn lag(&self, group: &str, topic: &str) -> i64 {
        let (bootstrap, group, topic) =
            (self.bootstrap.clone(), group.to_owned(), topic.to_owned());
        let lag = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &bootstrap)
                .set("group.id", &group)
                .create()
                .expect("a consumer");
            let end_offsets = end_offsets(&consumer, &topic);
            let mut partitions = TopicPartitionList::new();
            for partition in end_offsets.keys() {
                partitions.add_partition(&topic, *partition);
            }
            let committed = consumer
                .committed_offsets(partitions, Duration::from_secs(10))
                .expect("committed offsets");
            committed
                .elements()
                .iter()
                .map(|partition| {
                    let committed_offset = match partition.offset() {
                        Offset::Offset(offset) => offset,
                        _ => 0,
                    };
                    end_offsets[&partition.partition()] - committed_offset
                })
                .sum()
        });
        lag.await.expect("the lag of the group")
    }

    /// Whether the group has this many members, and all of them have their assignment.
    pub(crate) async fn is_group_stable(&self, group: &str, members: usize) -> bool {
        let (bootstrap, group) = (self.bootstrap.clone(), group.to_owned());
        let is_stable = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &bootstrap)
                .create()
                .expect("a consumer");
            // The request may fail for a group that has had no member yet.
            let groups = consumer.fetch_group_list(Some(&group), Duration::from_secs(10));
            groups.is_ok_and(|groups| {
                let mut matching = groups
                    .groups()
                    .iter()
                    .filter(|listed| listed.name() == group);
                matching
                    .any(|listed| listed.state() == "Stable" && listed.members().len() == members)
            })
        });
        is_stable.await.expect("the state of the group")
    }

    /// Joins a group with the settings of the original system: `range` assignment and automatic
    /// commits.
    pub(crate) fn member(&self, group: &str, topic: &str) -> GroupMember {
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1000")
            .create()
            .expect("a consumer");
        consumer.subscribe(&[topic]).expect("subscribe");
        GroupMember(Some(consumer))
    }

    /// Appends a line with `kcat`, without key and headers.
    pub(crate) fn produce_with_kcat(&self, topic: &str, line: &str) {
        use std::io::Write;
        let mut child = Command::new("kcat")
            .args(["-P", "-b", &self.bootstrap, "-t", topic])
            .stdin(Stdio::piped())
            .spawn()
            .expect("run kcat (tests/run installs it)");
        let mut stdin = child.stdin.take().expect("kcat's input");
        writeln!(stdin, "{line}").expect("write to kcat");
        drop(stdin);
        assert!(child.wait().expect("wait for kcat").success());
    }
}

/// A consumer that is a member of a group. Drop leaves the group.
pub(crate) struct GroupMember(Option<StreamConsumer>);

impl Drop for GroupMember {
    /// Leaves the group on another thread, so that the test's runtime does not block. Leaving waits
    /// for the broker, and never returns if the broker stopped during a rebalance.
    fn drop(&mut self) {
        let consumer = self.0.take();
        std::thread::spawn(move || drop(consumer));
    }
}

/// Receives one record, or `None` if none arrives in time. Retries after connection errors.
pub(crate) async fn receive(member: &GroupMember, limit: Duration) -> Option<KafkaRecord> {
    let consumer = member.0.as_ref()?;
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        // A wake-up by librdkafka can be lost, so each wait is limited to a second.
        let wait_end = (Instant::now() + Duration::from_secs(1)).min(deadline);
        if let Ok(Ok(message)) = tokio::time::timeout_at(wait_end, consumer.recv()).await {
            return Some(KafkaRecord::from_message(&message));
        }
    }
    None
}

/// The end offset of each partition of a topic.
fn end_offsets(consumer: &BaseConsumer, topic: &str) -> HashMap<i32, i64> {
    let timeout = Duration::from_secs(10);
    let metadata = consumer
        .fetch_metadata(Some(topic), timeout)
        .expect("the topic's metadata");
    let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
    partitions
        .map(|partition| {
            let (_, end_offset) = consumer
                .fetch_watermarks(topic, partition.id(), timeout)
                .expect("the end offset of a partition");
            (partition.id(), end_offset)
        })
        .collect()
}

fn read_all(bootstrap: &str, topic: &str, count: usize, limit: Duration) -> Vec<KafkaRecord> {
    let deadline = std::time::Instant::now() + limit;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", super::unique_name("reader"))
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut partitions = Vec::new();
    // A topic that does not exist yet has no partitions.
    while partitions.is_empty() && std::time::Instant::now() < deadline {
        if let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)) {
            let topics = metadata.topics().iter();
            partitions = topics
                .flat_map(|t| t.partitions().iter().map(MetadataPartition::id))
                .collect();
        }
    }
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .expect("add a partition");
    }
    consumer.assign(&assignment).expect("assign");
    let mut records = Vec::new();
    while records.len() < count && std::time::Instant::now() < deadline {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            records.push(KafkaRecord::from_message(&message));
        }
    }
    records
}
