//! Tracks which terminal frames were already delivered to a user's connections on this gateway, so
//! that a classic client receives none twice, and up to which position the mailbox was read.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::protocol::position::Position;
use crate::protocol::published::PublishedFrame;

/// Maximum number of frames in the duplicate filter of a user. It is larger than the default size
/// of a mailbox, so reading a full mailbox never delivers a frame twice.
pub(in crate::gateway) const DEDUP_FRAMES: usize = 256;

/// Number of frames delivered since the last mailbox read at which another read is scheduled, so
/// that the filter still contains every frame after the position where that read begins.
const FRAMES_BETWEEN_READS: usize = 128;

/// Identifies a terminal frame in the filter: the id of its message, or its position where an
/// original worker omitted the message id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::gateway) struct FrameKey(Arc<str>);

impl FrameKey {
    /// The key of a frame; `None` where the frame has neither a message id nor a position.
    pub(in crate::gateway) fn new(
        frame: &PublishedFrame<'_>,
        position: Option<&Position>,
    ) -> Option<Self> {
        match (&frame.message_id, position) {
            (Some(id), _) => Some(Self(id.as_str().into())),
            (None, Some(position)) => Some(Self(position.to_string().into())),
            (None, None) => None,
        }
    }
}

/// The filter of delivered terminal frames, with the position after which the mailbox is read.
///
/// Every connection of the user receives every frame that is published while it is connected, so
/// one filter per user suffices.
#[derive(Default)]
pub(in crate::gateway) struct DuplicateFilter {
    /// The keys of the delivered frames.
    delivered: HashSet<Arc<str>>,
    /// The same keys in the order of delivery, with the position of each frame.
    order: VecDeque<(FrameKey, Option<Position>)>,
    /// The highest position of the delivered frames of the latest epoch; at first, the position at
    /// which the mailbox ended.
    highest_delivered: Option<Position>,
    mailbox_read_up_to: Option<Position>,
    frames_since_mailbox_read: usize,
}

impl DuplicateFilter {
    /// Sets the position after which mailbox reads begin, unless it is set already.
    pub(in crate::gateway) fn start_at(&mut self, mailbox_end: &Position) {
        if self.mailbox_read_up_to.is_none() {
            self.mailbox_read_up_to = Some(mailbox_end.clone());
            self.highest_delivered
                .get_or_insert_with(|| mailbox_end.clone());
        }
    }

    /// The position after which the next mailbox read begins; `None` before the first connection
    /// has read the mailbox's end.
    pub(in crate::gateway) fn mailbox_read_up_to(&self) -> Option<Position> {
        self.mailbox_read_up_to.clone()
    }

    pub(in crate::gateway) fn set_mailbox_read_up_to(&mut self, position: Position) {
        self.mailbox_read_up_to = Some(position);
        self.frames_since_mailbox_read = 0;
    }

    /// Whether the filter contains the frame with this key.
    pub(in crate::gateway) fn contains(&self, key: &FrameKey) -> bool {
        self.delivered.contains(&key.0)
    }

    /// Whether the filter contains the terminal frame of this message.
    pub(in crate::gateway) fn contains_message(&self, message_id: &str) -> bool {
        self.delivered.contains(message_id)
    }

    /// Whether a frame at this position is newer than every delivered frame. Also true where the
    /// positions can't be compared.
    pub(in crate::gateway) fn is_newer(&self, position: &Position) -> bool {
        let highest = self.highest_delivered.as_ref();
        !highest.is_some_and(|highest| position.is_at_or_before(highest))
    }

    /// Adds a delivered frame to the filter. Returns whether a mailbox read should be scheduled,
    /// because at least [`FRAMES_BETWEEN_READS`] frames were delivered since the last read.
    pub(in crate::gateway) fn insert(&mut self, key: FrameKey, position: Option<Position>) -> bool {
        if let Some(position) = &position
            && self.is_newer(position)
        {
            self.highest_delivered = Some(position.clone());
        }
        self.delivered.insert(key.0.clone());
        self.order.push_back((key, position));
        self.frames_since_mailbox_read += 1;
        let read_is_due = self.frames_since_mailbox_read >= FRAMES_BETWEEN_READS;
        if self.order.len() > DEDUP_FRAMES
            && let Some((key, position)) = self.order.pop_front()
        {
            self.delivered.remove(&key.0);
            // The frame that has left the filter would not be recognised as a duplicate, so the
            // next mailbox read begins after it.
            if let (Some(position), Some(read_up_to)) = (position, &self.mailbox_read_up_to)
                && position.epoch == read_up_to.epoch
                && position.offset > read_up_to.offset
            {
                self.mailbox_read_up_to = Some(position);
            }
        }
        read_is_due
    }

    #[cfg(test)]
    pub(in crate::gateway) fn len(&self) -> usize {
        self.delivered.len()
    }
}
