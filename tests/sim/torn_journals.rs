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
        let entries = store.scan(table, b"", &[0xff; 64], usize::MAX, false);
        for (key, value) in entries.unwrap() {
            content.insert((number, key), value);
        }
    }
    content
}

fn journals(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("tables")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect()
}

fn journal(dir: &Path) -> PathBuf {
    let mut journals = journals(dir);
    assert_eq!(journals.len(), 1, "expected all batches in one journal");
    journals.remove(0)
}

/// The offset at which the written part of the journal ends. `from` is an offset before that.
fn written_end(journal: &Path, from: u64) -> u64 {
    let mut file = File::open(journal).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    let mut bytes = Vec::new();
    file.take(512 << 10).read_to_end(&mut bytes).unwrap();
    let last_nonzero = bytes.iter().rposition(|byte| *byte != 0);
    from + last_nonzero.map_or(0, |index| index as u64 + 1)
}

/// Copies the files of a store, with the journal only up to `cut`.
fn copy(from: &Path, to: &Path, cut: u64, tail: Tail) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target, cut, tail);
        } else if path.extension().is_some_and(|extension| extension == "jnl") {
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
    let started = Instant::now();
    let dir = TempDir::new().unwrap();
    let mut states = Vec::new();
    let store = Store::open(dir.path(), 0).unwrap();
    let journal = journal(dir.path());
    states.push(JournalState {
        end: written_end(&journal, 0),
        content: content(&store),
    });
    for number in 0..6 {
        let ticket = store.commit(batch(number)).unwrap();
        store.wait_durable_blocking(ticket).unwrap();
        // The batch is acknowledged, so the file must contain it.
        states.push(JournalState {
            end: written_end(&journal, states[states.len() - 1].end),
            content: content(&store),
        });
    }
    let mut opened = 0;
    for pair in states.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        assert!(
            after.end > before.end,
            "expected an acknowledged batch in the journal"
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
                let recovered = content(&store);
                assert!(
                    recovered == expected.content,
                    "cut at {cut}, {tail:?}: other content"
                );
                if index % 4 == 0 {
                    // The store must still accept a batch and have it after the next start.
                    let ticket = store.commit(batch(200)).unwrap();
                    store.wait_durable_blocking(ticket).unwrap();
                    let expected = content(&store);
                    drop(store);
                    let store = Store::open(copied.path(), 0).unwrap();
                    assert!(
                        content(&store) == expected,
                        "cut at {cut}, {tail:?}: other content after another batch and a restart"
                    );
                    opened += 1;
                }
            }
        }
    }
    drop(store);
    eprintln!(
        "{opened} cut journals opened in {:.1} s",
        started.elapsed().as_secs_f64()
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
    let mut records = Vec::new();
    while records.len() < expected {
        let event = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await;
        if let ConsumerEvent::Record(record) =
            event.expect("an acknowledged record within 10 seconds")
        {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            records.push((record.offset, value));
        }
    }
    records
}

#[tokio::test]
async fn log_cut_anywhere_keeps_every_acknowledged_record_once_and_in_order() {
    let started = Instant::now();
    let dir = TempDir::new().unwrap();
    let log = open_log(dir.path());
    let journal = journal(dir.path());
    // The ends of the journal after each pair of acknowledged appends.
    let mut acknowledged_ends = Vec::new();
    let mut journal_end = written_end(&journal, 0);
    for number in 0..5 {
        // Two concurrent appends, which may be in one batch or in two.
        let appends =
            [record(2 * number), record(2 * number + 1)].map(|record| log.append("t", record));
        for append in appends {
            append.await.unwrap();
        }
        journal_end = written_end(&journal, journal_end);
        acknowledged_ends.push(journal_end);
    }
    let mut opened = 0;
    for (number, end) in acknowledged_ends.iter().copied().enumerate() {
        let next_end = acknowledged_ends.get(number + 1).copied().unwrap_or(end);
        let length = next_end - end;
        for cut in [end, end + length / 3, end + length * 2 / 3] {
            let copied = TempDir::new().unwrap();
            copy(dir.path(), copied.path(), cut, Tail::Zeros);
            let log = open_log(copied.path());
            opened += 1;
            let appended = log.append("t", record(100)).await.unwrap();
            let recovered_count = usize::try_from(appended.offset).unwrap();
            assert!(
                recovered_count >= 2 * (number + 1),
                "expected every acknowledged record"
            );
            assert!(
                recovered_count < 2 * (number + 2) || cut == end,
                "expected that the interrupted pair of records is incomplete"
            );
            let mut expected: Vec<_> = (0..recovered_count)
                .map(|number| (number as i64, text(number)))
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
        started.elapsed().as_secs_f64()
    );
}

/// If the power fails while the disk writes the pages of a batch out of order, the journal has a
/// hole before an end that is present. The engine must refuse such a journal or ignore the batch,
/// and never read a part of it.
#[test]
fn hole_in_the_last_batch_is_never_read_as_data() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let journal = journal(dir.path());
    let mut previous_end = written_end(&journal, 0);
    for number in 0..3 {
        let content_before = content(&store);
        let ticket = store.commit(batch(number)).unwrap();
        store.wait_durable_blocking(ticket).unwrap();
        let end = written_end(&journal, previous_end);
        let length = end - previous_end;
        if length > 10_000 {
            for from in [0, 600, length / 3, length / 2, length - 600] {
                let copied = TempDir::new().unwrap();
                copy(dir.path(), copied.path(), end, Tail::Zeros);
                let path = journals(copied.path()).remove(0);
                let mut file = File::options().write(true).open(path).unwrap();
                file.seek(SeekFrom::Start(previous_end + from)).unwrap();
                file.write_all(&[0; 512]).unwrap();
                match Store::open(copied.path(), 0) {
                    Ok(store) => assert!(content(&store) == content_before, "a hole at {from}"),
                    Err(error) => assert!(error.to_string().contains("Checksum"), "{error}"),
                }
            }
        }
        previous_end = end;
    }
}
