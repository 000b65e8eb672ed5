//! The calls that a gateway makes to list, show and forget a user's conversations.

use std::sync::Arc;

use async_trait::async_trait;

use super::error::Result;
use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// Lists, reads and forgets conversations.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Lists at most `limit` of the user's conversations, the conversation with the newest turn
    /// first. With `after`, the list begins behind that conversation; it is empty if the
    /// conversation `after` no longer exists.
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>>;

    /// Returns at most `limit` turns of a conversation, newest first, including failed turns. With
    /// `before`, returns only turns that are older than that message's turn, and `None` if the
    /// conversation has no turn of that message.
    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>>;

    /// Forgets one conversation, or with `None` all conversations of the user: history, mailbox
    /// frames and outcomes. Returns whether there was anything to forget.
    ///
    /// Pending messages and answers in flight of these conversations are cancelled. The ids of all
    /// forgotten messages are stored for `dedup_ttl`. During this time neither `keep` nor
    /// `deliver`, in a rewind or not, stores a frame or turn of these messages again. The first
    /// terminal frame of a forgotten message is still published to connections that wait for it,
    /// but not stored.
    ///
    /// A client that resumes notices nothing: `recovered` stays true, and the forgotten frames are
    /// not sent. A worker that begins a forgotten message gets the cancelled outcome. It appends
    /// this outcome to the log unless an outcome of the message was delivered before.
    ///
    /// A forgotten message that a client sends again is never answered. Before an outcome of the
    /// message was delivered, `admit` returns [`New`](super::AdmissionDecision::New) without
    /// recording the message as pending; a worker then appends the cancelled outcome, and `deliver`
    /// refuses the second record of the message. After the delivery, `admit` returns
    /// [`Forgotten`](super::AdmissionDecision::Forgotten).
    ///
    /// A message of which the fan-out stores nothing (never admitted, or lost with a server's data)
    /// can't be forgotten.
    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool>;
}

/// A conversation in the list of a user's conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationEntry {
    /// The conversation's name.
    pub conversation: ConversationId,
    /// Number of turns in the conversation, without expired turns.
    pub turns: u64,
    /// When the conversation's newest turn was stored, in milliseconds since the Unix epoch by the
    /// fan-out's clock.
    pub updated_ms: i64,
}

/// A question and its answer in a conversation's history. A message has at most one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The message that contains the question.
    pub message_id: MessageId,
    /// The text that the user wrote; `None` if the turn was rebuilt from the terminal record, which
    /// contains only the answer.
    pub question: Option<String>,
    /// The text that the model generated and the user received.
    pub answer: String,
    /// JSON array of the answer's parts, as in the terminal record; `None` if the answer is one
    /// part of text.
    pub parts: Option<Arc<str>>,
    /// Whether the answer is complete, was cancelled or failed.
    pub status: TurnStatus,
    /// When the turn was first stored, in milliseconds since the Unix epoch by the fan-out's clock.
    /// For a turn that the fan-out lost and a rewind stored again, when the log received the
    /// terminal record. Calls that store a turn ignore this field.
    pub at_ms: i64,
}

/// Whether the answer of a turn is complete, was cancelled or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnStatus {
    /// The answer is complete. The turn is part of the model's context.
    Answered,
    /// The user cancelled the answer. The turn, with the text that was generated before, is part of
    /// the model's context.
    Cancelled,
    /// The answer failed. The turn is part of the history but not of the model's context.
    Failed,
}
