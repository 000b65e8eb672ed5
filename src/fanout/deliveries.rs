//! Delivery of terminal records and the rebuild after data loss, called by relays.

use async_trait::async_trait;
use tokio::sync::watch;

use super::error::Result;
use super::history::TurnStatus;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::{Epoch, Position};

/// Delivers terminal records into mailboxes, and detects that the fan-out lost data.
///
/// A marker per partition of `responses` is stored on every server that holds users. A missing
/// marker means that a server lost its data, so the relay rewinds the partition and delivers again.
#[async_trait]
pub trait Deliveries: Send + Sync + 'static {
    /// Delivers a terminal record: appends it to the user's mailbox and the history, stores it as
    /// the message's outcome and publishes it. A record is delivered at most once.
    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse>;

    /// Whether the partition's marker is on every server that holds users. False after a server
    /// lost its data.
    async fn has_marker(&self, epoch: &Epoch) -> Result<bool>;

    /// Writes the partition's marker to every server that holds users.
    async fn set_marker(&self, epoch: &Epoch) -> Result<()>;

    /// Begins a rebuild: returns whether the marker is on every server, like
    /// [`Deliveries::has_marker`], and writes the random `token` where the marker is missing.
    async fn begin_rebuild(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let _ = token;
        self.has_marker(epoch).await
    }

    /// Completes a rebuild: writes the marker to every server that has it or still has this
    /// `token`. False where a server has neither, because it lost its data during the rebuild. A
    /// repeat of this call, which the client library makes after a reconnect, therefore never marks
    /// an emptied server as complete.
    async fn complete_rebuild(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let _ = token;
        self.set_marker(epoch).await.map(|()| true)
    }

    /// Counts reconnects and failovers. After each of them, data written before may be gone.
    fn disruptions(&self) -> watch::Receiver<u64>;
}

/// Argument of [`Deliveries::deliver`].
#[derive(Debug, Clone)]
pub struct DeliverRequest {
    /// The user who receives the record.
    pub user: UserId,
    /// The answered message, or the identity derived from the record where a worker of the original
    /// system wrote it.
    pub message_id: MessageId,
    /// The conversation whose history gets the answer; `None` where the record does not name it.
    pub conversation: Option<ConversationId>,
    /// Position of the record in `responses`.
    pub position: Position,
    /// The highest position of this user that the relay knows to be in the mailbox. A mailbox that
    /// ends below it has lost data.
    pub known_end: Option<Position>,
    /// When the log received the record, in milliseconds since the Unix epoch by the log's clock. A
    /// turn that the history lost is inserted at this time; with `None` it becomes the newest. A
    /// fan-out that can't lose its data separately from the log may ignore this.
    pub logged_at_ms: Option<i64>,
    /// Whether the record is below the committed offset, that is, read again after a rewind. Such a
    /// record is published on the live channel only.
    pub is_rewind: bool,
    /// JSON of the terminal frame with its `position`, exactly as clients receive it.
    pub frame: String,
    /// The answer's text for the history.
    pub answer: String,
    /// The turn's status for the history.
    pub status: TurnStatus,
}

/// Response to [`Deliveries::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliverResponse {
    /// The record was appended to the mailbox and published to this many subscriptions (on one
    /// node, where the fan-out is a cluster).
    Published(u64),
    /// The record, or another one of the same message, was delivered before. Only the pending entry
    /// was removed.
    AlreadyDelivered,
    /// The mailbox ends below `known_end`: the fan-out lost data. Nothing was done; rewind first.
    DataLost,
}
