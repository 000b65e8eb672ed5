//! Open messages, which are the messages that are pending or whose answers are in flight. The
//! fan-out returns them from a read, and the gateway sends them to the user's devices.

use super::ids::{ClientMessageId, ConversationId, MessageId};

/// A message that was admitted and whose terminal frame has not been delivered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMessage {
    /// The message's identity in the whole system.
    pub message_id: MessageId,
    /// The identifier that the client has chosen for the message. `None` for a message of a classic
    /// client, which chooses none.
    pub id: Option<ClientMessageId>,
    /// The conversation that the message belongs to.
    pub conversation: ConversationId,
    /// The text of the message.
    pub content: String,
}

/// An answer in flight: a worker has begun it, and its terminal frame has not been delivered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightAnswer {
    /// The message that is being answered.
    pub message_id: MessageId,
    /// The identifier that the client has chosen for the message. `None` for a message of a classic
    /// client, which chooses none.
    pub id: Option<ClientMessageId>,
    /// The conversation that the message belongs to.
    pub conversation: ConversationId,
    /// Number of the attempt that generates the text, from 1. A later attempt begins with an empty
    /// text.
    pub attempt: u32,
    /// Index of the next delta, from 0.
    pub index: u32,
    /// The text of all deltas of the attempt so far.
    pub text: String,
}

/// The result of a request to cancel a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelResult {
    /// The message was pending or its answer was in flight. It is marked as cancelled, so that it
    /// ends as `cancelled`.
    Cancelling,
    /// The message already has an outcome, which stays, or the message is forgotten.
    AlreadyDone,
    /// The fan-out has no message with this id. The message is marked as cancelled all the same,
    /// because it may still arrive.
    Unknown,
}
