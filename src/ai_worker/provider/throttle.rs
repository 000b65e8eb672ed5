//! After a 429 all of this worker's calls go slower, not only the one that was refused.

use std::time::Duration;

use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;

/// Spacing of calls after the first refusal; doubled by each further one.
const FIRST_SPACING: Duration = Duration::from_millis(50);
const MAX_SPACING: Duration = Duration::from_secs(2);
/// Below it calls go freely again.
const LEAST_SPACING: Duration = Duration::from_millis(5);
/// What an accepted call leaves of the spacing.
const RECOVERY: f64 = 0.8;

/// Holds calls back. A refusal stops all of them until the time that the API names, or by a
/// doubling backoff where it names none. Then they are let go one by one, in the order in which
/// they came, with a spacing that shrinks with each call that the API accepts; so the end of a
/// pause is no stampede.
#[derive(Debug)]
pub(super) struct Throttle {
    state: Mutex<State>,
    /// Who holds it is the next to be let go; fair, so calls keep their order.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
    backoff: Backoff,
    waiting: Gauge,
    spacing: Gauge,
}

#[derive(Debug, Default)]
struct State {
    /// Nothing is let go before.
    until: Option<Instant>,
    spacing: Duration,
    last: Option<Instant>,
    /// Refusals in a row, as pauses: calls that were under way together count once.
    refusals: u32,
    /// Grows with each of those pauses.
    era: u64,
}

/// Says when a call was let go, so that its refusal is known to be old news or new.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    era: u64,
}

struct Waiting<'a>(&'a Gauge);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Throttle {
    /// With the gauges for waiting calls and for the spacing.
    pub(super) fn new(waiting: Gauge, spacing: Gauge) -> Self {
        Self {
            state: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).with_jitter(),
            waiting,
            spacing,
        }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until a call may be made. Dropping the future gives up the place and nothing else.
    pub(super) async fn wait(&self) -> Pass {
        if let Ok(_turn) = self.turn.try_lock()
            && let Ok(pass) = self.state().pass(Instant::now())
        {
            return pass;
        }
        self.waiting.increment(1.0);
        let _waiting = Waiting(&self.waiting);
        let _turn = self.turn.lock().await;
        loop {
            // Made before the look, so that a change after it is not missed.
            let changed = self.changed.notified();
            let at = match self.state().pass(Instant::now()) {
                Ok(pass) => return pass,
                Err(at) => at,
            };
            tokio::select! {
                () = sleep_until(at) => {}
                () = changed => {}
            }
        }
    }

    /// The API has refused this call for its rate. `random` is 0 to 1.
    pub(super) fn refused(&self, pass: Pass, retry_after: Option<Duration>, random: f64) {
        let now = Instant::now();
        let mut state = self.state();
        if pass.era == state.era {
            state.era += 1;
            state.refusals = state.refusals.saturating_add(1);
            state.spacing = (state.spacing * 2).clamp(FIRST_SPACING, MAX_SPACING);
        } else if retry_after.is_none() {
            // Sent before the pause that is on: says nothing new.
            return;
        }
        let pause = retry_after
            .unwrap_or_else(|| self.backoff.delay(state.refusals.saturating_sub(1), random));
        state.until = state.until.max(Some(now + pause));
        self.spacing.set(state.spacing.as_secs_f64());
        drop(state);
        self.changed.notify_waiters();
        tracing::warn!(
            pause_ms = pause.as_millis() as u64,
            "the model's API refuses for its rate: all calls of this worker wait"
        );
    }

    /// The API has accepted this call.
    pub(super) fn accepted(&self, pass: Pass) {
        let mut state = self.state();
        if pass.era != state.era || state.refusals == 0 {
            return;
        }
        state.spacing = state.spacing.mul_f64(RECOVERY);
        if state.spacing < LEAST_SPACING {
            state.spacing = Duration::ZERO;
            state.refusals = 0;
        }
        self.spacing.set(state.spacing.as_secs_f64());
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    /// Lets a call go, or says when to ask again.
    fn pass(&mut self, now: Instant) -> Result<Pass, Instant> {
        let spaced = self.last.map(|last| last + self.spacing);
        match self.until.max(spaced) {
            Some(at) if now < at => Err(at),
            _ => {
                self.last = Some(now);
                Ok(Pass { era: self.era })
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
            .map(|_| throttle.wait().map(|_| start.elapsed().as_millis()))
            .collect();
        let mut times = Vec::new();
        while let Some(time) = waiting.next().await {
            times.push(time);
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_refusal_nothing_waits() {
        assert_eq!(release_times(&throttle(), 100).await, vec![0; 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_refusal_stops_all_calls_for_as_long_as_the_api_says() {
        let throttle = throttle();
        let pass = throttle.wait().await;
        throttle.refused(pass, Some(Duration::from_secs(7)), 1.0);
        let times = release_times(&throttle, 4).await;
        assert_eq!(times[0], 7000);
        // No stampede at its end.
        for pair in times.windows(2) {
            assert!(pair[1] >= pair[0] + FIRST_SPACING.as_millis(), "{times:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_time_pauses_double_and_calls_of_one_wave_count_once() {
        let throttle = throttle();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let wave = [throttle.wait().await; 20];
            let start = Instant::now();
            for pass in wave {
                throttle.refused(pass, None, 1.0);
            }
            throttle.wait().await;
            pauses.push(start.elapsed().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn accepted_calls_open_the_throttle_again() {
        let throttle = throttle();
        for _ in 0..3 {
            let pass = throttle.wait().await;
            throttle.refused(pass, None, 1.0);
        }
        for _ in 0..20 {
            let pass = throttle.wait().await;
            throttle.accepted(pass);
        }
        assert_eq!(release_times(&throttle, 50).await, vec![0; 50]);
        // Forgotten: the next pause is a first one.
        let pass = throttle.wait().await;
        throttle.refused(pass, None, 1.0);
        assert_eq!(release_times(&throttle, 1).await, [1000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_during_a_pause_prolongs_it() {
        let throttle = throttle();
        let (first, second) = (throttle.wait().await, throttle.wait().await);
        throttle.refused(first, Some(Duration::from_secs(1)), 1.0);
        let waiter = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move {
                let start = Instant::now();
                throttle.wait().await;
                start.elapsed()
            }
        });
        tokio::task::yield_now().await;
        throttle.refused(second, Some(Duration::from_secs(5)), 1.0);
        assert_eq!(waiter.await.unwrap(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_holds_up_nobody() {
        let throttle = throttle();
        let pass = throttle.wait().await;
        throttle.refused(pass, Some(Duration::from_secs(1)), 1.0);
        for _ in 0..10 {
            let mut given_up = Box::pin(throttle.wait());
            assert!((&mut given_up).now_or_never().is_none());
        }
        assert_eq!(release_times(&throttle, 1).await, [1000]);
    }
}
