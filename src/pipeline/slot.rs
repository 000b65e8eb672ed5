//! The context that a handler receives for one record: a concurrency slot, a stop signal, the trace
//! span, and the retry loops for unavailable dependencies.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::telemetry::traces::Span;

/// Delay before the first retry of a failed call, without jitter. Each further delay is twice as
/// long.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Maximum delay between two tries of a failed call.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// Interval at which one retry loop logs its failures.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// The error of a wait that was interrupted because the record's partition was revoked or rewound,
/// or because the process drains. The handler then returns without finishing the record, which will
/// be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopRequested;

/// One of the pipeline's `max_workers` concurrency slots, held while a record is processed. It is
/// released when dropped, and during the delays of [`WorkSlot::sleep`] and [`WorkSlot::retry`], so
/// that a record that waits does not block others.
#[derive(Debug)]
pub struct WorkSlot {
    /// The free slots of the pipeline.
    slots: Arc<Semaphore>,
    /// `None` while this slot is released.
    permit: Option<OwnedSemaphorePermit>,
    /// Cancelled when the processing of the record must stop.
    stop: CancellationToken,
    /// The trace span of the record's processing.
    span: Span,
}

impl WorkSlot {
    /// Waits for a free slot.
    ///
    /// # Errors
    /// `stop` fired before a slot was free.
    pub(crate) async fn acquire(
        slots: Arc<Semaphore>,
        stop: CancellationToken,
    ) -> Result<Self, StopRequested> {
        let mut slot = Self {
            slots,
            permit: None,
            stop,
            span: Span::default(),
        };
        slot.reacquire().await?;
        Ok(slot)
    }

    async fn reacquire(&mut self) -> Result<(), StopRequested> {
        if self.permit.is_some() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(StopRequested),
            permit = Arc::clone(&self.slots).acquire_owned() => {
                self.permit = Some(permit.map_err(|_| StopRequested)?);
                Ok(())
            }
        }
    }

    /// The trace span of this record's processing.
    pub fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn span_mut(&mut self) -> &mut Span {
        &mut self.span
    }

    /// Whether a stop was requested. New work must not be started then.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The token that is cancelled when no new work may be started for this record. The worker may
    /// still store and produce an answer whose model call was made.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Releases the slot, sleeps for `time`, and acquires a slot again.
    ///
    /// # Errors
    /// A stop was requested before the slot was acquired again.
    pub async fn sleep(&mut self, time: Duration) -> Result<(), StopRequested> {
        self.permit = None;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(StopRequested),
            () = tokio::time::sleep(time) => {}
        }
        self.reacquire().await
    }

    /// Repeats `call` until it succeeds or a stop is requested. There is no limit on the number of
    /// tries: an unavailable dependency never counts against the record (I10). The slot is released
    /// during the delays. `operation` names the call in the log.
    pub async fn retry<T, E, F, Fut>(
        &mut self,
        operation: &str,
        mut call: F,
    ) -> Result<T, StopRequested>
    where
        E: Display,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let mut state = RetryState::new(operation);
        loop {
            match call().await {
                Ok(value) => {
                    state.log_recovery();
                    return Ok(value);
                }
                Err(error) => {
                    let delay = state.next_delay(&error);
                    self.sleep(delay).await?;
                }
            }
        }
    }

    /// Like [`WorkSlot::retry`], but ignores stop requests and holds the slot throughout. It is
    /// used for the last steps after a model call, because stopping there would mean to call the
    /// model again. Only the drain timeout interrupts it, by aborting the task.
    pub async fn retry_despite_stop<T, E, F, Fut>(&mut self, operation: &str, mut call: F) -> T
    where
        E: Display,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let mut state = RetryState::new(operation);
        loop {
            match call().await {
                Ok(value) => {
                    state.log_recovery();
                    return value;
                }
                Err(error) => {
                    let delay = state.next_delay(&error);
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }
}

/// The state of one retry loop: computes the growing delays, and logs failures and the recovery.
struct RetryState<'a> {
    /// Name of the repeated call in the log.
    operation: &'a str,
    backoff: Backoff,
    /// When the loop began.
    started_at: Instant,
    /// When the loop last logged a failure; `None` before the first failure.
    warned_at: Option<Instant>,
}

impl<'a> RetryState<'a> {
    fn new(operation: &'a str) -> Self {
        Self {
            operation,
            backoff: Backoff::new(FIRST_DELAY, MAX_DELAY).with_jitter(),
            started_at: Instant::now(),
            warned_at: None,
        }
    }

    /// The delay before the next try. Logs `error`, at most once in each `WARNING_INTERVAL`.
    fn next_delay(&mut self, error: &impl Display) -> Duration {
        let is_warning_due = self
            .warned_at
            .is_none_or(|warned_at| warned_at.elapsed() >= WARNING_INTERVAL);
        if is_warning_due {
            self.warned_at = Some(Instant::now());
            tracing::warn!(
                operation = self.operation,
                %error,
                "operation failed; it is retried until it succeeds, no action is needed once the \
                 dependency is available again"
            );
        }
        self.backoff.next_delay()
    }

    /// Logs that the call succeeded, if an earlier try failed.
    fn log_recovery(&self) {
        if self.warned_at.is_some() {
            let waited_ms = self.started_at.elapsed().as_millis() as u64;
            tracing::info!(
                operation = self.operation,
                waited_ms,
                "operation succeeded after retries"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn acquire(slots: &Arc<Semaphore>, stop: &CancellationToken) -> WorkSlot {
        WorkSlot::acquire(Arc::clone(slots), stop.clone())
            .await
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_an_unavailable_dependency_holds_no_slot() {
        let slots = Arc::new(Semaphore::new(1));
        let stop = CancellationToken::new();
        let mut waiting = acquire(&slots, &stop).await;
        let other = {
            let (slots, stop) = (Arc::clone(&slots), stop.clone());
            tokio::spawn(async move { drop(acquire(&slots, &stop).await) })
        };
        let result = waiting
            .retry("test", || {
                let is_done = other.is_finished();
                async move { if is_done { Ok(7) } else { Err("unavailable") } }
            })
            .await;
        assert_eq!(result, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn retrying_ends_when_the_partition_is_revoked() {
        let slots = Arc::new(Semaphore::new(1));
        let stop = CancellationToken::new();
        let mut waiting = acquire(&slots, &stop).await;
        let revocation = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            revocation.cancel();
        });
        let result: Result<(), StopRequested> =
            waiting.retry("test", || async { Err("unavailable") }).await;
        assert_eq!(result, Err(StopRequested));
    }
}
