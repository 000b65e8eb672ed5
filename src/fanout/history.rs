//! Conversation history, called by gateways.

use async_trait::async_trait;

use super::error::Result;
use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// Lists, reads and forgets conversations.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Lists at most `limit` of the user's conversations, the one with the newest turn first. With
    /// `after`, the list continues behind that conversation; it is empty where that one is gone.
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>>;

    /// Returns at most `limit` turns of a conversation, newest first, failed ones included. With
    /// `before`, only turns older than that message's turn; `None` where that turn does not exist.
    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>>;

    /// Forgets one conversation, or with `None` everything of the user: history, mailbox frames and
    /// outcomes. Returns whether anything was found.
    ///
    /// Open messages are marked as cancelled. All message ids concerned are remembered as forgotten
    /// for `dedup_ttl`, and neither `keep` nor `deliver`, in a rewind or not, stores anything of
    /// them again. The first terminal frame of a forgotten message is still published to
    /// connections that wait for it, without being stored.
    ///
    /// For a resuming client it is as if the frames had never existed: `recovered` stays true. A
    /// worker that receives a forgotten message gets the cancelled outcome, stores nothing, and
    /// appends that outcome to the log unless one was delivered before. A forgotten message that a
    /// client sends again is never answered. Before its outcome is delivered it is admitted as new,
    /// so that the log has it and a worker ends it as cancelled (`deliver` drops the second such
    /// record), but it is not recorded as pending; afterwards `admit` returns
    /// [`Forgotten`](super::AdmissionDecision::Forgotten). Messages that this fan-out does not know
    /// (never admitted, or known only to a server that lost its data) can't be forgotten.
    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool>;
}

/// A conversation in the list of a user's conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationEntry {
    /// The conversation's name.
    pub conversation: ConversationId,
    /// Number of its turns.
    pub turns: u64,
    /// When its newest turn was stored, in milliseconds since the Unix epoch by the fan-out's
    /// clock.
    pub updated_ms: i64,
}

/// A question and its answer in a conversation's history. Stored once per message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The message that was answered.
    pub message_id: MessageId,
    /// The text that the user wrote; `None` where only the answer is known because the turn was
    /// rebuilt from the log.
    pub question: Option<String>,
    /// The text that the user received.
    pub answer: String,
    /// How the turn ended.
    pub status: TurnStatus,
    /// When it was stored, in milliseconds since the Unix epoch by the fan-out's clock. Ignored in
    /// requests.
    pub at_ms: i64,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnStatus {
    /// Answered completely. Part of the model's context.
    Answered,
    /// Stopped by the user. The text generated until then is part of the model's context.
    Cancelled,
    /// Failed. Part of the history but not of the model's context.
    Failed,
}
