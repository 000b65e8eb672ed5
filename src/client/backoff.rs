//! When to try again: later each time, and never all clients at once.

use std::time::Duration;

use rand::Rng as _;

use crate::protocol::close::{self, CloseReason};

const FIRST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(20);
/// After a close for too many messages or connections.
const ABUSED: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A connection held.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Before the next attempt, and not before `least`.
    pub(super) fn next(&mut self, least: Option<Duration>) -> Duration {
        let most = FIRST.saturating_mul(1 << self.failures.min(10)).min(MOST);
        self.failures += 1;
        let jitter = rand::rng().random_range(0.5..=1.0);
        let pause = most.mul_f64(jitter);
        least.map_or(pause, |least| least + pause.min(FIRST))
    }
}

/// What a close code asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Come back, after at least this long.
    Return(Option<Duration>),
    /// With another token.
    NewToken,
    /// Not.
    Never(CloseReason),
}

/// What a client does after a connection that ended by this code, or without one.
pub(crate) fn advice(code: Option<u16>) -> Advice {
    let Some(code) = code else {
        return Advice::Return(None);
    };
    match close::ALL.into_iter().find(|reason| reason.code() == code) {
        Some(CloseReason::Unauthorized) => Advice::NewToken,
        Some(CloseReason::RateAbused) => Advice::Return(Some(ABUSED)),
        // A proxy says goodbye so when it is restarted.
        Some(CloseReason::Normal) | None => Advice::Return(None),
        Some(reason) if reason.come_back() => Advice::Return(None),
        Some(reason) => Advice::Never(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_bounded_and_differ() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..50).map(|_| backoff.next(None)).collect();
        assert!(pauses[0] <= FIRST);
        assert!(pauses.iter().all(|pause| *pause <= MOST));
        assert!(pauses[20] >= MOST / 2);
        assert!(pauses[20..].iter().any(|pause| *pause != pauses[20]));
        let least = Duration::from_secs(60);
        assert!(backoff.next(Some(least)) >= least);
    }

    #[test]
    fn close_codes_are_obeyed() {
        assert_eq!(advice(Some(4401)), Advice::NewToken);
        assert_eq!(advice(Some(4429)), Advice::Return(Some(ABUSED)));
        for come_back in [
            None,
            Some(1001),
            Some(1006),
            Some(4408),
            Some(4409),
            Some(4503),
        ] {
            assert_eq!(advice(come_back), Advice::Return(None));
        }
        for never in [1002, 1003, 1007, 1009, 4403] {
            assert!(matches!(advice(Some(never)), Advice::Never(_)), "{never}");
        }
    }
}
