//! The embedded log: the contract suite in memory and on disk, and guarantees that only it has.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chatmesh::config::settings::EmbeddedSettings;
use chatmesh::log::embedded::EmbeddedLog;
use chatmesh::log::{AppendError, Consumer, ConsumerEvent, Log};
use chatmesh::protocol::log_record::{NewRecord, Record};
use chatmesh::store::Store;
use futures_util::FutureExt;
use tempfile::TempDir;

use crate::log_contract::{PARTITIONS, log_contract};
use crate::settings::embedded_settings;

/// Time limit of an awaited condition.
const TIMEOUT: Duration = Duration::from_secs(10);

fn settings() -> EmbeddedSettings {
    embedded_settings(PARTITIONS)
}

fn open_log(store: Store, settings: &EmbeddedSettings) -> Arc<dyn Log> {
    Arc::new(EmbeddedLog::open(store, settings, TIMEOUT).unwrap())
}

fn open_dir(dir: &Path) -> Arc<dyn Log> {
    open_log(Store::open(dir, 0).unwrap(), &settings())
}

mod memory {
    use super::*;

    #[allow(
        clippy::unused_async,
        reason = "other backends are opened asynchronously"
    )]
    async fn backend() -> (Arc<dyn Log>, ()) {
        (open_log(Store::in_memory(), &settings()), ())
    }

    log_contract!(backend);
}

mod durable {
    use super::*;

    #[allow(
        clippy::unused_async,
        reason = "other backends are opened asynchronously"
    )]
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
async fn records_offsets_commits_and_id_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut id = None;
    for round in 0..3i64 {
        let log = open_dir(dir.path());
        let cluster_id = log.cluster_id().await.unwrap();
        assert_eq!(*id.get_or_insert_with(|| cluster_id.clone()), cluster_id);
        let appended = log.append("t", record(&round.to_string())).await.unwrap();
        assert_eq!(appended.offset, round, "an offset was assigned twice");
        let mut committing = log.consumer("commits", "t").unwrap();
        let mut reading = log.consumer("reads", "t").unwrap();
        let next = next_record(&mut committing).await;
        assert_eq!(next.offset, round, "the group continues at its commit");
        assert_eq!(next.headers, record("").headers);
        committing.store_offset(next.partition, next.offset + 1);
        committing.close().await;
        let first = next_record(&mut reading).await;
        assert_eq!(first.offset, 0, "a group without a commit starts at 0");
    }
}

#[tokio::test]
async fn stored_offsets_are_committed_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(Store::open(dir.path(), 0).unwrap(), &short_retention());
    log.append("t", record("0")).await.unwrap();
    log.append("t", record("1")).await.unwrap();
    let mut first = log.consumer("g", "t").unwrap();
    let partition = next_record(&mut first).await.partition;
    first.store_offset(partition, 1);
    // A record is removed only after an offset above it was committed.
    wait_for_log_start(&log, "t", partition, Some(1)).await;
    // Dropping the consumer commits nothing, as when its process is killed. So the offset 2 is
    // lost.
    first.store_offset(partition, 2);
    drop(first);
    let mut second = log.consumer("g", "t").unwrap();
    let ConsumerEvent::Assigned(assigned) = second.next().await else {
        panic!("the first event is the assignment");
    };
    assert_eq!(assigned[partition as usize].committed_offset, Some(1));
    assert_eq!(next_record(&mut second).await.offset, 1);
}

fn short_retention() -> EmbeddedSettings {
    EmbeddedSettings {
        retention: Duration::from_millis(50),
        ..settings()
    }
}

/// Waits until the partition starts at this offset; `None` waits until it is empty.
async fn wait_for_log_start(log: &Arc<dyn Log>, topic: &str, partition: i32, start: Option<i64>) {
    let started = std::time::Instant::now();
    while log.offset_at(topic, partition, 0).await.unwrap() != start {
        assert!(
            started.elapsed() < TIMEOUT,
            "{topic} does not start at {start:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until maintenance has examined every partition: it has removed two sentinel records one
/// after the other, so it has made one complete pass in between.
async fn wait_for_removal_pass(log: &Arc<dyn Log>) {
    let mut consumer = log.consumer("g", "sentinels").unwrap();
    for _ in 0..2 {
        log.append("sentinels", record("sentinel")).await.unwrap();
        let sentinel = next_record(&mut consumer).await;
        consumer.store_offset(sentinel.partition, sentinel.offset + 1);
        wait_for_log_start(log, "sentinels", sentinel.partition, None).await;
    }
    consumer.close().await;
}

#[tokio::test]
async fn append_wakes_a_waiting_consumer() {
    let log = open_log(Store::in_memory(), &settings());
    let mut consumer = log.consumer("g", "t").unwrap();
    let reading = tokio::spawn(async move {
        for n in 0..200 {
            assert_eq!(next_record(&mut consumer).await.offset, n);
        }
    });
    let started = std::time::Instant::now();
    for _ in 0..200 {
        log.append("t", record("v")).await.unwrap();
    }
    tokio::time::timeout(TIMEOUT, reading)
        .await
        .unwrap()
        .unwrap();
    // A consumer that polled instead would need a second for each record.
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn only_expired_records_finished_by_every_group_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(Store::open(dir.path(), 0).unwrap(), &short_retention());
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
    wait_for_log_start(&log, "t", partition, Some(3)).await;
    // The records that one of the groups has not finished are kept.
    wait_for_removal_pass(&log).await;
    assert_eq!(log.offset_at("t", partition, 0).await.unwrap(), Some(3));
    assert_eq!(log.offset_at("t.dlq", partition, 0).await.unwrap(), Some(0));

    behind.store_offset(partition, 10);
    ahead.store_offset(partition, 10);
    wait_for_log_start(&log, "t", partition, None).await;
    drop((ahead, behind, log));
    let log = open_dir(dir.path());
    let appended = log.append("t", record("new")).await.unwrap();
    assert_eq!(
        appended.offset, 10,
        "the offset of a removed record was assigned again"
    );
    let mut late = log.consumer("late", "t").unwrap();
    assert_eq!(next_record(&mut late).await.offset, 10);
}

#[tokio::test]
async fn too_little_free_space_refuses_new_messages_only() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(Store::open(dir.path(), u64::MAX).unwrap(), &settings());
    let refused = log.append("incoming_messages", record("v")).await;
    assert!(
        matches!(refused, Err(AppendError::Unknown(_))),
        "{refused:?}"
    );
    log.append("responses", record("v")).await.unwrap();
    let text = log.check().await.unwrap_err().to_string();
    assert!(text.contains("MIN_FREE_DISK"), "{text}");
}

/// Runs in the child process that `kill_9_loses_no_acknowledged_record_and_reuses_no_offset` starts
/// and kills. Without the environment variable of that process, this test does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process_works_until_killed() {
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
        let appends: Vec<_> = (0..20)
            .map(|n| log.append("t", record(&n.to_string())))
            .collect();
        for append in appends {
            let appended = append.await.unwrap();
            writeln!(report, "{}", appended.offset).unwrap();
        }
    }
}

/// The offsets whose acknowledgement the child process received. The kill may truncate the last
/// line, which does not count then.
fn acknowledged_offsets(dir: &Path) -> Vec<i64> {
    let text = std::fs::read_to_string(dir.join("report")).unwrap_or_default();
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    complete.lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_acknowledged_record_and_reuses_no_offset() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = -1;
    for _ in 0..3 {
        let _ = std::fs::remove_file(dir.path().join("report"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["log_embedded::child_process_works_until_killed", "--exact"])
            .env("CHATMESH_TEST_LOG_CHILD", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = std::time::Instant::now();
        while acknowledged_offsets(dir.path()).len() < 300 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "the child process acknowledges too few records"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let acknowledged = acknowledged_offsets(dir.path());
        assert!(acknowledged[0] > last, "an offset was assigned again");
        let log = open_dir(&dir.path().join("data"));
        let mut consumer = log.consumer("reads", "t").unwrap();
        last = *acknowledged.last().unwrap();
        for expected in 0..=last {
            assert_eq!(next_record(&mut consumer).await.offset, expected);
        }
        let appended_offset = log.append("t", record("v")).await.unwrap().offset;
        assert!(appended_offset > last);
        last = appended_offset;
        let mut worker = log.consumer("g", "t").unwrap();
        let ConsumerEvent::Assigned(assigned) = worker.next().await else {
            panic!("the first event is the assignment");
        };
        let committed = assigned.iter().filter_map(|a| a.committed_offset).max();
        assert!(
            committed <= Some(appended_offset),
            "the commit is above the last record"
        );
    }
}

#[tokio::test]
async fn records_read_from_disk_are_complete_ordered_and_dropped_by_a_seek() {
    let dir = tempfile::tempdir().unwrap();
    {
        let log = open_dir(dir.path());
        let text = "x".repeat(20_000);
        let appends: Vec<_> = (0..200).map(|_| log.append("t", record(&text))).collect();
        for append in appends {
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
        // This call starts a read of the disk, and is cancelled while the read is in progress.
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
