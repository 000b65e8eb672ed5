//! Subscriptions to published frames, called by gateways and workers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::error::Result;
use crate::protocol::ids::UserId;

/// Opens subscriptions.
#[async_trait]
pub trait Feeds: Send + Sync + 'static {
    /// Opens the subscriptions of one process. The returned queue holds at most `capacity` events.
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)>;
}

/// The subscriptions of one process.
///
/// Its queue is bounded. When the reader falls behind, frames are dropped and replaced by one
/// [`FeedEvent::Gap`].
#[async_trait]
pub trait Feed: Send + Sync {
    /// Subscribes to a user's channel, and returns when the server has confirmed it: every frame
    /// published from then on reaches the queue. The subscription survives reconnects until
    /// [`Feed::unsubscribe`]. Subscribing twice results in one subscription.
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()>;

    /// Ends a subscription. Frames that are already in transit may still arrive.
    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()>;
}

/// One of a user's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `user:alice`: terminal frames.
    Terminal,
    /// `{user:alice}:live`: all other frames, and the terminal frames of a rewind.
    Live,
    /// `{user:alice}:cancel`: the `message_id`s of cancelled messages, for the worker that
    /// generates the answer.
    Cancel,
}

/// An event in the queue of a [`Feed`].
#[derive(Debug, Clone)]
pub enum FeedEvent {
    /// A published frame.
    Frame {
        /// The user whose channel it was published on.
        user: UserId,
        /// The channel it was published on.
        channel: Channel,
        /// JSON, with `n` and `n_id` where chatmesh published it.
        payload: Bytes,
    },
    /// Frames may have been lost (after a reconnect, or because the reader fell behind). `read`
    /// every subscribed user.
    Gap,
}
