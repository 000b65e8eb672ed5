//! The mailbox of one user: the last terminal frames, and which positions can be served from it.

use super::{Message, Offset, Outcome, Position, partition_of};

/// Number of other partitions whose last delivered offset a mailbox remembers.
const MAX_OTHER_PARTITIONS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mailbox {
    pub(crate) id: u8,
    /// Whether the position of the empty mailbox can be served: a `read` created the mailbox, and
    /// no frame was trimmed.
    pub(crate) serves_empty_position: bool,
    /// The mailbox has every frame after this offset.
    pub(crate) floor: Offset,
    /// The offset of the last frame, also if the frame was trimmed or not stored.
    pub(crate) last: Option<Offset>,
    pub(crate) frames: Vec<(Offset, Message, Outcome)>,
    /// The last offsets in the partitions that the user's records were in before, latest first.
    pub(crate) other_partition_ends: Vec<Offset>,
    /// Whether a rewind moved the mailbox to its partition and no new record has followed, so that
    /// no position can be served.
    pub(crate) was_moved_by_rewind: bool,
    /// No position below this offset can be served.
    pub(crate) serves_from: Offset,
    /// The last frame that a rewind delivered.
    pub(crate) rebuilt_up_to: Option<Offset>,
}

impl Mailbox {
    pub(super) fn new(id: u8, serves_empty_position: bool, floor: Offset) -> Self {
        Self {
            id,
            serves_empty_position,
            floor,
            last: None,
            frames: Vec::new(),
            other_partition_ends: Vec::new(),
            was_moved_by_rewind: false,
            serves_from: 0,
            rebuilt_up_to: None,
        }
    }

    /// The last offset in the partition of `offset`.
    pub(super) fn last_in_partition_of(&self, offset: Offset) -> Option<Offset> {
        let mut ends = self.last.iter().chain(&self.other_partition_ends).copied();
        ends.find(|end| partition_of(*end) == partition_of(offset))
    }

    /// The mailbox that replaces this one when the user's records move to the partition of
    /// `offset`.
    pub(super) fn successor_in_partition_of(
        &self,
        id: u8,
        offset: Offset,
        is_rewind: bool,
    ) -> Self {
        let ends = self.last.iter().chain(&self.other_partition_ends).copied();
        let is_in_other_partition = |end: &Offset| partition_of(*end) != partition_of(offset);
        Self {
            other_partition_ends: ends
                .filter(is_in_other_partition)
                .take(MAX_OTHER_PARTITIONS)
                .collect(),
            was_moved_by_rewind: is_rewind,
            ..Self::new(id, false, offset)
        }
    }

    /// Creates the mailbox, or moves it to another partition, if a record at `offset` requires
    /// that. `new_id` is called only in these two cases.
    pub(super) fn prepare(
        mailbox: &mut Option<Self>,
        offset: Offset,
        is_rewind: bool,
        new_id: impl FnOnce() -> u8,
    ) -> &mut Self {
        let is_in_other_partition = |last: Offset| partition_of(last) != partition_of(offset);
        match mailbox {
            Some(current) if !current.last.is_some_and(is_in_other_partition) => {
                if current.was_moved_by_rewind && !is_rewind {
                    current.was_moved_by_rewind = false;
                    current.serves_from = offset;
                }
            }
            Some(current) => {
                *current = current.successor_in_partition_of(new_id(), offset, is_rewind);
            }
            None => *mailbox = Some(Self::new(new_id(), false, offset)),
        }
        mailbox.as_mut().unwrap()
    }

    /// The offset after which the frames for `position` begin (-1 for all), or `None` if the
    /// mailbox can't serve that position.
    pub(super) fn start_for(&self, position: Option<Position>) -> Option<i16> {
        match position? {
            Position::Empty(id) => (self.serves_empty_position && self.id == id).then_some(-1),
            Position::At(offset) => {
                let last = self.last?;
                let first = self.floor.max(self.serves_from);
                let can_serve = !self.was_moved_by_rewind
                    && partition_of(last) == partition_of(offset)
                    && (first..=last).contains(&offset);
                can_serve.then_some(i16::from(offset))
            }
        }
    }

    /// Appends a frame and trims the mailbox to its capacity.
    pub(super) fn push(&mut self, frame: (Offset, Message, Outcome), capacity: usize) {
        self.frames.push(frame);
        while self.frames.len() > capacity {
            self.floor = self.frames.remove(0).0;
            self.serves_empty_position = false;
        }
    }
}
