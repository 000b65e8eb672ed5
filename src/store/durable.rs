//! The store on disk: fjall, one thread that makes commits durable for everybody who waits, and
//! what happens when the disk fails.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::directory::{Directory, OpenError};
use super::{Batch, Entry, StoreError, TABLES, Table, Ticket, journal};
use crate::backoff::Backoff;

/// What has to be read again after a kill stays below this, so that opening takes a second.
const MAX_JOURNALS: u64 = 64 << 20;
const MEMTABLE: u64 = 8 << 20;
const CACHE: u64 = 64 << 20;

/// How often free space is looked at.
const LOOK: Duration = Duration::from_secs(1);
const MOST_FAILED: usize = 64;
/// After so long without a failure the next one is a new one.
const CALM: Duration = Duration::from_secs(30);

/// The engine's handles. A live clone of a keyspace keeps the engine's lock: they never leave.
struct Engine {
    // Before the database, so that they are dropped first.
    tables: [Keyspace; TABLES.len()],
    database: Database,
}

impl Engine {
    fn open(path: &Path) -> fjall::Result<Self> {
        let database = Database::builder(path)
            .cache_size(CACHE)
            .max_journaling_size(MAX_JOURNALS)
            .worker_threads(1)
            .open()?;
        let table = |name: &str| {
            database.keyspace(name, || {
                KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE)
            })
        };
        let tables = [
            table("log")?,
            table("log_state")?,
            table("users")?,
            table("history")?,
        ];
        // What a killed process left in the system's buffers is about to be shown as existing.
        database.persist(PersistMode::SyncAll)?;
        Ok(Self { tables, database })
    }
}

type Waiter = oneshot::Sender<Result<(), StoreError>>;

#[derive(Default)]
struct Queue {
    waiters: Vec<Waiter>,
    /// Everything up to here is on disk, but for `failed`.
    synced: u64,
    /// Ranges of tickets, both ends included, of which it is not known.
    failed: Vec<(u64, u64)>,
    stop: bool,
}

struct Shared {
    directory: Directory,
    min_free: u64,
    /// Calls take a clone and hold no lock: one that the engine keeps waiting keeps no other.
    engine: ArcSwapOption<Engine>,
    committed: AtomicU64,
    free: AtomicU64,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Fast form of `failure.is_some()`.
    failing: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// The open store; dropping it makes everything durable and gives the directory free.
pub(super) struct Durable {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Durable")
            .field(&self.shared.directory.path())
            .finish()
    }
}

fn failed(error: &fjall::Error) -> StoreError {
    StoreError(error.to_string())
}

impl Durable {
    pub(super) fn open(dir: &Path, min_free: u64) -> Result<Self, OpenError> {
        let directory = Directory::open(dir)?;
        let io = |reason: String| OpenError::Io {
            dir: dir.to_owned(),
            reason,
        };
        let tables = directory.tables();
        let engine = Engine::open(&tables).map_err(|error| match error {
            fjall::Error::JournalRecovery(damage) => match journal::advice(&tables) {
                Ok(advice) => OpenError::Damaged {
                    dir: dir.to_owned(),
                    damage: format!("{damage:?}"),
                    advice,
                },
                Err(error) => io(error.to_string()),
            },
            other => io(other.to_string()),
        })?;
        let free = directory.free().map_err(|e| io(e.to_string()))?;
        let shared = Arc::new(Shared {
            directory,
            min_free,
            engine: ArcSwapOption::from_pointee(engine),
            committed: AtomicU64::new(0),
            free: AtomicU64::new(free),
            queue: Mutex::default(),
            wake: Condvar::new(),
            failing: AtomicBool::new(false),
            failure: Mutex::default(),
        });
        let thread = std::thread::Builder::new()
            .name("store-sync".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })
            .map_err(|e| io(e.to_string()))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Engine) -> fjall::Result<T>) -> Result<T, StoreError> {
        match self.shared.engine.load_full() {
            Some(engine) => read(&engine).map_err(|e| failed(&e)),
            None => Err(self.shared.failure_or("being opened again")),
        }
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|engine| {
            let value = engine.tables[table as usize].get(key)?;
            Ok(value.map(|value| value.to_vec()))
        })
    }

    pub(super) fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        self.read(|engine| {
            let range = engine.tables[table as usize].range(from..to);
            let entry = |guard: fjall::Guard| -> fjall::Result<Entry> {
                let (key, value) = guard.into_inner()?;
                Ok((key.to_vec(), value.to_vec()))
            };
            if descending {
                range.rev().take(limit).map(entry).collect()
            } else {
                range.take(limit).map(entry).collect()
            }
        })
    }

    pub(super) fn commit(&self, batch: Batch) -> Result<Ticket, StoreError> {
        let shared = &self.shared;
        if shared.failing.load(Ordering::Acquire) {
            return Err(shared.failure_or("being opened again"));
        }
        self.read(|engine| {
            let mut changes = engine.database.batch();
            for (table, key, value) in batch.changes {
                let table = &engine.tables[table as usize];
                match value {
                    Some(value) => changes.insert(table, key, value),
                    None => changes.remove(table, key),
                }
            }
            // Noted before the engine can be closed: a failure is that of the engine at hand.
            changes
                .commit()
                .inspect_err(|error| shared.fail(&error.to_string()))?;
            // After the commit, so that whoever syncs up to this number has it; and before the
            // engine can be closed, so that a failure counts it.
            Ok(Ticket(shared.committed.fetch_add(1, Ordering::AcqRel) + 1))
        })
    }

    /// Answers through the channel as soon as the commit is on disk.
    pub(super) fn sync(&self, ticket: Ticket) -> oneshot::Receiver<Result<(), StoreError>> {
        let (answer, receiver) = oneshot::channel();
        let mut queue = self.shared.queue();
        let lost = queue
            .failed
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&ticket.0));
        if lost {
            let _ = answer.send(Err(self
                .shared
                .failure_or("a commit could not be made durable, it may be lost")));
        } else if ticket.0 <= queue.synced {
            let _ = answer.send(Ok(()));
        } else {
            queue.waiters.push(answer);
            drop(queue);
            self.shared.wake.notify_one();
        }
        receiver
    }

    pub(super) fn room(&self) -> Result<(), StoreError> {
        let free = self.shared.free.load(Ordering::Relaxed);
        if free >= self.shared.min_free {
            return Ok(());
        }
        Err(StoreError(format!(
            "{} MiB free in {}, and MIN_FREE_DISK needs {} MiB: free some space, new messages are refused until then",
            free >> 20,
            self.shared.directory.path().display(),
            self.shared.min_free.div_ceil(1 << 20),
        )))
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.shared.failing.load(Ordering::Acquire) {
            return Err(self.shared.failure_or("being opened again"));
        }
        self.room()
    }

    /// As a disk that fails does.
    #[cfg(test)]
    pub(super) fn break_down(&self, reason: &str) {
        self.shared.fail(reason);
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.shared.queue().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn failure_or(&self, otherwise: &str) -> StoreError {
        let failure = self.failure.lock();
        StoreError(match &*failure {
            Some(reason) => format!("{reason}; it is opened again when the disk allows"),
            None => otherwise.to_owned(),
        })
    }

    /// From now on nothing is committed until the engine was closed and opened again.
    fn fail(&self, reason: &str) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(reason, "the local store failed");
            *failure = Some(reason.to_owned());
        }
        drop(failure);
        self.failing.store(true, Ordering::Release);
        // Under the lock, so that the thread can't miss it between its look and its sleep.
        let _queue = self.queue();
        self.wake.notify_one();
    }

    /// The thread: syncs, looks at the disk, opens again what failed.
    fn run(&self) {
        let mut journal = None;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut looked = Instant::now();
        let mut try_again = Instant::now();
        let mut closing = None;
        loop {
            let (waiters, stop) = self.wait(looked + LOOK, try_again);
            if looked.elapsed() >= LOOK {
                self.look();
                looked = Instant::now();
            }
            if self.failing.load(Ordering::Acquire) {
                self.give_up(waiters);
                if stop {
                    break;
                }
                let now = Instant::now();
                if now >= try_again {
                    // One that fails soon after it was opened is opened again later and later.
                    if now.duration_since(try_again) > CALM {
                        backoff.reset();
                    }
                    journal = None;
                    self.reopen(&mut closing);
                    try_again = Instant::now() + backoff.next_delay();
                }
                continue;
            }
            if !waiters.is_empty() || stop {
                self.sync(waiters, &mut journal);
            }
            if stop {
                break;
            }
        }
        // Free before the directory is.
        drop((self.engine.swap(None), closing));
    }

    fn wait(&self, look: Instant, try_again: Instant) -> (Vec<Waiter>, bool) {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            let failing = self.failing.load(Ordering::Acquire);
            if queue.stop
                || !queue.waiters.is_empty()
                || now >= look
                || (failing && now >= try_again)
            {
                return (std::mem::take(&mut queue.waiters), queue.stop);
            }
            let until = if failing { look.min(try_again) } else { look };
            self.wake.wait_for(&mut queue, until - now);
        }
    }

    fn sync(&self, waiters: Vec<Waiter>, journal: &mut Option<(u64, File)>) {
        // Every waiter's commit was counted before the waiter was queued.
        let target = self.committed.load(Ordering::Acquire);
        match self.sync_journal(journal) {
            Ok(()) => {
                let mut queue = self.queue();
                queue.synced = queue.synced.max(target);
                drop(queue);
                for waiter in waiters {
                    let _ = waiter.send(Ok(()));
                }
            }
            Err(reason) => {
                self.fail(&reason);
                self.give_up(waiters);
            }
        }
    }

    /// The engine's own `persist` keeps every commit waiting while the disk works, and commits
    /// are made on runtime threads. So the newest journal is synced through a handle of our own:
    /// the engine syncs a journal itself before it begins the next.
    fn sync_journal(&self, journal: &mut Option<(u64, File)>) -> Result<(), String> {
        let newest = journal::newest(&self.directory.tables()).map_err(|e| e.to_string())?;
        let Some((id, path)) = newest else {
            let engine = self.engine.load_full().ok_or("being opened again")?;
            return engine
                .database
                .persist(PersistMode::SyncAll)
                .map_err(|e| e.to_string());
        };
        if journal.as_ref().is_none_or(|(open, _)| *open != id) {
            let file = File::options()
                .append(true)
                .open(&path)
                .map_err(|e| format!("journal {}: {e}", path.display()))?;
            *journal = Some((id, file));
        }
        match journal {
            Some((_, file)) => file.sync_data().map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    /// Tells everybody who waits that it is not known whether their commits will survive.
    fn give_up(&self, waiters: Vec<Waiter>) {
        let error = self.failure_or("a commit could not be made durable, it may be lost");
        let target = self.committed.load(Ordering::Acquire);
        let mut queue = self.queue();
        if target > queue.synced {
            let from = queue.synced + 1;
            let full = queue.failed.len() >= MOST_FAILED;
            match queue.failed.last_mut() {
                // Sure ones between two failures may be called unsure, never the other way round.
                Some(last) if last.1 + 1 == from || full => {
                    last.1 = target;
                }
                _ => queue.failed.push((from, target)),
            }
            queue.synced = target;
        }
        drop(queue);
        for waiter in waiters {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    fn look(&self) {
        match self.directory.free() {
            Ok(free) => self.free.store(free, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "the data directory's free space can't be read"),
        }
    }

    /// Closes the engine when its last call has returned, and opens it again. Where it does not
    /// come to that, the next try goes on from there. Meanwhile every call fails: closing and
    /// opening take too long for runtime threads to wait.
    fn reopen(&self, closing: &mut Option<Arc<Engine>>) {
        self.look();
        if let Some(engine) = self.engine.swap(None).or_else(|| closing.take()) {
            match Arc::try_unwrap(engine) {
                Ok(engine) => drop(engine),
                Err(engine) => {
                    *closing = Some(engine);
                    return;
                }
            }
        }
        // Nobody commits now; what was committed since the failure was noticed is as unsure.
        self.give_up(Vec::new());
        match Engine::open(&self.directory.tables()) {
            Ok(engine) => {
                *self.failure.lock() = None;
                self.failing.store(false, Ordering::Release);
                self.engine.store(Some(Arc::new(engine)));
                tracing::info!("the local store is open again");
            }
            Err(error) => {
                tracing::warn!(%error, "the local store could not be opened again");
            }
        }
    }
}
