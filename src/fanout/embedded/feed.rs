//! Subscriptions: who gets a user's frames, in the order of their numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use super::users::Users;
use crate::fanout::{Channel, Feed, FeedEvent, Result};
use crate::protocol::ids::UserId;

/// The bounded queue of one gateway.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<FeedEvent>,
    /// Frames were dropped, and no [`FeedEvent::Gap`] says so yet: until it does, everything is
    /// dropped, for the gap will cover it.
    gap: AtomicBool,
    overflowed: Notify,
    /// The [`Feed`] was dropped.
    ended: AtomicBool,
}

impl Queue {
    /// Whether nobody reads it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.sender.is_closed()
    }

    fn offer(&self, event: FeedEvent) {
        if self.gap.load(Ordering::Acquire) {
            return;
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(event) {
            self.gap.store(true, Ordering::Release);
            self.overflowed.notify_one();
        }
    }

    /// Says that frames were dropped, as soon as there is room for it. The flag falls before the
    /// gap is in the queue: what was dropped until then is written in the store already (frames
    /// are offered under their user's lock), so the reader's `read` after the gap has it.
    async fn tell_gaps(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.overflowed.notified() => {}
                () = self.sender.closed() => return,
            }
            let Ok(room) = self.sender.reserve().await else {
                return;
            };
            self.gap.store(false, Ordering::Release);
            room.send(FeedEvent::Gap);
        }
    }
}

/// One gateway's interest in one user.
#[derive(Debug)]
struct Subscription {
    queue: Arc<Queue>,
    terminal: bool,
    live: bool,
    cancel: bool,
}

impl Subscription {
    fn wants(&self, channel: Channel) -> bool {
        match channel {
            Channel::Terminal => self.terminal,
            Channel::Live => self.live,
            Channel::Cancel => self.cancel,
        }
    }
}

/// All subscriptions to one user; guarded by the user's lock.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Vec<Subscription>);

impl Subscriptions {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets those whose gateway is gone.
    pub(super) fn drop_closed(&mut self) {
        self.0.retain(|one| !one.queue.is_closed());
    }

    fn set(&mut self, queue: &Arc<Queue>, channel: Channel, on: bool) {
        let index = self.0.iter().position(|one| Arc::ptr_eq(&one.queue, queue));
        let index = match index {
            Some(index) => index,
            None if !on => return,
            None => {
                if self.0.capacity() == 0 {
                    // Mostly there is one: a vector would begin with room for four.
                    self.0.reserve_exact(1);
                }
                self.0.push(Subscription {
                    queue: Arc::clone(queue),
                    terminal: false,
                    live: false,
                    cancel: false,
                });
                self.0.len() - 1
            }
        };
        let one = &mut self.0[index];
        match channel {
            Channel::Terminal => one.terminal = on,
            Channel::Live => one.live = on,
            Channel::Cancel => one.cancel = on,
        }
        if !(one.terminal || one.live || one.cancel) {
            self.0.swap_remove(index);
        }
    }

    /// How many there are to a channel.
    pub(super) fn count(&self, channel: Channel) -> u64 {
        self.0.iter().filter(|one| one.wants(channel)).count() as u64
    }

    /// Offers a frame to all of the channel and says how many they are. `payload` is made only
    /// when there are any.
    pub(super) fn publish(
        &mut self,
        user: &UserId,
        channel: Channel,
        payload: impl FnOnce() -> Bytes,
    ) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        self.drop_closed();
        let wants = |one: &&Subscription| one.wants(channel);
        if !self.0.iter().any(|one| wants(&one)) {
            return 0;
        }
        let payload = payload();
        let mut count = 0;
        for one in self.0.iter().filter(wants) {
            one.queue.offer(FeedEvent::Frame {
                user: user.clone(),
                channel,
                payload: payload.clone(),
            });
            count += 1;
        }
        count
    }
}

/// The embedded fan-out's [`Feed`]. Dropping it ends its subscriptions.
#[derive(Debug)]
pub(super) struct EmbeddedFeed {
    users: Arc<Users>,
    queue: Arc<Queue>,
}

impl EmbeddedFeed {
    /// Must be called inside a tokio runtime.
    pub(super) fn open(users: Arc<Users>, capacity: usize) -> (Self, mpsc::Receiver<FeedEvent>) {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let queue = Arc::new(Queue {
            sender,
            gap: AtomicBool::new(false),
            overflowed: Notify::new(),
            ended: AtomicBool::new(false),
        });
        // Ends with the receiver.
        tokio::spawn(Arc::clone(&queue).tell_gaps());
        (Self { users, queue }, receiver)
    }

    fn set(&self, user: &UserId, channel: Channel, on: bool) -> Result<()> {
        self.users.with(user, |state, _| {
            state.subscriptions.set(&self.queue, channel, on);
            Ok(())
        })
    }
}

impl Drop for EmbeddedFeed {
    fn drop(&mut self) {
        self.queue.ended.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Feed for EmbeddedFeed {
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        self.set(user, channel, true)
    }

    async fn unsubscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        self.set(user, channel, false)
    }
}
