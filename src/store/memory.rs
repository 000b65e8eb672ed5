//! The store that is gone with its process.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Batch, Entry, TABLES, Table};

/// A key without its shelf's name. Short ones, which are nearly all, lie in the tree itself: each
/// comparison with one elsewhere would wait for memory.
#[derive(Debug)]
enum Rest {
    Short(u8, [u8; Rest::ROOM]),
    Long(Box<[u8]>),
}

impl Rest {
    const ROOM: usize = 46;

    fn new(bytes: &[u8]) -> Self {
        let mut room = [0; Self::ROOM];
        match room.get_mut(..bytes.len()) {
            Some(short) => {
                short.copy_from_slice(bytes);
                Self::Short(bytes.len() as u8, room)
            }
            None => Self::Long(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, room) => &room[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Rest {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}

impl Ord for Rest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for Rest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rest {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Rest {}

type Shelf = BTreeMap<Rest, Vec<u8>>;

/// A table: keys that are the same up to their first zero byte (those of one user) lie together on
/// a shelf, so that what is looked for is found among few. The shelves' names end with that byte,
/// so none begins with another one, and the order of all keys is that of the shelves first.
#[derive(Debug, Default)]
struct Shelves {
    shelves: HashMap<Arc<[u8]>, Shelf>,
    names: BTreeSet<Arc<[u8]>>,
}

/// The shelf's name and the rest.
fn split(key: &[u8]) -> (&[u8], &[u8]) {
    let zero = key.iter().position(|byte| *byte == 0);
    key.split_at(zero.map_or(key.len(), |at| at + 1))
}

impl Shelves {
    fn get(&self, key: &[u8]) -> Option<&Vec<u8>> {
        let (name, rest) = split(key);
        self.shelves.get(name)?.get(rest)
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        let (name, rest) = split(key);
        if let Some(shelf) = self.shelves.get_mut(name) {
            shelf.insert(Rest::new(rest), value);
            return;
        }
        let name: Arc<[u8]> = name.into();
        self.names.insert(Arc::clone(&name));
        let shelf = Shelf::from([(Rest::new(rest), value)]);
        self.shelves.insert(name, shelf);
    }

    fn remove(&mut self, key: &[u8]) {
        let (name, rest) = split(key);
        if let Some(shelf) = self.shelves.get_mut(name) {
            shelf.remove(rest);
            if shelf.is_empty() {
                self.shelves.remove(name);
                self.names.remove(name);
            }
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, descending: bool) -> Vec<Entry> {
        let mut found = Vec::new();
        let ((first, from), (last, to)) = (split(from), split(to));
        // Whether there is room for more.
        let mut look = |name: &[u8]| {
            let Some(shelf) = self.shelves.get(name) else {
                return true;
            };
            let from = if name == first {
                Bound::Included(from)
            } else {
                Bound::Unbounded
            };
            let to = if name == last {
                Bound::Excluded(to)
            } else {
                Bound::Unbounded
            };
            let entry =
                |(rest, value): (&Rest, &Vec<u8>)| ([name, rest.bytes()].concat(), value.clone());
            let range = shelf.range::<[u8], _>((from, to)).map(entry);
            let room = limit - found.len();
            if descending {
                found.extend(range.rev().take(room));
            } else {
                found.extend(range.take(room));
            }
            found.len() < limit
        };
        if first == last {
            look(first);
            return found;
        }
        let names = (Bound::Included(first), Bound::Included(last));
        let mut names = self.names.range::<[u8], _>(names);
        while let Some(name) = if descending {
            names.next_back()
        } else {
            names.next()
        } {
            if !look(name) {
                break;
            }
        }
        found
    }
}

/// A lock for each table: readers of one don't wait for writers of another.
#[derive(Debug, Default)]
pub(super) struct Memory {
    tables: [RwLock<Shelves>; TABLES.len()],
}

impl Memory {
    fn table(&self, table: Table) -> std::sync::RwLockReadGuard<'_, Shelves> {
        self.tables[table as usize]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
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
        self.table(table).scan(from, to, limit, descending)
    }

    pub(super) fn commit(&self, batch: Batch) {
        // Every table of the batch is locked before the first change, always in the same order:
        // atomic to readers of each table, and free of deadlocks.
        let mut used = [false; TABLES.len()];
        for (table, _, _) in &batch.changes {
            used[*table as usize] = true;
        }
        let mut locked: Vec<_> = self
            .tables
            .iter()
            .zip(used)
            .map(|(table, used)| {
                used.then(|| table.write().unwrap_or_else(PoisonError::into_inner))
            })
            .collect();
        for (table, key, value) in batch.changes {
            if let Some(table) = &mut locked[table as usize] {
                match value {
                    Some(value) => table.put(&key, value),
                    None => table.remove(&key),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(prop::sample::select(&[0_u8, 1, b'a', b'b'][..]), 0..5),
            prop::collection::vec(prop::sample::select(&[0_u8, b'a'][..]), 44..52),
        ]
    }

    proptest! {
        #[test]
        fn it_is_one_ordered_map(
            changes in prop::collection::vec((key(), prop::option::weighted(0.7, any::<u8>())), 0..60),
            from in key(),
            to in key(),
            limit in 0_usize..9,
        ) {
            let (mut table, mut model) = (Shelves::default(), BTreeMap::new());
            for (key, value) in changes {
                if let Some(value) = value {
                    table.put(&key, vec![value]);
                    model.insert(key, vec![value]);
                } else {
                    table.remove(&key);
                    model.remove(&key);
                }
            }
            for (key, value) in &model {
                prop_assert_eq!(table.get(key), Some(value));
            }
            prop_assert_eq!(table.get(&from), model.get(&from));
            if from < to {
                let entry = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
                let all = model.range(from.clone()..to.clone()).map(entry);
                let up: Vec<_> = all.clone().take(limit).collect();
                prop_assert_eq!(table.scan(&from, &to, limit, false), up);
                let down: Vec<_> = all.rev().take(limit).collect();
                prop_assert_eq!(table.scan(&from, &to, limit, true), down);
            }
        }
    }
}
