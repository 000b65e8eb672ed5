//! A breadth-first search through all states that the model can reach within its bounds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::model::{Model, SearchBounds, Step};

/// A fast hash function that is the same in every run. It needs no protection against chosen keys.
#[derive(Default)]
struct FoldHasher(u64);

impl FoldHasher {
    fn fold(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

impl Hasher for FoldHasher {
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

fn hash(model: &Model) -> u64 {
    let mut hasher = FoldHasher::default();
    model.hash(&mut hasher);
    hasher.finish()
}

/// The result of a search.
#[derive(Debug)]
pub(crate) struct SearchReport {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// States in which no step is possible without a fault.
    pub(crate) final_states: usize,
    pub(crate) depth: usize,
    pub(crate) duration: Duration,
    /// The first violation, and the shortest trace that leads to it.
    pub(crate) violation: Option<(String, Vec<Step>)>,
}

/// For each state its parent and the step between them.
type Parents = HashMap<u64, (u64, Step), BuildHasherDefault<FoldHasher>>;

/// Visits all reachable states, up to the first violation.
pub(crate) fn search(bounds: &SearchBounds) -> SearchReport {
    let started = Instant::now();
    let mut initial = Model::new(bounds);
    for step in bounds.prefix {
        initial
            .apply(*step)
            .expect("the prefix causes no violation");
    }
    let root = hash(&initial);
    let mut parents = Parents::default();
    parents.insert(root, (root, Step::Connect));
    let mut level = vec![(root, initial)];
    let mut report = SearchReport {
        states: 1,
        steps: 0,
        final_states: 0,
        depth: 0,
        duration: Duration::ZERO,
        violation: None,
    };
    let mut steps = Vec::new();
    while !level.is_empty() && report.violation.is_none() {
        report.depth += 1;
        let mut next_level = Vec::new();
        'level: for (id, model) in level {
            model.steps(&mut steps);
            if steps.is_empty() {
                report.final_states += 1;
                if let Err(violation) = model.check_final_state() {
                    report.violation = Some((violation, trace_to(&parents, root, id)));
                    break 'level;
                }
            }
            model.fault_steps(&mut steps);
            for step in &steps {
                report.steps += 1;
                let mut next = model.clone();
                if let Err(violation) = next.apply(*step) {
                    let mut trace = trace_to(&parents, root, id);
                    trace.push(*step);
                    report.violation = Some((violation, trace));
                    break 'level;
                }
                let next_id = hash(&next);
                if let Entry::Vacant(entry) = parents.entry(next_id) {
                    entry.insert((id, *step));
                    report.states += 1;
                    next_level.push((next_id, next));
                }
            }
        }
        level = next_level;
    }
    report.duration = started.elapsed();
    report
}

fn trace_to(parents: &Parents, root: u64, mut id: u64) -> Vec<Step> {
    let mut trace = Vec::new();
    while id != root {
        let (parent, step) = parents[&id];
        trace.push(step);
        id = parent;
    }
    trace.reverse();
    trace
}
