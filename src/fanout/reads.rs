//! The calls that a gateway makes to read a user's state (`read`) and the delivered outcomes of
//! certain messages.

use async_trait::async_trait;

use super::error::Result;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::open_message::{InFlightAnswer, PendingMessage};
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;

/// Reads mailboxes, answers in flight and delivered outcomes.
#[async_trait]
pub trait Reads: Send + Sync + 'static {
    /// Reads one user's state in one consistent view. Creates an empty mailbox if there is none.
    async fn read(&self, call: ReadRequest) -> Result<UserView>;

    /// Returns the outcomes of those `messages` whose outcome was delivered, in the order of
    /// `messages`. A gateway uses this for messages whose terminal frame may no longer be in the
    /// mailbox.
    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>>;
}

/// Argument of [`Reads::read`].
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The user whose state is read.
    pub user: UserId,
    /// Position after which the mailbox's frames are returned. With `None`, frames are returned
    /// only if `from_start` is set.
    pub after: Option<Position>,
    /// Whether all frames of the mailbox are returned, if `after` is `None`. A reader whose
    /// position is no longer valid (`recovered` was false) sets this, and selects the frames that
    /// it needs by their `message_id`.
    pub from_start: bool,
    /// Maximum size of all returned frames in bytes. One frame is returned even if it is larger.
    pub max_bytes: usize,
}

/// One user's state at one point in time, as [`Reads::read`] returns it.
#[derive(Debug, Clone)]
pub struct UserView {
    /// Sequence number of the last frame that was published to the user; its `n` is 0 if none was
    /// published.
    pub number: SequenceNumber,
    /// The mailbox's end: the position of the last terminal record that reached the mailbox, even
    /// if its frame was trimmed or forgotten, or its message had been delivered before. For a
    /// mailbox that no record has reached, a position that stays valid until the first trimming.
    pub end: Position,
    /// Whether the mailbox has every frame after the position `after`. False if `after` is `None`.
    pub recovered: bool,
    /// The requested frames as JSON with their positions, oldest first. Empty if both `recovered`
    /// and `from_start` are false.
    pub frames: Vec<(Position, String)>,
    /// Whether the mailbox has more frames after the last of `frames`, because `max_bytes` was
    /// reached. The reader reads again after that frame's position.
    pub has_more: bool,
    /// Position of the last frame that a rewind appended to the mailbox, even if the frame was
    /// trimmed; `None` if no rewind appended a frame. Frames at or below this position may have
    /// been delivered before, so clients may have received them.
    pub rebuilt_up_to: Option<Position>,
    /// The answers in flight, by message id, each with a snapshot of its text.
    pub in_flight: Vec<InFlightAnswer>,
    /// The pending messages, oldest first. A message can be pending although the log never
    /// acknowledged it.
    pub pending: Vec<PendingMessage>,
}

/// The delivered outcome of a message that a caller asked for by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredOutcome {
    /// The message that the outcome belongs to.
    pub message_id: MessageId,
    /// Position of the delivered terminal record.
    pub position: Position,
    /// JSON of the terminal frame; `None` if the message was forgotten. In that case the gateway
    /// sends `cancelled` to a client that still waits for the message.
    pub frame: Option<String>,
}
