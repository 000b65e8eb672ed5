//! Messages that have no outcome yet, as a user's devices learn about them.

use super::ids::{ClientMessageId, ConversationId, MessageId};

/// An accepted message that has no outcome yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMessage {
    /// Identifies the message across the whole system.
    pub message_id: MessageId,
    /// The client's own identifier; `None` where the client chose none (classic protocol).
    pub id: Option<ClientMessageId>,
    /// The conversation that the answer will be appended to.
    pub conversation: ConversationId,
    /// The text that the user wrote.
    pub content: String,
}

/// An answer that a worker is generating right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightAnswer {
    /// The message that is being answered.
    pub message_id: MessageId,
    /// The client's own identifier; `None` where the client chose none (classic protocol).
    pub id: Option<ClientMessageId>,
    /// The conversation that the answer will be appended to.
    pub conversation: ConversationId,
    /// Number of the attempt that the text belongs to, from 1. A later attempt starts over.
    pub attempt: u32,
    /// Index that the next delta will have, from 0.
    pub index: u32,
    /// The text of all deltas below `index`.
    pub text: String,
}

/// The result of a request to cancel a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelResult {
    /// The message was open and is marked as cancelled; its outcome will say so.
    Cancelling,
    /// The message already has an outcome, which stays.
    AlreadyDone,
    /// No such message is known. The mark is stored all the same, because the message may still be
    /// on its way through the log.
    Unknown,
}
