//! Publishes the text of one attempt and renews its lease, in a task of its own, so that reading
//! the model never waits for the fan-out.

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

/// A third of the lease, so that one lost renewal does not end it.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a failed call of the fan-out is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Why an attempt must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// Another worker has taken over, or the message has an outcome.
    Fenced,
    /// The user cancelled the message.
    Cancelled,
}

/// State that the [`LiveWriter`] shares with its task.
struct Shared {
    text: Mutex<Coalescer>,
    /// The text has grown.
    text_added: Notify,
    /// The lease or the cancel mark must be checked now.
    check_now: Arc<Notify>,
    stop: watch::Sender<Option<StopReason>>,
    attempt: AtomicU32,
    /// Number of `live` calls that were started.
    calls_started: AtomicU64,
    /// The last call that confirmed the lease, counted like `calls_started`.
    confirmed_call: watch::Sender<u64>,
}

impl Shared {
    fn text(&self) -> MutexGuard<'_, Coalescer> {
        self.text.lock()
    }
}

/// The attempt that a [`LiveWriter`] writes for.
pub(super) struct LiveTarget {
    pub(super) message: MessageRef,
    pub(super) owner: Owner,
    pub(super) attempt: u32,
    /// Whether the client wants the text as it grows; otherwise only the lease is renewed.
    pub(super) publishes_text: bool,
}

/// Publishes the text of one attempt and renews its lease until it is dropped.
pub(super) struct LiveWriter {
    shared: Arc<Shared>,
    stop: watch::Receiver<Option<StopReason>>,
    task: JoinHandle<()>,
}

impl LiveWriter {
    /// `cancelled` is the outcome that `begin` stores if the fan-out has lost its data and the
    /// message was cancelled.
    pub(super) fn start(
        fanout: Arc<dyn Answers>,
        target: LiveTarget,
        cancelled: LazyOutcome,
        coalescer: Coalescer,
        cancels: CancelWatcher,
    ) -> Self {
        let (stop_sender, stop) = watch::channel(None);
        let shared = Arc::new(Shared {
            text: Mutex::new(coalescer),
            text_added: Notify::new(),
            check_now: Arc::default(),
            stop: stop_sender,
            attempt: AtomicU32::new(target.attempt),
            calls_started: AtomicU64::new(0),
            confirmed_call: watch::Sender::new(0),
        });
        let begin = BeginRequest {
            message: target.message,
            owner: target.owner,
            last_attempt: target.attempt,
            cancelled_outcome: cancelled,
            history: None,
        };
        let cancel_watch = cancels.watch(
            begin.message.user.clone(),
            begin.message.message_id.clone(),
            Arc::clone(&shared.check_now),
        );
        let publisher = Publisher {
            fanout,
            begin,
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
        Self { shared, stop, task }
    }

    /// Adds text of the model. Never waits.
    pub(super) fn push(&self, text: &str) {
        self.shared.text().push(text);
        self.shared.text_added.notify_one();
    }

    /// The whole text so far.
    pub(super) fn text(&self) -> String {
        self.shared.text().text().to_owned()
    }

    /// Whether the model has sent any text.
    pub(super) fn has_text(&self) -> bool {
        !self.shared.text().text().is_empty()
    }

    /// The current attempt number. It grows when the fan-out loses its data during the attempt.
    pub(super) fn attempt(&self) -> u32 {
        self.shared.attempt.load(Ordering::Acquire)
    }

    /// Waits until the attempt must stop.
    pub(super) async fn wait_until_stopped(&self) -> StopReason {
        let mut stop = self.stop.clone();
        let reason = stop.wait_for(Option::is_some).await.map(|reason| *reason);
        match reason {
            Ok(Some(reason)) => reason,
            // The task ends only after it has sent a reason.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the fan-out confirms that this attempt still holds the lease, for as long as the
    /// fan-out is unavailable. A process that was paused for longer than the lease learns here that
    /// it was taken over.
    pub(super) async fn confirm_lease(&self) -> Result<(), StopReason> {
        let started = self.shared.calls_started.load(Ordering::Acquire);
        let mut confirmed = self.shared.confirmed_call.subscribe();
        self.shared.check_now.notify_one();
        tokio::select! {
            biased;
            reason = self.wait_until_stopped() => Err(reason),
            // It cannot fail: `self.shared` has the sender.
            _ = confirmed.wait_for(|call| *call > started) => Ok(()),
        }
    }
}

impl Drop for LiveWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task of a [`LiveWriter`].
struct Publisher {
    fanout: Arc<dyn Answers>,
    /// Repeated when the fan-out has lost its data; `last_attempt` is the current attempt.
    begin: BeginRequest,
    publishes_text: bool,
    shared: Arc<Shared>,
}

impl Publisher {
    async fn run(mut self) {
        let mut renew_at = Instant::now() + RENEW_INTERVAL;
        loop {
            let delta = self.next_delta(renew_at).await;
            if let Err(reason) = self.publish(delta).await {
                self.shared.stop.send_replace(Some(reason));
                return;
            }
            renew_at = Instant::now() + RENEW_INTERVAL;
        }
    }

    /// The next delta that is due; `None` when the lease must be renewed or checked first.
    async fn next_delta(&self, renew_at: Instant) -> Option<Delta> {
        loop {
            let now = Instant::now();
            let due_at = {
                let mut text = self.shared.text();
                if self.publishes_text
                    && let Some(delta) = text.flush_if_due(now)
                {
                    return Some(delta);
                }
                text.due_at(now).filter(|_| self.publishes_text)
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

    /// Publishes one delta, or only renews the lease. Repeats the call while the fan-out is
    /// unavailable.
    async fn publish(&mut self, delta: Option<Delta>) -> Result<(), StopReason> {
        let next_index = delta.as_ref().map(|delta| delta.index + 1);
        let delta = delta.map(|delta| (delta.index, delta.text));
        loop {
            let call = self.shared.calls_started.fetch_add(1, Ordering::AcqRel) + 1;
            let request = LiveRequest {
                message: self.begin.message.clone(),
                owner: self.begin.owner.clone(),
                attempt: self.begin.last_attempt,
                delta: delta.clone(),
            };
            match self.fanout.live(request).await {
                Ok(LiveResponse::Written) => {}
                // The delta had arrived with an earlier call whose response was lost.
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
            attempt = self.begin.last_attempt,
            "the fan-out lost the text of an answer in progress: publishing it again, no action \
             is needed"
        );
        loop {
            // A message that was cancelled since then ends with the text so far.
            let text = self.shared.text().text().to_owned();
            let begin = BeginRequest {
                cancelled_outcome: outcome::cancelled_outcome_with_text(
                    &self.begin.cancelled_outcome,
                    text,
                ),
                ..self.begin.clone()
            };
            match self.fanout.begin(begin).await {
                Ok(BeginResponse::Attempt { number, .. }) => {
                    self.begin.last_attempt = number;
                    self.shared.attempt.store(number, Ordering::Release);
                    self.shared.text().restart();
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
