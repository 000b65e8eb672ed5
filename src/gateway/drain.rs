//! When a connection is closed while its gateway drains, and when its client should reconnect.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, sleep_until};

use super::classic::pending::PendingStatus;
use super::context::Gateway;
use super::sessions::UserSessions;

/// The pause between two closes of a draining gateway, so that the reconnecting clients don't
/// overload the other gateways.
const CLOSE_INTERVAL: Duration = Duration::from_millis(5);

/// All connections are closed within this time, however many there are.
const MAX_CLOSE_SPREAD: Duration = Duration::from_secs(5);

/// Bounds of the reconnect delay that a client is given.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(10);

/// The share of `DRAIN_TIMEOUT_MS` for which a classic client is kept until it is answered.
const ANSWER_SHARE: f64 = 0.8;

/// One connection's wait until it may be closed.
pub(super) struct DrainState {
    close_delay: Pin<Box<Sleep>>,
    /// Set while the connection is kept until its client is answered.
    answer_wait: Option<AnswerWait>,
}

struct AnswerWait {
    sessions: Arc<UserSessions>,
    all_answered: BoxFuture<'static, ()>,
    timeout: Pin<Box<Sleep>>,
}

impl DrainState {
    /// `answer_first` is the user of a client that is to be answered before it is closed.
    pub(super) fn new(gateway: &Gateway, answer_first: Option<Arc<UserSessions>>) -> Self {
        let timeout = gateway.settings.drain_timeout.mul_f64(ANSWER_SHARE);
        let produce_timeout = gateway.settings.produce_timeout;
        let answer_wait = |sessions: Arc<UserSessions>| {
            let status = sessions.state().pending.watch();
            AnswerWait {
                sessions,
                all_answered: Box::pin(wait_until_answered(status, produce_timeout)),
                timeout: Box::pin(sleep(timeout)),
            }
        };
        Self {
            close_delay: Box::pin(sleep(close_delay(gateway))),
            answer_wait: answer_first.map(answer_wait),
        }
    }

    /// Returns when the connection may be closed. `is_idle` says that no frame of its client is in
    /// progress. Never returns without a drain. Cancel-safe.
    pub(super) async fn wait_until_ready_to_close(drain: &mut Option<Box<Self>>, is_idle: bool) {
        match drain {
            Some(drain) => poll_fn(|cx| drain.poll(cx, is_idle)).await,
            None => pending().await,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, is_idle: bool) -> Poll<()> {
        if let Some(answer_wait) = &mut self.answer_wait {
            let is_answered = is_idle && answer_wait.all_answered.as_mut().poll(cx).is_ready();
            let has_timed_out = !is_answered && answer_wait.timeout.as_mut().poll(cx).is_ready();
            if has_timed_out {
                tracing::warn!(
                    message_ids = ?answer_wait.sessions.state().pending.sample(),
                    "closing a classic connection before its answer, most of DRAIN_TIMEOUT_MS is \
                     over; raise it if answers take longer"
                );
            }
            if is_answered || has_timed_out {
                self.answer_wait = None;
            }
        }
        if is_idle && self.answer_wait.is_none() {
            return self.close_delay.as_mut().poll(cx);
        }
        Poll::Pending
    }

    /// A random delay after which a client should reconnect; the more connections there are, the
    /// longer it may be.
    pub(super) fn reconnect_delay(gateway: &Gateway) -> Duration {
        let connections = u32::try_from(gateway.registry.connections()).unwrap_or(u32::MAX);
        let spread = RECONNECT_DELAY_MIN + CLOSE_INTERVAL.saturating_mul(connections);
        let max = spread.min(RECONNECT_DELAY_MAX);
        rand::rng().random_range(RECONNECT_DELAY_MIN..=max)
    }
}

/// Returns when no answer is pending. A message that has not reached the log `produce_timeout`
/// after it became known counts as lost: its gateway died, or the log was unavailable.
async fn wait_until_answered(
    mut status: watch::Receiver<PendingStatus>,
    produce_timeout: Duration,
) {
    loop {
        let now = *status.borrow_and_update();
        let settled = async {
            match now {
                PendingStatus::None => {}
                PendingStatus::Unconfirmed { newest } => {
                    sleep_until((newest + produce_timeout).into()).await;
                }
                PendingStatus::InLog => pending().await,
            }
        };
        tokio::select! {
            () = settled => return,
            // The sender is gone with the user's state, so nothing can be delivered any more.
            changed = status.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// How long this connection waits before it is closed.
fn close_delay(gateway: &Gateway) -> Duration {
    let rank = gateway.drain_closes.fetch_add(1, Ordering::Relaxed);
    let connections = (gateway.registry.connections() as u64).max(rank + 1);
    let spread = (gateway.settings.drain_timeout / 2).min(MAX_CLOSE_SPREAD);
    let paced = CLOSE_INTERVAL.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX));
    paced.min(spread.mul_f64(rank as f64 / connections as f64))
}
