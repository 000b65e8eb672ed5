//! How long to wait before another attempt.

use std::time::Duration;

/// Doubling delays with jitter. A pure function of its arguments: randomness comes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Before the second attempt.
    pub base: Duration,
    /// No delay of our own is longer.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(8),
        }
    }
}

impl Backoff {
    /// The delay before `attempt` (1 is the first, which waits for nothing): the base, doubled per
    /// further attempt up to the cap, of which 50 to 100 % remain as `random` (0 to 1) says; and
    /// never less than what the provider asked for.
    pub fn delay(self, attempt: u32, retry_after: Option<Duration>, random: f64) -> Duration {
        let own = match attempt.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 2_u32.saturating_pow(doublings);
                let whole = self.base.saturating_mul(factor).min(self.cap);
                whole.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
            }
        };
        own.max(retry_after.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap() {
        let whole = |attempt| Backoff::default().delay(attempt, None, 1.0).as_millis();
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7, 60, u32::MAX].map(whole),
            [0, 500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]
        );
    }

    #[test]
    fn jitter_leaves_at_least_half() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, None, 0.0), Duration::from_millis(500));
        assert_eq!(backoff.delay(3, None, 0.5), Duration::from_millis(750));
        assert_eq!(
            backoff.delay(3, None, f64::INFINITY),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn the_providers_wish_is_a_lower_bound() {
        let backoff = Backoff::default();
        let wish = Some(Duration::from_secs(20));
        assert_eq!(backoff.delay(2, wish, 1.0), Duration::from_secs(20));
        let wish = Some(Duration::from_millis(20));
        assert_eq!(backoff.delay(2, wish, 1.0), Duration::from_millis(500));
    }
}
