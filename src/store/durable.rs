//! The store on disk, on the storage engine fjall. One thread syncs commits for all callers that
//! wait, watches the free space, and reopens the engine after the disk has failed.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::directory::{Directory, OpenError};
use super::{Batch, Entry, StoreError, TABLES, Table, Ticket, journal};
use crate::backoff::Backoff;

/// Maximum size in bytes of all journals together. The journals are replayed after a kill, and this
/// size is replayed within a second.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;
/// Maximum size in bytes of the memtable of each table.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// Size of the engine's block cache, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Interval between two reads of the free space.
const FREE_SPACE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of ranges of failed commits. If there are more, the last range is extended.
const MAX_FAILED_RANGES: usize = 64;
/// Time for which a reopened engine must work so that, after its next failure, the delays between
/// the attempts to reopen it start from the first delay again.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(30);

/// The open storage engine. No clone of a keyspace may leave this type, because it would keep the
/// engine locked after `Engine` is dropped.
struct Engine {
    // The keyspaces are declared before the database, so that they are dropped first.
    tables: [Keyspace; TABLES.len()],
    database: Database,
}

impl Engine {
    fn open(path: &Path) -> fjall::Result<Self> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(MAX_JOURNAL_BYTES)
            .worker_threads(1)
            .open()?;
        let table = |name: &str| {
            database.keyspace(name, || {
                KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
            })
        };
        let tables = [
            table("log")?,
            table("log_state")?,
            table("users")?,
            table("history")?,
        ];
        // Commits of a killed process may be only in the operating system's buffers. They are
        // synced before they become visible to readers.
        database.persist(PersistMode::SyncAll)?;
        Ok(Self { tables, database })
    }
}

/// The channel to a caller that waits until its commit is on disk.
type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// The callers that wait for a sync, and the results of the earlier syncs.
#[derive(Default)]
struct SyncQueue {
    waiters: Vec<Waiter>,
    /// Ticket of the last commit whose sync has succeeded or failed. Every commit up to this ticket
    /// is on disk, except the commits in `failed_ranges`.
    synced_up_to: u64,
    /// Ranges of tickets, both ends included, of commits that may not be on disk.
    failed_ranges: Vec<(u64, u64)>,
    is_stopped: bool,
}

/// The state that the callers of the store and its thread share.
struct Shared {
    directory: Directory,
    min_free_bytes: u64,
    /// `None` while the engine is being reopened. Calls clone the `Arc` and hold no lock, so a call
    /// that the engine blocks does not block any other call.
    engine: ArcSwapOption<Engine>,
    /// Number of commits so far, which is also the ticket of the last commit.
    commits: AtomicU64,
    /// Free space at the last check, in bytes.
    free_bytes: AtomicU64,
    queue: Mutex<SyncQueue>,
    wake: Condvar,
    /// Whether `failure` is `Some`, for callers that take no lock.
    has_failed: AtomicBool,
    /// Why the engine must be reopened. `None` while it works.
    failure: Mutex<Option<String>>,
}

/// The open store on disk. Dropping it syncs every commit, unless the disk has failed, and releases
/// the directory.
pub(super) struct DurableStore {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for DurableStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DurableStore")
            .field(&self.shared.directory.path())
            .finish()
    }
}

fn to_store_error(error: &fjall::Error) -> StoreError {
    StoreError(error.to_string())
}

impl DurableStore {
    pub(super) fn open(dir: &Path, min_free_bytes: u64) -> Result<Self, OpenError> {
        let directory = Directory::open(dir)?;
        let io = |reason: String| OpenError::Io {
            dir: dir.to_owned(),
            reason,
        };
        let engine_dir = directory.engine_dir();
        let engine = Engine::open(&engine_dir).map_err(|error| match error {
            fjall::Error::JournalRecovery(damage) => match journal::repair_advice(&engine_dir) {
                Ok(advice) => OpenError::Damaged {
                    dir: dir.to_owned(),
                    damage: format!("{damage:?}"),
                    advice,
                },
                Err(error) => io(error.to_string()),
            },
            other => io(other.to_string()),
        })?;
        let free_bytes = directory.free_bytes().map_err(|e| io(e.to_string()))?;
        let shared = Arc::new(Shared {
            directory,
            min_free_bytes,
            engine: ArcSwapOption::from_pointee(engine),
            commits: AtomicU64::new(0),
            free_bytes: AtomicU64::new(free_bytes),
            queue: Mutex::default(),
            wake: Condvar::new(),
            has_failed: AtomicBool::new(false),
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
            Some(engine) => read(&engine).map_err(|e| to_store_error(&e)),
            None => Err(self
                .shared
                .failure_or("the store is being reopened after a failure")),
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
        if shared.has_failed.load(Ordering::Acquire) {
            return Err(shared.failure_or("the store is being reopened after a failure"));
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
            // A failure is noted before the engine can be closed, so that it cannot be taken for a
            // failure of the reopened engine.
            changes
                .commit()
                .inspect_err(|error| shared.fail(&error.to_string()))?;
            // The commit is counted after the engine has applied it, so that a sync up to its
            // ticket includes it. It is counted before the engine can be closed, so that a failure
            // of the engine includes it.
            Ok(Ticket(shared.commits.fetch_add(1, Ordering::AcqRel) + 1))
        })
    }

    /// Returns a channel that reports when the commit is on disk, or that it may be lost.
    pub(super) fn request_sync(&self, ticket: Ticket) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        let may_be_lost = queue
            .failed_ranges
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&ticket.0));
        if may_be_lost {
            let _ = reply.send(Err(self
                .shared
                .failure_or("a commit could not be synced to disk and may be lost")));
        } else if ticket.0 <= queue.synced_up_to {
            let _ = reply.send(Ok(()));
        } else {
            queue.waiters.push(reply);
            drop(queue);
            self.shared.wake.notify_one();
        }
        receiver
    }

    pub(super) fn check_free_space(&self) -> Result<(), StoreError> {
        let free = self.shared.free_bytes.load(Ordering::Relaxed);
        if free >= self.shared.min_free_bytes {
            return Ok(());
        }
        Err(StoreError(format!(
            "{} MiB are free in {}, and MIN_FREE_DISK requires {} MiB: free some space; new messages \
             are refused until then",
            free >> 20,
            self.shared.directory.path().display(),
            self.shared.min_free_bytes.div_ceil(1 << 20),
        )))
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.shared.has_failed.load(Ordering::Acquire) {
            return Err(self
                .shared
                .failure_or("the store is being reopened after a failure"));
        }
        self.check_free_space()
    }

    /// Makes the store behave as if the disk had failed.
    #[cfg(test)]
    pub(super) fn simulate_failure(&self, reason: &str) {
        self.shared.fail(reason);
    }
}

impl Drop for DurableStore {
    fn drop(&mut self) {
        self.shared.queue.lock().is_stopped = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The error with the reason of the current failure, or with the text `otherwise` if there is
    /// no failure.
    fn failure_or(&self, otherwise: &str) -> StoreError {
        let failure = self.failure.lock();
        StoreError(match &*failure {
            Some(reason) => format!("{reason}; the store reopens itself when the disk works again"),
            None => otherwise.to_owned(),
        })
    }

    /// Notes a failure, and wakes the thread, which closes and reopens the engine. Every commit is
    /// refused until then.
    fn fail(&self, reason: &str) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(
                reason,
                "the local store failed and is reopened until that succeeds; check the disk"
            );
            *failure = Some(reason.to_owned());
        }
        drop(failure);
        self.has_failed.store(true, Ordering::Release);
        // The thread is woken under the lock. Otherwise it could miss the wake-up between its check
        // of `has_failed` and its wait.
        let _queue = self.queue.lock();
        self.wake.notify_one();
    }

    /// The body of the store's thread: syncs commits, reads the free space, and reopens a failed
    /// engine. Returns when the store is dropped.
    fn run(&self) {
        let mut journal = None;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut free_space_checked_at = Instant::now();
        let mut reopen_at = Instant::now();
        let mut closing = None;
        loop {
            let (waiters, is_stopped) =
                self.wait_for_work(free_space_checked_at + FREE_SPACE_INTERVAL, reopen_at);
            if free_space_checked_at.elapsed() >= FREE_SPACE_INTERVAL {
                self.update_free_space();
                free_space_checked_at = Instant::now();
            }
            if self.has_failed.load(Ordering::Acquire) {
                self.fail_waiters(waiters);
                if is_stopped {
                    break;
                }
                let now = Instant::now();
                if now >= reopen_at {
                    // If the engine fails soon after it was reopened, the delays grow further.
                    if now.duration_since(reopen_at) > BACKOFF_RESET_AFTER {
                        backoff.reset();
                    }
                    journal = None;
                    self.reopen(&mut closing);
                    reopen_at = Instant::now() + backoff.next_delay();
                }
                continue;
            }
            if !waiters.is_empty() || is_stopped {
                self.sync(waiters, &mut journal);
            }
            if is_stopped {
                break;
            }
        }
        // The engine is closed here, because the directory may be released only after that.
        drop((self.engine.swap(None), closing));
    }

    /// Waits until a caller requests a sync, the store is stopped, `free_space_at` is reached, or
    /// the engine has failed and `reopen_at` is reached. Returns the callers that wait for a sync,
    /// and whether the store is stopped.
    fn wait_for_work(&self, free_space_at: Instant, reopen_at: Instant) -> (Vec<Waiter>, bool) {
        let mut queue = self.queue.lock();
        loop {
            let now = Instant::now();
            let has_failed = self.has_failed.load(Ordering::Acquire);
            if queue.is_stopped
                || !queue.waiters.is_empty()
                || now >= free_space_at
                || (has_failed && now >= reopen_at)
            {
                return (std::mem::take(&mut queue.waiters), queue.is_stopped);
            }
            let until = if has_failed {
                free_space_at.min(reopen_at)
            } else {
                free_space_at
            };
            self.wake.wait_for(&mut queue, until - now);
        }
    }

    /// Syncs every commit so far, and reports the result to the waiters.
    fn sync(&self, waiters: Vec<Waiter>, journal: &mut Option<(u64, File)>) {
        // Every waiter's commit was counted before the waiter was queued, so this sync includes it.
        let last_commit = self.commits.load(Ordering::Acquire);
        match self.sync_journal(journal) {
            Ok(()) => {
                let mut queue = self.queue.lock();
                queue.synced_up_to = queue.synced_up_to.max(last_commit);
                drop(queue);
                for waiter in waiters {
                    let _ = waiter.send(Ok(()));
                }
            }
            Err(reason) => {
                self.fail(&reason);
                self.fail_waiters(waiters);
            }
        }
    }

    /// Syncs the newest journal through a separate file handle, which `journal` keeps with the
    /// journal's number. The engine's own `persist` blocks every commit while the disk works, and
    /// commits run on runtime threads. Older journals need no sync, because the engine syncs a
    /// journal itself before it starts the next journal.
    fn sync_journal(&self, journal: &mut Option<(u64, File)>) -> Result<(), String> {
        let newest =
            journal::find_newest(&self.directory.engine_dir()).map_err(|e| e.to_string())?;
        let Some((id, path)) = newest else {
            let engine = self
                .engine
                .load_full()
                .ok_or("the store is being reopened after a failure")?;
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

    /// Marks every commit that is not synced as failed, and reports to the waiters that their
    /// commits may be lost. Waiters that were queued since `waiters` was taken are included:
    /// otherwise the first sync after the reopening would report their failed commits as durable.
    fn fail_waiters(&self, mut waiters: Vec<Waiter>) {
        let error = self.failure_or("a commit could not be synced to disk and may be lost");
        let mut queue = self.queue.lock();
        waiters.append(&mut queue.waiters);
        let last_commit = self.commits.load(Ordering::Acquire);
        if last_commit > queue.synced_up_to {
            let from = queue.synced_up_to + 1;
            let is_full = queue.failed_ranges.len() >= MAX_FAILED_RANGES;
            match queue.failed_ranges.last_mut() {
                // Extending the last range may report durable commits between two failures as
                // failed, but never a failed commit as durable.
                Some(last) if last.1 + 1 == from || is_full => {
                    last.1 = last_commit;
                }
                _ => queue.failed_ranges.push((from, last_commit)),
            }
            queue.synced_up_to = last_commit;
        }
        drop(queue);
        for waiter in waiters {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    fn update_free_space(&self) {
        match self.directory.free_bytes() {
            Ok(free) => self.free_bytes.store(free, Ordering::Relaxed),
            Err(error) => tracing::warn!(
                %error,
                "the free space of the data directory cannot be read; check the disk"
            ),
        }
    }

    /// Closes the engine once the last call that uses it has returned, and opens it again. While
    /// such a call is running, this only keeps the engine in `closing`, and the next attempt
    /// continues with it. Calls of the store fail until the engine is open, because closing and
    /// opening take too long for runtime threads to wait.
    fn reopen(&self, closing: &mut Option<Arc<Engine>>) {
        self.update_free_space();
        if let Some(engine) = self.engine.swap(None).or_else(|| closing.take()) {
            match Arc::try_unwrap(engine) {
                Ok(engine) => drop(engine),
                Err(engine) => {
                    *closing = Some(engine);
                    return;
                }
            }
        }
        // No commit can run now. Commits that were made after the failure was noticed may be lost
        // too, so they are marked as failed.
        self.fail_waiters(Vec::new());
        match Engine::open(&self.directory.engine_dir()) {
            Ok(engine) => {
                *self.failure.lock() = None;
                self.has_failed.store(false, Ordering::Release);
                self.engine.store(Some(Arc::new(engine)));
                tracing::info!("the local store recovered");
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the local store could not be reopened, retrying; check the disk"
                );
            }
        }
    }
}
