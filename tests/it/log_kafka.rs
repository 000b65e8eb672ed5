//! The log on real Kafka: the contract, and what only Kafka can do to us.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatmesh::log::kafka::KafkaLog;
use chatmesh::log::{AppendError, Consumer, ConsumerEvent, Log, LogError, TopicSpec};
use chatmesh::protocol::log_record::{NewRecord, Record};
use tokio::time::{Instant, timeout};

use crate::log_contract::log_contract;
use crate::support::kafka_broker::{KafkaBroker, kafka_settings};

const WAIT: Duration = Duration::from_secs(40);

#[expect(
    clippy::unused_async,
    reason = "the suite takes backends that take time to open"
)]
async fn kafka() -> (Arc<dyn Log>, ()) {
    (Arc::new(shared(&[])), ())
}

log_contract!(kafka);

fn shared(properties: &[(&str, &str)]) -> KafkaLog {
    let address = std::env::var("TEST_KAFKA").expect("TEST_KAFKA is not set: use tests/run");
    KafkaLog::connect(&kafka_settings(&address, properties)).expect("settings")
}

fn name(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

fn spec(name: &str, partitions: i32, replication: i16) -> TopicSpec {
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication,
    }
}

async fn topic(log: &KafkaLog, partitions: i32) -> String {
    let name = name("kafka");
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

fn text(record: &Record) -> String {
    String::from_utf8_lossy(&record.value).into_owned()
}

async fn next(consumer: &mut Box<dyn Consumer>) -> ConsumerEvent {
    timeout(WAIT, consumer.next())
        .await
        .expect("an event in time")
}

/// Reads until `count` records came.
async fn read(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        if let ConsumerEvent::Record(record) = next(consumer).await {
            records.push(record);
        }
    }
    records
}

/// Repeats what has an unknown outcome, as the callers do.
async fn append(log: &KafkaLog, topic: &str, new: NewRecord) -> i64 {
    let end = Instant::now() + WAIT;
    loop {
        match log.append(topic, new.clone()).await {
            Ok(place) => return place.offset,
            Err(error) => assert!(
                matches!(error, AppendError::Unknown(_)) && Instant::now() < end,
                "{error}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_started_before_kafka_waits_and_goes_on_by_itself() {
    let mut broker = KafkaBroker::prepare("");
    let started = Instant::now();
    let log = KafkaLog::connect(&broker.client_settings()).expect("settings");
    let topic = name("late");
    let mut consumer = log.consumer(&name("group"), &topic).expect("a consumer");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "connecting must not wait"
    );

    assert!(matches!(log.check().await, Err(LogError::Unavailable(_))));
    let refused = log.ensure_topics(&[spec(&topic, 2, 1)]).await;
    assert!(
        matches!(refused, Err(LogError::Unavailable(_))),
        "{refused:?}"
    );
    let lost = log.append(&topic, record("k", "early")).await;
    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    assert!(
        timeout(Duration::from_millis(200), consumer.next())
            .await
            .is_err()
    );

    broker.spawn_and_wait().await;
    log.ensure_topics(&[spec(&topic, 2, 1)])
        .await
        .expect("topics");
    append(&log, &topic, record("k", "late")).await;
    assert_eq!(text(&read(&mut consumer, 1).await[0]), "late");
    assert!(log.check().await.is_ok());
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_under_appends_loses_and_doubles_nothing() {
    let mut broker = KafkaBroker::start().await;
    let mut with_time = broker.client_settings();
    with_time.produce_timeout = Duration::from_secs(60);
    let log = Arc::new(KafkaLog::connect(&with_time).expect("settings"));
    let topic = topic(&log, 2).await;
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
        "the order of the calls is the order in the log"
    );

    let mut consumer = log.consumer(&name("group"), &topic).expect("a consumer");
    let values: Vec<String> = read(&mut consumer, 3000).await.iter().map(text).collect();
    let expected: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    assert_eq!(values, expected, "each record once and in order");
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_for_15_s_holds_things_up_and_loses_nothing() {
    let broker = KafkaBroker::start().await;
    let log = KafkaLog::connect(&broker.client_settings()).expect("settings");
    let topic = topic(&log, 1).await;
    let mut consumer = log.consumer(&name("group"), &topic).expect("a consumer");
    append(&log, &topic, record("k", "before")).await;
    assert_eq!(text(&read(&mut consumer, 1).await[0]), "before");

    broker.pause();
    let stopped = Instant::now();
    let check = log.check().await;
    assert!(matches!(check, Err(LogError::Unavailable(_))), "{check:?}");
    assert!(
        stopped.elapsed() < Duration::from_secs(3),
        "a check has 2 seconds"
    );
    let late = log.append(&topic, record("k", "unknown")).await;
    assert!(matches!(late, Err(AppendError::Unknown(_))), "{late:?}");
    assert!(
        stopped.elapsed() < Duration::from_secs(14),
        "an append has 10 seconds"
    );
    tokio::time::sleep_until(stopped + Duration::from_secs(15)).await;
    broker.resume();

    append(&log, &topic, record("k", "after")).await;
    let end = Instant::now() + WAIT;
    loop {
        assert!(Instant::now() < end);
        // The one of unknown outcome may be there too.
        match next(&mut consumer).await {
            ConsumerEvent::Record(record) if text(&record) == "after" => break,
            _ => {}
        }
    }
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_starved_past_its_session_is_told_and_comes_back() {
    let log = shared(&[
        ("session.timeout.ms", "6000"),
        ("max.poll.interval.ms", "6000"),
    ]);
    let topic = topic(&log, 2).await;
    let group = name("group");
    let mut consumer = log.consumer(&group, &topic).expect("a consumer");
    assert!(matches!(next(&mut consumer).await, ConsumerEvent::Assigned(all) if all.len() == 2));
    // Nothing calls `next`: the group has to believe that this member hangs.
    tokio::time::sleep(Duration::from_secs(8)).await;
    // Not this member's any more, though it doesn't know yet.
    consumer.store_offset(0, 7);
    assert!(matches!(next(&mut consumer).await, ConsumerEvent::Revoked(all) if all.len() == 2));
    match next(&mut consumer).await {
        ConsumerEvent::Assigned(all) => {
            assert_eq!(all.len(), 2);
            assert!(
                all.iter().all(|one| one.committed.is_none()),
                "stored while lost: {all:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    append(&log, &topic, record("k", "again")).await;
    assert_eq!(text(&read(&mut consumer, 1).await[0]), "again");
    consumer.close().await;
}

fn follow(owned: &mut BTreeSet<i32>, event: ConsumerEvent) {
    match event {
        ConsumerEvent::Assigned(all) => {
            owned.extend(all.iter().map(|assignment| assignment.partition))
        }
        ConsumerEvent::Revoked(all) => owned.retain(|partition| !all.contains(partition)),
        ConsumerEvent::Record(record) => panic!("{record:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_dropped_without_close_hands_over() {
    let log = shared(&[]);
    let topic = topic(&log, 4).await;
    let group = name("group");
    let mut stays = log.consumer(&group, &topic).expect("a consumer");
    let mut goes = log.consumer(&group, &topic).expect("a consumer");
    let mut owned = [BTreeSet::new(), BTreeSet::new()];
    let end = Instant::now() + WAIT;
    while owned[0].len() != 2 || owned[1].len() != 2 {
        assert!(Instant::now() < end, "{owned:?}");
        for (consumer, owned) in [&mut stays, &mut goes].into_iter().zip(&mut owned) {
            if let Ok(event) = timeout(Duration::from_millis(50), consumer.next()).await {
                follow(owned, event);
            }
        }
    }
    drop(goes);
    while owned[0].len() != 4 {
        follow(&mut owned[0], next(&mut stays).await);
    }
    stays.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_while_paused_are_paused() {
    let log = shared(&[]);
    let topic = topic(&log, 2).await;
    append(&log, &topic, record("k", "one")).await;
    let mut consumer = log.consumer(&name("group"), &topic).expect("a consumer");
    consumer.pause();
    assert!(matches!(
        next(&mut consumer).await,
        ConsumerEvent::Assigned(_)
    ));
    let early = timeout(Duration::from_secs(2), consumer.next()).await;
    assert!(early.is_err(), "{early:?}");
    consumer.resume();
    assert_eq!(text(&read(&mut consumer, 1).await[0]), "one");
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_local_queue_is_waited_for_in_order() {
    let log = shared(&[("queue.buffering.max.messages", "10")]);
    let topic = topic(&log, 1).await;
    let appends: Vec<_> = (0..500)
        .map(|n| log.append(&topic, record("k", &n.to_string())))
        .collect();
    let mut offsets = Vec::new();
    for append in appends {
        offsets.push(append.await.expect("room came in time").offset);
    }
    assert_eq!(offsets, (0..500).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_waits_for_what_was_appended_and_not_awaited() {
    let log = shared(&[]);
    let topic = topic(&log, 1).await;
    let appends: Vec<_> = (0..100)
        .map(|n| log.append(&topic, record("k", &n.to_string())))
        .collect();
    log.flush().await;
    for append in appends {
        let done = timeout(Duration::ZERO, append)
            .await
            .expect("there after the flush");
        done.expect("acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_made_twice_and_by_two_at_once_are_made_once() {
    let log = shared(&[]);
    let specs: Vec<TopicSpec> = (0..3)
        .map(|n| spec(&name(&format!("t{n}")), 3, 1))
        .collect();
    let (one, other) = tokio::join!(log.ensure_topics(&specs), log.ensure_topics(&specs));
    assert_eq!(one.expect("topics"), Vec::<String>::new());
    assert_eq!(other.expect("topics"), Vec::<String>::new());
    assert_eq!(
        log.ensure_topics(&specs).await.expect("topics"),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_endangers_a_promise_is_warned_about() {
    let mut broker = KafkaBroker::prepare("num.partitions=1");
    broker.spawn_and_wait().await;
    let log = KafkaLog::connect(&broker.client_settings()).expect("settings");
    // Made by the broker itself, with its own settings.
    let topic = name("plain");
    append(&log, &topic, record("k", "v")).await;
    let warnings = log
        .ensure_topics(&[spec(&topic, 1, 3)])
        .await
        .expect("looked at");
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
    let refused = log.ensure_topics(&[spec(&name("wide"), 1, 3)]).await;
    let Err(LogError::Unavailable(reason)) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("KAFKA_REPLICATION_FACTOR"), "{reason}");
}

/// Repeats what has an unknown outcome until it is refused, and returns why.
async fn refusal(log: &KafkaLog, topic: &str) -> String {
    let end = Instant::now() + WAIT;
    loop {
        match log.append(topic, record("k", "v")).await {
            Err(AppendError::Refused(reason)) => return reason,
            other => assert!(other.is_err() && Instant::now() < end, "{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_nobody_makes_is_refused() {
    let mut broker = KafkaBroker::prepare("auto.create.topics.enable=false");
    broker.spawn_and_wait().await;
    let log = KafkaLog::connect(&broker.client_settings()).expect("settings");
    let nowhere = name("nowhere");
    let refused = refusal(&log, &nowhere).await;
    assert!(refused.contains(&nowhere), "{refused}");
    // Made after all: the next record goes there.
    log.ensure_topics(&[spec(&nowhere, 1, 1)])
        .await
        .expect("topics");
    log.append(&nowhere, record("k", "v"))
        .await
        .expect("appended");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_logs_of_one_cluster_agree_on_its_id() {
    let id = shared(&[]).cluster_id().await.expect("an id");
    assert!(!id.is_empty());
    assert_eq!(shared(&[]).cluster_id().await.expect("an id"), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_that_contradict_each_other_are_named() {
    let all = [
        ("session.timeout.ms", "9000"),
        ("max.poll.interval.ms", "8000"),
    ];
    let refused = shared(&all).consumer("group", "topic").err();
    let Some(LogError::Configuration(reason)) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("max.poll.interval.ms"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_shared_with_an_original_service_shares_its_partitions_too() {
    let address = std::env::var("TEST_KAFKA").expect("TEST_KAFKA is not set: use tests/run");
    let mut interop = kafka_settings(&address, &[]);
    interop.interop = true;
    let log: Arc<dyn Log> = Arc::new(KafkaLog::connect(&interop).expect("settings"));
    crate::log_contract::two_members_share_the_partitions_and_never_both_own_one(log).await;
}

/// The recorder is this thread's, and everything of a consumer happens in its `next`.
#[tokio::test]
async fn the_lag_and_the_errors_of_a_relay_are_counted_and_closing_without_a_broker_is_bounded() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let rendered = recorder.handle();
    let _local = metrics::set_default_local_recorder(&recorder);
    let mut broker = KafkaBroker::start().await;
    let quick = kafka_settings(&broker.address(), &[("statistics.interval.ms", "200")]);
    let log = KafkaLog::connect(&quick).expect("settings");
    let topic = topic(&log, 1).await;
    for n in 0..5 {
        append(&log, &topic, record("k", &n.to_string())).await;
    }
    let mut consumer = log
        .consumer("message-relay-group", &topic)
        .expect("a consumer");
    let offset = read(&mut consumer, 5).await[1].offset;
    consumer.store_offset(0, offset + 1);

    let relay =
        |lag: u32| format!("message_relay_kafka_lag{{topic=\"{topic}\",partition=\"0\"}} {lag}\n");
    let shows = async |consumer: &mut Box<dyn Consumer>, wanted: &str| {
        let end = Instant::now() + WAIT;
        while !rendered.render().contains(wanted) {
            assert!(Instant::now() < end, "{wanted} in {}", rendered.render());
            // Only passes the time; events are not what is looked at.
            let _ = timeout(Duration::from_millis(100), consumer.next()).await;
        }
    };
    shows(&mut consumer, &relay(3)).await;
    shows(
        &mut consumer,
        "chatmesh_consumer_lag{group=\"message-relay-group\"",
    )
    .await;

    broker.terminate();
    shows(
        &mut consumer,
        "message_relay_kafka_errors_total{error_type=",
    )
    .await;
    shows(
        &mut consumer,
        "chatmesh_kafka_errors_total{client=\"consumer\"",
    )
    .await;
    let closing = Instant::now();
    consumer.close().await;
    assert!(
        closing.elapsed() < Duration::from_secs(7),
        "{:?}",
        closing.elapsed()
    );
    broker.spawn_and_wait().await;

    // Somebody else gets the partition: it is no longer this process's lag.
    let end = Instant::now() + WAIT;
    while !rendered.render().contains(&relay(0)) {
        assert!(Instant::now() < end, "{}", rendered.render());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An idempotent producer whose sequence is lost fails for good; a stand-in for a cluster says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_failed_for_good_is_replaced() {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    let cluster = MockCluster::new(1).expect("a stand-in");
    cluster.create_topic("t", 1, 1).expect("a topic");
    cluster.request_errors(
        RDKafkaApiKey::InitProducerId,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED],
    );
    let log =
        KafkaLog::connect(&kafka_settings(&cluster.bootstrap_servers(), &[])).expect("settings");
    append(&log, "t", record("k", "v")).await;
}
