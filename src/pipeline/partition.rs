//! The state of one assigned partition: its lanes, its finished offsets, its rewind.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handler::Delivery;
use super::offsets::{OffsetState, OffsetTracker};
use crate::protocol::log_record::Record;

/// An assigned partition. Decides for each record whether it starts now, waits in its lane, or is
/// dropped because the partition is about to be rewound.
#[derive(Debug)]
pub(super) struct Partition {
    /// Identifies the assignment. Tasks started under another assignment store no offsets.
    pub(super) assignment_id: u64,
    /// Identifies the assignment or rewind. Records buffered under another generation are dropped.
    pub(super) generation: u64,
    /// Cancelled when this generation must start no further work.
    pub(super) stop: CancellationToken,
    /// `None` until the first record, where the group has never committed an offset.
    pub(super) offsets: Option<OffsetTracker>,
    /// Progress of the current rewind.
    pub(super) rewind: RewindState,
    /// A lane is present while one of its records is being processed; the queue holds the records
    /// behind that one.
    lanes: HashMap<String, VecDeque<Delivery>>,
    /// Log timestamp of each record that is being processed or waits, by offset.
    unfinished: HashMap<i64, i64>,
}

/// The phases of a rewind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RewindState {
    /// The partition is not being rewound.
    Idle,
    /// The start offset is being determined. Records that arrive are dropped: they will be read
    /// again.
    Preparing,
    /// The start offset is known. The seek waits until no record of the partition is being
    /// processed.
    Seeking(i64),
    /// Records up to (excluding) `until` are being read again.
    Reading {
        /// The committed offset at the time of the seek.
        until: i64,
        /// Records below `until` that were read again and are not finished.
        unfinished: usize,
        /// Whether the record just below `until` was read.
        end_reached: bool,
        /// When the last record arrived.
        last_record: Instant,
    },
}

/// The result of adding a record to its lane.
pub(super) enum EnqueueResult {
    /// Its lane was free, so its processing starts now.
    Started(String, Delivery),
    /// It waits in its lane.
    Queued,
    /// It will be read again after the seek.
    Dropped,
}

impl Partition {
    pub(super) fn new(assignment_id: u64, committed: Option<i64>, stop: CancellationToken) -> Self {
        Self {
            assignment_id,
            generation: assignment_id,
            stop,
            offsets: committed.map(OffsetTracker::new),
            rewind: RewindState::Idle,
            lanes: HashMap::new(),
            unfinished: HashMap::new(),
        }
    }

    /// Adds a record to its lane.
    pub(super) fn enqueue(&mut self, record: Record, lane: String) -> EnqueueResult {
        if matches!(
            self.rewind,
            RewindState::Preparing | RewindState::Seeking(_)
        ) {
            return EnqueueResult::Dropped;
        }
        let offset = record.offset;
        let offsets = self
            .offsets
            .get_or_insert_with(|| OffsetTracker::new(offset));
        let already_finished = offsets.observe(offset) == OffsetState::Finished;
        if let RewindState::Reading {
            until,
            unfinished,
            end_reached,
            last_record,
        } = &mut self.rewind
        {
            *last_record = Instant::now();
            *unfinished += usize::from(offset < *until);
            *end_reached |= offset + 1 >= *until;
        }
        if !already_finished {
            self.unfinished.insert(offset, record.timestamp_ms);
        }
        let delivery = Delivery {
            record: Arc::new(record),
            already_finished,
            generation: self.generation,
            received_at: SystemTime::now(),
        };
        if let Some(queue) = self.lanes.get_mut(&lane) {
            queue.push_back(delivery);
            return EnqueueResult::Queued;
        }
        self.lanes.insert(lane.clone(), VecDeque::new());
        EnqueueResult::Started(lane, delivery)
    }

    /// Marks the record at `offset` as finished. Returns the new offset to commit, if it moved.
    pub(super) fn finish(&mut self, offset: i64) -> Option<i64> {
        self.unfinished.remove(&offset);
        self.offsets.as_mut()?.finish(offset)
    }

    /// Counts a record of the rewind as finished.
    pub(super) fn finish_reread(&mut self, offset: i64) {
        if let RewindState::Reading {
            until, unfinished, ..
        } = &mut self.rewind
            && offset < *until
        {
            *unfinished = unfinished.saturating_sub(1);
        }
    }

    /// The next record of a lane whose current record has ended. Removes the lane when it is empty.
    pub(super) fn next_in_lane(&mut self, lane: &str) -> Option<Delivery> {
        let next = self.lanes.get_mut(lane)?.pop_front();
        if next.is_none() {
            self.lanes.remove(lane);
        }
        next
    }

    /// Drops all waiting records. Returns how many records and bytes that were.
    pub(super) fn clear_waiting(&mut self) -> (usize, usize) {
        let waiting = self.lanes.values().flatten();
        let dropped = waiting.fold((0, 0), |(records, bytes), delivery| {
            (records + 1, bytes + delivery.record.size())
        });
        self.lanes.clear();
        dropped
    }

    /// Log timestamp of the oldest unfinished record.
    pub(super) fn oldest_unfinished_ms(&self) -> Option<i64> {
        self.unfinished.values().min().copied()
    }

    /// Restarts the silence period of a rewind after the consumer was resumed.
    pub(super) fn restart_silence(&mut self) {
        if let RewindState::Reading { last_record, .. } = &mut self.rewind {
            *last_record = Instant::now();
        }
    }

    /// Ends the rewind if every record that was read again is finished. Returns whether it did.
    /// Where the log has a gap just below the commit, the last record never arrives; then no
    /// record for `silence` counts as the end.
    pub(super) fn end_rewind_if_complete(&mut self, silence: Duration) -> bool {
        let RewindState::Reading {
            unfinished,
            end_reached,
            last_record,
            ..
        } = self.rewind
        else {
            return false;
        };
        if unfinished > 0 || !(end_reached || last_record.elapsed() >= silence) {
            return false;
        }
        self.rewind = RewindState::Idle;
        true
    }
}
