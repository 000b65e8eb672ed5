//! Decides when a connection is closed while its gateway drains, and when its client should
//! reconnect. The receive loop of each connection calls it.

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

/// Time between the closes of two connections while the gateway drains, so that the reconnecting
/// clients don't overload the other gateways. The time is shorter where the gateway has so many
/// connections that [`MAX_CLOSE_SPREAD`] would be exceeded.
const CLOSE_INTERVAL: Duration = Duration::from_millis(5);

/// Maximum time over which the closes of a drain are spread, however many connections there are.
/// Connections that wait for answers are closed later.
const MAX_CLOSE_SPREAD: Duration = Duration::from_secs(5);

/// Minimum of the random delay after which a client is asked to reconnect.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);

/// Maximum of the random delay after which a client is asked to reconnect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(10);

/// Fraction of `DRAIN_TIMEOUT_MS` for which a classic connection stays open until the pending
/// answers of its user are delivered.
const ANSWER_WAIT_FRACTION: f64 = 0.8;

/// The state of one connection while its gateway drains: what must happen before the connection may
/// be closed.
pub(super) struct DrainState {
    close_delay: Pin<Box<Sleep>>,
    /// The wait for pending answers. `None` where the connection does not wait for answers, or the
    /// wait is over.
    answer_wait: Option<AnswerWait>,
}

/// Keeps a connection open until no answer is pending for its user, or the timeout has passed.
struct AnswerWait {
    sessions: Arc<UserSessions>,
    all_answered: BoxFuture<'static, ()>,
    timeout: Pin<Box<Sleep>>,
}

impl DrainState {
    /// If `wait_for_answers_of` is set, the connection waits until the pending answers of that user
    /// are delivered.
    pub(super) fn new(gateway: &Gateway, wait_for_answers_of: Option<Arc<UserSessions>>) -> Self {
        let timeout = gateway.settings.drain_timeout.mul_f64(ANSWER_WAIT_FRACTION);
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
            answer_wait: wait_for_answers_of.map(answer_wait),
        }
    }

    /// Returns when the connection may be closed. Never returns while `drain` is `None`, or while
    /// `is_idle` is false: a frame of the client is in progress then. Cancel-safe.
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
                    message_ids = ?answer_wait.sessions.state().pending.sample_ids(),
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

    /// A random delay after which a client should reconnect. Its maximum grows with the number of
    /// this gateway's connections.
    pub(super) fn reconnect_delay(gateway: &Gateway) -> Duration {
        let connections = u32::try_from(gateway.registry.connections()).unwrap_or(u32::MAX);
        let spread = RECONNECT_DELAY_MIN + CLOSE_INTERVAL.saturating_mul(connections);
        let max = spread.min(RECONNECT_DELAY_MAX);
        rand::rng().random_range(RECONNECT_DELAY_MIN..=max)
    }
}

/// Returns when no answer is pending. The answer of a message that is not known to be in the log
/// does not count as pending from `produce_timeout` after the message was added: the gateway that
/// admitted the message has died, or the log was unavailable.
async fn wait_until_answered(
    mut status: watch::Receiver<PendingStatus>,
    produce_timeout: Duration,
) {
    loop {
        let current_status = *status.borrow_and_update();
        let no_answer_expected = async {
            match current_status {
                PendingStatus::None => {}
                PendingStatus::Unconfirmed { newest_added_at } => {
                    sleep_until((newest_added_at + produce_timeout).into()).await;
                }
                PendingStatus::InLog => pending().await,
            }
        };
        tokio::select! {
            () = no_answer_expected => return,
            // An error means that the user's state was dropped, so no answer can be delivered any
            // more.
            changed = status.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// The delay after which the next connection is closed. It grows with the number of connections
/// that have begun to close before.
fn close_delay(gateway: &Gateway) -> Duration {
    let rank = gateway.drain_closes.fetch_add(1, Ordering::Relaxed);
    let connections = (gateway.registry.connections() as u64).max(rank + 1);
    let spread = (gateway.settings.drain_timeout / 2).min(MAX_CLOSE_SPREAD);
    let delay = CLOSE_INTERVAL.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX));
    delay.min(spread.mul_f64(rank as f64 / connections as f64))
}
