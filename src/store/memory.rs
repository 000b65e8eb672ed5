//! The store in memory, for tests and for an `all-in-one` without a data directory.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::RwLock;

use super::{Batch, Entry, TABLES, Table};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The tables of a store in memory. Each has its own lock, so that readers of one table do not wait
/// for writers of another.
#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    tables: [RwLock<Map>; TABLES.len()],
}

impl MemoryStore {
    fn table(&self, table: Table) -> parking_lot::RwLockReadGuard<'_, Map> {
        self.tables[table as usize].read()
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.table(table).get(key).cloned()
    }

    pub(super) fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Vec<Entry> {
        let table = self.table(table);
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let range = table
            .range::<[u8], _>(bounds)
            .map(|(key, value)| (key.clone(), value.clone()));
        if descending {
            range.rev().take(limit).collect()
        } else {
            range.take(limit).collect()
        }
    }

    pub(super) fn commit(&self, batch: Batch) {
        // Every table of the batch is locked before the first change, so that a single read sees
        // all of the batch's changes or none. The fixed order of the locks prevents deadlocks.
        let mut is_used = [false; TABLES.len()];
        for (table, _, _) in &batch.changes {
            is_used[*table as usize] = true;
        }
        let mut locked: Vec<_> = self
            .tables
            .iter()
            .zip(is_used)
            .map(|(table, is_used)| is_used.then(|| table.write()))
            .collect();
        for (table, key, value) in batch.changes {
            if let Some(map) = &mut locked[table as usize] {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
        }
    }
}
