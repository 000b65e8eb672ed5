//! Wakes answers in progress as soon as their users cancel them.
//!
//! The cancel mark in the fan-out is authoritative, and every `live` call checks it; without this
//! module a cancel is detected once a second. An answer that runs longer than [`SUBSCRIBE_AFTER`]
//! subscribes to its user's cancel channel. Every event that may mean a cancel makes it check the
//! mark at once: a frame, a gap in the feed, and the subscription itself, because the cancel may
//! have preceded it. Short answers need no subscription, and answers never wait for this module.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::fanout::{Channel, Feed, FeedEvent, Feeds, Result};
use crate::protocol::ids::{MessageId, UserId};

/// Answers that end sooner do not subscribe.
const SUBSCRIBE_AFTER: Duration = Duration::from_millis(200);
/// Events that the feed buffers; on overflow they are replaced by a gap.
const FEED_CAPACITY: usize = 1024;
/// Subscriptions that are changed concurrently.
const MAX_CONCURRENT_CHANGES: usize = 32;
/// Delay before a failed feed or subscription is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The cancel subscriptions of one worker process. Dropping it ends them.
pub(super) struct CancelSubscriptions {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for CancelSubscriptions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Registers answers for wake-ups. Cheap to clone.
#[derive(Clone)]
pub(super) struct CancelWatcher(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

/// The registered answers by user, and the users to process. Bounded by the number of answers in
/// progress: a user is present while one of its answers is registered, and briefly afterwards while
/// the subscription ends.
#[derive(Default)]
struct State {
    next_key: u64,
    answers: HashMap<UserId, HashMap<u64, WatchedAnswer>>,
    /// Users whose subscription may have to change, or whose answers must check the mark.
    dirty: HashSet<UserId>,
}

struct WatchedAnswer {
    message: MessageId,
    check_now: Arc<Notify>,
}

/// Removes an answer when it is dropped.
struct WatchGuard {
    shared: Arc<Shared>,
    user: UserId,
    key: u64,
}

/// A frame on a user's cancel channel.
#[derive(Deserialize)]
struct CancelFrame {
    message_id: MessageId,
}

impl CancelSubscriptions {
    /// Opens no connection before the first answer registers. Must be called inside a tokio
    /// runtime.
    pub(super) fn start(fanout: Arc<dyn Feeds>) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(run(fanout, Arc::clone(&shared)));
        Self { shared, task }
    }

    pub(super) fn watcher(&self) -> CancelWatcher {
        CancelWatcher(Arc::clone(&self.shared))
    }
}

impl CancelWatcher {
    /// Notifies `check_now` whenever the message may have been cancelled. Never returns; dropping
    /// the future ends the watch.
    pub(super) async fn watch(self, user: UserId, message: MessageId, check_now: Arc<Notify>) {
        tokio::time::sleep(SUBSCRIBE_AFTER).await;
        let _guard = self.0.watch(user, message, check_now);
        std::future::pending::<()>().await;
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(answers) = state.answers.get_mut(&self.user) {
            answers.remove(&self.key);
            if answers.is_empty() {
                state.answers.remove(&self.user);
                state.dirty.insert(self.user.clone());
                self.shared.changed.notify_one();
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn watch(
        self: Arc<Self>,
        user: UserId,
        message: MessageId,
        check_now: Arc<Notify>,
    ) -> WatchGuard {
        let mut state = self.state();
        let key = state.next_key;
        state.next_key += 1;
        let answers = state.answers.entry(user.clone()).or_default();
        answers.insert(key, WatchedAnswer { message, check_now });
        state.dirty.insert(user.clone());
        drop(state);
        self.changed.notify_one();
        WatchGuard {
            shared: self,
            user,
            key,
        }
    }

    fn has_answers(&self, user: &UserId) -> bool {
        self.state().answers.contains_key(user)
    }

    fn mark_dirty(&self, user: UserId) {
        self.state().dirty.insert(user);
    }

    /// Removes a dirty user without a change in progress. Returns it, and whether it needs a
    /// subscription.
    fn next_dirty(&self, changing: &HashSet<UserId>) -> Option<(UserId, bool)> {
        let mut state = self.state();
        let user = state.dirty.iter().find(|user| !changing.contains(*user))?;
        let user = user.clone();
        state.dirty.remove(&user);
        let needs_subscription = state.answers.contains_key(&user);
        Some((user, needs_subscription))
    }

    fn wake_user(&self, user: &UserId) {
        for answer in self.state().answers.get(user).into_iter().flatten() {
            answer.1.check_now.notify_one();
        }
    }

    fn wake_message(&self, user: &UserId, payload: &Bytes) {
        let Ok(frame) = serde_json::from_slice::<CancelFrame>(payload) else {
            // A newer version may have written it. A check costs one call.
            self.wake_user(user);
            return;
        };
        let state = self.state();
        for answer in state.answers.get(user).into_iter().flatten() {
            if answer.1.message == frame.message_id {
                answer.1.check_now.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        let state = self.state();
        for answer in state.answers.values().flat_map(HashMap::values) {
            answer.check_now.notify_one();
        }
    }

    /// Marks every user as dirty, because a new feed has no subscriptions.
    fn mark_all_dirty(&self) {
        let mut state = self.state();
        let State { answers, dirty, .. } = &mut *state;
        dirty.clear();
        dirty.extend(answers.keys().cloned());
    }
}

async fn run(fanout: Arc<dyn Feeds>, shared: Arc<Shared>) {
    shared.changed.notified().await;
    loop {
        match fanout.open_feed(FEED_CAPACITY).await {
            Ok((feed, events)) => {
                shared.mark_all_dirty();
                serve_feed(&shared, &*feed, events).await;
            }
            Err(error) => tracing::debug!(
                %error,
                "opening the cancel feed failed, it is retried; until then cancels are detected \
                 once a second"
            ),
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Maintains the feed's subscriptions and dispatches its events until it ends. At most one change
/// per user is in progress, so that the changes of a user keep their order.
async fn serve_feed(shared: &Shared, feed: &dyn Feed, mut events: mpsc::Receiver<FeedEvent>) {
    let mut subscribed = HashSet::new();
    let mut changing = HashSet::new();
    let mut changes = FuturesUnordered::new();
    loop {
        while changes.len() < MAX_CONCURRENT_CHANGES
            && let Some((user, needs_subscription)) = shared.next_dirty(&changing)
        {
            if needs_subscription != subscribed.contains(&user) {
                changing.insert(user.clone());
                changes.push(change_subscription(feed, user, needs_subscription));
            } else if needs_subscription {
                // The cancel of a new answer may have arrived before the answer was registered.
                shared.wake_user(&user);
            }
        }
        tokio::select! {
            event = events.recv() => match event {
                Some(FeedEvent::Frame { user, channel: Channel::Cancel, payload }) => {
                    shared.wake_message(&user, &payload);
                }
                Some(FeedEvent::Frame { .. }) => {}
                Some(FeedEvent::Gap) => shared.wake_all(),
                None => return,
            },
            Some((user, subscribe, result)) = changes.next(), if !changes.is_empty() => {
                changing.remove(&user);
                match result {
                    Ok(()) if subscribe => {
                        subscribed.insert(user.clone());
                        shared.wake_user(&user);
                    }
                    Ok(()) => {
                        subscribed.remove(&user);
                    }
                    Err(error) => tracing::debug!(
                        %error, subscribe, "changing a cancel subscription failed, it is retried"
                    ),
                }
                if shared.has_answers(&user) != subscribed.contains(&user) {
                    shared.mark_dirty(user);
                }
            }
            () = shared.changed.notified() => {}
        }
    }
}

async fn change_subscription(
    feed: &dyn Feed,
    user: UserId,
    subscribe: bool,
) -> (UserId, bool, Result<()>) {
    let result = if subscribe {
        feed.subscribe(&user, Channel::Cancel).await
    } else {
        feed.unsubscribe(&user, Channel::Cancel).await
    };
    if result.is_err() {
        tokio::time::sleep(RETRY_DELAY).await;
    }
    (user, subscribe, result)
}
