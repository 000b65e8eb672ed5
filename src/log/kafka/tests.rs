//! Tests of clients that have lost every broker, of records without a payload, and of delivery
//! reports, on librdkafka's mock cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::Producer as _;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::timeout;

use super::KafkaLog;
use super::consumer::KafkaConsumer;
use super::properties::Properties;
use crate::config::settings::KafkaSettings;
use crate::log::{Consumer, ConsumerEvent, Log};
use crate::protocol::log_record::NewRecord;

fn settings(bootstrap_servers: String) -> KafkaSettings {
    KafkaSettings {
        bootstrap_servers,
        topic_partitions: 1,
        replication_factor: 1,
        linger: Duration::from_millis(1),
        produce_timeout: Duration::from_secs(20),
        interop: false,
        properties: BTreeMap::new(),
        client_id: "test".into(),
    }
}

fn record(text: &'static str) -> NewRecord {
    NewRecord {
        key: None,
        value: Bytes::from_static(text.as_bytes()),
        null_value: false,
        headers: vec![],
    }
}

async fn next(consumer: &mut KafkaConsumer) -> ConsumerEvent {
    timeout(Duration::from_secs(60), consumer.next())
        .await
        .expect("the consumer should return an event within 60 seconds")
}

async fn next_record(consumer: &mut KafkaConsumer) -> Bytes {
    loop {
        if let ConsumerEvent::Record(record) = next(consumer).await {
            return record.value;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_brokers_are_recreated_and_continue() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 1, 1).unwrap();
    let settings = settings(cluster.bootstrap_servers());
    let log = KafkaLog::connect(&settings).unwrap();
    let properties = Properties::new(&settings).unwrap();
    let mut consumer = KafkaConsumer::join(&properties, "group", "topic").unwrap();
    log.append("topic", record("one")).await.unwrap();
    assert_eq!(next_record(&mut consumer).await, "one");

    consumer.simulate_broker_loss();
    let revoked = next(&mut consumer).await;
    assert!(
        matches!(&revoked, ConsumerEvent::Revoked(lost) if lost == &[0]),
        "{revoked:?}"
    );
    let client = |log: &KafkaLog| log.producer.client().unwrap();
    client(&log).context().watchdog.simulate_loss();
    log.check().await.unwrap();
    assert!(!client(&log).context().watchdog.is_disconnected());

    log.append("topic", record("two")).await.unwrap();
    // No offset was stored, so the new consumer is assigned the partition and starts at record one.
    let assigned = next(&mut consumer).await;
    assert!(
        matches!(assigned, ConsumerEvent::Assigned(_)),
        "{assigned:?}"
    );
    assert_eq!(next_record(&mut consumer).await, "one");
    assert_eq!(next_record(&mut consumer).await, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn record_without_payload_is_read_without_payload() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 1, 1).unwrap();
    let settings = settings(cluster.bootstrap_servers());
    let log = KafkaLog::connect(&settings).unwrap();
    let properties = Properties::new(&settings).unwrap();
    let mut consumer = KafkaConsumer::join(&properties, "group", "topic").unwrap();
    let tombstone = NewRecord {
        null_value: true,
        ..record("")
    };
    log.append("topic", tombstone).await.unwrap();
    log.append("topic", record("")).await.unwrap();
    let mut null_values = Vec::new();
    while null_values.len() < 2 {
        if let ConsumerEvent::Record(record) = next(&mut consumer).await {
            null_values.push(record.null_value);
        }
    }
    assert_eq!(null_values, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unacknowledged_record_is_sent_again_when_only_a_later_one_is_acknowledged() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 1, 1).unwrap();
    let mut settings = settings(cluster.bootstrap_servers());
    // Each record gets its own request, so that two requests are in flight at the same time.
    let one_record_per_batch = ("batch.num.messages".to_owned(), "1".into());
    settings.properties = BTreeMap::from([one_record_per_batch]);
    let log = KafkaLog::connect(&settings).unwrap();
    log.append("topic", record("one")).await.unwrap();

    // The broker refuses the request with record two, and accepts the request with record three.
    let delay = Duration::from_millis(500);
    cluster.broker_round_trip_time(1, delay).unwrap();
    let not_leader = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    cluster.request_errors(RDKafkaApiKey::Produce, &[not_leader]);
    let two = log.append("topic", record("two"));
    let three = log.append("topic", record("three"));
    let (two, three) = tokio::join!(two, three);
    assert_eq!([three.unwrap().offset, two.unwrap().offset], [1, 2]);
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();

    let properties = Properties::new(&settings).unwrap();
    let mut consumer = KafkaConsumer::join(&properties, "group", "topic").unwrap();
    for text in ["one", "three", "two"] {
        assert_eq!(next_record(&mut consumer).await, text);
    }
}
