//! The state of one assigned partition: its lanes, its finished offsets, and the phase of its
//! rewind. The driver owns one [`Partition`] for each assigned partition, and changes it with every
//! event.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handler::Delivery;
use super::offsets::{OffsetState, OffsetTracker};
use crate::protocol::log_record::Record;

/// An assigned partition. Decides for each record whether its processing starts now, or the record
/// waits in its lane, or the record is dropped because the partition is about to be rewound.
#[derive(Debug)]
pub(super) struct Partition {
    /// Identifies the assignment. A task that was started under another assignment stores no
    /// offset.
    pub(super) assignment_id: u64,
    /// Number of the current generation, which began with the assignment or with the last rewind.
    /// When a task of an earlier generation ends, no further record of its lane is started: the
    /// lane belongs to the current generation.
    pub(super) generation: u64,
    /// Cancelled when tasks of the current generation must start no further work.
    pub(super) stop: CancellationToken,
    /// Which offsets are finished. `None` if the group has never committed an offset of this
    /// partition and no record has arrived yet.
    pub(super) offsets: Option<OffsetTracker>,
    /// Phase of the current rewind.
    pub(super) rewind: RewindState,
    /// The records that wait, by lane. A lane has an entry, which may be empty, while one of its
    /// records is being processed.
    lanes: HashMap<String, VecDeque<Delivery>>,
    /// Log timestamps of the records that were read and are not finished, in milliseconds since the
    /// Unix epoch, by offset.
    unfinished_timestamps: HashMap<i64, i64>,
}

/// The phases of a rewind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RewindState {
    /// The partition is not being rewound.
    Idle,
    /// The rewind policy determines the start offset, or a seek failed and is about to be repeated.
    /// Records that arrive are dropped, because they are read again after the seek.
    Preparing,
    /// The start offset of the rewind is determined. The seek waits until no record of the
    /// partition is being processed; records that arrive are dropped until then.
    Seeking(i64),
    /// The seek was made, and records with offsets below `until` are being read again.
    Reading {
        /// The offset to commit at the time of the seek. Every record below it was finished before.
        until: i64,
        /// Number of records below `until` that were read again and are not processed again yet.
        unfinished: usize,
        /// Whether the record just below `until`, or a later record, was read.
        is_end_reached: bool,
        /// When the last record of the partition arrived, or when the consumer was last resumed.
        last_record_at: Instant,
    },
}

/// The result of adding a record to its lane.
pub(super) enum EnqueueResult {
    /// No record of the lane was being processed, so the processing of this record starts now.
    /// Contains the lane and the record.
    Started(String, Delivery),
    /// The record waits in its lane behind a record that is being processed.
    Queued,
    /// The partition is about to be rewound, so the record is dropped here; it is read again after
    /// the seek.
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
            unfinished_timestamps: HashMap::new(),
        }
    }

    /// Adds a record to its lane, unless the partition is about to be rewound.
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
            is_end_reached,
            last_record_at,
        } = &mut self.rewind
        {
            *last_record_at = Instant::now();
            *unfinished += usize::from(offset < *until);
            *is_end_reached |= offset + 1 >= *until;
        }
        if !already_finished {
            self.unfinished_timestamps
                .insert(offset, record.timestamp_ms);
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

    /// Marks the record at `offset` as finished. Returns the new offset to commit, if this changed
    /// the offset to commit.
    pub(super) fn finish(&mut self, offset: i64) -> Option<i64> {
        self.unfinished_timestamps.remove(&offset);
        self.offsets.as_mut()?.finish(offset)
    }

    /// Notes that the record at `offset`, which a rewind read again, was processed again. Does
    /// nothing while no rewind is in progress.
    pub(super) fn finish_reread(&mut self, offset: i64) {
        if let RewindState::Reading {
            until, unfinished, ..
        } = &mut self.rewind
            && offset < *until
        {
            *unfinished = unfinished.saturating_sub(1);
        }
    }

    /// Returns the next record of a lane after the task of the lane's current record has ended.
    /// `None` if no record of the lane waits; then the lane is removed.
    pub(super) fn next_in_lane(&mut self, lane: &str) -> Option<Delivery> {
        let next = self.lanes.get_mut(lane)?.pop_front();
        if next.is_none() {
            self.lanes.remove(lane);
        }
        next
    }

    /// Drops the records that wait. Returns the number of dropped records and their size in bytes.
    pub(super) fn clear_waiting(&mut self) -> (usize, usize) {
        let waiting = self.lanes.values().flatten();
        let dropped = waiting.fold((0, 0), |(records, bytes), delivery| {
            (records + 1, bytes + delivery.record.size())
        });
        self.lanes.clear();
        dropped
    }

    /// The lowest log timestamp of a record that was read and is not finished. `None` if all are
    /// finished.
    pub(super) fn oldest_unfinished_ms(&self) -> Option<i64> {
        self.unfinished_timestamps.values().min().copied()
    }

    /// Restarts the period of silence after which a rewind ends, because the consumer was paused
    /// and no record could arrive.
    pub(super) fn restart_silence(&mut self) {
        if let RewindState::Reading { last_record_at, .. } = &mut self.rewind {
            *last_record_at = Instant::now();
        }
    }

    /// Ends the rewind if every record that was read again is processed again and the rewind has
    /// reached its end. Returns whether the rewind was ended. If the log has a gap just below the
    /// end, the last record never arrives. So the end also counts as reached when no record has
    /// arrived for the time `silence`.
    pub(super) fn end_rewind_if_complete(&mut self, silence: Duration) -> bool {
        let RewindState::Reading {
            unfinished,
            is_end_reached,
            last_record_at,
            ..
        } = self.rewind
        else {
            return false;
        };
        if unfinished > 0 || !(is_end_reached || last_record_at.elapsed() >= silence) {
            return false;
        }
        self.rewind = RewindState::Idle;
        true
    }
}
