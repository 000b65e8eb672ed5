use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn put(store: &Store, key: &str, value: &str) -> Ticket {
    let mut batch = Batch::default();
    batch.put(Table::Users, key, value);
    store.commit(batch).unwrap()
}

fn both(test: impl Fn(Store)) {
    test(Store::in_memory());
    let dir = tempfile::tempdir().unwrap();
    test(Store::open(dir.path(), 0).unwrap());
}

#[test]
fn entries_come_in_the_order_of_their_keys_and_within_the_bounds() {
    both(|store| {
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
fn a_directory_that_is_held_is_refused_with_its_holder_and_free_again_after() {
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
fn a_directory_of_another_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), 0).unwrap());
    std::fs::write(dir.path().join("chatmesh.format"), "chatmesh 2\n").unwrap();
    let text = Store::open(dir.path(), 0).unwrap_err().to_string();
    assert!(text.contains("format 2"), "{text}");
    std::fs::remove_file(dir.path().join("chatmesh.format")).unwrap();
    assert!(matches!(
        Store::open(dir.path(), 0),
        Err(OpenError::NotOurs { .. })
    ));
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    put(&Store::open(dir.path(), 0).unwrap(), "k", "v");
    let store = Store::open(dir.path(), 0).unwrap();
    assert_eq!(store.get(Table::Users, b"k").unwrap().unwrap(), b"v");
}

#[test]
fn too_little_room_fails_the_check_but_not_the_finishing_of_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), u64::MAX).unwrap();
    let text = store.check().unwrap_err().to_string();
    assert!(
        text.contains("free") && text.contains("MIN_FREE_DISK"),
        "{text}"
    );
    let ticket = put(&store, "k", "v");
    store.synced_blocking(ticket).unwrap();
}

#[tokio::test]
async fn a_store_that_failed_is_never_silently_durable_and_opens_itself_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let Backing::Durable(durable) = &store.backing else {
        unreachable!()
    };
    let before = put(&store, "before", "1");
    store.synced(before).await.unwrap();
    let unsure = put(&store, "unsure", "1");
    durable.break_down("no space left on device");
    assert!(store.synced(unsure).await.is_err());
    tokio::time::timeout(Duration::from_secs(10), async {
        while store.check().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let after = put(&store, "after", "1");
    store.synced(after).await.unwrap();
    assert!(
        store.synced(unsure).await.is_err(),
        "it was told to be unsure"
    );
    assert!(store.get(Table::Users, b"before").unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_who_waits_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                let ticket = put(&store, &format!("{i}"), "v");
                store.synced(ticket).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

/// Not a test of its own: the child that `a_store_survives_kill_9` starts and kills.
#[test]
fn child_that_commits_until_it_is_killed() {
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
            store.synced_blocking(ticket).unwrap();
        }
        std::io::Write::write_all(&mut report, format!("{n}\n").as_bytes()).unwrap();
        n += 1;
    }
}

fn last_reported(dir: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(dir.join("report")).ok()?;
    // The last line may be cut: only lines that end count.
    text.rsplit_once('\n')?.0.lines().last()?.parse().ok()
}

fn assert_whole(dir: &Path) -> u64 {
    let store = Store::open(dir, 0).unwrap();
    let log = store
        .scan(Table::Log, b"", &[0xff], 1 << 20, false)
        .unwrap();
    let users = store
        .scan(Table::Users, b"", &[0xff], 1 << 20, false)
        .unwrap();
    let keys = |entries: &[Entry]| entries.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&log), keys(&users), "a batch is there in part");
    for (n, (key, value)) in log.iter().enumerate() {
        assert_eq!(key[..], (n as u64).to_be_bytes(), "a batch is missing");
        assert_eq!(value.len(), 300);
    }
    log.len() as u64
}

#[test]
fn a_store_survives_kill_9_with_every_batch_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = None;
    for round in 0..3 {
        let _ = std::fs::remove_file(dir.path().join("report"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "store::tests::child_that_commits_until_it_is_killed",
                "--exact",
            ])
            .env("CHATMESH_TEST_STORE_CHILD", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begun = std::time::Instant::now();
        let target = before.map_or(50, |n| n + 50 + 13 * round);
        while last_reported(dir.path()).is_none_or(|n| n < target) {
            assert!(begun.elapsed() < Duration::from_secs(60), "no progress");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = last_reported(dir.path()).unwrap();
        let there = assert_whole(dir.path());
        assert!(
            there > reported,
            "{reported} was committed, {there} are there"
        );
        before = Some(there);
    }
}

/// Forty batches of two values of `size` bytes in `dir`, and their journal.
fn forty_batches(dir: &Path, size: usize) -> PathBuf {
    let store = Store::open(dir, 0).unwrap();
    for n in 0u64..40 {
        let mut batch = Batch::default();
        batch.put(Table::Log, n.to_be_bytes(), vec![7; size]);
        batch.put(Table::Users, n.to_be_bytes(), vec![8; size]);
        store.commit(batch).unwrap();
    }
    drop(store);
    let newest = journal::newest(&dir.join("tables")).unwrap();
    newest.expect("the layout that the sync thread relies on").1
}

#[test]
fn a_journal_that_was_cut_anywhere_opens_with_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let journal = forty_batches(dir.path(), 300);
    let whole = std::fs::read(&journal).unwrap();
    let used = whole.iter().rposition(|b| *b != 0).unwrap() as u64;
    let mut counts = Vec::new();
    // Each cut is deeper than the one before, at odd places.
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
        counts.push(assert_whole(dir.path()));
    }
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    assert!(counts[0] >= 38 && counts[5] < 20, "{counts:?}");
}

fn with_byte_range(path: &Path, at: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

#[test]
fn a_journal_with_a_hole_is_refused_with_what_to_do_and_opens_when_that_is_done() {
    const VALUE: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let journal = forty_batches(dir.path(), VALUE);
    let whole = std::fs::read(&journal).unwrap();
    let value = vec![7; VALUE];
    let last = whole.windows(VALUE).rposition(|window| *window == value);
    let hole = last.unwrap().next_multiple_of(512) + 512;
    with_byte_range(&journal, hole, &[0; 1024]);
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
    store.synced_blocking(ticket).unwrap();
    drop(store);
    let store = Store::open(dir.path(), 0).unwrap();
    assert!(store.get(Table::Users, b"after").unwrap().is_some());
}

#[test]
fn a_journal_that_the_disk_has_changed_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = forty_batches(dir.path(), 3000);
    let whole = std::fs::read(&journal).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    // In the middle of a value.
    with_byte_range(&journal, used / 2 + 1500, &[9]);
    let text = Store::open(dir.path(), 0).unwrap_err().to_string();
    let backup = text.contains("damaged") && text.contains("backup");
    assert!(backup && !text.contains("truncate"), "{text}");
    assert_eq!(std::fs::read(&journal).unwrap().len(), whole.len());
}

#[test]
fn a_clean_end_leaves_neither_a_pid_nor_an_address_and_nobody_takes_those_of_a_killed_one() {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("chatmesh.lock");
    let holder = Holder {
        address: "127.0.0.1:8000".parse().unwrap(),
        key: "the key".into(),
    };
    // Left by a process that was killed.
    holder.announce(dir.path()).unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    assert!(Holder::of(dir.path()).is_none());
    let pid = std::fs::read_to_string(&lock).unwrap();
    assert_eq!(pid.trim(), std::process::id().to_string());

    for _ in 0..2 {
        holder.announce(dir.path()).unwrap();
    }
    let read = Holder::of(dir.path()).unwrap();
    assert_eq!(read.address, holder.address);
    assert_eq!(read.key.expose_secret(), "the key");
    let file = std::fs::metadata(dir.path().join("chatmesh.running")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);

    drop(store);
    assert!(Holder::of(dir.path()).is_none());
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), "");
    assert!(look(dir.path()).unwrap().held.is_none());
}

#[test]
fn a_look_makes_nothing_and_tells_a_data_directory_from_another_folder() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("not/there")] {
        assert!(!look(&path).unwrap().made);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    drop(Store::open(dir.path(), 0).unwrap());
    assert!(look(dir.path()).unwrap().made);
}
