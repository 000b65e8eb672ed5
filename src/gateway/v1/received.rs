//! Which terminal frames one connection has received.

use crate::protocol::position::Position;

/// Epochs other than the current one whose last position is remembered.
const OTHER_EPOCHS: usize = 16;

/// The positions up to which one connection has received every terminal frame that it needs.
#[derive(Debug, Default)]
pub(super) struct ReceivedPositions {
    /// The position from which the next mailbox read continues.
    cursor: Option<Position>,
    /// Positions from before the client had to reload its history, or before its user moved to
    /// another partition; at most one per epoch, the latest first.
    earlier: Vec<Position>,
}

impl ReceivedPositions {
    pub(super) fn from_cursor(cursor: Option<Position>) -> Self {
        Self {
            cursor,
            earlier: Vec::new(),
        }
    }

    pub(super) fn cursor(&self) -> Option<&Position> {
        self.cursor.as_ref()
    }

    /// Whether the connection has received the frame at `position`, or does not need it.
    pub(super) fn contains(&self, position: &Position) -> bool {
        let cursor = self.cursor.as_ref();
        cursor.is_some_and(|cursor| position.is_at_or_before(cursor))
            || self.contains_earlier(position)
    }

    fn contains_earlier(&self, position: &Position) -> bool {
        self.earlier
            .iter()
            .any(|earlier| position.is_at_or_before(earlier))
    }

    /// Moves the cursor, and remembers the old one where it belongs to another epoch.
    pub(super) fn advance(&mut self, position: Position) {
        let before = self.cursor.replace(position);
        if let (Some(before), Some(now)) = (before, &self.cursor)
            && before.epoch != now.epoch
        {
            self.remember(before);
        }
    }

    /// Moves the cursor to the mailbox's end after a loss. Returns the position to report to the
    /// client: not lower than what it has received.
    pub(super) fn reset(&mut self, mailbox_end: &Position) -> Position {
        if let Some(cursor) = self.cursor.replace(mailbox_end.clone()) {
            self.remember(cursor);
        }
        let is_mailbox_empty = mailbox_end.epoch.empty_mailbox_id().is_some();
        let mut earlier = self.earlier.iter();
        earlier
            .find(|earlier| is_mailbox_empty || mailbox_end.is_at_or_before(earlier))
            .unwrap_or(mailbox_end)
            .clone()
    }

    fn remember(&mut self, position: Position) {
        if position.epoch.empty_mailbox_id().is_some() || self.contains_earlier(&position) {
            return;
        }
        self.earlier
            .retain(|earlier| earlier.epoch != position.epoch);
        self.earlier.truncate(OTHER_EPOCHS - 1);
        self.earlier.insert(0, position);
    }
}
