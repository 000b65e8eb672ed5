//! Slows down all model calls of this worker after a 429, not only the refused call.

use std::time::Duration;

use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;

/// Minimum time between two calls after the first pause. Each further pause doubles this time.
const FIRST_SPACING: Duration = Duration::from_millis(50);
/// Limit up to which pauses increase the minimum time between two calls.
const MAX_SPACING: Duration = Duration::from_secs(2);
/// Minimum time between two calls below which the throttle is off again.
const MIN_SPACING: Duration = Duration::from_millis(5);
/// Factor by which each accepted call multiplies the minimum time between two calls.
const RECOVERY_FACTOR: f64 = 0.8;

/// Delays calls after rate-limit refusals. A refusal pauses all calls for the time that the API
/// requests, or for an exponential backoff where it requests none. After the pause, waiting calls
/// are released one by one in their order of arrival, with a spacing that shrinks with each
/// accepted call, so that they do not all start at once.
#[derive(Debug)]
pub(super) struct Throttle {
    state: Mutex<State>,
    /// Lock whose holder is the next call to be released. The lock is fair, so calls are released
    /// in their order of arrival.
    queue: tokio::sync::Mutex<()>,
    /// Wakes the next call to be released after `state` has changed.
    state_changed: Notify,
    backoff: Backoff,
    waiting_gauge: Gauge,
    spacing_gauge: Gauge,
}

/// The current pause and spacing of the calls.
#[derive(Debug, Default)]
struct State {
    /// No call is released before this time.
    paused_until: Option<Instant>,
    /// Minimum time between the releases of two calls; zero while the throttle is off.
    spacing: Duration,
    /// When the last call was released.
    last_release: Option<Instant>,
    /// Number of pauses since the throttle was off, for the backoff. Refusals of concurrent calls
    /// make one pause.
    consecutive_pauses: u32,
    /// Number of pauses since the throttle was created.
    total_pauses: u64,
}

/// The permission to make one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallPermit {
    /// Number of pauses when the call was released. It shows whether the call was released before
    /// the current pause.
    pauses_at_release: u64,
}

/// Removes a call from the gauge of waiting calls when the guard is dropped.
struct WaitingGuard<'a>(&'a Gauge);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Throttle {
    /// Creates a throttle that is off. It sets the gauges of waiting calls and of the spacing.
    pub(super) fn new(waiting_gauge: Gauge, spacing_gauge: Gauge) -> Self {
        Self {
            state: Mutex::default(),
            queue: tokio::sync::Mutex::default(),
            state_changed: Notify::new(),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).with_jitter(),
            waiting_gauge,
            spacing_gauge,
        }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until a call may be made. Dropping the future leaves the queue without side effects.
    pub(super) async fn acquire(&self) -> CallPermit {
        if let Ok(_queue_guard) = self.queue.try_lock()
            && let Ok(permit) = self.state().try_release(Instant::now())
        {
            return permit;
        }
        self.waiting_gauge.increment(1.0);
        let _waiting_guard = WaitingGuard(&self.waiting_gauge);
        let _queue_guard = self.queue.lock().await;
        loop {
            // The notification is requested before the check, so that a change after the check is
            // not missed.
            let state_changed = self.state_changed.notified();
            let retry_at = match self.state().try_release(Instant::now()) {
                Ok(permit) => return permit,
                Err(retry_at) => retry_at,
            };
            tokio::select! {
                () = sleep_until(retry_at) => {}
                () = state_changed => {}
            }
        }
    }

    /// Records that the API refused a call for its rate, and pauses all calls. `random` (0 to 1)
    /// determines the jitter of the backoff.
    pub(super) fn on_rate_limited(
        &self,
        permit: CallPermit,
        retry_after: Option<Duration>,
        random: f64,
    ) {
        let now = Instant::now();
        let mut state = self.state();
        if permit.pauses_at_release == state.total_pauses {
            state.total_pauses += 1;
            state.consecutive_pauses = state.consecutive_pauses.saturating_add(1);
            state.spacing = (state.spacing * 2).clamp(FIRST_SPACING, MAX_SPACING);
        } else if retry_after.is_none() {
            // The call was released before the current pause, so the refusal is no new information.
            return;
        }
        let pause = retry_after.unwrap_or_else(|| {
            let earlier_pauses = state.consecutive_pauses.saturating_sub(1);
            self.backoff.delay(earlier_pauses, random)
        });
        state.paused_until = state.paused_until.max(Some(now + pause));
        self.spacing_gauge.set(state.spacing.as_secs_f64());
        drop(state);
        self.state_changed.notify_waiters();
        tracing::warn!(
            pause_ms = pause.as_millis() as u64,
            "the model API refused a call for its rate: all calls of this worker are paused; if \
             this is frequent, raise the API's rate limit"
        );
    }

    /// Records that the API accepted a call, and reduces the spacing.
    pub(super) fn on_accepted(&self, permit: CallPermit) {
        let mut state = self.state();
        if permit.pauses_at_release != state.total_pauses || state.consecutive_pauses == 0 {
            return;
        }
        state.spacing = state.spacing.mul_f64(RECOVERY_FACTOR);
        if state.spacing < MIN_SPACING {
            state.spacing = Duration::ZERO;
            state.consecutive_pauses = 0;
        }
        self.spacing_gauge.set(state.spacing.as_secs_f64());
        drop(state);
        self.state_changed.notify_waiters();
    }
}

impl State {
    /// Releases a call if that is allowed at `now`. Otherwise returns the time at which to try
    /// again.
    fn try_release(&mut self, now: Instant) -> Result<CallPermit, Instant> {
        let spaced_release = self.last_release.map(|last| last + self.spacing);
        match self.paused_until.max(spaced_release) {
            Some(at) if now < at => Err(at),
            _ => {
                self.last_release = Some(now);
                Ok(CallPermit {
                    pauses_at_release: self.total_pauses,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use futures_util::stream::{FuturesUnordered, StreamExt};

    use super::*;

    fn throttle() -> Arc<Throttle> {
        Arc::new(Throttle::new(Gauge::noop(), Gauge::noop()))
    }

    async fn release_times(throttle: &Throttle, calls: usize) -> Vec<u128> {
        let start = Instant::now();
        let mut waiting: FuturesUnordered<_> = (0..calls)
            .map(|_| throttle.acquire().map(|_| start.elapsed().as_millis()))
            .collect();
        let mut times = Vec::new();
        while let Some(time) = waiting.next().await {
            times.push(time);
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn calls_do_not_wait_without_a_refusal() {
        assert_eq!(release_times(&throttle(), 100).await, vec![0; 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_refusal_pauses_all_calls_for_the_requested_time() {
        let throttle = throttle();
        let permit = throttle.acquire().await;
        throttle.on_rate_limited(permit, Some(Duration::from_secs(7)), 1.0);
        let times = release_times(&throttle, 4).await;
        assert_eq!(times[0], 7000);
        // After the pause, the waiting calls are released one by one, with the spacing.
        for pair in times.windows(2) {
            assert!(pair[1] >= pair[0] + FIRST_SPACING.as_millis(), "{times:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_without_a_requested_time_double_and_concurrent_refusals_count_once() {
        let throttle = throttle();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let wave = [throttle.acquire().await; 20];
            let start = Instant::now();
            for permit in wave {
                throttle.on_rate_limited(permit, None, 1.0);
            }
            throttle.acquire().await;
            pauses.push(start.elapsed().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn accepted_calls_reset_the_throttle() {
        let throttle = throttle();
        for _ in 0..3 {
            let permit = throttle.acquire().await;
            throttle.on_rate_limited(permit, None, 1.0);
        }
        for _ in 0..20 {
            let permit = throttle.acquire().await;
            throttle.on_accepted(permit);
        }
        assert_eq!(release_times(&throttle, 50).await, vec![0; 50]);
        // The backoff is reset as well, so the next pause is as long as a first pause.
        let permit = throttle.acquire().await;
        throttle.on_rate_limited(permit, None, 1.0);
        assert_eq!(release_times(&throttle, 1).await, [1000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_during_a_pause_extends_it() {
        let throttle = throttle();
        let (first, second) = (throttle.acquire().await, throttle.acquire().await);
        throttle.on_rate_limited(first, Some(Duration::from_secs(1)), 1.0);
        let waiter = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move {
                let start = Instant::now();
                throttle.acquire().await;
                start.elapsed()
            }
        });
        tokio::task::yield_now().await;
        throttle.on_rate_limited(second, Some(Duration::from_secs(5)), 1.0);
        assert_eq!(waiter.await.unwrap(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_wait_does_not_delay_other_calls() {
        let throttle = throttle();
        let permit = throttle.acquire().await;
        throttle.on_rate_limited(permit, Some(Duration::from_secs(1)), 1.0);
        for _ in 0..10 {
            let mut abandoned = Box::pin(throttle.acquire());
            assert!((&mut abandoned).now_or_never().is_none());
        }
        assert_eq!(release_times(&throttle, 1).await, [1000]);
    }
}
