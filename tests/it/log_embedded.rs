//! The embedded log: the contract in memory and on disk, and what only it promises.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::config::settings::EmbeddedSettings;
use chatmesh::log::embedded::EmbeddedLog;
use chatmesh::log::{AppendError, Consumer, ConsumerEvent, Log};
use chatmesh::protocol::log_record::{NewRecord, Record};
use chatmesh::store::Store;
use futures_util::FutureExt;
use tempfile::TempDir;

use crate::log_contract::{PARTITIONS, log_contract};

const TIMEOUT: Duration = Duration::from_secs(10);

fn settings() -> EmbeddedSettings {
    EmbeddedSettings {
        data_dir: None,
        partitions: PARTITIONS,
        retention: Duration::from_secs(3600),
        min_free_disk: 0,
        bounds: Bounds::default(),
    }
}

fn open(store: Store, settings: &EmbeddedSettings) -> Arc<dyn Log> {
    Arc::new(EmbeddedLog::open(store, settings, TIMEOUT).unwrap())
}

fn open_dir(dir: &Path) -> Arc<dyn Log> {
    open(Store::open(dir, 0).unwrap(), &settings())
}

mod memory {
    use super::*;

    #[allow(clippy::unused_async, reason = "other backends have to wait")]
    async fn backend() -> (Arc<dyn Log>, ()) {
        (open(Store::in_memory(), &settings()), ())
    }

    log_contract!(backend);
}

mod durable {
    use super::*;

    #[allow(clippy::unused_async, reason = "other backends have to wait")]
    async fn backend() -> (Arc<dyn Log>, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (open_dir(dir.path()), dir)
    }

    log_contract!(backend);
}

fn record(value: &str) -> NewRecord {
    NewRecord {
        key: Some("k".into()),
        value: value.to_owned().into(),
        null_value: false,
        headers: vec![("name".into(), "value".into())],
    }
}

async fn next_record(consumer: &mut Box<dyn Consumer>) -> Record {
    loop {
        let event = tokio::time::timeout(TIMEOUT, consumer.next()).await;
        if let ConsumerEvent::Record(record) = event.expect("a record in time") {
            return record;
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_records_offsets_commits_and_the_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut id = None;
    for round in 0..3i64 {
        let log = open_dir(dir.path());
        let now = log.cluster_id().await.unwrap();
        assert_eq!(*id.get_or_insert_with(|| now.clone()), now);
        let place = log.append("t", record(&round.to_string())).await.unwrap();
        assert_eq!(place.offset, round, "an offset was given out twice");
        let mut keeping = log.consumer("keeps", "t").unwrap();
        let mut reading = log.consumer("reads", "t").unwrap();
        let kept = next_record(&mut keeping).await;
        assert_eq!(kept.offset, round, "it goes on where it was");
        assert_eq!(kept.headers, record("").headers);
        keeping.store_offset(kept.partition, kept.offset + 1);
        keeping.close().await;
        assert_eq!(next_record(&mut reading).await.offset, 0, "from the start");
    }
}

#[tokio::test]
async fn stored_offsets_are_committed_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_dir(dir.path());
    log.append("t", record("0")).await.unwrap();
    log.append("t", record("1")).await.unwrap();
    let mut first = log.consumer("g", "t").unwrap();
    let begun = next_record(&mut first).await;
    first.store_offset(begun.partition, 1);
    // It leaves as a killed one does; what was committed by then is all that counts.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    first.store_offset(begun.partition, 2);
    drop(first);
    let mut second = log.consumer("g", "t").unwrap();
    assert_eq!(next_record(&mut second).await.offset, 1);
}

#[tokio::test]
async fn a_waiting_reader_is_woken_at_once() {
    let log = open(Store::in_memory(), &settings());
    let mut consumer = log.consumer("g", "t").unwrap();
    let reading = tokio::spawn(async move {
        for n in 0..200 {
            assert_eq!(next_record(&mut consumer).await.offset, n);
        }
    });
    let begun = std::time::Instant::now();
    for _ in 0..200 {
        log.append("t", record("v")).await.unwrap();
    }
    tokio::time::timeout(TIMEOUT, reading)
        .await
        .unwrap()
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "it polls");
}

#[tokio::test]
async fn what_every_group_has_finished_is_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let quick = EmbeddedSettings {
        retention: Duration::from_millis(50),
        ..settings()
    };
    let log = open(Store::open(dir.path(), 0).unwrap(), &quick);
    for n in 0..10 {
        log.append("t", record(&n.to_string())).await.unwrap();
        log.append("t.dlq", record("dead")).await.unwrap();
    }
    let mut ahead = log.consumer("ahead", "t").unwrap();
    let mut behind = log.consumer("behind", "t").unwrap();
    let partition = next_record(&mut ahead).await.partition;
    next_record(&mut behind).await;
    ahead.store_offset(partition, 8);
    behind.store_offset(partition, 3);
    let begun = std::time::Instant::now();
    while log.offset_at("t", partition, 0).await.unwrap() != Some(3) {
        assert!(begun.elapsed() < TIMEOUT, "nothing was removed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Longer than it takes to remove: the records that one group has not finished stay.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(log.offset_at("t", partition, 0).await.unwrap(), Some(3));
    assert_eq!(log.offset_at("t.dlq", partition, 0).await.unwrap(), Some(0));

    behind.store_offset(partition, 10);
    ahead.store_offset(partition, 10);
    let begun = std::time::Instant::now();
    while log.offset_at("t", partition, 0).await.unwrap().is_some() {
        assert!(begun.elapsed() < TIMEOUT, "not all was removed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop((ahead, behind, log));
    let log = open_dir(dir.path());
    let place = log.append("t", record("new")).await.unwrap();
    assert_eq!(place.offset, 10, "offsets of removed records come again");
    let mut late = log.consumer("late", "t").unwrap();
    assert_eq!(next_record(&mut late).await.offset, 10);
}

#[tokio::test]
async fn without_room_new_messages_are_refused_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(Store::open(dir.path(), u64::MAX).unwrap(), &settings());
    let refused = log.append("incoming_messages", record("v")).await;
    assert!(
        matches!(refused, Err(AppendError::Unknown(_))),
        "{refused:?}"
    );
    log.append("responses", record("v")).await.unwrap();
    let text = log.check().await.unwrap_err().to_string();
    assert!(text.contains("MIN_FREE_DISK"), "{text}");
}

/// Not a test of its own: the child that the next one starts and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_works_until_it_is_killed() {
    let Ok(dir) = std::env::var("CHATMESH_TEST_LOG_CHILD") else {
        return;
    };
    let log = open_dir(&Path::new(&dir).join("data"));
    let mut report = std::fs::File::create(Path::new(&dir).join("report")).unwrap();
    let mut consumer = log.consumer("g", "t").unwrap();
    tokio::spawn(async move {
        loop {
            let record = next_record(&mut consumer).await;
            consumer.store_offset(record.partition, record.offset + 1);
        }
    });
    loop {
        let waiting: Vec<_> = (0..20)
            .map(|n| log.append("t", record(&n.to_string())))
            .collect();
        for append in waiting {
            let place = append.await.unwrap();
            writeln!(report, "{}", place.offset).unwrap();
        }
    }
}

/// Offsets whose acknowledgement the child has seen; a cut last line does not count.
fn acknowledged(dir: &Path) -> Vec<i64> {
    let text = std::fs::read_to_string(dir.join("report")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_acknowledged_record_and_gives_no_offset_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = -1;
    for _ in 0..3 {
        let _ = std::fs::remove_file(dir.path().join("report"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "log_embedded::child_that_works_until_it_is_killed",
                "--exact",
            ])
            .env("CHATMESH_TEST_LOG_CHILD", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begun = std::time::Instant::now();
        while acknowledged(dir.path()).len() < 300 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no progress");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let acknowledged = acknowledged(dir.path());
        assert!(acknowledged[0] > last, "an offset was given out again");
        let log = open_dir(&dir.path().join("data"));
        let mut consumer = log.consumer("reads", "t").unwrap();
        last = *acknowledged.last().unwrap();
        for expected in 0..=last {
            assert_eq!(next_record(&mut consumer).await.offset, expected);
        }
        let end = log.append("t", record("v")).await.unwrap().offset;
        assert!(end > last);
        last = end;
        let mut worker = log.consumer("g", "t").unwrap();
        let ConsumerEvent::Assigned(assigned) = worker.next().await else {
            panic!("the first event is the assignment");
        };
        let committed = assigned.iter().filter_map(|a| a.committed).max();
        assert!(committed <= Some(end), "more is finished than there was");
    }
}

#[tokio::test]
async fn what_is_read_from_disk_comes_whole_and_in_order_and_not_after_a_seek() {
    let dir = tempfile::tempdir().unwrap();
    {
        let log = open_dir(dir.path());
        let text = "x".repeat(20_000);
        let waiting: Vec<_> = (0..200).map(|_| log.append("t", record(&text))).collect();
        for append in waiting {
            append.await.unwrap();
        }
    }
    let log = open_dir(dir.path());
    let mut consumer = log.consumer("g", "t").unwrap();
    let ConsumerEvent::Assigned(_) = consumer.next().await else {
        panic!("the first event is the assignment");
    };
    let mut probe = log.consumer("probe", "t").unwrap();
    let partition = next_record(&mut probe).await.partition;
    for from in [150, 0, 20, 199] {
        // Begins to read on, and is given up with the read under way.
        let _ = consumer.next().now_or_never();
        consumer.seek(partition, from).await.unwrap();
        for expected in from..(from + 30).min(200) {
            let record = next_record(&mut consumer).await;
            assert_eq!((record.offset, record.value.len()), (expected, 20_000));
        }
    }
    consumer.seek(partition, 0).await.unwrap();
    for expected in 0..200 {
        assert_eq!(next_record(&mut consumer).await.offset, expected);
    }
}
