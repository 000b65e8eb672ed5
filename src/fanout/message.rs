//! Identifies the message that a call is about.

use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};

/// A message together with its user and conversation.
#[derive(Debug, Clone)]
pub struct MessageRef {
    /// The user who sent it.
    pub user: UserId,
    /// Identifies the message across the whole system.
    pub message_id: MessageId,
    /// The client's own identifier; `None` where the client chose none (classic protocol).
    pub id: Option<ClientMessageId>,
    /// The conversation that the answer is appended to.
    pub conversation: ConversationId,
}
