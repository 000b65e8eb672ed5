//! What one client has sent, and what became of it.

use std::collections::{HashSet, VecDeque};
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
    /// The connection that its answer was to come by is gone, and nobody brings it by another.
    abandoned: bool,
}

/// A client's messages in the order in which they were sent. What is ended and has nothing open
/// before it is forgotten.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The server says when it has accepted a message.
    v1: bool,
    first: u64,
    messages: VecDeque<Option<Open>>,
    open: usize,
    abandoned: usize,
    /// Sent once more: the server brings the end of such a message again.
    again: HashSet<u64>,
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
    pub(super) fn new(v1: bool) -> Self {
        Self {
            v1,
            first: 0,
            messages: VecDeque::new(),
            open: 0,
            abandoned: 0,
            again: HashSet::new(),
            answered_to: 0,
        }
    }

    /// Another message; its number.
    pub(super) fn sent(&mut self, intended: Instant) -> u64 {
        self.messages.push_back(Some(Open {
            intended,
            accepted: false,
            begun: false,
            abandoned: false,
        }));
        self.open += 1;
        self.first + self.messages.len() as u64 - 1
    }

    /// Messages without their ends.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Those of them whose ends can be waited for.
    pub(super) fn in_flight(&self) -> usize {
        self.open - self.abandoned
    }

    /// The connection is gone, and what is open is not waited for. It may come all the same.
    pub(super) fn abandon(&mut self) {
        for open in self.messages.iter_mut().flatten() {
            open.abandoned = true;
        }
        self.abandoned = self.open;
    }

    /// What is to be sent again after a connection was lost: what was not accepted, or where the
    /// server does not know what this client has missed, `all` that is open.
    pub(super) fn to_send_again(&self, all: bool) -> VecDeque<u64> {
        let open = self.messages.iter().zip(self.first..);
        open.filter_map(|(open, number)| {
            let open = open.as_ref()?;
            (all || !open.accepted).then_some(number)
        })
        .collect()
    }

    fn is_open(&self, number: u64) -> bool {
        let at = number.checked_sub(self.first);
        at.and_then(|at| self.messages.get(at as usize))
            .is_some_and(Option::is_some)
    }

    /// Notes that a message is sent again; `false` when it needn't be.
    pub(super) fn sent_again(&mut self, number: u64) -> bool {
        self.is_open(number) && {
            self.again.insert(number);
            true
        }
    }

    fn next(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    fn get(&mut self, number: u64) -> Option<&mut Open> {
        let at = number.checked_sub(self.first)?;
        self.messages.get_mut(at as usize)?.as_mut()
    }

    /// The oldest open one, of those that are waited for where there are any.
    pub(super) fn oldest(&self) -> Option<u64> {
        let mut messages = self.messages.iter();
        let waited = messages.position(|open| open.is_some_and(|open| !open.abandoned));
        let at = waited.or_else(|| self.messages.iter().position(Option::is_some))?;
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
            if self.again.remove(&number) {
                // That it comes twice was asked for.
            } else if number < self.next() {
                stats.doubles += 1;
            } else {
                stats.strange += 1;
            }
            return None;
        };
        self.messages[(number - self.first) as usize] = None;
        self.open -= 1;
        self.abandoned -= usize::from(open.abandoned);
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
        let took = now - open.intended;
        if !open.accepted {
            // Its end says that it was accepted, too.
            stats.accepted += 1;
            if self.v1 {
                stats.acceptance.record(took);
            }
        }
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
        let (mut ledger, mut stats, now) = (Ledger::new(true), Stats::new(), Instant::now());
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
    fn every_accepted_message_has_its_time_in_whatever_order_frames_come() {
        let (mut ledger, mut stats, now) = (Ledger::new(true), Stats::new(), Instant::now());
        for _ in 0..3 {
            ledger.sent(now);
        }
        ledger.accepted(0, now, &mut stats);
        ledger.ended(0, End::Delivered, now, &mut stats);
        ledger.ended(1, End::Delivered, now, &mut stats);
        ledger.accepted(1, now, &mut stats);
        ledger.ended(2, End::Refused, now, &mut stats);
        assert_eq!((stats.accepted, stats.acceptance.count()), (2, 2));
    }

    #[test]
    fn what_is_sent_again_may_end_twice_and_nothing_else() {
        let (mut ledger, mut stats, now) = (Ledger::new(true), Stats::new(), Instant::now());
        for _ in 0..3 {
            ledger.sent(now);
        }
        ledger.accepted(1, now, &mut stats);
        assert_eq!(ledger.to_send_again(false), [0, 2]);
        ledger.ended(0, End::Delivered, now, &mut stats);
        assert_eq!(ledger.to_send_again(true), [1, 2]);
        assert!(!ledger.sent_again(0) && ledger.sent_again(1));
        for _ in 0..3 {
            ledger.ended(1, End::Delivered, now, &mut stats);
        }
        assert_eq!((stats.delivered, stats.doubles), (2, 1));
    }

    #[test]
    fn what_a_classic_connection_took_with_it_is_not_waited_for() {
        let (mut ledger, mut stats, now) = (Ledger::new(false), Stats::new(), Instant::now());
        ledger.sent(now);
        ledger.abandon();
        ledger.sent(now);
        assert_eq!((ledger.open(), ledger.in_flight()), (2, 1));
        assert_eq!(ledger.oldest(), Some(1));
        ledger.ended(1, End::Delivered, now, &mut stats);
        assert_eq!(ledger.oldest(), Some(0));
        ledger.ended(0, End::Delivered, now, &mut stats);
        assert_eq!((ledger.open(), ledger.in_flight()), (0, 0));
    }

    #[test]
    fn time_counts_from_when_it_should_have_been_sent() {
        let (mut ledger, mut stats) = (Ledger::new(true), Stats::new());
        let intended = Instant::now();
        let number = ledger.sent(intended);
        let now = intended + Duration::from_secs(2);
        ledger.begun(number, now, &mut stats);
        let took = ledger.ended(number, End::Delivered, now, &mut stats);
        assert_eq!(took, Some(Duration::from_secs(2)));
        assert!(stats.first_token.max_ms().unwrap() >= 1_999.0);
    }
}
