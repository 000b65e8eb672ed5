//! Tracks which terminal frames one `chatmesh.v1` connection has received, by their positions.

use crate::protocol::position::Position;

/// Maximum number of epochs for which an earlier position is remembered in addition to the cursor.
const MAX_EARLIER_EPOCHS: usize = 16;

/// The positions, one per epoch, up to which a connection has received every terminal frame that it
/// needs.
#[derive(Debug, Default)]
pub(super) struct ReceivedPositions {
    /// The position after which the next mailbox read begins; `None` until the first read of a
    /// client that sent no position.
    cursor: Option<Position>,
    /// The positions of the cursor before it moved to another epoch, or was reset because the
    /// client had to reload its history. At most one per epoch, the latest first.
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

    /// Whether the connection has received the terminal frame at `position`, or does not need the
    /// frame because the client loads it with the history.
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

    /// Moves the cursor to `position`. Remembers the old cursor where it belongs to another epoch.
    pub(super) fn advance(&mut self, position: Position) {
        let old_cursor = self.cursor.replace(position);
        if let (Some(old), Some(new)) = (old_cursor, &self.cursor)
            && old.epoch != new.epoch
        {
            self.remember(old);
        }
    }

    /// Moves the cursor to the mailbox's end, because the mailbox does not have what follows the
    /// old cursor. Returns the position to report to the client: the mailbox's end, or a received
    /// position instead where that is not lower or the mailbox is empty.
    pub(super) fn skip_to_mailbox_end(&mut self, mailbox_end: &Position) -> Position {
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
        self.earlier.truncate(MAX_EARLIER_EPOCHS - 1);
        self.earlier.insert(0, position);
    }
}
