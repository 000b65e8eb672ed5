use std::time::Duration;

use super::*;
use crate::config::bounds::Bounds;
use crate::config::settings::EmbeddedSettings;
use crate::log::Log;
use crate::log::embedded::EmbeddedLog;
use crate::protocol::record::Question;
use crate::store::Store;

const TOPIC: &str = "incoming_messages";
const DEAD: &str = "incoming_messages.dlq";

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

fn letters(log: &EmbeddedLog) -> Letters {
    Letters::new(
        Arc::new(log.clone()),
        vec![DEAD.into(), "responses.dlq".into()],
    )
}

fn dead(user: &str, offset: i64, reason: &str, more: &[(&str, &str)]) -> NewRecord {
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
    headers.extend(more);
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

async fn all(log: &EmbeddedLog, topic: &str) -> Vec<Record> {
    let mut all = Vec::new();
    for extent in log.partition_ranges(topic).await.unwrap() {
        let mut from = extent.start;
        while from < extent.end {
            let page = log
                .read(topic, extent.partition, from, extent.end, 100)
                .await
                .unwrap();
            from = page.last().unwrap().offset + 1;
            all.extend(page);
        }
    }
    all
}

#[tokio::test]
async fn a_replay_is_a_new_message_that_names_the_old_one_and_settles_the_letter() {
    let log = log();
    let letters = letters(&log);
    log.append(DEAD, dead("alice", 7, "provider_rejected: status 400", &[]))
        .await
        .unwrap();
    let listed = letters.list(&Filter::default()).await.unwrap();
    let [letter] = &listed[..] else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (letter.code.as_str(), letter.message_id.as_str()),
        ("provider_rejected", "old-7")
    );
    assert_eq!(letter.userid.as_deref(), Some("alice"));
    assert!(
        !serde_json::to_string(&letter).unwrap().contains("secret"),
        "{letter:?}"
    );

    let way = letters.replay(letter).await.unwrap();
    let Way::Replayed { message_id, .. } = &way else {
        panic!("{way:?}")
    };
    assert!(letters.list(&Filter::default()).await.unwrap().is_empty());
    let back = all(&log, TOPIC).await;
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].header_text("message_id"), Some(message_id.as_str()));
    assert_eq!(back[0].header_text("replay_of"), Some("old-7"));
    assert!(
        back[0]
            .headers
            .iter()
            .all(|(name, _)| !name.starts_with("dlq."))
    );
    let question = Question::parse(&back[0]).unwrap();
    assert_eq!(
        (question.message_id.as_str(), question.id),
        (message_id.as_str(), None)
    );
    assert_eq!(&*question.content, "secret of alice");
    assert_eq!(&*question.correlation_id, "corr-7");
    let value: Value = serde_json::from_slice(&back[0].value).unwrap();
    assert_eq!(value["replay_of"], "old-7");

    // Who died between the two appends does it again: the same message, so nobody pays twice.
    let again = letters.replay(letter).await.unwrap();
    assert!(matches!(again, Way::Replayed { message_id: again, .. } if again == *message_id));
    let opened = letters.open(&letter.address).await.unwrap().unwrap();
    assert!(matches!(opened.settled, Some(Way::Replayed { .. })));
}

#[tokio::test]
async fn a_letter_that_is_there_twice_is_one_and_its_settlement_lies_in_its_partition() {
    let log = log();
    let letters = letters(&log);
    for offset in [1, 2, 1, 3] {
        log.append(
            DEAD,
            dead("bob", offset, "unreadable record: not JSON", &[]),
        )
        .await
        .unwrap();
    }
    let listed = letters.list(&Filter::default()).await.unwrap();
    assert_eq!(listed.len(), 3, "{listed:?}");
    let twice = listed
        .iter()
        .find(|letter| letter.message_id == "old-1")
        .unwrap();
    assert_eq!((twice.copies.len(), twice.code.as_str()), (1, "unreadable"));
    letters.drop(twice).await.unwrap();
    let left = letters.list(&Filter::default()).await.unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    let partitions: Vec<i32> = all(&log, DEAD).await.iter().map(|r| r.partition).collect();
    assert!(
        partitions.iter().all(|p| *p == partitions[0]),
        "{partitions:?}"
    );
    let found = letters.find(&[twice.copies[0].clone()]).await.unwrap();
    assert!(
        matches!(found[0].1, Some((_, Some(Way::Dropped)))),
        "{found:?}"
    );
    assert!(all(&log, TOPIC).await.is_empty());
}

#[tokio::test]
async fn what_was_too_large_for_its_letter_is_taken_from_where_it_was() {
    let log = log();
    let letters = letters(&log);
    let mut record = dead("carol", 0, "x", &[]);
    record.headers.clear();
    let place = log.append(TOPIC, record.clone()).await.unwrap();
    let at_ms = all(&log, TOPIC).await[0].timestamp_ms.to_string();
    let (partition, offset) = (place.partition.to_string(), place.offset.to_string());
    for timestamp in [at_ms.as_str(), "12"] {
        let mut letter = dead(
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
        letter.value = Bytes::new();
        log.append(DEAD, letter).await.unwrap();
    }
    let listed = letters.list(&Filter::default()).await.unwrap();
    letters.replay(&listed[0]).await.unwrap();
    let back = all(&log, TOPIC).await.pop().unwrap();
    assert_eq!(&*Question::parse(&back).unwrap().content, "secret of carol");
    // The other one's topic was made anew: another record is there now.
    assert!(matches!(
        letters.replay(&listed[1]).await,
        Err(Failure::ValueGone)
    ));
}

#[tokio::test]
async fn filters_take_what_they_say() {
    let log = log();
    let letters = letters(&log);
    log.append(DEAD, dead("a", 1, "internal", &[]))
        .await
        .unwrap();
    log.append(DEAD, dead("b", 2, "ended before: provider_timeout", &[]))
        .await
        .unwrap();
    log.append("responses.dlq", dead("c", 3, "unreadable record: x", &[]))
        .await
        .unwrap();
    let list = async |filter: Filter| letters.list(&filter).await.unwrap().len();
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
fn an_address_reads_back_and_nothing_else_does() {
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
async fn only_dead_letter_topics_may_be_named() {
    let log = log();
    let letters = letters(&log);
    let live = log.append(TOPIC, dead("a", 1, "x", &[])).await.unwrap();
    let address = Address {
        topic: TOPIC.into(),
        partition: live.partition,
        offset: live.offset,
    };
    let one = std::slice::from_ref(&address);
    let mut errors = Vec::new();
    for replay in [false, true] {
        errors.push(letters.settle_at(one, replay).await.unwrap_err());
    }
    errors.push(letters.find(one).await.unwrap_err());
    errors.push(letters.open(&address).await.unwrap_err());
    for error in errors {
        let meant = format!("{DEAD}/{}/{} may be meant", live.partition, live.offset);
        assert!(error.to_string().ends_with(&meant), "{error}");
    }
    let topic = Some(TOPIC.to_owned());
    let filter = Filter {
        topic,
        ..Filter::default()
    };
    letters.list(&filter).await.unwrap_err();
    let other: Address = "tables.dlq/0/0".parse().unwrap();
    let error = letters.settle_at(&[other], false).await.unwrap_err();
    assert!(!error.to_string().contains("may be meant"), "{error}");
    assert_eq!(all(&log, TOPIC).await.len(), 1, "nothing is written");
}

#[tokio::test]
async fn a_header_that_was_copied_from_a_message_settles_nothing() {
    let log = log();
    let letters = letters(&log);
    log.append(DEAD, dead("a", 1, "internal", &[]))
        .await
        .unwrap();
    let listed = letters.list(&Filter::default()).await.unwrap();
    let at = &listed[0].address;
    let at = format!("{}/{}", at.partition, at.offset);
    let copied = [(settlement::OF, at.as_str()), (settlement::BY, "drop")];
    // As a dead letter with and without its value, and as what a stranger may write.
    log.append(DEAD, dead("a", 2, "unreadable record: x", &copied))
        .await
        .unwrap();
    let mut empty = dead("a", 3, "unreadable record: x", &copied);
    empty.value = Bytes::new();
    log.append(DEAD, empty.clone()).await.unwrap();
    empty.headers.retain(|(name, _)| name == settlement::OF);
    log.append(DEAD, empty).await.unwrap();
    let left = letters.list(&Filter::default()).await.unwrap();
    assert_eq!(left.len(), 4, "{left:?}");
    letters.drop(&left[0]).await.unwrap();
    assert_eq!(letters.list(&Filter::default()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_letter_that_came_from_no_topic_that_is_read_is_not_replayed() {
    let log = log();
    let letters = letters(&log);
    for topic in ["", "elsewhere", DEAD] {
        let mut record = dead("a", 1, "internal", &[]);
        record.headers.retain(|(name, _)| name != dlq::TOPIC);
        let topic = Bytes::from(topic.to_owned());
        record.headers.push((dlq::TOPIC.to_owned(), topic));
        log.append(DEAD, record).await.unwrap();
    }
    let listed = letters.list(&Filter::default()).await.unwrap();
    assert_eq!(listed.len(), 3);
    for letter in &listed {
        let failed = letters.replay(letter).await;
        assert!(matches!(failed, Err(Failure::NoSource(_))), "{failed:?}");
    }
    assert_eq!(letters.list(&Filter::default()).await.unwrap().len(), 3);
}
