//! Makes answers in progress check their cancel marks as soon as their users cancel them.
//!
//! The cancel mark in the fan-out is authoritative, and every lease renewal checks it; without this
//! module, a cancel is detected by the next renewal, after up to a second. An answer that
//! runs longer than [`SUBSCRIBE_AFTER`] subscribes to its user's cancel channel. Every event that
//! may mean a cancel makes the answer check the mark at once: a frame, a gap in the feed, and the
//! confirmation of the subscription, because the cancel may have preceded it. Short answers need no
//! subscription, and answers never wait for this module.

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

/// Time after which an answer subscribes. Shorter answers need no subscription.
const SUBSCRIBE_AFTER: Duration = Duration::from_millis(200);
/// Maximum number of events that the feed buffers. When the buffer is full, a gap replaces further
/// events.
const FEED_CAPACITY: usize = 1024;
/// Maximum number of concurrent calls of `subscribe` and `unsubscribe`.
const MAX_CONCURRENT_CHANGES: usize = 32;
/// Delay before another feed is opened, or a failed change of a subscription is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Maintains the cancel subscriptions of one worker process in a task. Dropping this value aborts
/// the task, which ends the subscriptions.
pub(super) struct CancelSubscriptions {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for CancelSubscriptions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Registers answers, which are woken when they may have been cancelled. Cheap to clone.
#[derive(Clone)]
pub(super) struct CancelWatcher(Arc<Shared>);

/// State that the watchers share with the task of [`CancelSubscriptions`].
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the task after a watcher has added a user to `State::dirty_users`.
    users_added: Notify,
}

/// The registered answers by user, and the users whose subscription the task must check. Bounded by
/// the number of answers in progress: a user is present while one of its answers is registered, and
/// briefly afterwards while the subscription ends.
#[derive(Default)]
struct State {
    /// Key of the answer that is registered next.
    next_answer_key: u64,
    /// The registered answers by user and key.
    answers: HashMap<UserId, HashMap<u64, WatchedAnswer>>,
    /// Users whose subscription may have to change, or whose answers must check the cancel mark.
    dirty_users: HashSet<UserId>,
}

/// An answer that is registered for wake-ups.
struct WatchedAnswer {
    message: MessageId,
    /// Notified when the task that generates the answer must check the cancel mark at once.
    check_now: Arc<Notify>,
}

/// Removes a registered answer when the guard is dropped.
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
    /// Starts the task, which opens a feed once the first answer is registered. Must be called
    /// inside a tokio runtime.
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
    /// Sleeps for [`SUBSCRIBE_AFTER`], then notifies `check_now` whenever the message may have been
    /// cancelled. Never returns; dropping the future ends the watch.
    pub(super) async fn watch(self, user: UserId, message: MessageId, check_now: Arc<Notify>) {
        tokio::time::sleep(SUBSCRIBE_AFTER).await;
        let _guard = self.0.register(user, message, check_now);
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
                state.dirty_users.insert(self.user.clone());
                self.shared.users_added.notify_one();
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Registers an answer until the returned guard is dropped.
    fn register(
        self: Arc<Self>,
        user: UserId,
        message: MessageId,
        check_now: Arc<Notify>,
    ) -> WatchGuard {
        let mut state = self.state();
        let key = state.next_answer_key;
        state.next_answer_key += 1;
        let answers = state.answers.entry(user.clone()).or_default();
        answers.insert(key, WatchedAnswer { message, check_now });
        state.dirty_users.insert(user.clone());
        drop(state);
        self.users_added.notify_one();
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
        self.state().dirty_users.insert(user);
    }

    /// Removes one dirty user that is not among `changing_users`, whose subscriptions are being
    /// changed. Returns the user, and whether the user needs a subscription; `None` where there is
    /// no such user.
    fn next_dirty_user(&self, changing_users: &HashSet<UserId>) -> Option<(UserId, bool)> {
        let mut state = self.state();
        let mut users = state.dirty_users.iter();
        let user = users.find(|user| !changing_users.contains(*user))?.clone();
        state.dirty_users.remove(&user);
        let needs_subscription = state.answers.contains_key(&user);
        Some((user, needs_subscription))
    }

    fn wake_user(&self, user: &UserId) {
        for (_, answer) in self.state().answers.get(user).into_iter().flatten() {
            answer.check_now.notify_one();
        }
    }

    /// Handles a frame from the user's cancel channel: makes the answer to the message in the frame
    /// check its cancel mark now. If the frame can't be decoded, all answers of the user check
    /// theirs.
    fn wake_message(&self, user: &UserId, payload: &Bytes) {
        let Ok(frame) = serde_json::from_slice::<CancelFrame>(payload) else {
            // A newer version may have written the frame. All answers of the user check the mark,
            // which costs each of them one call.
            self.wake_user(user);
            return;
        };
        let state = self.state();
        for (_, answer) in state.answers.get(user).into_iter().flatten() {
            if answer.message == frame.message_id {
                answer.check_now.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        let state = self.state();
        for answer in state.answers.values().flat_map(HashMap::values) {
            answer.check_now.notify_one();
        }
    }

    /// Marks the users with registered answers as dirty, and only these, because a new feed has no
    /// subscriptions.
    fn mark_all_dirty(&self) {
        let mut state = self.state();
        let State {
            answers,
            dirty_users,
            ..
        } = &mut *state;
        dirty_users.clear();
        dirty_users.extend(answers.keys().cloned());
    }
}

/// Waits for the first registered answer and opens a feed. Opens another feed whenever opening
/// failed or a feed has ended.
async fn run(fanout: Arc<dyn Feeds>, shared: Arc<Shared>) {
    shared.users_added.notified().await;
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

/// Maintains the feed's subscriptions and dispatches its events until the feed ends. At most one
/// change per user is in progress, so that the changes of a user keep their order.
async fn serve_feed(shared: &Shared, feed: &dyn Feed, mut events: mpsc::Receiver<FeedEvent>) {
    let mut subscribed_users = HashSet::new();
    let mut changing_users = HashSet::new();
    let mut changes = FuturesUnordered::new();
    loop {
        while changes.len() < MAX_CONCURRENT_CHANGES
            && let Some((user, needs_subscription)) = shared.next_dirty_user(&changing_users)
        {
            if needs_subscription != subscribed_users.contains(&user) {
                changing_users.insert(user.clone());
                changes.push(change_subscription(feed, user, needs_subscription));
            } else if needs_subscription {
                // The user is subscribed already and has a new answer. A cancel may have preceded
                // the answer's registration, so the answer checks the mark.
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
                changing_users.remove(&user);
                match result {
                    Ok(()) if subscribe => {
                        subscribed_users.insert(user.clone());
                        shared.wake_user(&user);
                    }
                    Ok(()) => {
                        subscribed_users.remove(&user);
                    }
                    Err(error) => tracing::debug!(
                        %error, subscribe, "changing a cancel subscription failed, it is retried"
                    ),
                }
                if shared.has_answers(&user) != subscribed_users.contains(&user) {
                    shared.mark_dirty(user);
                }
            }
            () = shared.users_added.notified() => {}
        }
    }
}

/// Subscribes to a user's cancel channel, or unsubscribes. Returns the arguments with the result. A
/// failure is returned after [`RETRY_DELAY`], because the caller repeats the change at once.
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
