//! Appending: order per key, partitions, contents and the size limit.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chatmesh::log::{AppendError, Log, LogOffset};
use chatmesh::protocol::log_record::NewRecord;

use super::{Member, PARTITIONS, create_topic, numbers, record, text, unique_group};

pub(crate) async fn records_of_one_key_keep_the_order_of_append_calls(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    let mut futures = Vec::new();
    for n in 0..50 {
        for key in ["a", "b", "c", "d", "e"] {
            futures.push((
                key,
                log.append(&topic, record(Some(key), &format!("{key}{n}"))),
            ));
        }
    }
    let mut offsets: BTreeMap<&str, Vec<LogOffset>> = BTreeMap::new();
    for (key, future) in futures.into_iter().rev() {
        offsets
            .entry(key)
            .or_default()
            .insert(0, future.await.expect("the append succeeds"));
    }
    for (key, offsets) in &offsets {
        assert!(
            offsets.is_sorted_by(|earlier, later| {
                earlier.partition == later.partition && earlier.offset < later.offset
            }),
            "{key}: {offsets:?}"
        );
    }
    let mut member = Member::join(&log, &unique_group(), &topic);
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in member.records(250).await {
        let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
        let expected = offsets[key.as_str()][values.get(&key).map_or(0, Vec::len)];
        assert_eq!(
            (record.partition, record.offset),
            (expected.partition, expected.offset)
        );
        values.entry(key).or_default().push(text(&record));
    }
    for (key, values) in values {
        let expected: Vec<_> = (0..50).map(|n| format!("{key}{n}")).collect();
        assert_eq!(values, expected);
    }
    member.close().await;
}

pub(crate) async fn keys_map_to_the_partitions_of_kafkas_java_client(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    // These keys and hashes are from the test of Kafka's Java client.
    for (key, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ] {
        for _ in 0..2 {
            let appended = log.append(&topic, record(Some(key), "v")).await.unwrap();
            assert_eq!(
                appended.partition,
                (hash & 0x7fff_ffff) % PARTITIONS,
                "{key}"
            );
        }
    }
}

pub(crate) async fn records_are_read_as_they_were_appended(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    let every_byte: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let header = |name: &str, value: &[u8]| (name.to_owned(), Bytes::copy_from_slice(value));
    let sent = [
        NewRecord::default(),
        NewRecord {
            key: Some(Bytes::new()),
            value: every_byte.clone(),
            null_value: false,
            headers: vec![
                header("twice", b"1"),
                header("empty", b""),
                header("twice", b"2"),
            ],
        },
        NewRecord {
            key: Some(every_byte.clone()),
            value: Bytes::new(),
            null_value: false,
            headers: vec![header("binary", &every_byte)],
        },
        NewRecord {
            key: None,
            value: vec![b'x'; 900_000].into(),
            null_value: false,
            headers: vec![],
        },
    ];
    let mut offsets = Vec::new();
    for record in &sent {
        offsets.push(
            log.append(&topic, record.clone())
                .await
                .expect("the append succeeds"),
        );
    }
    let mut member = Member::join(&log, &unique_group(), &topic);
    for record in member.records(sent.len()).await {
        let index = offsets
            .iter()
            .position(|appended| {
                (appended.partition, appended.offset) == (record.partition, record.offset)
            })
            .expect("the record has one of the appended offsets");
        assert_eq!(&*record.topic, topic);
        assert_eq!(record.key, sent[index].key);
        assert!(
            record.value == sent[index].value,
            "expected the value of record {index}"
        );
        assert_eq!(record.headers, sent[index].headers);
        assert!(
            record.timestamp_ms > 1_700_000_000_000,
            "expected a current timestamp: {record:?}"
        );
    }
    member.close().await;
}

pub(crate) async fn oversized_record_is_refused_without_affecting_others(log: Arc<dyn Log>) {
    let topic = create_topic(&log).await;
    let before = log.append(&topic, record(Some("k"), "0"));
    let oversized = log.append(
        &topic,
        NewRecord {
            key: Some(Bytes::from_static(b"k")),
            value: vec![0; 2 << 20].into(),
            null_value: false,
            headers: Vec::new(),
        },
    );
    let after = log.append(&topic, record(Some("k"), "1"));
    assert!(matches!(oversized.await, Err(AppendError::Refused(_))));
    before.await.expect("the append before it succeeds");
    after.await.expect("the append after it succeeds");
    let mut member = Member::join(&log, &unique_group(), &topic);
    assert_eq!(numbers(&member.records(2).await), [0, 1]);
    member.close().await;
}
