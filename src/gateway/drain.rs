//! When a socket is closed because its gateway stops, and when its client is to come back.

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

use super::Gateway;
use super::awaited::Wait;
use super::registry::Entry;

/// Sockets are closed no faster than this when a gateway stops, so that the others are not run
/// over by those that come back.
const STEP: Duration = Duration::from_millis(5);

/// But all of them within this.
const SPREAD: Duration = Duration::from_secs(5);

/// A client that is told to come back is told to wait at least for so long, and at most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// One socket's wait for its turn.
pub(super) struct Leaving {
    turn: Pin<Box<Sleep>>,
    /// Of a client that is kept until it was answered, as long as the drain's time allows.
    unanswered: Option<Unanswered>,
}

struct Unanswered {
    entry: Arc<Entry>,
    answered: BoxFuture<'static, ()>,
    patience: Pin<Box<Sleep>>,
}

impl Leaving {
    /// `to_answer` is the user of a client that is to be answered first.
    pub(super) fn begin(gateway: &Gateway, to_answer: Option<Arc<Entry>>) -> Self {
        let patience = gateway.settings.drain_timeout.mul_f64(0.8);
        let produce_timeout = gateway.settings.produce_timeout;
        let unanswered = |entry: Arc<Entry>| {
            let wait = entry.state().awaited.wait();
            Unanswered {
                entry,
                answered: Box::pin(answered(wait, produce_timeout)),
                patience: Box::pin(sleep(patience)),
            }
        };
        Self {
            turn: Box::pin(sleep(wait_for_turn(gateway))),
            unanswered: to_answer.map(unanswered),
        }
    }

    /// Returns when it is this socket's turn: never while something that it sent is under way, nor
    /// where it does not leave. Cancel-safe.
    pub(super) async fn turn(leaving: &mut Option<Box<Self>>, nothing_under_way: bool) {
        match leaving {
            Some(leaving) => poll_fn(|cx| leaving.poll(cx, nothing_under_way)).await,
            None => pending().await,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, nothing_under_way: bool) -> Poll<()> {
        if let Some(unanswered) = &mut self.unanswered {
            let answered = nothing_under_way && unanswered.answered.as_mut().poll(cx).is_ready();
            let waited_enough = !answered && unanswered.patience.as_mut().poll(cx).is_ready();
            if waited_enough {
                tracing::warn!(
                    message_ids = ?unanswered.entry.state().awaited.some(),
                    "a classic client is let go before it was answered, most of DRAIN_TIMEOUT_MS is over"
                );
            }
            if answered || waited_enough {
                self.unanswered = None;
            }
        }
        if nothing_under_way && self.unanswered.is_none() {
            return self.turn.as_mut().poll(cx);
        }
        Poll::Pending
    }

    /// When a client should come back: the more there are, the more they are spread.
    pub(super) fn retry_after(gateway: &Gateway) -> Duration {
        let all = u32::try_from(gateway.registry.connections()).unwrap_or(u32::MAX);
        let most = (RETRY_MIN + STEP.saturating_mul(all)).min(RETRY_MAX);
        rand::rng().random_range(RETRY_MIN..=most)
    }
}

/// Returns when nothing is waited for. What has not come to the log `produce_timeout` after it was
/// heard of is none of it: its gateway died, or the log was away, and it never comes.
async fn answered(mut wait: watch::Receiver<Wait>, produce_timeout: Duration) {
    loop {
        let now = *wait.borrow_and_update();
        let given_up = async {
            match now {
                Wait::No => {}
                Wait::Maybe(newest) => sleep_until((newest + produce_timeout).into()).await,
                Wait::Answer => pending().await,
            }
        };
        tokio::select! {
            () = given_up => return,
            // An error: nobody can tell it any more, so nothing is waited for.
            changed = wait.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// How long this socket waits before it is closed when the gateway stops.
fn wait_for_turn(gateway: &Gateway) -> Duration {
    let before = gateway.closing.fetch_add(1, Ordering::Relaxed);
    let all = (gateway.registry.connections() as u64).max(before + 1);
    let spread = (gateway.settings.drain_timeout / 2).min(SPREAD);
    let paced = STEP.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX));
    paced.min(spread.mul_f64(before as f64 / all as f64))
}
