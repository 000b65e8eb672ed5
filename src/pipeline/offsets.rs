//! Tracks which offsets of one partition are finished, and computes the offset that may be
//! committed.

use std::collections::VecDeque;

const BITS_PER_WORD: i64 = 64;

/// Computes the offset to commit for one partition: the offset below which every offset is
/// finished. Each offset from there on costs one bit of memory, so the tracker stays small while
/// one slow record keeps the offset to commit from advancing.
#[derive(Debug, Clone)]
pub struct OffsetTracker {
    /// The offset to commit: every offset below it is finished.
    next_to_commit: i64,
    /// The highest offset that was observed or finished, plus one.
    observed_end: i64,
    /// The offset that the lowest bit of the first word in `finished` stands for.
    bits_start: i64,
    /// One bit for each offset from `bits_start` on: 1 if the offset is finished. Missing words are
    /// 0.
    finished: VecDeque<u64>,
}

/// Whether an offset was finished before its record was read. Returned by
/// [`OffsetTracker::observe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetState {
    /// The offset is not finished.
    Open,
    /// The offset is finished: this process finished its record, or the offset was below the
    /// group's committed offset at the assignment.
    Finished,
}

impl OffsetTracker {
    /// Creates a tracker for a partition in which every offset below `next` is finished.
    pub fn new(next: i64) -> Self {
        Self {
            next_to_commit: next,
            observed_end: next,
            bits_start: next,
            finished: VecDeque::new(),
        }
    }

    /// The offset to commit: every offset below it is finished.
    pub fn next_to_commit(&self) -> i64 {
        self.next_to_commit
    }

    /// The number of offsets from the offset to commit up to the highest observed offset, finished
    /// offsets included.
    pub fn span(&self) -> i64 {
        self.observed_end - self.next_to_commit
    }

    /// Notes that the record at `offset` was read, and returns the offset's state before. Offsets
    /// that were skipped count as finished: the log has gaps, so their records never arrive.
    pub fn observe(&mut self, offset: i64) -> OffsetState {
        if self.is_finished(offset) {
            return OffsetState::Finished;
        }
        if offset > self.observed_end && self.next_to_commit == self.observed_end {
            // No offset is open, so the tracker starts again at `offset`. It allocates nothing for
            // the gap, which may be long if retention removed records.
            self.finished.clear();
            self.next_to_commit = offset;
            self.observed_end = offset + 1;
            self.bits_start = offset;
            return OffsetState::Open;
        }
        if offset >= self.observed_end {
            for gap in self.observed_end..offset {
                self.set_finished(gap);
            }
            self.observed_end = offset + 1;
            self.advance_next_to_commit();
        }
        OffsetState::Open
    }

    /// Marks the record at `offset` as finished. Returns the new offset to commit, if this changed
    /// the offset to commit.
    pub fn finish(&mut self, offset: i64) -> Option<i64> {
        if self.is_finished(offset) {
            return None;
        }
        self.observed_end = self.observed_end.max(offset + 1);
        self.set_finished(offset);
        let previous = self.next_to_commit;
        self.advance_next_to_commit();
        (self.next_to_commit > previous).then_some(self.next_to_commit)
    }

    /// Whether the record at `offset` is finished.
    pub fn is_finished(&self, offset: i64) -> bool {
        if offset < self.next_to_commit {
            return true;
        }
        let bit = offset - self.bits_start;
        self.finished
            .get((bit / BITS_PER_WORD) as usize)
            .is_some_and(|word| word & (1 << (bit % BITS_PER_WORD)) != 0)
    }

    /// Sets the bit of a finished offset.
    fn set_finished(&mut self, offset: i64) {
        let bit = offset - self.bits_start;
        let word = (bit / BITS_PER_WORD) as usize;
        if self.finished.len() <= word {
            self.finished.resize(word + 1, 0);
        }
        self.finished[word] |= 1 << (bit % BITS_PER_WORD);
    }

    /// Moves `next_to_commit` past all finished offsets up to the first open one, and removes the
    /// words of `finished` whose offsets are all below `next_to_commit`.
    fn advance_next_to_commit(&mut self) {
        while self.next_to_commit < self.observed_end && self.is_finished(self.next_to_commit) {
            self.next_to_commit += 1;
            if self.next_to_commit - self.bits_start == BITS_PER_WORD {
                self.finished.pop_front();
                self.bits_start = self.next_to_commit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_offset_is_committed_only_when_all_earlier_offsets_are_finished() {
        let mut tracker = OffsetTracker::new(10);
        for offset in 10..200 {
            assert_eq!(tracker.observe(offset), OffsetState::Open);
        }
        for offset in 11..200 {
            assert_eq!(tracker.finish(offset), None);
        }
        assert_eq!(tracker.finish(10), Some(200));
        assert_eq!(tracker.span(), 0);
    }

    #[test]
    fn a_gap_in_the_log_does_not_block_the_commit() {
        let mut tracker = OffsetTracker::new(0);
        tracker.observe(0);
        tracker.observe(500);
        assert_eq!(tracker.finish(0), Some(500));
        assert_eq!(tracker.finish(500), Some(501));
    }

    #[test]
    fn a_gap_of_any_length_is_free_when_no_offset_is_open() {
        let mut tracker = OffsetTracker::new(3);
        tracker.observe(3);
        tracker.finish(3);
        let far = 1 << 50;
        assert_eq!(tracker.observe(far), OffsetState::Open);
        assert_eq!(tracker.observe(far + 1), OffsetState::Open);
        assert_eq!(tracker.span(), 2);
        assert_eq!(tracker.finish(far + 1), None);
        assert_eq!(tracker.finish(far), Some(far + 2));
        assert_eq!(tracker.observe(100), OffsetState::Finished);
    }

    #[test]
    fn a_record_read_again_after_a_rewind_is_recognised() {
        let mut tracker = OffsetTracker::new(5);
        tracker.observe(5);
        tracker.observe(6);
        tracker.finish(6);
        assert_eq!(tracker.observe(3), OffsetState::Finished);
        assert_eq!(tracker.observe(5), OffsetState::Open);
        assert_eq!(tracker.observe(6), OffsetState::Finished);
        assert_eq!(tracker.finish(5), Some(7));
    }

    proptest! {
        #[test]
        fn the_tracker_agrees_with_a_plain_set(
            start in 0_i64..100,
            finishes in prop::collection::vec(0_i64..300, 0..300),
        ) {
            let mut tracker = OffsetTracker::new(start);
            for offset in start..start + 300 {
                tracker.observe(offset);
            }
            let mut plain = BTreeSet::new();
            for offset in finishes {
                tracker.finish(start + offset);
                plain.insert(start + offset);
                let next = (start..=start + 300).find(|o| !plain.contains(o)).unwrap();
                prop_assert_eq!(tracker.next_to_commit(), next);
                prop_assert!(tracker.is_finished(start + offset));
            }
        }
    }
}
