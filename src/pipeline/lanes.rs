//! What is known of one assigned partition: its lanes, its offsets, whether it goes back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Delivery;
use super::offsets::{OffsetTracker, Taken};
use crate::protocol::log_record::Record;

/// An assigned partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// The assignment: what was begun under another one stores no offset.
    pub(super) tenure: u64,
    /// Grows also when the partition goes back: what waits under another one is dropped.
    pub(super) generation: u64,
    /// Fires when what waits is not to be begun any more.
    pub(super) stop: CancellationToken,
    /// `None` until the first record where the group has never committed.
    pub(super) offsets: Option<OffsetTracker>,
    /// Where it is on its way back.
    pub(super) back: Back,
    /// A lane that is here is at work; its queue is what waits behind the record at work.
    lanes: HashMap<String, VecDeque<Delivery>>,
    /// The log's time of each record at work or waiting, to know the oldest.
    open: HashMap<i64, i64>,
}

/// Reading back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    /// Not going back.
    No,
    /// Finding out from where; records that come are dropped, for they will come again.
    Preparing,
    /// Where to is known; waiting until nothing of before is at work.
    Seeking(i64),
    /// Reading again, up to (not including) `until`; `open` of those are not yet finished.
    Reading {
        /// The commit as it was.
        until: i64,
        /// Records read again and not yet finished.
        open: usize,
        /// The last of them was seen.
        passed: bool,
        /// When the last record came.
        last: Instant,
    },
}

/// What to do with a record that came.
pub(super) enum Next {
    /// Its lane was free: work on it.
    Begin(String, Delivery),
    /// It waits in its lane.
    Queued,
    /// It will come again.
    Dropped,
}

impl Partition {
    pub(super) fn new(tenure: u64, committed: Option<i64>, stop: CancellationToken) -> Self {
        Self {
            tenure,
            generation: tenure,
            stop,
            offsets: committed.map(OffsetTracker::new),
            back: Back::No,
            lanes: HashMap::new(),
            open: HashMap::new(),
        }
    }

    /// Takes a record into its lane.
    pub(super) fn take(&mut self, record: Record, lane: String) -> Next {
        if matches!(self.back, Back::Preparing | Back::Seeking(_)) {
            return Next::Dropped;
        }
        let offset = record.offset;
        let offsets = self
            .offsets
            .get_or_insert_with(|| OffsetTracker::new(offset));
        let replay = offsets.take(offset) == Taken::Finished;
        if let Back::Reading {
            until,
            open,
            passed,
            last,
        } = &mut self.back
        {
            *last = Instant::now();
            *open += usize::from(offset < *until);
            *passed |= offset + 1 >= *until;
        }
        if !replay {
            self.open.insert(offset, record.timestamp_ms);
        }
        let delivery = Delivery {
            record: Arc::new(record),
            replay,
            generation: self.generation,
            received: SystemTime::now(),
        };
        if let Some(queue) = self.lanes.get_mut(&lane) {
            queue.push_back(delivery);
            return Next::Queued;
        }
        self.lanes.insert(lane.clone(), VecDeque::new());
        Next::Begin(lane, delivery)
    }

    /// The record at `offset` is finished; returns the offset to commit, if it moved.
    pub(super) fn finish(&mut self, offset: i64) -> Option<i64> {
        self.open.remove(&offset);
        self.offsets.as_mut()?.finish(offset)
    }

    /// One record that was read again is finished.
    pub(super) fn finish_replay(&mut self, offset: i64) {
        if let Back::Reading { until, open, .. } = &mut self.back
            && offset < *until
        {
            *open = open.saturating_sub(1);
        }
    }

    /// The next record of a lane whose record at work has ended; frees the lane if none waits.
    pub(super) fn next(&mut self, lane: &str) -> Option<Delivery> {
        let next = self.lanes.get_mut(lane)?.pop_front();
        if next.is_none() {
            self.lanes.remove(lane);
        }
        next
    }

    /// Drops what waits; returns how many records and bytes that were.
    pub(super) fn clear(&mut self) -> (usize, usize) {
        let waiting = self.lanes.values().flatten();
        let dropped = waiting.fold((0, 0), |(records, bytes), next| {
            (records + 1, bytes + next.record.size())
        });
        self.lanes.clear();
        dropped
    }

    /// The log's time of the oldest record that is not finished.
    pub(super) fn oldest_open_ms(&self) -> Option<i64> {
        self.open.values().min().copied()
    }

    /// Reading was held up until now, so the silence so far says nothing.
    pub(super) fn listens_again(&mut self) {
        if let Back::Reading { last, .. } = &mut self.back {
            *last = Instant::now();
        }
    }

    /// Whether everything that was read again is finished; then it no longer goes back. A log
    /// with a gap just below the commit shows no last record: then silence says so.
    pub(super) fn came_through(&mut self, silence: std::time::Duration) -> bool {
        let Back::Reading {
            open, passed, last, ..
        } = self.back
        else {
            return false;
        };
        if open > 0 || !(passed || last.elapsed() >= silence) {
            return false;
        }
        self.back = Back::No;
        true
    }
}
