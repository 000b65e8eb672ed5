//! Tests of the dead-letter queue on an embedded log in memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::format::header as dlq;
use super::*;
use crate::config::bounds::Bounds;
use crate::config::settings::EmbeddedSettings;
use crate::log::embedded::EmbeddedLog;
use crate::log::{Log, LogBrowser};
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::Question;
use crate::store::Store;

const TOPIC: &str = "incoming_messages";
const DEAD_LETTERS: &str = "incoming_messages.dlq";

fn log() -> EmbeddedLog {
    let settings = EmbeddedSettings {
        data_dir: None,
        partitions: 4,
        retention: Duration::from_secs(3600),
        min_free_disk: 0,
        bounds: Bounds::default(),
    };
    EmbeddedLog::open(Store::in_memory(), &settings, Duration::from_secs(5)).unwrap()
}

fn queue(log: &EmbeddedLog) -> DeadLetterQueue {
    DeadLetterQueue::new(
        Arc::new(log.clone()),
        vec![DEAD_LETTERS.into(), "responses.dlq".into()],
    )
}

fn dead_letter_record(
    user: &str,
    offset: i64,
    reason: &str,
    extra_headers: &[(&str, &str)],
) -> NewRecord {
    let value = serde_json::json!({
        "v": 1, "type": "message", "content": format!("secret of {user}"), "userid": user,
        "message_id": format!("old-{offset}"), "id": "client-1", "conversation_id": "c",
        "correlation_id": format!("corr-{offset}"),
    });
    let offset = offset.to_string();
    let old = format!("old-{offset}");
    let mut headers = vec![
        ("message_id", old.as_str()),
        (dlq::REASON, reason),
        (dlq::ATTEMPTS, "1"),
        (dlq::TOPIC, TOPIC),
        (dlq::PARTITION, "2"),
        (dlq::OFFSET, &offset),
        (dlq::TIMESTAMP, "1700000000000"),
    ];
    headers.extend(extra_headers);
    let headers = headers.into_iter();
    NewRecord {
        key: Some(Bytes::from(user.to_owned())),
        value: Bytes::from(value.to_string()),
        null_value: false,
        headers: headers
            .map(|(n, v)| (n.to_owned(), Bytes::from(v.to_owned())))
            .collect(),
    }
}

async fn read_all(log: &EmbeddedLog, topic: &str) -> Vec<Record> {
    let mut records = Vec::new();
    for range in log.partition_ranges(topic).await.unwrap() {
        let mut from = range.start;
        while from < range.end {
            let page = log
                .read(topic, range.partition, from, range.end, 100)
                .await
                .unwrap();
            from = page.last().unwrap().offset + 1;
            records.extend(page);
        }
    }
    records
}

#[tokio::test]
async fn a_replay_is_a_new_message_that_names_the_old_one_and_settles_the_dead_letter() {
    let log = log();
    let queue = queue(&log);
    log.append(
        DEAD_LETTERS,
        dead_letter_record("alice", 7, "provider_rejected: status 400", &[]),
    )
    .await
    .unwrap();
    let listed = queue.list(&Filter::default()).await.unwrap();
    let [dead_letter] = &listed[..] else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (dead_letter.code.as_str(), dead_letter.message_id.as_str()),
        ("provider_rejected", "old-7")
    );
    assert_eq!(dead_letter.userid.as_deref(), Some("alice"));
    assert!(
        !serde_json::to_string(&dead_letter)
            .unwrap()
            .contains("secret"),
        "{dead_letter:?}"
    );

    let resolution = queue
        .settle(dead_letter, SettleAction::Replay)
        .await
        .unwrap();
    let Resolution::Replayed { message_id, .. } = &resolution else {
        panic!("{resolution:?}")
    };
    assert!(queue.list(&Filter::default()).await.unwrap().is_empty());
    let replayed = read_all(&log, TOPIC).await;
    assert_eq!(replayed.len(), 1);
    assert_eq!(
        replayed[0].header_text("message_id"),
        Some(message_id.as_str())
    );
    assert_eq!(replayed[0].header_text("replay_of"), Some("old-7"));
    assert!(
        replayed[0]
            .headers
            .iter()
            .all(|(name, _)| !name.starts_with("dlq."))
    );
    let question = Question::parse(&replayed[0]).unwrap();
    assert_eq!(
        (question.message_id.as_str(), question.id),
        (message_id.as_str(), None)
    );
    assert_eq!(&*question.content, "secret of alice");
    assert_eq!(&*question.correlation_id, "corr-7");
    let value: Value = serde_json::from_slice(&replayed[0].value).unwrap();
    assert_eq!(value["replay_of"], "old-7");

    // After a crash between the two appends, the operator repeats the replay. It must have the same
    // message id, so that the model is not called again.
    let again = queue
        .settle(dead_letter, SettleAction::Replay)
        .await
        .unwrap();
    assert!(
        matches!(again, Resolution::Replayed { message_id: again, .. } if again == *message_id)
    );
    let detail = queue.detail(&dead_letter.address).await.unwrap().unwrap();
    assert!(matches!(
        detail.resolution,
        Some(Resolution::Replayed { .. })
    ));
}

#[tokio::test]
async fn duplicates_are_listed_once_and_the_settlement_is_in_the_partition_of_its_dead_letter() {
    let log = log();
    let queue = queue(&log);
    for offset in [1, 2, 1, 3] {
        log.append(
            DEAD_LETTERS,
            dead_letter_record("bob", offset, "unreadable record: not JSON", &[]),
        )
        .await
        .unwrap();
    }
    let listed = queue.list(&Filter::default()).await.unwrap();
    assert_eq!(listed.len(), 3, "{listed:?}");
    let duplicated = listed
        .iter()
        .find(|dead_letter| dead_letter.message_id == "old-1")
        .unwrap();
    assert_eq!(
        (duplicated.copies.len(), duplicated.code.as_str()),
        (1, "unreadable")
    );
    queue.settle(duplicated, SettleAction::Drop).await.unwrap();
    let remaining = queue.list(&Filter::default()).await.unwrap();
    assert_eq!(remaining.len(), 2, "{remaining:?}");
    let partitions: Vec<i32> = read_all(&log, DEAD_LETTERS)
        .await
        .iter()
        .map(|r| r.partition)
        .collect();
    assert!(
        partitions.iter().all(|p| *p == partitions[0]),
        "{partitions:?}"
    );
    let found = queue.find(&[duplicated.copies[0].clone()]).await.unwrap();
    assert!(
        matches!(found[0].1, Some((_, Some(Resolution::Dropped)))),
        "{found:?}"
    );
    assert!(read_all(&log, TOPIC).await.is_empty());
}

#[tokio::test]
async fn an_omitted_value_is_replayed_from_the_source_topic() {
    let log = log();
    let queue = queue(&log);
    let mut record = dead_letter_record("carol", 0, "x", &[]);
    record.headers.clear();
    let log_offset = log.append(TOPIC, record.clone()).await.unwrap();
    let at_ms = read_all(&log, TOPIC).await[0].timestamp_ms.to_string();
    let (partition, offset) = (
        log_offset.partition.to_string(),
        log_offset.offset.to_string(),
    );
    for timestamp in [at_ms.as_str(), "12"] {
        let mut record = dead_letter_record(
            "carol",
            0,
            "internal",
            &[
                (dlq::PARTITION, &partition),
                (dlq::OFFSET, &offset),
                (dlq::TIMESTAMP, timestamp),
                (dlq::VALUE_LEFT_OUT, "77"),
            ],
        );
        record.value = Bytes::new();
        log.append(DEAD_LETTERS, record).await.unwrap();
    }
    let listed = queue.list(&Filter::default()).await.unwrap();
    queue
        .settle(&listed[0], SettleAction::Replay)
        .await
        .unwrap();
    let replayed = read_all(&log, TOPIC).await.pop().unwrap();
    assert_eq!(
        &*Question::parse(&replayed).unwrap().content,
        "secret of carol"
    );
    // The second dead letter has another timestamp than the record at its source, as if the topic
    // had been deleted and created again. So the record there must not be replayed.
    assert!(matches!(
        queue.settle(&listed[1], SettleAction::Replay).await,
        Err(SettleError::ValueLost)
    ));
}

#[tokio::test]
async fn list_applies_each_filter() {
    let log = log();
    let queue = queue(&log);
    log.append(DEAD_LETTERS, dead_letter_record("a", 1, "internal", &[]))
        .await
        .unwrap();
    log.append(
        DEAD_LETTERS,
        dead_letter_record("b", 2, "ended before: provider_timeout", &[]),
    )
    .await
    .unwrap();
    log.append(
        "responses.dlq",
        dead_letter_record("c", 3, "unreadable record: x", &[]),
    )
    .await
    .unwrap();
    let list = async |filter: Filter| queue.list(&filter).await.unwrap().len();
    assert_eq!(list(Filter::default()).await, 3);
    assert_eq!(
        list(Filter {
            limit: Some(2),
            ..Filter::default()
        })
        .await,
        2
    );
    let code = Some("provider_timeout".to_owned());
    assert_eq!(
        list(Filter {
            code,
            ..Filter::default()
        })
        .await,
        1
    );
    assert_eq!(
        list(Filter {
            topic: Some("responses.dlq".into()),
            ..Filter::default()
        })
        .await,
        1
    );
    assert_eq!(
        list(Filter {
            since_ms: Some(i64::MAX / 2),
            ..Filter::default()
        })
        .await,
        0
    );
    assert_eq!(
        list(Filter {
            since_ms: Some(1),
            ..Filter::default()
        })
        .await,
        3
    );
}

#[test]
fn an_address_round_trips_and_malformed_ones_are_refused() {
    let address: Address = "a/b.dlq/3/42".parse().unwrap();
    assert_eq!(
        (address.topic.as_str(), address.partition, address.offset),
        ("a/b.dlq", 3, 42)
    );
    assert_eq!(address.to_string(), "a/b.dlq/3/42");
    for bad in ["", "x", "x/1", "x/1/", "x/-1/2", "/1/2", "x/1/y"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn topics_other_than_dead_letter_topics_are_refused() {
    let log = log();
    let queue = queue(&log);
    let log_offset = log
        .append(TOPIC, dead_letter_record("a", 1, "x", &[]))
        .await
        .unwrap();
    let address = Address {
        topic: TOPIC.into(),
        partition: log_offset.partition,
        offset: log_offset.offset,
    };
    let requested = std::slice::from_ref(&address);
    let mut errors = Vec::new();
    for action in [SettleAction::Drop, SettleAction::Replay] {
        errors.push(queue.settle_at(requested, action).await.unwrap_err());
    }
    errors.push(queue.find(requested).await.unwrap_err());
    errors.push(queue.detail(&address).await.unwrap_err());
    for error in errors {
        let suggestion = format!(
            "did you mean {DEAD_LETTERS}/{}/{}?",
            log_offset.partition, log_offset.offset
        );
        assert!(error.to_string().ends_with(&suggestion), "{error}");
    }
    let topic = Some(TOPIC.to_owned());
    let filter = Filter {
        topic,
        ..Filter::default()
    };
    queue.list(&filter).await.unwrap_err();
    let other: Address = "tables.dlq/0/0".parse().unwrap();
    let error = queue
        .settle_at(&[other], SettleAction::Drop)
        .await
        .unwrap_err();
    assert!(!error.to_string().contains("did you mean"), "{error}");
    assert_eq!(
        read_all(&log, TOPIC).await.len(),
        1,
        "no record may be appended to the source topic"
    );
}

#[tokio::test]
async fn settlement_headers_copied_from_a_message_settle_nothing() {
    let log = log();
    let queue = queue(&log);
    log.append(DEAD_LETTERS, dead_letter_record("a", 1, "internal", &[]))
        .await
        .unwrap();
    let listed = queue.list(&Filter::default()).await.unwrap();
    let address = &listed[0].address;
    let offset = format!("{}/{}", address.partition, address.offset);
    let copied = [(dlq::SETTLED, offset.as_str()), (dlq::SETTLED_BY, "drop")];
    // Appends three dead letters with these headers: one with a value, one without a value, and one
    // of another program, which has no other `dlq.` header. All of them must remain listed.
    log.append(
        DEAD_LETTERS,
        dead_letter_record("a", 2, "unreadable record: x", &copied),
    )
    .await
    .unwrap();
    let mut empty = dead_letter_record("a", 3, "unreadable record: x", &copied);
    empty.value = Bytes::new();
    log.append(DEAD_LETTERS, empty.clone()).await.unwrap();
    empty.headers.retain(|(name, _)| name == dlq::SETTLED);
    log.append(DEAD_LETTERS, empty).await.unwrap();
    let remaining = queue.list(&Filter::default()).await.unwrap();
    assert_eq!(remaining.len(), 4, "{remaining:?}");
    queue
        .settle(&remaining[0], SettleAction::Drop)
        .await
        .unwrap();
    assert_eq!(queue.list(&Filter::default()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_dead_letter_of_an_unconsumed_topic_is_not_replayed() {
    let log = log();
    let queue = queue(&log);
    for topic in ["", "elsewhere", DEAD_LETTERS] {
        let mut record = dead_letter_record("a", 1, "internal", &[]);
        record.headers.retain(|(name, _)| name != dlq::TOPIC);
        let topic = Bytes::from(topic.to_owned());
        record.headers.push((dlq::TOPIC.to_owned(), topic));
        log.append(DEAD_LETTERS, record).await.unwrap();
    }
    let listed = queue.list(&Filter::default()).await.unwrap();
    assert_eq!(listed.len(), 3);
    for dead_letter in &listed {
        let result = queue.settle(dead_letter, SettleAction::Replay).await;
        assert!(
            matches!(result, Err(SettleError::UnknownSource(_))),
            "{result:?}"
        );
    }
    assert_eq!(queue.list(&Filter::default()).await.unwrap().len(), 3);
}
