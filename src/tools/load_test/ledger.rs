//! What one client has sent, and what became of it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::stats::Stats;

/// A message without its end.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// When it was to be sent. A server that holds up its clients doesn't make its answers look
    /// faster: they are measured from here.
    intended: Instant,
    accepted: bool,
    begun: bool,
}

/// A client's messages in the order in which they were sent. What is ended and has nothing open
/// before it is forgotten.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    first: u64,
    messages: VecDeque<Option<Open>>,
    open: usize,
    /// One more than the last that was answered.
    answered_to: u64,
}

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Delivered,
    Failed,
    Refused,
}

impl Ledger {
    /// Another message; its number.
    pub(super) fn sent(&mut self, intended: Instant) -> u64 {
        self.messages.push_back(Some(Open {
            intended,
            accepted: false,
            begun: false,
        }));
        self.open += 1;
        self.first + self.messages.len() as u64 - 1
    }

    /// Messages without their ends.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    fn next(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    fn get(&mut self, number: u64) -> Option<&mut Open> {
        let at = number.checked_sub(self.first)?;
        self.messages.get_mut(at as usize)?.as_mut()
    }

    /// The oldest open one.
    pub(super) fn oldest(&self) -> Option<u64> {
        let at = self.messages.iter().position(Option::is_some)?;
        Some(self.first + at as u64)
    }

    /// The newest open one.
    pub(super) fn newest(&self) -> Option<u64> {
        let at = self.messages.iter().rposition(Option::is_some)?;
        Some(self.first + at as u64)
    }

    pub(super) fn accepted(&mut self, number: u64, now: Instant, stats: &mut Stats) {
        let Some(open) = self.get(number) else {
            // Its answer was faster.
            return;
        };
        if !open.accepted {
            open.accepted = true;
            stats.accepted += 1;
            stats.acceptance.record(now - open.intended);
        }
    }

    /// Some of its answer is there.
    pub(super) fn begun(&mut self, number: u64, now: Instant, stats: &mut Stats) {
        if let Some(open) = self.get(number)
            && !open.begun
        {
            open.begun = true;
            stats.first_token.record(now - open.intended);
        }
    }

    /// It has ended; how long it took, unless it is one that had ended before or was never sent.
    pub(super) fn ended(
        &mut self,
        number: u64,
        end: End,
        now: Instant,
        stats: &mut Stats,
    ) -> Option<Duration> {
        let Some(open) = self.get(number).copied() else {
            if number < self.next() {
                stats.doubles += 1;
            } else {
                stats.strange += 1;
            }
            return None;
        };
        self.messages[(number - self.first) as usize] = None;
        self.open -= 1;
        while let Some(None) = self.messages.front() {
            self.messages.pop_front();
            self.first += 1;
        }
        if end == End::Refused {
            stats.refused += 1;
            return None;
        }
        if number < self.answered_to {
            stats.out_of_order += 1;
        }
        self.answered_to = self.answered_to.max(number + 1);
        if !open.accepted {
            // Its end says that it was accepted, too.
            stats.accepted += 1;
        }
        let took = now - open.intended;
        if end == End::Delivered {
            stats.delivered += 1;
            stats.whole.record(took);
        } else {
            stats.failed += 1;
        }
        Some(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_doubles_and_wrong_order_are_told_apart() {
        let (mut ledger, mut stats, now) = (Ledger::default(), Stats::new(), Instant::now());
        for _ in 0..5 {
            ledger.sent(now);
        }
        let mut end = |ledger: &mut Ledger, number, end| {
            ledger.ended(number, end, now, &mut stats);
        };
        end(&mut ledger, 0, End::Delivered);
        end(&mut ledger, 0, End::Delivered);
        end(&mut ledger, 2, End::Delivered);
        end(&mut ledger, 1, End::Failed);
        end(&mut ledger, 2, End::Delivered);
        end(&mut ledger, 3, End::Refused);
        end(&mut ledger, 9, End::Delivered);
        assert_eq!((ledger.open(), ledger.oldest()), (1, Some(4)));
        assert_eq!((stats.delivered, stats.failed, stats.refused), (2, 1, 1));
        assert_eq!(
            (stats.doubles, stats.out_of_order, stats.strange),
            (2, 1, 1)
        );
    }

    #[test]
    fn time_counts_from_when_it_should_have_been_sent() {
        let (mut ledger, mut stats) = (Ledger::default(), Stats::new());
        let intended = Instant::now();
        let number = ledger.sent(intended);
        let now = intended + Duration::from_secs(2);
        ledger.begun(number, now, &mut stats);
        let took = ledger.ended(number, End::Delivered, now, &mut stats);
        assert_eq!(took, Some(Duration::from_secs(2)));
        assert!(stats.first_token.max_ms().unwrap() >= 1_999.0);
    }
}
