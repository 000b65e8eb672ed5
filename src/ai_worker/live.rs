//! Holds the parts of one attempt while the model writes them, and publishes them in a separate
//! task, so that reading the model's stream never waits for the fan-out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::answer_parts::{LimitReached, Part};
use super::cancel_watch::CancelWatcher;
use super::live_state::{LiveAnswer, LiveTarget, Shared, StopReason};
use super::outcome::OutcomeBuilder;
use super::provider::PartDelta;
use super::publisher::Publisher;
use crate::fanout::Answers;

/// Maximum time for which the end of an answer waits until its reasoning was published.
const MAX_REASONING_WAIT: Duration = Duration::from_millis(500);

/// Publishes the parts of one attempt and renews its lease, until the writer is dropped or the
/// attempt must stop.
pub(super) struct LiveWriter {
    publishes_parts: bool,
    shared: Arc<Shared>,
    stop_reason: watch::Receiver<Option<StopReason>>,
    task: JoinHandle<()>,
}

impl LiveWriter {
    /// Starts the writer's task. If the fan-out loses its data, the task calls `begin`. If the
    /// message was cancelled then, `begin` stores the cancelled outcome of `outcomes` with the
    /// parts so far.
    pub(super) fn start(
        fanout: Arc<dyn Answers>,
        target: LiveTarget,
        outcomes: OutcomeBuilder,
        answer: LiveAnswer,
        cancel_watcher: CancelWatcher,
    ) -> Self {
        let shared = Arc::new(Shared::new(answer, target.attempt));
        let stop_reason = shared.stop_reason.subscribe();
        let cancel_watch = cancel_watcher.watch(
            target.message.user.clone(),
            target.message.message_id.clone(),
            Arc::clone(&shared.check_now),
        );
        let publishes_parts = target.publishes_parts;
        let publisher = Publisher::new(fanout, target, outcomes, Arc::clone(&shared));
        let run = async move {
            tokio::select! {
                () = publisher.run() => {}
                () = cancel_watch => {}
            }
        };
        let task = tokio::spawn(tracing::Instrument::in_current_span(run));
        Self {
            publishes_parts,
            shared,
            stop_reason,
            task,
        }
    }

    /// Adds a piece of the model's answer. Never waits for the fan-out.
    pub(super) fn push(&self, delta: PartDelta) -> Result<(), LimitReached> {
        let result = self.shared.answer().push(delta);
        self.shared.parts_changed.notify_one();
        result
    }

    /// Adds the pieces that wait for the end of the model's answer, and returns all parts.
    pub(super) fn finish(&self) -> Arc<[Part]> {
        self.shared.answer().finish()
    }

    /// With `REASONING=show` the terminal record has only the length of reasoning. Waits until all
    /// of its text was published, for at most [`MAX_REASONING_WAIT`].
    pub(super) async fn wait_until_reasoning_published(&self) {
        if !self.publishes_parts {
            return;
        }
        let Some((part, length)) = self.shared.answer().last_unstored_reasoning() else {
            return;
        };
        if self.shared.is_published(part, length) {
            return;
        }
        self.shared.answer().make_pending_due();
        self.shared.parts_changed.notify_one();
        let published = async {
            tokio::select! {
                () = self.shared.wait_until_published(part, length) => {}
                _ = self.wait_until_stopped() => {}
            }
        };
        if timeout(MAX_REASONING_WAIT, published).await.is_err() {
            tracing::warn!(
                "the end of the model's reasoning was not published in time: clients show the \
                 reasoning without its end, and the answer is complete"
            );
        }
    }

    /// The parts so far.
    pub(super) fn parts(&self) -> Arc<[Part]> {
        self.shared.answer().parts()
    }

    /// Whether the answer has any part.
    pub(super) fn has_parts(&self) -> bool {
        self.shared.answer().has_parts()
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

    /// Makes the task renew the lease, and waits until the fan-out confirms that this attempt still
    /// holds it. There is no limit on the time for which the fan-out may be unavailable. Fails if
    /// the attempt must stop, for example because the process was paused for longer than the lease
    /// and another worker has taken over.
    pub(super) async fn confirm_lease(&self) -> Result<(), StopReason> {
        let renewals_started = self.shared.renewals_started.load(Ordering::Acquire);
        let mut confirmed_renewal = self.shared.confirmed_renewal.subscribe();
        self.shared.check_now.notify_one();
        tokio::select! {
            biased;
            reason = self.wait_until_stopped() => Err(reason),
            // `wait_for` cannot fail, because `self.shared` holds the sender.
            _ = confirmed_renewal.wait_for(|number| *number > renewals_started) => Ok(()),
        }
    }
}

impl Drop for LiveWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}
