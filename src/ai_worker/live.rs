//! Publishes the text of one attempt and renews its lease. This happens in a separate task, so that
//! reading the model's stream never waits for the fan-out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::cancel_watch::CancelWatcher;
use super::coalesce::{Coalescer, Delta};
use super::outcome;
use crate::fanout::{
    Answers, BeginRequest, BeginResponse, LazyOutcome, LiveRequest, LiveResponse, MessageRef, Owner,
};

/// Time after a `live` call at which the next call renews the lease: a third of the lease's
/// duration, so that one lost renewal does not end the lease.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a failed call to the fan-out is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Why an attempt must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// Another worker has taken over the message, or the message has an outcome.
    Fenced,
    /// The user cancelled the message.
    Cancelled,
}

/// State that the [`LiveWriter`] shares with its task.
struct Shared {
    coalescer: Mutex<Coalescer>,
    /// Wakes the task after text was added.
    text_added: Notify,
    /// Wakes the task to check lease and cancel mark at once.
    check_now: Arc<Notify>,
    /// Why the attempt must stop; `None` until the task has found a reason.
    stop_reason: watch::Sender<Option<StopReason>>,
    /// Number of the current attempt.
    attempt: AtomicU32,
    /// Number of `live` calls that were started.
    calls_started: AtomicU64,
    /// Number of the last `live` call that confirmed the lease, where calls are numbered from 1 in
    /// the order in which they are started; 0 before the first.
    confirmed_call: watch::Sender<u64>,
}

impl Shared {
    fn coalescer(&self) -> MutexGuard<'_, Coalescer> {
        self.coalescer.lock()
    }
}

/// Identifies the attempt that a [`LiveWriter`] writes for, and says whether to publish its text.
pub(super) struct LiveTarget {
    pub(super) message: MessageRef,
    pub(super) owner: Owner,
    pub(super) attempt: u32,
    /// Whether the text is published while it grows. Otherwise only the lease is renewed.
    pub(super) publishes_text: bool,
}

/// Publishes the text of one attempt and renews its lease, until the writer is dropped or the
/// attempt must stop.
pub(super) struct LiveWriter {
    shared: Arc<Shared>,
    stop_reason: watch::Receiver<Option<StopReason>>,
    task: JoinHandle<()>,
}

impl LiveWriter {
    /// Starts the writer's task. If the fan-out loses its data, the task calls `begin`. If the
    /// message was cancelled then, `begin` stores `cancelled_outcome` with the text so far.
    pub(super) fn start(
        fanout: Arc<dyn Answers>,
        target: LiveTarget,
        cancelled_outcome: LazyOutcome,
        coalescer: Coalescer,
        cancel_watcher: CancelWatcher,
    ) -> Self {
        let (stop_reason_sender, stop_reason) = watch::channel(None);
        let shared = Arc::new(Shared {
            coalescer: Mutex::new(coalescer),
            text_added: Notify::new(),
            check_now: Arc::default(),
            stop_reason: stop_reason_sender,
            attempt: AtomicU32::new(target.attempt),
            calls_started: AtomicU64::new(0),
            confirmed_call: watch::Sender::new(0),
        });
        let begin_request = BeginRequest {
            message: target.message,
            owner: target.owner,
            last_attempt: target.attempt,
            cancelled_outcome,
            history: None,
        };
        let cancel_watch = cancel_watcher.watch(
            begin_request.message.user.clone(),
            begin_request.message.message_id.clone(),
            Arc::clone(&shared.check_now),
        );
        let publisher = Publisher {
            fanout,
            begin_request,
            publishes_text: target.publishes_text,
            shared: Arc::clone(&shared),
        };
        let run = async move {
            tokio::select! {
                () = publisher.run() => {}
                () = cancel_watch => {}
            }
        };
        let task = tokio::spawn(tracing::Instrument::in_current_span(run));
        Self {
            shared,
            stop_reason,
            task,
        }
    }

    /// Adds text of the model. Never waits for the fan-out.
    pub(super) fn push(&self, text: &str) {
        self.shared.coalescer().push(text);
        self.shared.text_added.notify_one();
    }

    /// The whole text that the model has sent so far.
    pub(super) fn text(&self) -> String {
        self.shared.coalescer().text().to_owned()
    }

    /// Whether the model has sent any text.
    pub(super) fn has_text(&self) -> bool {
        !self.shared.coalescer().text().is_empty()
    }

    /// Number of the current attempt. The number grows when the fan-out loses its data, because the
    /// task then begins another attempt.
    pub(super) fn attempt(&self) -> u32 {
        self.shared.attempt.load(Ordering::Acquire)
    }

    /// Waits until the attempt must stop, and returns the reason. Never returns otherwise.
    pub(super) async fn wait_until_stopped(&self) -> StopReason {
        let mut stop_reason = self.stop_reason.clone();
        let reason = stop_reason
            .wait_for(Option::is_some)
            .await
            .map(|reason| *reason);
        match reason {
            Ok(Some(reason)) => reason,
            // Unreachable: `wait_for` returns only a `Some`, and the channel can't close while
            // `self.shared` holds its sender.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Makes the task call `live`, and waits until the fan-out confirms that this attempt still
    /// holds the lease. There is no limit on the time for which the fan-out may be unavailable.
    /// Fails if the attempt must stop, for example because the process was paused for longer than
    /// the lease and another worker has taken over.
    pub(super) async fn confirm_lease(&self) -> Result<(), StopReason> {
        let calls_started = self.shared.calls_started.load(Ordering::Acquire);
        let mut confirmed_call = self.shared.confirmed_call.subscribe();
        self.shared.check_now.notify_one();
        tokio::select! {
            biased;
            reason = self.wait_until_stopped() => Err(reason),
            // `wait_for` cannot fail, because `self.shared` holds the sender.
            _ = confirmed_call.wait_for(|call| *call > calls_started) => Ok(()),
        }
    }
}

impl Drop for LiveWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The state of a [`LiveWriter`]'s task.
struct Publisher {
    fanout: Arc<dyn Answers>,
    /// The call of `begin` that is made after the fan-out lost its data. Its `last_attempt` is the
    /// current attempt.
    begin_request: BeginRequest,
    publishes_text: bool,
    shared: Arc<Shared>,
}

impl Publisher {
    /// Publishes deltas and renews the lease until the attempt must stop, and stores the reason.
    async fn run(mut self) {
        let mut renew_at = Instant::now() + RENEW_INTERVAL;
        loop {
            let delta = self.next_delta(renew_at).await;
            if let Err(reason) = self.publish(delta).await {
                self.shared.stop_reason.send_replace(Some(reason));
                return;
            }
            renew_at = Instant::now() + RENEW_INTERVAL;
        }
    }

    /// Waits for the next delta that is due. Returns `None` when the lease must be renewed, at
    /// `renew_at`, or checked at once.
    async fn next_delta(&self, renew_at: Instant) -> Option<Delta> {
        loop {
            let now = Instant::now();
            let due_at = {
                let mut coalescer = self.shared.coalescer();
                if self.publishes_text
                    && let Some(delta) = coalescer.flush_if_due(now)
                {
                    return Some(delta);
                }
                coalescer.due_at(now).filter(|_| self.publishes_text)
            };
            if now >= renew_at {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due_at.unwrap_or(renew_at).min(renew_at)) => {}
                () = self.shared.text_added.notified(), if self.publishes_text => {}
                () = self.shared.check_now.notified() => return None,
            }
        }
    }

    /// Calls `live`, which publishes `delta`, or only renews the lease where there is none. Repeats
    /// the call while the fan-out is unavailable. Fails if the attempt must stop.
    async fn publish(&mut self, delta: Option<Delta>) -> Result<(), StopReason> {
        let next_index = delta.as_ref().map(|delta| delta.index + 1);
        let delta = delta.map(|delta| (delta.index, delta.text));
        loop {
            let call = self.shared.calls_started.fetch_add(1, Ordering::AcqRel) + 1;
            let request = LiveRequest {
                message: self.begin_request.message.clone(),
                owner: self.begin_request.owner.clone(),
                attempt: self.begin_request.last_attempt,
                delta: delta.clone(),
            };
            match self.fanout.live(request).await {
                Ok(LiveResponse::Written) => {}
                // The fan-out has the delta from an earlier call, whose response was lost.
                Ok(LiveResponse::OutOfOrder(index))
                    if next_index.is_none_or(|next| next == index) => {}
                Ok(LiveResponse::Fenced) => return Err(StopReason::Fenced),
                Ok(LiveResponse::Cancelled) => return Err(StopReason::Cancelled),
                Ok(LiveResponse::DataLost | LiveResponse::OutOfOrder(_)) => {
                    self.begin_again().await?;
                }
                Err(error) => {
                    tracing::debug!(%error, "publishing live text failed, it is retried");
                    tokio::time::sleep(RETRY_DELAY).await;
                    continue;
                }
            }
            self.shared.confirmed_call.send_replace(call);
            return Ok(());
        }
    }

    /// Begins a new attempt after the fan-out lost the text, and schedules the whole text again
    /// from index 0.
    async fn begin_again(&mut self) -> Result<(), StopReason> {
        tracing::warn!(
            attempt = self.begin_request.last_attempt,
            "the fan-out lost the text of an answer in progress: publishing it again, no action \
             is needed"
        );
        loop {
            // If the message was cancelled, `begin` stores an outcome with the text so far.
            let text = self.shared.coalescer().text().to_owned();
            let begin_request = BeginRequest {
                cancelled_outcome: outcome::cancelled_outcome_with_text(
                    &self.begin_request.cancelled_outcome,
                    text,
                ),
                ..self.begin_request.clone()
            };
            match self.fanout.begin(begin_request).await {
                Ok(BeginResponse::Attempt { number, .. }) => {
                    self.begin_request.last_attempt = number;
                    self.shared.attempt.store(number, Ordering::Release);
                    self.shared.coalescer().restart();
                    return Ok(());
                }
                Ok(BeginResponse::Ended(_) | BeginResponse::Busy(_)) => {
                    return Err(StopReason::Fenced);
                }
                Err(_) => tokio::time::sleep(RETRY_DELAY).await,
            }
        }
    }
}
