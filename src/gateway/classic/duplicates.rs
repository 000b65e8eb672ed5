//! Which terminal frames a user's connections here have already received.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::protocol::position::Position;
use crate::protocol::published::PublishedFrame;

/// Size of the duplicate filter per user. Larger than the default mailbox, so reading a full
/// mailbox never delivers a frame twice.
pub(in crate::gateway) const DEDUP_FRAMES: usize = 256;

/// After this many frames since the last mailbox read another one is scheduled, so that the filter
/// reaches back to the position where that read begins.
const FRAMES_BETWEEN_READS: usize = 128;

/// Identifies a terminal frame in the filter: by its message, or by its position where an original
/// worker omitted the message id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::gateway) struct FrameKey(Arc<str>);

impl FrameKey {
    /// `None` where the frame has neither a message id nor a position.
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

/// The filter of delivered terminal frames, and the positions up to which it is complete.
///
/// Every connection of the user receives every frame that is published while it is connected, so
/// one filter per user suffices.
#[derive(Default)]
pub(in crate::gateway) struct DuplicateFilter {
    delivered: HashSet<Arc<str>>,
    /// The same keys in the order of their delivery.
    order: VecDeque<(FrameKey, Option<Position>)>,
    highest_delivered: Option<Position>,
    mailbox_read_up_to: Option<Position>,
    frames_since_mailbox_read: usize,
}

impl DuplicateFilter {
    /// Sets the position from which mailbox reads begin, unless one is known.
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

    /// Whether the frame or a message with this id was delivered.
    pub(in crate::gateway) fn contains(&self, key: &FrameKey) -> bool {
        self.delivered.contains(&key.0)
    }

    pub(in crate::gateway) fn contains_message(&self, message_id: &str) -> bool {
        self.delivered.contains(message_id)
    }

    /// Whether a frame at this position is newer than all that were delivered, as far as positions
    /// can be compared.
    pub(in crate::gateway) fn is_newer(&self, position: &Position) -> bool {
        let highest = self.highest_delivered.as_ref();
        !highest.is_some_and(|highest| position.is_at_or_before(highest))
    }

    /// Records a delivered frame. Returns whether the mailbox should be read soon, so that the
    /// filter keeps reaching back to where a read begins.
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
            // A frame that left the filter must not be read again.
            if let (Some(position), Some(read)) = (position, &self.mailbox_read_up_to)
                && position.epoch == read.epoch
                && position.offset > read.offset
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
