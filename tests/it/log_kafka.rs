//! The log on real Kafka: the contract suite, and faults that only Kafka has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatmesh::log::kafka::KafkaLog;
use chatmesh::log::{AppendError, Assignment, Consumer, ConsumerEvent, Log, LogError, TopicSpec};
use chatmesh::protocol::log_record::{NewRecord, Record};
use tokio::time::{Instant, sleep, timeout};

use crate::log_contract::log_contract;
use crate::support::kafka_broker::{KafkaBroker, kafka_settings};
use crate::support::machine::reserve_machine;

/// Time limit of an awaited condition.
const TIMEOUT: Duration = Duration::from_secs(40);

#[expect(
    clippy::unused_async,
    reason = "other backends of the suite are opened asynchronously"
)]
async fn kafka() -> (Arc<dyn Log>, ()) {
    (Arc::new(connect_shared(&[])), ())
}

log_contract!(kafka);

/// Connects to the Kafka that all tests share.
fn connect_shared(properties: &[(&str, &str)]) -> KafkaLog {
    let address = std::env::var("TEST_KAFKA").expect("TEST_KAFKA is not set: use tests/run");
    KafkaLog::connect(&kafka_settings(&address, properties)).expect("valid settings")
}

fn random_name(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

fn spec(name: &str, partitions: i32, replication: i16) -> TopicSpec {
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication,
    }
}

async fn create_topic(log: &KafkaLog, partitions: i32) -> String {
    let name = random_name("kafka");
    log.ensure_topics(&[spec(&name, partitions, 1)])
        .await
        .expect("a topic");
    name
}

fn record(key: &str, value: &str) -> NewRecord {
    NewRecord {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Bytes::copy_from_slice(value.as_bytes()),
        null_value: false,
        headers: Vec::new(),
    }
}

fn value_text(record: &Record) -> String {
    String::from_utf8_lossy(&record.value).into_owned()
}

async fn next_event(consumer: &mut Box<dyn Consumer>) -> ConsumerEvent {
    timeout(TIMEOUT, consumer.next())
        .await
        .expect("an event in time")
}

/// The assignments of the next event. Panics if it is another event.
async fn next_assignments(consumer: &mut Box<dyn Consumer>) -> Vec<Assignment> {
    match next_event(consumer).await {
        ConsumerEvent::Assigned(assignments) => assignments,
        event => panic!("not an assignment: {event:?}"),
    }
}

/// Polls until `count` records were delivered.
async fn read_records(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        if let ConsumerEvent::Record(record) = next_event(consumer).await {
            records.push(record);
        }
    }
    records
}

/// The value of the next record.
async fn next_value(consumer: &mut Box<dyn Consumer>) -> String {
    value_text(&read_records(consumer, 1).await[0])
}

/// Creates a consumer in a group of its own.
fn create_consumer(log: &KafkaLog, topic: &str) -> Box<dyn Consumer> {
    let consumer = log.consumer(&random_name("group"), topic);
    consumer.expect("a consumer")
}

/// Appends a record, and retries while the outcome is unknown, as callers do.
async fn append(log: &KafkaLog, topic: &str, new: NewRecord) -> i64 {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match log.append(topic, new.clone()).await {
            Ok(appended) => return appended.offset,
            Err(error) => assert!(
                matches!(error, AppendError::Unknown(_)) && Instant::now() < deadline,
                "{error}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_connects_when_kafka_starts_later() {
    let _machine = reserve_machine().await;
    let mut broker = KafkaBroker::prepare("");
    let started = Instant::now();
    let log = KafkaLog::connect(&broker.client_settings()).expect("valid settings");
    let topic = random_name("late");
    let mut consumer = create_consumer(&log, &topic);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "connecting must not block"
    );

    assert!(matches!(log.check().await, Err(LogError::Unavailable(_))));
    let refused = log.ensure_topics(&[spec(&topic, 2, 1)]).await;
    assert!(
        matches!(refused, Err(LogError::Unavailable(_))),
        "{refused:?}"
    );
    let early = tokio::select! {
        biased;
        event = consumer.next() => panic!("without a broker: {event:?}"),
        result = log.append(&topic, record("k", "early")) => result,
    };
    assert!(matches!(early, Err(AppendError::Unknown(_))), "{early:?}");

    broker.spawn_and_wait().await;
    log.ensure_topics(&[spec(&topic, 2, 1)])
        .await
        .expect("topics");
    append(&log, &topic, record("k", "late")).await;
    assert_eq!(next_value(&mut consumer).await, "late");
    assert!(log.check().await.is_ok());
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_broker_neither_loses_nor_duplicates_appends() {
    let mut broker = KafkaBroker::start().await;
    let mut settings = broker.client_settings();
    settings.produce_timeout = Duration::from_secs(60);
    let log = Arc::new(KafkaLog::connect(&settings).expect("valid settings"));
    let topic = create_topic(&log, 2).await;
    let mut appends = Vec::new();
    for n in 0..3000 {
        appends.push(tokio::spawn(
            log.append(&topic, record("k", &n.to_string())),
        ));
        if n == 1000 {
            broker.kill();
        }
    }
    broker.spawn_and_wait().await;
    let mut offsets = Vec::new();
    for append in appends {
        offsets.push(
            append
                .await
                .unwrap()
                .expect("acknowledged after the restart")
                .offset,
        );
    }
    assert!(
        offsets.is_sorted_by(|a, b| a < b),
        "records must have the order of the calls"
    );

    let mut consumer = create_consumer(&log, &topic);
    let records = read_records(&mut consumer, 3000).await;
    let values: Vec<String> = records.iter().map(value_text).collect();
    let expected: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    assert_eq!(
        values, expected,
        "each record must be read once and in order"
    );
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_that_hangs_past_every_timeout_loses_nothing() {
    let _machine = reserve_machine().await;
    let broker = KafkaBroker::start().await;
    let log = KafkaLog::connect(&broker.client_settings()).expect("valid settings");
    let topic = create_topic(&log, 1).await;
    let mut consumer = create_consumer(&log, &topic);
    append(&log, &topic, record("k", "before")).await;
    assert_eq!(next_value(&mut consumer).await, "before");

    broker.pause();
    let paused_at = Instant::now();
    let check = log.check().await;
    assert!(matches!(check, Err(LogError::Unavailable(_))), "{check:?}");
    assert!(
        paused_at.elapsed() < Duration::from_secs(3),
        "a check must end after 2 seconds"
    );
    let appended = log.append(&topic, record("k", "unknown")).await;
    assert!(
        matches!(appended, Err(AppendError::Unknown(_))),
        "{appended:?}"
    );
    assert!(
        paused_at.elapsed() < Duration::from_secs(14),
        "an append must end after 10 seconds"
    );
    // The outage is longer than the consumer's session and than every time limit of the log.
    while paused_at.elapsed() < Duration::from_secs(15) {
        assert!(log.check().await.is_err(), "a check must fail");
    }
    broker.resume();

    append(&log, &topic, record("k", "after")).await;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        assert!(Instant::now() < deadline, "no record after the outage");
        // The log may also have the record whose append was `Unknown`.
        match next_event(&mut consumer).await {
            ConsumerEvent::Record(record) if value_text(&record) == "after" => break,
            _ => {}
        }
    }
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_that_stops_polling_is_revoked_and_rejoins() {
    let log = connect_shared(&[
        ("session.timeout.ms", "6000"),
        ("max.poll.interval.ms", "6000"),
    ]);
    let topic = create_topic(&log, 2).await;
    let group = random_name("group");
    let mut consumer = log.consumer(&group, &topic).expect("a consumer");
    assert_eq!(next_assignments(&mut consumer).await.len(), 2);
    // Nothing calls `next`, so the group removes this member.
    let deadline = Instant::now() + TIMEOUT;
    while log
        .inspect_group(&group, &topic)
        .await
        .expect("the group")
        .members
        > 0
    {
        assert!(Instant::now() < deadline, "the member must be removed");
        sleep(Duration::from_millis(100)).await;
    }
    // The partitions are revoked, but this member has not received the event yet.
    consumer.store_offset(0, 7);
    let event = next_event(&mut consumer).await;
    let ConsumerEvent::Revoked(partitions) = event else {
        panic!("not a revocation: {event:?}")
    };
    assert_eq!(partitions.len(), 2);
    let assignments = next_assignments(&mut consumer).await;
    assert_eq!(assignments.len(), 2);
    assert!(
        assignments
            .iter()
            .all(|assignment| assignment.committed_offset.is_none()),
        "an offset stored after the revocation was committed: {assignments:?}"
    );
    append(&log, &topic, record("k", "again")).await;
    assert_eq!(next_value(&mut consumer).await, "again");
    consumer.close().await;
}

/// Updates the partitions that a member owns.
fn apply_rebalance(owned: &mut BTreeSet<i32>, event: ConsumerEvent) {
    match event {
        ConsumerEvent::Assigned(assignments) => {
            owned.extend(assignments.iter().map(|assignment| assignment.partition));
        }
        ConsumerEvent::Revoked(revoked) => owned.retain(|number| !revoked.contains(number)),
        ConsumerEvent::Record(record) => panic!("{record:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_dropped_member_move_to_the_other() {
    let log = connect_shared(&[]);
    let topic = create_topic(&log, 4).await;
    let group = random_name("group");
    let mut remaining = log.consumer(&group, &topic).expect("a consumer");
    let mut dropped = log.consumer(&group, &topic).expect("a consumer");
    let mut owned = [BTreeSet::new(), BTreeSet::new()];
    let deadline = Instant::now() + TIMEOUT;
    while owned[0].len() != 2 || owned[1].len() != 2 {
        assert!(Instant::now() < deadline, "{owned:?}");
        for (consumer, owned) in [&mut remaining, &mut dropped].into_iter().zip(&mut owned) {
            if let Ok(event) = timeout(Duration::from_millis(50), consumer.next()).await {
                apply_rebalance(owned, event);
            }
        }
    }
    drop(dropped);
    while owned[0].len() != 4 {
        apply_rebalance(&mut owned[0], next_event(&mut remaining).await);
    }
    remaining.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_assigned_while_paused_are_paused() {
    let log = connect_shared(&[]);
    let topic = create_topic(&log, 2).await;
    append(&log, &topic, record("k", "one")).await;
    let mut consumer = create_consumer(&log, &topic);
    consumer.pause();
    next_assignments(&mut consumer).await;
    // A member of another group reads the record during the pause, so the record was available.
    let mut other_group = create_consumer(&log, &topic);
    tokio::select! {
        biased;
        event = consumer.next() => panic!("delivered while paused: {event:?}"),
        value = next_value(&mut other_group) => assert_eq!(value, "one"),
    }
    other_group.close().await;
    consumer.resume();
    assert_eq!(next_value(&mut consumer).await, "one");
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_beyond_a_full_queue_keep_their_order() {
    let log = connect_shared(&[("queue.buffering.max.messages", "10")]);
    let topic = create_topic(&log, 1).await;
    let appends: Vec<_> = (0..500)
        .map(|n| log.append(&topic, record("k", &n.to_string())))
        .collect();
    let mut offsets = Vec::new();
    for append in appends {
        offsets.push(
            append
                .await
                .expect("acknowledged once the queue has room")
                .offset,
        );
    }
    assert_eq!(offsets, (0..500).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_waits_for_appends_that_were_not_awaited() {
    let log = connect_shared(&[]);
    let topic = create_topic(&log, 1).await;
    let appends: Vec<_> = (0..100)
        .map(|n| log.append(&topic, record("k", &n.to_string())))
        .collect();
    log.flush().await;
    for append in appends {
        let done = timeout(Duration::ZERO, append)
            .await
            .expect("finished by the flush");
        done.expect("acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_created_concurrently_and_repeatedly_are_created_once() {
    let log = connect_shared(&[]);
    let specs: Vec<TopicSpec> = (0..3)
        .map(|n| spec(&random_name(&format!("t{n}")), 3, 1))
        .collect();
    let (first, second) = tokio::join!(log.ensure_topics(&specs), log.ensure_topics(&specs));
    assert_eq!(first.expect("topics"), Vec::<String>::new());
    assert_eq!(second.expect("topics"), Vec::<String>::new());
    assert_eq!(
        log.ensure_topics(&specs).await.expect("topics"),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_settings_that_endanger_records_cause_warnings() {
    let mut broker = KafkaBroker::prepare("num.partitions=1");
    broker.spawn_and_wait().await;
    let log = KafkaLog::connect(&broker.client_settings()).expect("valid settings");
    // This append makes the broker create the topic, with its default settings.
    let topic = random_name("plain");
    append(&log, &topic, record("k", "v")).await;
    let warnings = log
        .ensure_topics(&[spec(&topic, 1, 3)])
        .await
        .expect("warnings");
    for part in [
        "1 replica(s)",
        "min.insync.replicas=1",
        "message.timestamp.type=CreateTime",
    ] {
        assert!(
            warnings
                .iter()
                .any(|warning| warning.contains(part) && warning.contains(&topic)),
            "{part} in {warnings:?}"
        );
    }
    let refused = log.ensure_topics(&[spec(&random_name("wide"), 1, 3)]).await;
    let Err(LogError::Unavailable(reason)) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("KAFKA_REPLICATION_FACTOR"), "{reason}");
}

/// Appends until the record is refused, and returns the reason.
async fn append_until_refused(log: &KafkaLog, topic: &str) -> String {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match log.append(topic, record("k", "v")).await {
            Err(AppendError::Refused(reason)) => return reason,
            other => assert!(other.is_err() && Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn append_to_a_topic_that_stays_missing_is_refused() {
    let mut broker = KafkaBroker::prepare("auto.create.topics.enable=false");
    broker.spawn_and_wait().await;
    let log = KafkaLog::connect(&broker.client_settings()).expect("valid settings");
    let topic = random_name("missing");
    let reason = append_until_refused(&log, &topic).await;
    assert!(reason.contains(&topic), "{reason}");
    // Once the topic is created, the next record is accepted.
    log.ensure_topics(&[spec(&topic, 1, 1)])
        .await
        .expect("topics");
    log.append(&topic, record("k", "v"))
        .await
        .expect("appended");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_to_a_cluster_has_the_same_cluster_id() {
    let id = connect_shared(&[]).cluster_id().await.expect("an id");
    assert!(!id.is_empty());
    assert_eq!(connect_shared(&[]).cluster_id().await.expect("an id"), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn contradicting_properties_are_named() {
    let properties = [
        ("session.timeout.ms", "9000"),
        ("max.poll.interval.ms", "8000"),
    ];
    let refused = connect_shared(&properties).consumer("group", "topic").err();
    let Some(LogError::Configuration(reason)) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("max.poll.interval.ms"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_members_share_partitions_without_overlap() {
    let address = std::env::var("TEST_KAFKA").expect("TEST_KAFKA is not set: use tests/run");
    let mut interop = kafka_settings(&address, &[]);
    interop.interop = true;
    let log: Arc<dyn Log> = Arc::new(KafkaLog::connect(&interop).expect("valid settings"));
    crate::log_contract::groups::two_members_share_partitions_without_overlap(log).await;
}

/// Runs on one thread: the metrics recorder is local to it, and a consumer works only in `next`.
#[tokio::test]
async fn relay_lag_and_errors_are_counted_and_close_without_a_broker_is_bounded() {
    let _machine = reserve_machine().await;
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let rendered = recorder.handle();
    let _local = metrics::set_default_local_recorder(&recorder);
    let mut broker = KafkaBroker::start().await;
    let settings = kafka_settings(&broker.address(), &[("statistics.interval.ms", "200")]);
    let log = KafkaLog::connect(&settings).expect("valid settings");
    let topic = create_topic(&log, 1).await;
    for n in 0..5 {
        append(&log, &topic, record("k", &n.to_string())).await;
    }
    let mut consumer = log
        .consumer("message-relay-group", &topic)
        .expect("a consumer");
    let offset = read_records(&mut consumer, 5).await[1].offset;
    consumer.store_offset(0, offset + 1);

    let relay_lag =
        |lag: u32| format!("message_relay_kafka_lag{{topic=\"{topic}\",partition=\"0\"}} {lag}\n");
    let wait_for_metric = async |consumer: &mut Box<dyn Consumer>, text: &str| {
        let deadline = Instant::now() + TIMEOUT;
        while !rendered.render().contains(text) {
            assert!(Instant::now() < deadline, "{text} in {}", rendered.render());
            // The consumer processes its statistics only while it is polled. The events are
            // ignored.
            let _ = timeout(Duration::from_millis(100), consumer.next()).await;
        }
    };
    wait_for_metric(&mut consumer, &relay_lag(3)).await;
    wait_for_metric(
        &mut consumer,
        "chatmesh_consumer_lag{group=\"message-relay-group\"",
    )
    .await;

    broker.terminate();
    wait_for_metric(
        &mut consumer,
        "message_relay_kafka_errors_total{error_type=",
    )
    .await;
    wait_for_metric(
        &mut consumer,
        "chatmesh_kafka_errors_total{client=\"consumer\"",
    )
    .await;
    let closing = Instant::now();
    consumer.close().await;
    assert!(
        closing.elapsed() < Duration::from_secs(7),
        "close took {:?}",
        closing.elapsed()
    );
    broker.spawn_and_wait().await;

    // The lag of a partition that the process no longer owns is reported as 0.
    let deadline = Instant::now() + TIMEOUT;
    while !rendered.render().contains(&relay_lag(0)) {
        assert!(Instant::now() < deadline, "{}", rendered.render());
        sleep(Duration::from_millis(100)).await;
    }
}

/// A mock cluster refuses the request for a producer id, which is fatal for an idempotent producer.
#[tokio::test(flavor = "multi_thread")]
async fn fatally_failed_producer_is_recreated() {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("t", 1, 1).expect("a topic");
    cluster.request_errors(
        RDKafkaApiKey::InitProducerId,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED],
    );
    let log = KafkaLog::connect(&kafka_settings(&cluster.bootstrap_servers(), &[]))
        .expect("valid settings");
    append(&log, "t", record("k", "v")).await;
}
