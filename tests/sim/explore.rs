//! A breadth-first search through everything that can happen within bounds.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::world::{Bounds, Step, World};

/// Fast, and the same in every run; the search has nothing to fear from chosen keys.
#[derive(Default)]
struct Fold(u64);

impl Fold {
    fn fold(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        let mixed = self.0.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.fold(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.fold(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.fold(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.fold(value as u64);
    }
}

fn hash(world: &World) -> u64 {
    let mut fold = Fold::default();
    world.hash(&mut fold);
    fold.finish()
}

/// What a search saw.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) rests: usize,
    pub(crate) depth: usize,
    pub(crate) time: Duration,
    /// What went wrong first, and how it came to that.
    pub(crate) violation: Option<(String, Vec<Step>)>,
}

type Parents = HashMap<u64, (u64, Step), BuildHasherDefault<Fold>>;

/// Goes through all states that can be reached.
pub(crate) fn explore(bounds: &Bounds) -> Report {
    let begun = Instant::now();
    let mut first = World::new(bounds);
    for step in bounds.after {
        first.apply(*step).expect("a good beginning");
    }
    let root = hash(&first);
    let mut parents = Parents::default();
    parents.insert(root, (root, Step::Connect));
    let mut level = vec![(root, first)];
    let mut report = Report {
        states: 1,
        steps: 0,
        rests: 0,
        depth: 0,
        time: Duration::ZERO,
        violation: None,
    };
    let mut steps = Vec::new();
    while !level.is_empty() && report.violation.is_none() {
        report.depth += 1;
        let mut next = Vec::new();
        'level: for (id, world) in level {
            world.steps(&mut steps);
            if steps.is_empty() {
                report.rests += 1;
                if let Err(violation) = world.check_rest() {
                    report.violation = Some((violation, path(&parents, root, id)));
                    break 'level;
                }
            }
            world.faults(&mut steps);
            for step in &steps {
                report.steps += 1;
                let mut after = world.clone();
                if let Err(violation) = after.apply(*step) {
                    let mut trace = path(&parents, root, id);
                    trace.push(*step);
                    report.violation = Some((violation, trace));
                    break 'level;
                }
                let after_id = hash(&after);
                if let std::collections::hash_map::Entry::Vacant(entry) = parents.entry(after_id) {
                    entry.insert((id, *step));
                    report.states += 1;
                    next.push((after_id, after));
                }
            }
        }
        level = next;
    }
    report.time = begun.elapsed();
    report
}

fn path(parents: &Parents, root: u64, mut id: u64) -> Vec<Step> {
    let mut path = Vec::new();
    while id != root {
        let (parent, step) = parents[&id];
        path.push(step);
        id = parent;
    }
    path.reverse();
    path
}
