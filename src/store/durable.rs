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

/// Size limit of the journals, in bytes. They are replayed after a kill, and this limit keeps that
/// within a second.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;
/// Size limit of the memtable of each table, in bytes.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// Size of the engine's block cache, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Interval between two checks of the free space.
const FREE_SPACE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of ranges of failed commits that are remembered separately.
const MAX_FAILED_RANGES: usize = 64;
/// After this long without a failure the reopening backoff starts from its first delay again.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(30);

/// The engine's handles. No clone of a keyspace may leave this type: it would keep the engine's
/// lock.
struct Engine {
    // Declared before the database, so that they are dropped first.
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
        // Commits of a killed process may still be in the system's buffers, and become visible now.
        database.persist(PersistMode::SyncAll)?;
        Ok(Self { tables, database })
    }
}

type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// The callers that wait for the disk, and which commits are on it.
#[derive(Default)]
struct SyncQueue {
    waiters: Vec<Waiter>,
    /// Every commit up to this one is on disk, except those in `failed`.
    durable_up_to: u64,
    /// Ranges of commits, both ends included, that may not be on disk.
    failed: Vec<(u64, u64)>,
    is_stopped: bool,
}

/// The state that the store's handles and its thread share.
struct Shared {
    directory: Directory,
    min_free_bytes: u64,
    /// `None` while the engine is being reopened. Calls clone the `Arc` and hold no lock, so a call
    /// that the engine blocks does not block any other.
    engine: ArcSwapOption<Engine>,
    /// Number of commits so far; the ticket of the last one.
    committed: AtomicU64,
    free_bytes: AtomicU64,
    queue: Mutex<SyncQueue>,
    wake: Condvar,
    /// Mirrors `failure.is_some()`, without a lock.
    has_failed: AtomicBool,
    /// Why the engine must be reopened.
    failure: Mutex<Option<String>>,
}

/// The open store. Dropping it makes every commit durable and releases the directory.
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

fn to_store_error(error: &fjall::Error) -> StoreError {
    StoreError(error.to_string())
}

impl Durable {
    pub(super) fn open(dir: &Path, min_free_bytes: u64) -> Result<Self, OpenError> {
        let directory = Directory::open(dir)?;
        let io = |reason: String| OpenError::Io {
            dir: dir.to_owned(),
            reason,
        };
        let tables = directory.tables();
        let engine = Engine::open(&tables).map_err(|error| match error {
            fjall::Error::JournalRecovery(damage) => match journal::repair_advice(&tables) {
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
            committed: AtomicU64::new(0),
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
            // Noted before the engine can be closed, so that the failure is attributed to this
            // engine.
            changes
                .commit()
                .inspect_err(|error| shared.fail(&error.to_string()))?;
            // Counted after the commit, so that a sync up to this number includes it; and before
            // the engine can be closed, so that a failure includes it.
            Ok(Ticket(shared.committed.fetch_add(1, Ordering::AcqRel) + 1))
        })
    }

    /// Returns a channel that reports when the commit is on disk.
    pub(super) fn request_sync(&self, ticket: Ticket) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        let may_be_lost = queue
            .failed
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&ticket.0));
        if may_be_lost {
            let _ = reply.send(Err(self
                .shared
                .failure_or("a commit could not be synced to disk and may be lost")));
        } else if ticket.0 <= queue.durable_up_to {
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

impl Drop for Durable {
    fn drop(&mut self) {
        self.shared.queue.lock().is_stopped = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The reason of the current failure, or `otherwise` if there is none.
    fn failure_or(&self, otherwise: &str) -> StoreError {
        let failure = self.failure.lock();
        StoreError(match &*failure {
            Some(reason) => format!("{reason}; the store reopens itself when the disk works again"),
            None => otherwise.to_owned(),
        })
    }

    /// Refuses every commit until the thread has closed and reopened the engine.
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
        // Under the lock, so that the thread cannot miss the wake-up between its check and its
        // wait.
        let _queue = self.queue.lock();
        self.wake.notify_one();
    }

    /// The body of the thread: syncs commits, checks the free space, reopens a failed engine.
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
                    // An engine that fails soon after it was reopened is reopened ever later.
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
        // The engine is closed before the directory is released.
        drop((self.engine.swap(None), closing));
    }

    /// Waits until a caller waits for a sync, the store is stopped, or a time is reached. Returns
    /// the callers, and whether the store is stopped.
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
        // Every waiter's commit was counted before the waiter was queued.
        let target = self.committed.load(Ordering::Acquire);
        match self.sync_journal(journal) {
            Ok(()) => {
                let mut queue = self.queue.lock();
                queue.durable_up_to = queue.durable_up_to.max(target);
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

    /// Syncs the newest journal through a file handle of our own. The engine's own `persist` blocks
    /// every commit while the disk works, and commits run on runtime threads. Older journals need
    /// no sync: the engine syncs a journal itself before it starts the next one.
    fn sync_journal(&self, journal: &mut Option<(u64, File)>) -> Result<(), String> {
        let newest = journal::newest(&self.directory.tables()).map_err(|e| e.to_string())?;
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

    /// Marks every commit that is not durable as failed, and reports to the waiters that theirs may
    /// be lost. Callers that queued since `waiters` was taken are among them: otherwise the first
    /// sync after the reopening would report their failed commits as durable.
    fn fail_waiters(&self, mut waiters: Vec<Waiter>) {
        let error = self.failure_or("a commit could not be synced to disk and may be lost");
        let mut queue = self.queue.lock();
        waiters.append(&mut queue.waiters);
        let target = self.committed.load(Ordering::Acquire);
        if target > queue.durable_up_to {
            let from = queue.durable_up_to + 1;
            let is_full = queue.failed.len() >= MAX_FAILED_RANGES;
            match queue.failed.last_mut() {
                // Extending the last range may report durable commits between two failures as
                // failed, but never a failed commit as durable.
                Some(last) if last.1 + 1 == from || is_full => {
                    last.1 = target;
                }
                _ => queue.failed.push((from, target)),
            }
            queue.durable_up_to = target;
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

    /// Closes the engine once its last call has returned, and opens it again. If a call is still
    /// running, the next attempt continues from there. Every call fails until the engine is open:
    /// closing and opening take too long for runtime threads to wait.
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
        // No commit can run now. Those made after the failure was noticed may be lost as well.
        self.fail_waiters(Vec::new());
        match Engine::open(&self.directory.tables()) {
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
