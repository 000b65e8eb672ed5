//! Clients that librdkafka has left without brokers, on its own stand-in for a cluster.

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
        .expect("an event")
}

async fn next_record(consumer: &mut KafkaConsumer) -> Bytes {
    loop {
        if let ConsumerEvent::Record(record) = next(consumer).await {
            return record.value;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_left_without_brokers_are_made_anew_and_go_on() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 1, 1).unwrap();
    let settings = settings(cluster.bootstrap_servers());
    let log = KafkaLog::connect(&settings).unwrap();
    let properties = Properties::new(&settings).unwrap();
    let mut consumer = KafkaConsumer::join(&properties, "group", "topic").unwrap();
    log.append("topic", record("one")).await.unwrap();
    assert_eq!(next_record(&mut consumer).await, "one");

    consumer.lose_brokers();
    let revoked = next(&mut consumer).await;
    assert!(
        matches!(&revoked, ConsumerEvent::Revoked(lost) if lost == &[0]),
        "{revoked:?}"
    );
    log.producer.client().unwrap().context().brokers.lose();
    log.check().await.unwrap();
    assert!(!log.producer.client().unwrap().context().brokers.are_gone());

    log.append("topic", record("two")).await.unwrap();
    // Nothing was stored, so it begins at the first again, after an assignment of its own.
    let assigned = next(&mut consumer).await;
    assert!(
        matches!(assigned, ConsumerEvent::Assigned(_)),
        "{assigned:?}"
    );
    assert_eq!(next_record(&mut consumer).await, "one");
    assert_eq!(next_record(&mut consumer).await, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_a_payload_stays_one() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 1, 1).unwrap();
    let settings = settings(cluster.bootstrap_servers());
    let log = KafkaLog::connect(&settings).unwrap();
    let properties = Properties::new(&settings).unwrap();
    let mut consumer = KafkaConsumer::join(&properties, "group", "topic").unwrap();
    let nothing = NewRecord {
        null_value: true,
        ..record("")
    };
    log.append("topic", nothing).await.unwrap();
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
async fn a_record_is_not_taken_for_acknowledged_because_a_later_one_is() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 1, 1).unwrap();
    let mut settings = settings(cluster.bootstrap_servers());
    // A request for each record, so that two are under way at once.
    let one_each = ("batch.num.messages".to_owned(), "1".into());
    settings.properties = BTreeMap::from([one_each]);
    let log = KafkaLog::connect(&settings).unwrap();
    log.append("topic", record("one")).await.unwrap();

    // The broker takes the second only.
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
