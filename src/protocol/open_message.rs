//! Open messages, which are the messages that are pending or whose answers are in flight. The
//! fan-out returns them from a read, and the gateway sends them to the user's devices.

use super::ids::{ClientMessageId, ConversationId, MessageId, StreamId};

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
    /// Number of the attempt that generates the answer, from 1.
    pub attempt: u32,
    /// The stream of that attempt.
    pub stream: StreamId,
    /// The parts of the stream so far, in order. Only the last part can still grow.
    pub parts: Vec<InFlightPart>,
}

/// A part of an answer in flight. Kind and properties are passed on as the fan-out stores them,
/// because a newer worker may use kinds that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightPart {
    /// What the part contains; the name of a [`PartKind`](super::parts::PartKind).
    pub kind: String,
    /// JSON object with the part's properties; `None` if it has none.
    pub meta: Option<String>,
    /// Length of the text in UTF-16 code units.
    pub length: u32,
    /// The text so far.
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
