//! The local store of the embedded log and the embedded fan-out: ordered tables, batches that are
//! atomic across tables, and group commit to disk.
//!
//! - `durable` is the store on disk, with the thread that syncs it and reopens it after a failure.
//! - `memory` is the store in memory.
//! - `directory` locks the data directory; `instance` tells tools how to reach the process that
//!   holds the lock.
//! - `journal` examines the storage engine's journal files.

use std::path::Path;
use std::sync::Arc;

mod directory;
mod durable;
mod instance;
mod journal;
mod memory;

pub use directory::{DirectoryInfo, OpenError, inspect};
use durable::DurableStore;
pub use instance::InstanceInfo;
use memory::MemoryStore;

/// One of the store's tables: an ordered map from byte strings to byte strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// The log's records.
    Log,
    /// The log's metadata: its id, its topics, log starts, and committed offsets.
    LogState,
    /// The fan-out's state per user: mailboxes, outcomes, pending messages, tokens, markers.
    Users,
    /// The turns of conversations.
    History,
}

/// Every table, in the order of the discriminants of [`Table`].
pub const TABLES: [Table; 4] = [Table::Log, Table::LogState, Table::Users, Table::History];

/// The reason why a read or a write of the store failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("local store: {0}")]
pub struct StoreError(pub String);

/// Changes that become durable together, or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    /// Table, key, and the new value; `None` removes the key.
    changes: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Adds a change that sets the value of a key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((table, key.into(), Some(value.into())));
    }

    /// Adds a change that removes a key.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.changes.push((table, key.into(), None));
    }

    /// Whether the batch has no changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The number of a commit, with which a caller can wait until the commit is on disk:
/// [`Store::wait_durable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A handle to the store. Clones share one store.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Memory(Arc<MemoryStore>),
    Durable(Arc<DurableStore>),
}

impl Store {
    /// Creates a store in memory, which is lost with the process.
    pub fn in_memory() -> Self {
        Self {
            backend: Backend::Memory(Arc::default()),
        }
    }

    /// Opens the store in this directory, which is created if it does not exist. Only one process
    /// at a time can hold the directory. It is released when the last clone of the store is dropped
    /// or the process dies, by whatever cause. Below `min_free_disk` bytes of free space
    /// [`Store::check`] fails.
    ///
    /// Blocks while the journal of a killed process is replayed, for about a second at most.
    pub fn open(path: &Path, min_free_disk: u64) -> Result<Self, OpenError> {
        Ok(Self {
            backend: Backend::Durable(Arc::new(DurableStore::open(path, min_free_disk)?)),
        })
    }

    /// Whether the store is in memory. If so, no call waits for a disk.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.backend, Backend::Memory(_))
    }

    /// The value of a key; `None` if the key does not exist.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.get(table, key)),
            Backend::Durable(durable) => durable.get(table, key),
        }
    }

    /// The first `limit` entries with `from <= key < to` in ascending order of keys. With
    /// `descending`, the last `limit` entries in descending order.
    pub fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.scan(table, from, to, limit, descending)),
            Backend::Durable(durable) => durable.scan(table, from, to, limit, descending),
        }
    }

    /// Applies a batch. When this returns, every reader sees the batch. Unless the store is in
    /// memory, the batch then survives the death of the process, and the death of the machine once
    /// [`Store::wait_durable`] has returned for the ticket. Blocks briefly, never for the disk, so
    /// async code may call it. A reader of several keys may see a part of a batch while the batch
    /// is being applied.
    ///
    /// After an error it is unknown whether the batch was applied.
    pub fn commit(&self, batch: Batch) -> Result<Ticket, StoreError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.commit(batch);
                Ok(Ticket(0))
            }
            Backend::Durable(durable) => durable.commit(batch),
        }
    }

    /// Waits until the commit is on disk. One disk sync serves every caller that waits. After an
    /// error it is unknown whether the commit survives.
    pub async fn wait_durable(&self, ticket: Ticket) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Durable(durable) => durable
                .request_sync(ticket)
                .await
                .unwrap_or_else(|_| Err(StoreError("the store was closed".into()))),
        }
    }

    /// Like [`Store::wait_durable`], for threads outside the async runtime.
    pub fn wait_durable_blocking(&self, ticket: Ticket) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Durable(durable) => durable
                .request_sync(ticket)
                .blocking_recv()
                .unwrap_or_else(|_| Err(StoreError("the store was closed".into()))),
        }
    }

    /// Fails while there is less free space than the `min_free_disk` of [`Store::open`]. Costs one
    /// atomic load.
    pub fn check_free_space(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Durable(durable) => durable.check_free_space(),
        }
    }

    /// Fails while the store is unusable after a disk failure, or has too little free space.
    pub fn check(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Durable(durable) => durable.check(),
        }
    }
}

#[cfg(test)]
mod tests;
