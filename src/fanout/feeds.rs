//! The feed with which gateways and workers subscribe to the frames that are published to users.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::error::Result;
use crate::protocol::ids::UserId;

/// Opens feeds.
#[async_trait]
pub trait Feeds: Send + Sync + 'static {
    /// Opens the feed of one process. The returned queue holds at most `capacity` events.
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)>;
}

/// The subscriptions of one process to the channels of its users.
///
/// The published frames arrive in a bounded queue. When the process reads the queue too slowly,
/// frames are dropped, and one [`FeedEvent::Gap`] takes their place.
#[async_trait]
pub trait Feed: Send + Sync {
    /// Subscribes to a user's channel, and returns when the server has confirmed the subscription.
    /// Every frame that is published after that reaches the queue or is covered by a
    /// [`FeedEvent::Gap`]. The subscription survives reconnects and lasts until
    /// [`Feed::unsubscribe`]. Subscribing twice results in one subscription.
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()>;

    /// Unsubscribes from a user's channel. Frames that were published before may still arrive.
    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()>;
}

/// A channel of a user, with its name in Redis for the user `alice`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `user:alice`: terminal frames.
    Terminal,
    /// `{user:alice}:live`: frames that are not terminal, and the terminal frames of a rewind.
    Live,
    /// `{user:alice}:cancel`: the `message_id`s of cancelled messages, for the worker that
    /// generates the answer.
    Cancel,
}

/// An event in the queue of a [`Feed`].
#[derive(Debug, Clone)]
pub enum FeedEvent {
    /// A frame was published.
    Frame {
        /// The user on whose channel the frame was published.
        user: UserId,
        /// The channel on which the frame was published.
        channel: Channel,
        /// JSON of the frame, or of the notice on the cancel channel. A frame that chatmesh
        /// published has the sequence number (`n` and `n_id`).
        payload: Bytes,
    },
    /// Published frames may have been lost, after a reconnect or because the queue was full. The
    /// process has to `read` every user that it has subscribed to.
    Gap,
}
