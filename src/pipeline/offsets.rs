//! Which offsets of one partition are finished, and up to where all of them are.

use std::collections::VecDeque;

const WORD: i64 = 64;

/// Offsets of one partition from its commit on. A finished record that waits for an earlier one
/// costs a bit, so one slow record does not make the others expensive.
#[derive(Debug, Clone)]
pub struct OffsetTracker {
    /// Everything below is finished; it is what is committed.
    next: i64,
    /// One above the highest offset that was taken.
    end: i64,
    /// First offset of `done`'s first word.
    first: i64,
    /// One bit for each offset from `first` on: finished.
    done: VecDeque<u64>,
}

/// What the tracker knew of an offset when its record was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Not finished before.
    Open,
    /// Finished before, by this process or below the commit.
    Finished,
}

impl OffsetTracker {
    /// Everything below `next` is finished.
    pub fn new(next: i64) -> Self {
        Self {
            next,
            end: next,
            first: next,
            done: VecDeque::new(),
        }
    }

    /// Everything below this offset is finished: what is to be committed.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// How many offsets above the commit are known, finished ones among them.
    pub fn span(&self) -> i64 {
        self.end - self.next
    }

    /// Notes that the record at `offset` came. Offsets that were jumped over will never come
    /// (the log has gaps), and count as finished.
    pub fn take(&mut self, offset: i64) -> Taken {
        if self.is_finished(offset) {
            return Taken::Finished;
        }
        if offset > self.end && self.next == self.end {
            // Nothing is open: a gap of any length (what retention removed) costs nothing.
            self.done.clear();
            (self.next, self.end, self.first) = (offset, offset + 1, offset);
            return Taken::Open;
        }
        if offset >= self.end {
            for gap in self.end..offset {
                self.set(gap);
            }
            self.end = offset + 1;
            self.advance();
        }
        Taken::Open
    }

    /// The record at `offset` is finished. Returns the new offset to commit, if it moved.
    pub fn finish(&mut self, offset: i64) -> Option<i64> {
        if self.is_finished(offset) {
            return None;
        }
        self.end = self.end.max(offset + 1);
        self.set(offset);
        let before = self.next;
        self.advance();
        (self.next > before).then_some(self.next)
    }

    /// Whether the record at `offset` is finished.
    pub fn is_finished(&self, offset: i64) -> bool {
        if offset < self.next {
            return true;
        }
        let at = offset - self.first;
        self.done
            .get((at / WORD) as usize)
            .is_some_and(|word| word & (1 << (at % WORD)) != 0)
    }

    fn set(&mut self, offset: i64) {
        let at = offset - self.first;
        let word = (at / WORD) as usize;
        if self.done.len() <= word {
            self.done.resize(word + 1, 0);
        }
        self.done[word] |= 1 << (at % WORD);
    }

    fn advance(&mut self) {
        while self.next < self.end && self.is_finished(self.next) {
            self.next += 1;
            if self.next - self.first == WORD {
                self.done.pop_front();
                self.first = self.next;
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
    fn an_offset_is_committed_only_when_all_before_it_are_finished() {
        let mut tracker = OffsetTracker::new(10);
        for offset in 10..200 {
            assert_eq!(tracker.take(offset), Taken::Open);
        }
        for offset in 11..200 {
            assert_eq!(tracker.finish(offset), None);
        }
        assert_eq!(tracker.finish(10), Some(200));
        assert_eq!(tracker.span(), 0);
    }

    #[test]
    fn a_gap_in_the_log_does_not_stop_the_commit() {
        let mut tracker = OffsetTracker::new(0);
        tracker.take(0);
        tracker.take(500);
        assert_eq!(tracker.finish(0), Some(500));
        assert_eq!(tracker.finish(500), Some(501));
    }

    #[test]
    fn a_gap_of_any_length_costs_nothing_where_nothing_is_open() {
        let mut tracker = OffsetTracker::new(3);
        tracker.take(3);
        tracker.finish(3);
        let far = 1 << 50;
        assert_eq!(tracker.take(far), Taken::Open);
        assert_eq!(tracker.take(far + 1), Taken::Open);
        assert_eq!(tracker.span(), 2);
        assert_eq!(tracker.finish(far + 1), None);
        assert_eq!(tracker.finish(far), Some(far + 2));
        assert_eq!(tracker.take(100), Taken::Finished);
    }

    #[test]
    fn a_record_taken_again_after_a_rewind_is_known() {
        let mut tracker = OffsetTracker::new(5);
        tracker.take(5);
        tracker.take(6);
        tracker.finish(6);
        assert_eq!(tracker.take(3), Taken::Finished);
        assert_eq!(tracker.take(5), Taken::Open);
        assert_eq!(tracker.take(6), Taken::Finished);
        assert_eq!(tracker.finish(5), Some(7));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(
            start in 0_i64..100,
            finishes in prop::collection::vec(0_i64..300, 0..300),
        ) {
            let mut tracker = OffsetTracker::new(start);
            for offset in start..start + 300 {
                tracker.take(offset);
            }
            let mut plain = BTreeSet::new();
            for offset in finishes {
                tracker.finish(start + offset);
                plain.insert(start + offset);
                let next = (start..=start + 300).find(|o| !plain.contains(o)).unwrap();
                prop_assert_eq!(tracker.next(), next);
                prop_assert!(tracker.is_finished(start + offset));
            }
        }
    }
}
