//! The reference to a message that most fan-out calls take as an argument.

use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};

/// The ids of a message, of its user and of its conversation.
#[derive(Debug, Clone)]
pub struct MessageRef {
    /// The user who sent the message.
    pub user: UserId,
    /// Identifies the message across the whole system.
    pub message_id: MessageId,
    /// The id that the client chose for the message; `None` in the classic protocol, which has
    /// none.
    pub id: Option<ClientMessageId>,
    /// The conversation that the message belongs to.
    pub conversation: ConversationId,
}
