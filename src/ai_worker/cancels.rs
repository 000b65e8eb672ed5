//! Wakes answers at once when their users cancel them.
//!
//! The mark in the fan-out decides, and every `live` looks at it; without this module that is
//! once a second. An answer that has been under way for a moment subscribes to its user's cancel
//! channel, and whatever may mean a cancel (its frame, a gap in what was heard, the subscription
//! itself, for a cancel may have come just before it) makes it look now. A short answer costs no
//! subscription, and nothing here is ever waited for by who writes an answer.

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

/// An answer that is over sooner costs no subscription.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// Frames that wait; more become a gap.
const CAPACITY: usize = 1024;
/// Subscriptions being made or ended at once.
const AT_ONCE: usize = 32;
/// Between attempts while the fan-out is away.
const REPEAT_AFTER: Duration = Duration::from_millis(500);

/// The cancel subscriptions of one worker process. Dropping it ends them.
pub(super) struct Cancels {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Cancels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an answer needs to be woken; cheap to clone.
#[derive(Clone)]
pub(super) struct Watcher(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

/// Bounded by the answers that are written at once: a user is here while one of its is, and for
/// the moment that the end of a subscription takes.
#[derive(Default)]
struct State {
    next: u64,
    answers: HashMap<UserId, HashMap<u64, Answer>>,
    /// Users whose first answer came or whose last one went, and those with another answer.
    dirty: HashSet<UserId>,
}

struct Answer {
    message: MessageId,
    look: Arc<Notify>,
}

/// An answer that is watched, until it is dropped.
struct Watched {
    shared: Arc<Shared>,
    user: UserId,
    key: u64,
}

#[derive(Deserialize)]
struct Payload {
    message_id: MessageId,
}

impl Cancels {
    /// Opens nothing before the first answer needs it. Must be called inside a tokio runtime.
    pub(super) fn start(fanout: Arc<dyn Feeds>) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(run(fanout, Arc::clone(&shared)));
        Self { shared, task }
    }

    pub(super) fn watcher(&self) -> Watcher {
        Watcher(Arc::clone(&self.shared))
    }
}

impl Watcher {
    /// Never returns: from a moment after now until it is dropped, `look` is notified whenever
    /// the message may have been cancelled.
    pub(super) async fn watch(self, user: UserId, message: MessageId, look: Arc<Notify>) {
        tokio::time::sleep(UNDER_WAY).await;
        let _watched = self.0.watch(user, message, look);
        std::future::pending::<()>().await;
    }
}

impl Drop for Watched {
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

    fn watch(self: Arc<Self>, user: UserId, message: MessageId, look: Arc<Notify>) -> Watched {
        let mut state = self.state();
        let key = state.next;
        state.next += 1;
        let answers = state.answers.entry(user.clone()).or_default();
        answers.insert(key, Answer { message, look });
        state.dirty.insert(user.clone());
        drop(state);
        self.changed.notify_one();
        Watched {
            shared: self,
            user,
            key,
        }
    }

    fn is_wanted(&self, user: &UserId) -> bool {
        self.state().answers.contains_key(user)
    }

    fn mark(&self, user: UserId) {
        self.state().dirty.insert(user);
    }

    /// A user whose subscription has to be looked at, and whether it is wanted.
    fn next_dirty(&self, busy: &HashSet<UserId>) -> Option<(UserId, bool)> {
        let mut state = self.state();
        let user = state.dirty.iter().find(|user| !busy.contains(*user))?;
        let user = user.clone();
        state.dirty.remove(&user);
        let wanted = state.answers.contains_key(&user);
        Some((user, wanted))
    }

    fn wake_user(&self, user: &UserId) {
        for answer in self.state().answers.get(user).into_iter().flatten() {
            answer.1.look.notify_one();
        }
    }

    fn wake_message(&self, user: &UserId, payload: &Bytes) {
        let Ok(payload) = serde_json::from_slice::<Payload>(payload) else {
            // Not ours to judge; a look costs one call.
            self.wake_user(user);
            return;
        };
        let state = self.state();
        for answer in state.answers.get(user).into_iter().flatten() {
            if answer.1.message == payload.message_id {
                answer.1.look.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        let state = self.state();
        for answer in state.answers.values().flat_map(HashMap::values) {
            answer.look.notify_one();
        }
    }

    /// A new feed has no subscriptions yet.
    fn begin_anew(&self) {
        let mut state = self.state();
        let State { answers, dirty, .. } = &mut *state;
        dirty.clear();
        dirty.extend(answers.keys().cloned());
    }
}

async fn run(fanout: Arc<dyn Feeds>, shared: Arc<Shared>) {
    shared.changed.notified().await;
    loop {
        match fanout.open_feed(CAPACITY).await {
            Ok((feed, events)) => {
                shared.begin_anew();
                follow(&shared, &*feed, events).await;
            }
            Err(error) => tracing::debug!(%error, "cancels are heard of once a second only"),
        }
        tokio::time::sleep(REPEAT_AFTER).await;
    }
}

/// Keeps the feed's subscriptions what they should be, and passes on what it brings, until it
/// ends. Of one user at most one change is under way, so that they keep their order.
async fn follow(shared: &Shared, feed: &dyn Feed, mut events: mpsc::Receiver<FeedEvent>) {
    let mut subscribed = HashSet::new();
    let mut busy = HashSet::new();
    let mut changes = FuturesUnordered::new();
    loop {
        while changes.len() < AT_ONCE
            && let Some((user, wanted)) = shared.next_dirty(&busy)
        {
            if wanted != subscribed.contains(&user) {
                busy.insert(user.clone());
                changes.push(change(feed, user, wanted));
            } else if wanted {
                // Its own cancel may have come before it was known here.
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
            Some((user, wanted, result)) = changes.next(), if !changes.is_empty() => {
                busy.remove(&user);
                match result {
                    Ok(()) if wanted => {
                        subscribed.insert(user.clone());
                        shared.wake_user(&user);
                    }
                    Ok(()) => {
                        subscribed.remove(&user);
                    }
                    Err(error) => tracing::debug!(%error, wanted, "cancel channel"),
                }
                if shared.is_wanted(&user) != subscribed.contains(&user) {
                    shared.mark(user);
                }
            }
            () = shared.changed.notified() => {}
        }
    }
}

async fn change(feed: &dyn Feed, user: UserId, wanted: bool) -> (UserId, bool, Result<()>) {
    let result = if wanted {
        feed.subscribe(&user, Channel::Cancel).await
    } else {
        feed.unsubscribe(&user, Channel::Cancel).await
    };
    if result.is_err() {
        tokio::time::sleep(REPEAT_AFTER).await;
    }
    (user, wanted, result)
}
