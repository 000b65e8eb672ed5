//! The subscriptions to the channels of one user, and the bounded queue of each feed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::fanout::{Channel, FeedEvent};
use crate::protocol::ids::UserId;

/// The bounded event queue of one feed.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<FeedEvent>,
    /// Whether a frame was dropped and the [`FeedEvent::Gap`] for it is not queued yet. While this
    /// is set, all frames are dropped: the gap event will report their loss too.
    has_gap: AtomicBool,
    /// Notified when `has_gap` was set.
    overflowed: Notify,
    /// Whether the [`Feed`](crate::fanout::Feed) was dropped.
    is_feed_dropped: AtomicBool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> (Self, mpsc::Receiver<FeedEvent>) {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let queue = Self {
            sender,
            has_gap: AtomicBool::new(false),
            overflowed: Notify::new(),
            is_feed_dropped: AtomicBool::new(false),
        };
        (queue, receiver)
    }

    /// Records that the feed was dropped. Its subscriptions to a user are removed at the next
    /// publication to that user, or by the next sweep.
    pub(super) fn mark_feed_dropped(&self) {
        self.is_feed_dropped.store(true, Ordering::Relaxed);
    }

    /// Whether the feed or the receiver of its events was dropped.
    fn is_closed(&self) -> bool {
        self.is_feed_dropped.load(Ordering::Relaxed) || self.sender.is_closed()
    }

    /// Queues an event. Drops it if the queue is full, or if an earlier event was dropped and the
    /// [`FeedEvent::Gap`] that reports this is not queued yet.
    fn offer(&self, event: FeedEvent) {
        if self.has_gap.load(Ordering::Acquire) {
            return;
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(event) {
            self.has_gap.store(true, Ordering::Release);
            self.overflowed.notify_one();
        }
    }

    /// The task that queues a [`FeedEvent::Gap`] after each overflow, as soon as the queue has
    /// room. Runs until the receiver is dropped.
    ///
    /// `has_gap` is cleared before the gap is queued, so a frame that is dropped after that causes
    /// another gap. Frames are offered under the user's lock and after the state has changed. The
    /// `read` that the gap causes therefore covers all frames that were dropped before.
    pub(super) async fn report_gaps(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.overflowed.notified() => {}
                () = self.sender.closed() => return,
            }
            let Ok(permit) = self.sender.reserve().await else {
                return;
            };
            self.has_gap.store(false, Ordering::Release);
            permit.send(FeedEvent::Gap);
        }
    }
}

/// The subscription of one feed to one user: which of the user's channels it includes.
#[derive(Debug)]
struct Subscription {
    queue: Arc<Queue>,
    includes_terminal: bool,
    includes_live: bool,
    includes_cancel: bool,
}

impl Subscription {
    fn includes(&self, channel: Channel) -> bool {
        match channel {
            Channel::Terminal => self.includes_terminal,
            Channel::Live => self.includes_live,
            Channel::Cancel => self.includes_cancel,
        }
    }

    fn set_subscribed(&mut self, channel: Channel, is_subscribed: bool) {
        match channel {
            Channel::Terminal => self.includes_terminal = is_subscribed,
            Channel::Live => self.includes_live = is_subscribed,
            Channel::Cancel => self.includes_cancel = is_subscribed,
        }
    }

    fn is_empty(&self) -> bool {
        !(self.includes_terminal || self.includes_live || self.includes_cancel)
    }
}

/// The subscriptions of all feeds to one user. Guarded by the user's lock.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Vec<Subscription>);

impl Subscriptions {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the subscriptions of feeds that were dropped.
    pub(super) fn remove_closed(&mut self) {
        self.0
            .retain(|subscription| !subscription.queue.is_closed());
    }

    pub(super) fn set_subscribed(
        &mut self,
        queue: &Arc<Queue>,
        channel: Channel,
        is_subscribed: bool,
    ) {
        let mut existing = self.0.iter();
        let index = existing.position(|subscription| Arc::ptr_eq(&subscription.queue, queue));
        let index = match index {
            Some(index) => index,
            None if !is_subscribed => return,
            None => {
                if self.0.capacity() == 0 {
                    // Most users have one subscription, but the vector would allocate space for
                    // four.
                    self.0.reserve_exact(1);
                }
                self.0.push(Subscription {
                    queue: Arc::clone(queue),
                    includes_terminal: false,
                    includes_live: false,
                    includes_cancel: false,
                });
                self.0.len() - 1
            }
        };
        let subscription = &mut self.0[index];
        subscription.set_subscribed(channel, is_subscribed);
        if subscription.is_empty() {
            self.0.swap_remove(index);
        }
    }

    /// Number of subscriptions that include the channel.
    pub(super) fn count(&self, channel: Channel) -> u64 {
        let subscriptions = self.0.iter();
        let subscriptions = subscriptions.filter(|subscription| subscription.includes(channel));
        subscriptions.count() as u64
    }

    /// Offers a frame to all subscriptions that include the channel, and returns their number.
    /// `build` builds the frame; it runs only if the number is not 0.
    pub(super) fn publish(
        &mut self,
        user: &UserId,
        channel: Channel,
        build: impl FnOnce() -> Bytes,
    ) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        self.remove_closed();
        if self.count(channel) == 0 {
            return 0;
        }
        let payload = build();
        let mut count = 0;
        for subscription in &self.0 {
            if subscription.includes(channel) {
                subscription.queue.offer(FeedEvent::Frame {
                    user: user.clone(),
                    channel,
                    payload: payload.clone(),
                });
                count += 1;
            }
        }
        count
    }
}
