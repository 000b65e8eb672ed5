//! Tests of the store in memory and the store on disk: order, durability, recovery, and the data
//! directory.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn put(store: &Store, key: &str, value: &str) -> Ticket {
    let mut batch = Batch::default();
    batch.put(Table::Users, key, value);
    store.commit(batch).unwrap()
}

fn with_both_backends(test: impl Fn(Store)) {
    test(Store::in_memory());
    let dir = tempfile::tempdir().unwrap();
    test(Store::open(dir.path(), 0).unwrap());
}

#[test]
fn scan_returns_entries_in_key_order_within_its_bounds() {
    with_both_backends(|store| {
        let mut batch = Batch::default();
        for key in ["b", "a", "d", "c"] {
            batch.put(Table::Log, key, key);
            batch.put(Table::History, key, "elsewhere");
        }
        batch.delete(Table::Log, "d");
        store.commit(batch).unwrap();
        let keys = |from: &str, to: &str, limit, descending| -> Vec<String> {
            store
                .scan(
                    Table::Log,
                    from.as_bytes(),
                    to.as_bytes(),
                    limit,
                    descending,
                )
                .unwrap()
                .into_iter()
                .map(|(key, _)| String::from_utf8(key).unwrap())
                .collect()
        };
        assert_eq!(keys("a", "z", 9, false), ["a", "b", "c"]);
        assert_eq!(keys("a", "c", 9, true), ["b", "a"]);
        assert_eq!(keys("b", "z", 1, false), ["b"]);
        assert!(keys("c", "b", 9, false).is_empty());
        assert_eq!(store.get(Table::Log, b"d").unwrap(), None);
    });
}

#[test]
fn directory_in_use_is_refused_with_its_holder_until_released() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let text = Store::open(dir.path(), 0).unwrap_err().to_string();
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
    drop(store);
    Store::open(dir.path(), 0).unwrap();
}

#[test]
fn directory_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), 0).unwrap());
    std::fs::write(dir.path().join("chatmesh.format"), "chatmesh 2\n").unwrap();
    let text = Store::open(dir.path(), 0).unwrap_err().to_string();
    assert!(text.contains("format 2"), "{text}");
    std::fs::remove_file(dir.path().join("chatmesh.format")).unwrap();
    assert!(matches!(
        Store::open(dir.path(), 0),
        Err(OpenError::NotDataDirectory { .. })
    ));
}

#[test]
fn commits_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    put(&Store::open(dir.path(), 0).unwrap(), "k", "v");
    let store = Store::open(dir.path(), 0).unwrap();
    assert_eq!(store.get(Table::Users, b"k").unwrap().unwrap(), b"v");
}

#[test]
fn too_little_free_space_fails_the_check_but_not_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), u64::MAX).unwrap();
    let text = store.check().unwrap_err().to_string();
    assert!(
        text.contains("free") && text.contains("MIN_FREE_DISK"),
        "{text}"
    );
    let ticket = put(&store, "k", "v");
    store.wait_durable_blocking(ticket).unwrap();
}

#[tokio::test]
async fn failed_store_reports_lost_commits_and_reopens_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let Backend::Durable(durable) = &store.backend else {
        unreachable!()
    };
    let before = put(&store, "before", "1");
    store.wait_durable(before).await.unwrap();
    let failed = put(&store, "failed", "1");
    durable.simulate_failure("no space left on device");
    assert!(store.wait_durable(failed).await.is_err());
    tokio::time::timeout(Duration::from_secs(10), async {
        while store.check().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let after = put(&store, "after", "1");
    store.wait_durable(after).await.unwrap();
    assert!(
        store.wait_durable(failed).await.is_err(),
        "a failed commit must not count as durable after the recovery"
    );
    assert!(store.get(Table::Users, b"before").unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_waiting_caller_is_notified() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                let ticket = put(&store, &format!("{i}"), "v");
                store.wait_durable(ticket).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

/// The child process that `store_survives_kill_9_with_every_committed_batch` starts and kills. As a
/// test of its own it does nothing.
#[test]
fn child_process_commits_until_killed() {
    let Ok(dir) = std::env::var("CHATMESH_TEST_STORE_CHILD") else {
        return;
    };
    let store = Store::open(Path::new(&dir), 0).unwrap();
    let mut report = std::fs::File::create(Path::new(&dir).join("report")).unwrap();
    let mut n = store
        .scan(Table::Log, b"", &[0xff], 1, true)
        .unwrap()
        .first()
        .map_or(0, |(key, _)| {
            u64::from_be_bytes(key[..].try_into().unwrap()) + 1
        });
    loop {
        let mut batch = Batch::default();
        batch.put(Table::Log, n.to_be_bytes(), vec![7; 300]);
        batch.put(Table::Users, n.to_be_bytes(), vec![8; 300]);
        let ticket = store.commit(batch).unwrap();
        if n.is_multiple_of(3) {
            store.wait_durable_blocking(ticket).unwrap();
        }
        std::io::Write::write_all(&mut report, format!("{n}\n").as_bytes()).unwrap();
        n += 1;
    }
}

/// The number of the last batch that the child process has reported as committed.
fn last_reported(dir: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(dir.join("report")).ok()?;
    // The kill may truncate the last line, so only complete lines count.
    text.rsplit_once('\n')?.0.lines().last()?.parse().ok()
}

/// Asserts that the store contains complete batches without gaps, and returns their number.
fn assert_complete_batches(dir: &Path) -> u64 {
    let store = Store::open(dir, 0).unwrap();
    let log = store
        .scan(Table::Log, b"", &[0xff], 1 << 20, false)
        .unwrap();
    let users = store
        .scan(Table::Users, b"", &[0xff], 1 << 20, false)
        .unwrap();
    let keys = |entries: &[Entry]| entries.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&log), keys(&users), "a batch is incomplete");
    for (n, (key, value)) in log.iter().enumerate() {
        assert_eq!(key[..], (n as u64).to_be_bytes(), "a batch is missing");
        assert_eq!(value.len(), 300);
    }
    log.len() as u64
}

#[test]
fn store_survives_kill_9_with_every_committed_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut batches_before = None;
    for round in 0..3 {
        let _ = std::fs::remove_file(dir.path().join("report"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "store::tests::child_process_commits_until_killed",
                "--exact",
            ])
            .env("CHATMESH_TEST_STORE_CHILD", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = std::time::Instant::now();
        let target = batches_before.map_or(50, |n| n + 50 + 13 * round);
        while last_reported(dir.path()).is_none_or(|n| n < target) {
            assert!(started.elapsed() < Duration::from_secs(60), "no progress");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = last_reported(dir.path()).unwrap();
        let found = assert_complete_batches(dir.path());
        assert!(
            found > reported,
            "batch {reported} was committed, but only {found} batches were found"
        );
        batches_before = Some(found);
    }
}

/// Commits 40 batches of two values of `size` bytes each, and returns the path of their journal.
fn commit_forty_batches(dir: &Path, size: usize) -> PathBuf {
    let store = Store::open(dir, 0).unwrap();
    for n in 0u64..40 {
        let mut batch = Batch::default();
        batch.put(Table::Log, n.to_be_bytes(), vec![7; size]);
        batch.put(Table::Users, n.to_be_bytes(), vec![8; size]);
        store.commit(batch).unwrap();
    }
    drop(store);
    let newest = journal::find_newest(&dir.join("tables")).unwrap();
    newest
        .expect("the sync thread relies on this layout of the journals")
        .1
}

#[test]
fn journal_truncated_anywhere_opens_with_complete_batches() {
    let dir = tempfile::tempdir().unwrap();
    let journal = commit_forty_batches(dir.path(), 300);
    let whole = std::fs::read(&journal).unwrap();
    let used = whole.iter().rposition(|b| *b != 0).unwrap() as u64;
    let mut counts = Vec::new();
    // Each cut truncates the journal further than the previous cut, in most cases inside a batch.
    for cut in [
        used,
        used - 5,
        used - 700,
        used * 3 / 4 + 1,
        used / 2,
        used / 7,
    ] {
        std::fs::OpenOptions::new()
            .write(true)
            .open(&journal)
            .unwrap()
            .set_len(cut)
            .unwrap();
        counts.push(assert_complete_batches(dir.path()));
    }
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    assert!(counts[0] >= 38 && counts[5] < 20, "{counts:?}");
}

fn overwrite_bytes(path: &Path, at: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

#[test]
fn journal_with_a_hole_is_refused_and_opens_after_the_advised_repair() {
    const VALUE: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let journal = commit_forty_batches(dir.path(), VALUE);
    let whole = std::fs::read(&journal).unwrap();
    let value = vec![7; VALUE];
    let last = whole.windows(VALUE).rposition(|window| *window == value);
    let hole = last.unwrap().next_multiple_of(512) + 512;
    overwrite_bytes(&journal, hole, &[0; 1024]);
    let text = Store::open(dir.path(), 0).unwrap_err().to_string();
    let command = format!("truncate -s {hole} {}", journal.display());
    assert!(text.contains("backup") && text.contains(&command), "{text}");
    assert_eq!(std::fs::read(&journal).unwrap().len(), whole.len());

    let file = std::fs::File::options().write(true).open(&journal).unwrap();
    file.set_len(hole as u64).unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let log = store.scan(Table::Log, b"", &[0xff], 100, false).unwrap();
    assert_eq!(log.len(), 39);
    assert!(log.iter().all(|(_, value)| *value == vec![7; VALUE]));
    let ticket = put(&store, "after", "v");
    store.wait_durable_blocking(ticket).unwrap();
    drop(store);
    let store = Store::open(dir.path(), 0).unwrap();
    assert!(store.get(Table::Users, b"after").unwrap().is_some());
}

#[test]
fn journal_corrupted_by_the_disk_is_refused_and_not_modified() {
    let dir = tempfile::tempdir().unwrap();
    let journal = commit_forty_batches(dir.path(), 3000);
    let whole = std::fs::read(&journal).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    // Changes one byte in the middle of a value. The engine must notice the damage, and the error
    // must not advise to truncate the journal, because there is no hole.
    overwrite_bytes(&journal, used / 2 + 1500, &[9]);
    let text = Store::open(dir.path(), 0).unwrap_err().to_string();
    let backup = text.contains("damaged") && text.contains("backup");
    assert!(backup && !text.contains("truncate"), "{text}");
    assert_eq!(std::fs::read(&journal).unwrap().len(), whole.len());
}

#[test]
fn instance_info_is_removed_by_a_clean_exit_and_ignored_after_a_kill() {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("chatmesh.lock");
    let instance = InstanceInfo {
        address: "127.0.0.1:8000".parse().unwrap(),
        key: "the key".into(),
    };
    // Leaves the file behind as a killed process would. Opening the store must remove it.
    instance.write(dir.path()).unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    assert!(InstanceInfo::read(dir.path()).is_none());
    let pid = std::fs::read_to_string(&lock).unwrap();
    assert_eq!(pid.trim(), std::process::id().to_string());

    // A second write replaces the file of the first write.
    for _ in 0..2 {
        instance.write(dir.path()).unwrap();
    }
    let read = InstanceInfo::read(dir.path()).unwrap();
    assert_eq!(read.address, instance.address);
    assert_eq!(read.key.expose_secret(), "the key");
    let file = std::fs::metadata(dir.path().join("chatmesh.running")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);

    drop(store);
    assert!(InstanceInfo::read(dir.path()).is_none());
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), "");
    assert!(inspect(dir.path()).unwrap().holder.is_none());
}

#[test]
fn inspect_creates_nothing_and_recognizes_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("not/there")] {
        assert!(!inspect(&path).unwrap().is_initialized);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    drop(Store::open(dir.path(), 0).unwrap());
    assert!(inspect(dir.path()).unwrap().is_initialized);
}
