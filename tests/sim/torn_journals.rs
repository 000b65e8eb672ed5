//! Cuts the journal of the embedded store at every write. Batches committed before the cut must be
//! complete, the interrupted one must be absent, and the store must continue to work.
//!
//! The engine appends each batch to a journal: a start with the number of items, the items, and an
//! end with their checksum. The journal's file is allocated in advance, so a journal can end early
//! in two ways: the file is shorter, or it continues with zeros.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatmesh::log::embedded::EmbeddedLog;
use chatmesh::log::{ConsumerEvent, Log};
use chatmesh::protocol::log_record::NewRecord;
use chatmesh::store::{Batch, Store, TABLES, Table};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tempfile::TempDir;

use crate::settings::embedded_settings;

/// The content of all tables of a store.
type Content = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// The state of the journal after a commit.
struct JournalState {
    end: u64,
    content: Content,
}

#[derive(Debug, Clone, Copy)]
enum Tail {
    /// The file ends at the cut.
    None,
    /// The file keeps its length and continues with zeros.
    Zeros,
}

fn content(store: &Store) -> Content {
    let mut content = Content::new();
    for (number, table) in TABLES.into_iter().enumerate() {
        let all = store.scan(table, b"", &[0xff; 64], usize::MAX, false);
        for (key, value) in all.unwrap() {
            content.insert((number, key), value);
        }
    }
    content
}

fn journals(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("tables")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|it| it == "jnl"))
        .collect()
}

fn journal(dir: &Path) -> PathBuf {
    let mut all = journals(dir);
    assert_eq!(all.len(), 1, "the work is too much for one journal");
    all.remove(0)
}

/// The offset at which the written part of the journal ends. `from` is an offset before that.
fn written_end(journal: &Path, from: u64) -> u64 {
    let mut file = File::open(journal).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    let mut bytes = Vec::new();
    file.take(512 << 10).read_to_end(&mut bytes).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0);
    from + last.map_or(0, |last| last as u64 + 1)
}

/// Copies the files of a store, with the journal only up to `cut`.
fn copy(from: &Path, to: &Path, cut: u64, tail: Tail) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target, cut, tail);
        } else if path.extension().is_some_and(|it| it == "jnl") {
            let file = File::open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            let mut bytes = Vec::new();
            file.take(cut).read_to_end(&mut bytes).unwrap();
            let mut copy = File::create(&target).unwrap();
            copy.write_all(&bytes).unwrap();
            if matches!(tail, Tail::Zeros) {
                copy.set_len(length.max(cut)).unwrap();
            }
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Bytes that can't be compressed.
fn incompressible_bytes(number: u8, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(number.into()).fill_bytes(&mut bytes);
    bytes
}

/// A batch over several tables, with small and large values and deletions.
fn batch(number: u8) -> Batch {
    let mut batch = Batch::default();
    // Larger than the engine's buffer, so that one batch causes several writes.
    let size = [10, 300, 20_000][usize::from(number) % 3];
    for table in [Table::Log, Table::Users, Table::History] {
        batch.put(table, [b'k', number], incompressible_bytes(number, size));
        if number > 2 {
            batch.delete(table, [b'k', number - 2]);
        }
    }
    batch.put(Table::LogState, *b"last", [number]);
    batch
}

#[test]
fn journal_cut_anywhere_keeps_every_complete_batch_before_the_cut() {
    let begun = Instant::now();
    let dir = TempDir::new().unwrap();
    let mut points = Vec::new();
    let store = Store::open(dir.path(), 0).unwrap();
    let journal = journal(dir.path());
    points.push(JournalState {
        end: written_end(&journal, 0),
        content: content(&store),
    });
    for number in 0..6 {
        let ticket = store.commit(batch(number)).unwrap();
        store.wait_durable_blocking(ticket).unwrap();
        // An acknowledged batch is in the file.
        points.push(JournalState {
            end: written_end(&journal, points[points.len() - 1].end),
            content: content(&store),
        });
    }
    let mut opened = 0;
    for pair in points.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        assert!(
            after.end > before.end,
            "an acknowledged batch is not in the journal"
        );
        let length = after.end - before.end;
        let mut cuts = vec![1, 13, length / 2, length - 1, length];
        // The engine writes its buffer in chunks of this size.
        cuts.extend((1..3).map(|piece| piece * 8192).filter(|cut| *cut < length));
        cuts.sort_unstable();
        cuts.dedup();
        for (index, cut) in cuts.into_iter().enumerate() {
            for tail in [Tail::None, Tail::Zeros] {
                let cut = before.end + cut;
                let expected = if cut == after.end { after } else { before };
                let copied = TempDir::new().unwrap();
                copy(dir.path(), copied.path(), cut, tail);
                opened += 1;
                let store = Store::open(copied.path(), 0)
                    .unwrap_or_else(|error| panic!("cut at {cut}, {tail:?}: {error}"));
                let found = content(&store);
                assert!(
                    found == expected.content,
                    "cut at {cut}, {tail:?}: other content"
                );
                if index % 4 == 0 {
                    // The store continues: a batch committed after the cut is there after the next
                    // start.
                    let ticket = store.commit(batch(200)).unwrap();
                    store.wait_durable_blocking(ticket).unwrap();
                    let expected = content(&store);
                    drop(store);
                    let store = Store::open(copied.path(), 0).unwrap();
                    assert!(
                        content(&store) == expected,
                        "cut at {cut}, {tail:?}, and going on"
                    );
                    opened += 1;
                }
            }
        }
    }
    drop(store);
    eprintln!(
        "{opened} cut journals opened in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

fn open_log(dir: &Path) -> Arc<EmbeddedLog> {
    let settings = embedded_settings(1);
    let store = Store::open(dir, 0).unwrap();
    Arc::new(EmbeddedLog::open(store, &settings, Duration::from_secs(10)).unwrap())
}

fn text(number: usize) -> String {
    format!("record {number}")
}

fn record(number: usize) -> NewRecord {
    NewRecord {
        key: Some("a".into()),
        value: text(number).into(),
        null_value: false,
        headers: vec![],
    }
}

/// Reads the first `expected` records with a new group.
async fn read(log: &EmbeddedLog, expected: usize) -> Vec<(i64, String)> {
    let mut consumer = log.consumer("reads", "t").unwrap();
    let mut read = Vec::new();
    while read.len() < expected {
        let event = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await;
        if let ConsumerEvent::Record(record) = event.expect("a record that was acknowledged") {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            read.push((record.offset, value));
        }
    }
    read
}

#[tokio::test]
async fn log_cut_anywhere_keeps_every_acknowledged_record_once_and_in_order() {
    let begun = Instant::now();
    let dir = TempDir::new().unwrap();
    let log = open_log(dir.path());
    let journal = journal(dir.path());
    let mut acknowledged = Vec::new();
    let mut last = written_end(&journal, 0);
    for number in 0..5 {
        // Two concurrent appends, which may be in one batch or in two.
        let both = [record(2 * number), record(2 * number + 1)].map(|one| log.append("t", one));
        for append in both {
            append.await.unwrap();
        }
        last = written_end(&journal, last);
        acknowledged.push(last);
    }
    let mut opened = 0;
    for (number, at) in acknowledged.iter().enumerate() {
        let next = acknowledged.get(number + 1).copied().unwrap_or(*at);
        for cut in [*at, *at + (next - *at) / 3, *at + (next - *at) * 2 / 3] {
            let copied = TempDir::new().unwrap();
            copy(dir.path(), copied.path(), cut, Tail::Zeros);
            let log = open_log(copied.path());
            opened += 1;
            let appended = log.append("t", record(100)).await.unwrap();
            let recovered_count = usize::try_from(appended.offset).unwrap();
            assert!(
                recovered_count >= 2 * (number + 1),
                "an acknowledged record is gone"
            );
            assert!(
                recovered_count < 2 * (number + 2) || cut == *at,
                "a half is counted"
            );
            let mut expected: Vec<_> = (0..recovered_count)
                .map(|one| (one as i64, text(one)))
                .collect();
            expected.push((appended.offset, text(100)));
            assert_eq!(
                read(&log, recovered_count + 1).await,
                expected,
                "cut at {cut}"
            );
        }
    }
    drop(log);
    eprintln!(
        "{opened} cut logs opened in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

/// If the power fails while the disk writes the pages of a batch out of order, the journal has a
/// hole before an end that is present. The engine must refuse such a journal or leave the batch
/// out, and never read a part of it.
#[test]
fn hole_in_the_last_batch_is_never_read_as_data() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let journal = journal(dir.path());
    let mut last = written_end(&journal, 0);
    for number in 0..3 {
        let before = content(&store);
        let ticket = store.commit(batch(number)).unwrap();
        store.wait_durable_blocking(ticket).unwrap();
        let now = written_end(&journal, last);
        let length = now - last;
        if length > 10_000 {
            for from in [0, 600, length / 3, length / 2, length - 600] {
                let copied = TempDir::new().unwrap();
                copy(dir.path(), copied.path(), now, Tail::Zeros);
                let path = journals(copied.path()).remove(0);
                let mut file = File::options().write(true).open(path).unwrap();
                file.seek(SeekFrom::Start(last + from)).unwrap();
                file.write_all(&[0; 512]).unwrap();
                match Store::open(copied.path(), 0) {
                    Ok(store) => assert!(content(&store) == before, "a hole at {from}"),
                    Err(error) => assert!(error.to_string().contains("Checksum"), "{error}"),
                }
            }
        }
        last = now;
    }
}
