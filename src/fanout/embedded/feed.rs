//! The feed of the embedded fan-out, opened by `open_feed`.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::subscriptions::Queue;
use super::users::Users;
use crate::fanout::{Channel, Feed, FeedEvent, Result};
use crate::protocol::ids::UserId;

/// The [`Feed`] of the embedded fan-out. Dropping it removes its subscriptions.
#[derive(Debug)]
pub(super) struct EmbeddedFeed {
    users: Arc<Users>,
    queue: Arc<Queue>,
}

impl EmbeddedFeed {
    /// Opens a feed whose queue holds at most `capacity` events. Must be called inside a tokio
    /// runtime.
    pub(super) fn open(users: Arc<Users>, capacity: usize) -> (Self, mpsc::Receiver<FeedEvent>) {
        let (queue, receiver) = Queue::new(capacity);
        let queue = Arc::new(queue);
        // This task runs until the receiver is dropped.
        tokio::spawn(Arc::clone(&queue).report_gaps());
        (Self { users, queue }, receiver)
    }

    fn set_subscribed(&self, user: &UserId, channel: Channel, is_subscribed: bool) -> Result<()> {
        self.users.with_state(user, |state, _| {
            state
                .subscriptions
                .set_subscribed(&self.queue, channel, is_subscribed);
            Ok(())
        })
    }
}

impl Drop for EmbeddedFeed {
    fn drop(&mut self) {
        self.queue.mark_feed_dropped();
    }
}

#[async_trait]
impl Feed for EmbeddedFeed {
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        self.set_subscribed(user, channel, true)
    }

    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        self.set_subscribed(user, channel, false)
    }
}
