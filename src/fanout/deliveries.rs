//! The calls that a relay makes to deliver terminal records (`deliver`), and to detect and repair a
//! data loss of the fan-out (markers, rebuilds, disruptions).

use std::sync::Arc;

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
    /// the message's outcome and publishes it. A record at or below the mailbox's end, or of a
    /// message that was delivered before, is not delivered again.
    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse>;

    /// Whether the partition's marker is on every server that holds users. False after a server
    /// lost its data.
    async fn has_marker(&self, epoch: &Epoch) -> Result<bool>;

    /// Writes the partition's marker to every server that holds users.
    async fn set_marker(&self, epoch: &Epoch) -> Result<()>;

    /// Begins a rebuild: writes the random `token` on every server where the partition's marker is
    /// missing. Returns whether the marker is on every server, like [`Deliveries::has_marker`].
    async fn begin_rebuild(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let _ = token;
        self.has_marker(epoch).await
    }

    /// Completes a rebuild: writes the partition's marker to every server that has the marker or
    /// this `token`. Returns false if a server has neither, because it lost its data during the
    /// rebuild. A repeat of this call, which the client library makes after a reconnect, therefore
    /// never marks an emptied server as complete.
    async fn complete_rebuild(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let _ = token;
        self.set_marker(epoch).await.map(|()| true)
    }

    /// Number of reconnects and failovers so far. After each of them, data that was written before
    /// may be lost.
    fn disruptions(&self) -> watch::Receiver<u64>;
}

/// Argument of [`Deliveries::deliver`].
#[derive(Debug, Clone)]
pub struct DeliverRequest {
    /// The user whose devices receive the frame.
    pub user: UserId,
    /// The message that the record answers. For a record that a worker of the original system
    /// wrote, an id that the relay derives from the record.
    pub message_id: MessageId,
    /// The conversation whose history gets the turn; `None` if the record names no conversation.
    pub conversation: Option<ConversationId>,
    /// Position of the record in `responses`.
    pub position: Position,
    /// The position at or above which the relay knows the user's mailbox to end, from earlier
    /// deliveries; `None` if it knows no end. A mailbox that ends below this position has lost
    /// data.
    pub known_end: Option<Position>,
    /// When the log received the record, in milliseconds since the Unix epoch by the log's clock. A
    /// turn that the history lost is inserted at this time; with `None` it becomes the newest turn.
    /// The embedded fan-out ignores this time, because it can't lose its data without the log.
    pub logged_at_ms: Option<i64>,
    /// Whether the relay reads the record again after a rewind, that is, the consumer group had
    /// committed the record or this relay had finished it. The frame of such a record is published
    /// on the live channel only.
    pub is_rewind: bool,
    /// JSON of the terminal frame with its `position`.
    pub frame: String,
    /// The answer's text for the turn in the history.
    pub answer: String,
    /// JSON array of the answer's parts for the turn in the history; `None` if the answer is one
    /// part of text.
    pub parts: Option<Arc<str>>,
    /// The status of the turn in the history.
    pub status: TurnStatus,
}

/// Response to [`Deliveries::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliverResponse {
    /// The record was delivered. Contains the number of subscriptions that its frame was published
    /// to; in a Redis cluster only those on the node that executed the call.
    Published(u64),
    /// The record, or another record of the same message, was delivered before. The pending entry
    /// was removed. If the message was delivered at another position, the mailbox's end also
    /// advanced to this record's position.
    AlreadyDelivered,
    /// The mailbox ends below `known_end`, so the fan-out has lost data. Nothing was changed. The
    /// relay rewinds before it delivers the record again.
    DataLost,
}
