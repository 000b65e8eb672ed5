//! The local store under the embedded log and fan-out: ordered tables, atomic batches across
//! them, one group commit to disk.

use std::path::Path;
use std::sync::Arc;

mod directory;
mod durable;
mod holder;
mod journal;
mod memory;

pub use directory::{Folder, OpenError, look};
use durable::Durable;
pub use holder::Holder;
use memory::Memory;

/// An ordered map from bytes to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// The log's records.
    Log,
    /// The log's own state: topics, ends, committed offsets, its id.
    LogState,
    /// Users' state in the fan-out: mailboxes, outcomes, pending, tokens, markers.
    Users,
    /// Conversation history.
    History,
}

/// All tables.
pub const TABLES: [Table; 4] = [Table::Log, Table::LogState, Table::Users, Table::History];

/// The store could not read or write.
#[derive(Debug, Clone, thiserror::Error)]
#[error("local store: {0}")]
pub struct StoreError(pub String);

/// Changes that become visible together and survive together.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((table, key.into(), Some(value.into())));
    }

    /// Removes a key.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.changes.push((table, key.into(), None));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Says up to which commit a caller wants to wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// The store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    backing: Backing,
}

#[derive(Debug, Clone)]
enum Backing {
    Memory(Arc<Memory>),
    Durable(Arc<Durable>),
}

impl Store {
    /// A store that is gone with the process.
    pub fn in_memory() -> Self {
        Self {
            backing: Backing::Memory(Arc::default()),
        }
    }

    /// The store in this directory, which is made when it is missing. One process at a time may
    /// hold it; it is free again when the last clone is dropped or the process has died, however
    /// it died. Below `min_free_disk` bytes of free space [`Store::check`] refuses.
    ///
    /// Blocks while what a killed process left is read again (about a second at most).
    pub fn open(dir: &Path, min_free_disk: u64) -> Result<Self, OpenError> {
        Ok(Self {
            backing: Backing::Durable(Arc::new(Durable::open(dir, min_free_disk)?)),
        })
    }

    /// Whether nobody ever waits for a disk.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.backing, Backing::Memory(_))
    }

    /// The value of a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.backing {
            Backing::Memory(memory) => Ok(memory.get(table, key)),
            Backing::Durable(durable) => durable.get(table, key),
        }
    }

    /// At most `limit` entries with `from <= key < to`, ascending, or descending from the end.
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
        match &self.backing {
            Backing::Memory(memory) => Ok(memory.scan(table, from, to, limit, descending)),
            Backing::Durable(durable) => durable.scan(table, from, to, limit, descending),
        }
    }

    /// Applies a batch: visible to every reader when this returns, and survives the process's
    /// death; it survives the machine's death once [`Store::synced`] has returned for the ticket.
    /// Short and blocking (no disk wait); callable from async code. A reader of several keys may
    /// see some of a batch while it is being applied.
    ///
    /// After an error it is unknown whether the batch was applied.
    pub fn commit(&self, batch: Batch) -> Result<Ticket, StoreError> {
        match &self.backing {
            Backing::Memory(memory) => {
                memory.commit(batch);
                Ok(Ticket(0))
            }
            Backing::Durable(durable) => durable.commit(batch),
        }
    }

    /// Waits until the commit is on disk, together with everybody else who waits. After an error
    /// it is unknown whether the commit survives.
    pub async fn synced(&self, ticket: Ticket) -> Result<(), StoreError> {
        match &self.backing {
            Backing::Memory(_) => Ok(()),
            Backing::Durable(durable) => durable
                .sync(ticket)
                .await
                .unwrap_or_else(|_| Err(StoreError("closed".into()))),
        }
    }

    /// As [`Store::synced`], for threads that are not a runtime's.
    pub fn synced_blocking(&self, ticket: Ticket) -> Result<(), StoreError> {
        match &self.backing {
            Backing::Memory(_) => Ok(()),
            Backing::Durable(durable) => durable
                .sync(ticket)
                .blocking_recv()
                .unwrap_or_else(|_| Err(StoreError("closed".into()))),
        }
    }

    /// Refuses while there is less free space than new messages may use. Costs one load.
    pub fn room(&self) -> Result<(), StoreError> {
        match &self.backing {
            Backing::Memory(_) => Ok(()),
            Backing::Durable(durable) => durable.room(),
        }
    }

    /// Refuses when there is no room for new messages, or the store has failed.
    pub fn check(&self) -> Result<(), StoreError> {
        match &self.backing {
            Backing::Memory(_) => Ok(()),
            Backing::Durable(durable) => durable.check(),
        }
    }
}

#[cfg(test)]
mod tests;
