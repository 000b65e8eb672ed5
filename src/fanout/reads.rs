//! Consistent reads of one user's state, called by gateways.

use async_trait::async_trait;

use super::error::Result;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::open_message::{InFlightAnswer, PendingMessage};
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;

/// Reads mailboxes, answers in flight and delivered outcomes.
#[async_trait]
pub trait Reads: Send + Sync + 'static {
    /// Reads one user's state in one consistent view. The first read creates the empty mailbox.
    async fn read(&self, call: ReadRequest) -> Result<UserView>;

    /// Returns the outcomes of those of `messages` that were delivered, in the order of `messages`.
    /// For messages whose outcome is no longer in the mailbox.
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
    /// Requests the mailbox frames after this position. `None` requests no frames, only the
    /// mailbox's end.
    pub after: Option<Position>,
    /// Without `after`: requests all frames of the mailbox, oldest first. For a reader whose
    /// position is no longer valid (`recovered` was false) and which selects frames by
    /// `message_id`.
    pub from_start: bool,
    /// Maximum size of the returned frames in bytes; at least one frame is returned.
    pub max_bytes: usize,
}

/// Response to [`Reads::read`]: one user's state at one point in time.
#[derive(Debug, Clone)]
pub struct UserView {
    /// The number of the user's last published frame; its `n` is 0 before the first.
    pub number: SequenceNumber,
    /// The mailbox's end: the position of its last frame, even if that one was trimmed. For a
    /// mailbox that never had a frame, a position that is valid until the first trimming.
    pub end: Position,
    /// Whether the mailbox has every frame after `after`. False without `after`.
    pub recovered: bool,
    /// The requested frames with their positions, oldest first; empty where `recovered` and
    /// `from_start` are false.
    pub frames: Vec<(Position, String)>,
    /// Whether more frames follow the last of `frames`. Read again from its position.
    pub has_more: bool,
    /// The last frame that a rewind appended to the mailbox, even if it was trimmed. Frames up to
    /// this position were delivered before and are not new to clients.
    pub rebuilt_up_to: Option<Position>,
    /// The answers that workers are generating.
    pub in_flight: Vec<InFlightAnswer>,
    /// Accepted messages without an outcome, oldest first. A hint, not proof of durability.
    pub pending: Vec<PendingMessage>,
}

/// A delivered outcome, found by its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredOutcome {
    /// The message that ended.
    pub message_id: MessageId,
    /// Position of the delivered record.
    pub position: Position,
    /// JSON of the terminal frame; `None` where the message was forgotten. The gateway then sends
    /// `cancelled` to a client that still waits for the message.
    pub frame: Option<String>,
}
