//! Exponential backoff: computes how long to wait before an operation is tried again.
//!
//! Each delay is twice the previous delay, up to a cap. Jitter spreads clients that failed at the
//! same moment, so that they don't return at the same moment either.

use std::time::Duration;

/// Computes the delays between the attempts of one operation, and counts them.
#[derive(Debug, Clone)]
pub struct Backoff {
    first_delay: Duration,
    max_delay: Duration,
    has_jitter: bool,
    /// Number of delays that [`Backoff::next_delay`] has returned since the last reset.
    retries: u32,
}

impl Backoff {
    /// Creates a backoff without jitter, whose delays start at `first_delay` and never exceed
    /// `max_delay`.
    pub const fn new(first_delay: Duration, max_delay: Duration) -> Self {
        Self {
            first_delay,
            max_delay,
            has_jitter: false,
            retries: 0,
        }
    }

    /// Adds jitter: every delay becomes a random share, between 50 and 100 %, of the exponential
    /// delay.
    pub const fn with_jitter(mut self) -> Self {
        self.has_jitter = true;
        self
    }

    /// Returns the delay before the retry with this number, counted from 0, without counting the
    /// delay. `random` (0 to 1) chooses the share that jitter leaves of the delay; it is unused
    /// without jitter.
    pub fn delay(&self, retry: u32, random: f64) -> Duration {
        let factor = 2_u32.saturating_pow(retry);
        let delay = self.first_delay.saturating_mul(factor).min(self.max_delay);
        if self.has_jitter {
            delay.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
        } else {
            delay
        }
    }

    /// Returns the delay before the next attempt. Each call doubles the delay, up to the cap,
    /// before jitter is applied.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.delay(self.retries, rand::random());
        self.retries = self.retries.saturating_add(1);
        delay
    }

    /// Like [`Backoff::next_delay`], but with a minimum delay if the server has asked for that.
    /// Then the delay is the minimum plus at most the first delay, so that jitter still spreads the
    /// clients.
    pub fn next_delay_after(&mut self, minimum: Option<Duration>) -> Duration {
        let delay = self.next_delay();
        minimum.map_or(delay, |minimum| minimum + delay.min(self.first_delay))
    }

    /// Makes the next delay the first delay again, because the operation has succeeded.
    pub fn reset(&mut self) {
        self.retries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(8);

    #[test]
    fn delays_double_up_to_the_cap() {
        let backoff = Backoff::new(FIRST, CAP);
        let delay = |retry| backoff.delay(retry, 1.0).as_millis();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 58, u32::MAX].map(delay),
            [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]
        );
    }

    #[test]
    fn successive_delays_double_until_reset() {
        let mut backoff = Backoff::new(FIRST, CAP);
        let delays: Vec<u128> = (0..6).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 8000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), FIRST);
    }

    #[test]
    fn jitter_leaves_at_least_half() {
        let backoff = Backoff::new(FIRST, CAP).with_jitter();
        assert_eq!(backoff.delay(1, 0.0), Duration::from_millis(500));
        assert_eq!(backoff.delay(1, 0.5), Duration::from_millis(750));
        assert_eq!(backoff.delay(1, 1.0), Duration::from_secs(1));
        assert_eq!(backoff.delay(1, f64::INFINITY), Duration::from_secs(1));
    }

    #[test]
    fn delays_with_jitter_grow_to_the_cap_and_differ() {
        let mut backoff = Backoff::new(FIRST, CAP).with_jitter();
        let delays: Vec<Duration> = (0..50).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= FIRST);
        assert!(delays.iter().all(|delay| *delay <= CAP));
        assert!(delays[20] >= CAP / 2);
        assert!(delays[20..].iter().any(|delay| *delay != delays[20]));
    }

    #[test]
    fn minimum_delay_is_kept_and_spread_by_the_first_delay() {
        let mut backoff = Backoff::new(FIRST, CAP);
        let minimum = Duration::from_secs(60);
        for _ in 0..5 {
            assert_eq!(backoff.next_delay_after(Some(minimum)), minimum + FIRST);
        }
        assert_eq!(backoff.next_delay_after(None), CAP);
    }
}
