//! Tracks the messages of one client from sending to their outcome.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::stats::Stats;

/// A message without an outcome.
#[derive(Debug, Clone, Copy)]
struct PendingMessage {
    /// When the message was to be sent. Latency is measured from this time and not from the actual
    /// sending, so that a server that blocks its clients doesn't look faster than it is
    /// (coordinated omission).
    scheduled_at: Instant,
    is_accepted: bool,
    has_first_token: bool,
    /// When the model wrote the newest token that has arrived, in microseconds since 1970, if the
    /// tokens are timestamps; 0 before the first one.
    newest_token_time: u64,
    /// Whether the classic connection on which the answer was to arrive is lost, so that the client
    /// does not wait for the answer.
    is_abandoned: bool,
}

/// Tracks the messages of a client in the order of their numbers, and counts losses, duplicates and
/// order violations. Messages at the front that have an outcome are removed.
#[derive(Debug)]
pub(super) struct MessageTracker {
    /// Whether the client uses chatmesh.v1, in which the server confirms each message by
    /// `accepted`.
    is_v1: bool,
    /// Number of the message at the front of `messages`.
    first_number: u64,
    /// The messages in the order of their numbers; `None` for a message with an outcome.
    messages: VecDeque<Option<PendingMessage>>,
    /// Number of messages without an outcome.
    pending_count: usize,
    /// Number of pending messages that are abandoned.
    abandoned_count: usize,
    /// Numbers of the messages that were sent again. The server may repeat their outcome once.
    resent_numbers: HashSet<u64>,
    /// One more than the highest number of a message that was accepted and has an outcome; 0 if
    /// there is none.
    answered_up_to: u64,
}

/// The outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageOutcome {
    /// The answer arrived.
    Delivered,
    /// The accepted message ended with an error or was cancelled.
    Failed,
    /// The server did not accept the message.
    Rejected,
}

impl MessageTracker {
    pub(super) fn new(is_v1: bool) -> Self {
        Self {
            is_v1,
            first_number: 0,
            messages: VecDeque::new(),
            pending_count: 0,
            abandoned_count: 0,
            resent_numbers: HashSet::new(),
            answered_up_to: 0,
        }
    }

    /// Records a new message and returns its number.
    pub(super) fn record_sent(&mut self, scheduled_at: Instant) -> u64 {
        self.messages.push_back(Some(PendingMessage {
            scheduled_at,
            is_accepted: false,
            has_first_token: false,
            newest_token_time: 0,
            is_abandoned: false,
        }));
        self.pending_count += 1;
        self.first_number + self.messages.len() as u64 - 1
    }

    /// Number of messages without an outcome.
    pub(super) fn pending_count(&self) -> usize {
        self.pending_count
    }

    /// Number of messages without an outcome whose answer can still be expected.
    pub(super) fn in_flight_count(&self) -> usize {
        self.pending_count - self.abandoned_count
    }

    /// Marks all pending messages as abandoned, because their classic connection is lost. If the
    /// answer of an abandoned message arrives on another connection, it is still counted.
    pub(super) fn abandon_pending(&mut self) {
        for message in self.messages.iter_mut().flatten() {
            message.is_abandoned = true;
        }
        self.abandoned_count = self.pending_count;
    }

    /// Returns the numbers of the pending messages to send again after a reconnection. These are
    /// the messages that were not accepted, or `all` pending messages when the server could not
    /// recover the client's position.
    pub(super) fn messages_to_resend(&self, all: bool) -> VecDeque<u64> {
        let numbered = self.messages.iter().zip(self.first_number..);
        numbered
            .filter_map(|(message, number)| {
                let message = message.as_ref()?;
                (all || !message.is_accepted).then_some(number)
            })
            .collect()
    }

    fn is_pending(&self, number: u64) -> bool {
        let index = number.checked_sub(self.first_number);
        index
            .and_then(|index| self.messages.get(index as usize))
            .is_some_and(Option::is_some)
    }

    /// Records that a message is sent again. Returns `false` when the message already has an
    /// outcome and must not be sent.
    pub(super) fn record_resent(&mut self, number: u64) -> bool {
        self.is_pending(number) && {
            self.resent_numbers.insert(number);
            true
        }
    }

    fn next_number(&self) -> u64 {
        self.first_number + self.messages.len() as u64
    }

    fn pending_message_mut(&mut self, number: u64) -> Option<&mut PendingMessage> {
        let index = number.checked_sub(self.first_number)?;
        self.messages.get_mut(index as usize)?.as_mut()
    }

    /// Number of the oldest pending message that is not abandoned. If all pending messages are
    /// abandoned, the number of the oldest pending message; `None` if no message is pending.
    pub(super) fn oldest_pending(&self) -> Option<u64> {
        let mut messages = self.messages.iter();
        let in_flight =
            messages.position(|message| message.is_some_and(|message| !message.is_abandoned));
        let index = in_flight.or_else(|| self.messages.iter().position(Option::is_some))?;
        Some(self.first_number + index as u64)
    }

    /// Number of the newest pending message; `None` if no message is pending.
    pub(super) fn newest_pending(&self) -> Option<u64> {
        let index = self.messages.iter().rposition(Option::is_some)?;
        Some(self.first_number + index as u64)
    }

    /// Records that the server accepted a message. This is ignored if the message already has an
    /// outcome.
    pub(super) fn record_accepted(&mut self, number: u64, now: Instant, stats: &mut Stats) {
        let Some(message) = self.pending_message_mut(number) else {
            return;
        };
        if !message.is_accepted {
            message.is_accepted = true;
            stats.accepted += 1;
            stats.accept_time.record(now - message.scheduled_at);
        }
    }

    /// Records the first text of an answer; later texts have no effect.
    pub(super) fn record_first_token(&mut self, number: u64, now: Instant, stats: &mut Stats) {
        if let Some(message) = self.pending_message_mut(number)
            && !message.has_first_token
        {
            message.has_first_token = true;
            stats.first_token.record(now - message.scheduled_at);
        }
    }

    /// When the model wrote the newest token of an answer that has arrived, in microseconds since
    /// 1970; 0 before the first one, and `None` if the message is not pending.
    pub(super) fn newest_token_time_mut(&mut self, number: u64) -> Option<&mut u64> {
        let message = self.pending_message_mut(number)?;
        Some(&mut message.newest_token_time)
    }

    /// Records the outcome of a message. Returns the time since the message was scheduled; `None`
    /// when the message was rejected, already had an outcome (a duplicate), or was never sent.
    pub(super) fn record_outcome(
        &mut self,
        number: u64,
        outcome: MessageOutcome,
        now: Instant,
        stats: &mut Stats,
    ) -> Option<Duration> {
        let Some(message) = self.pending_message_mut(number).copied() else {
            if self.resent_numbers.remove(&number) {
                // This is no duplicate of the server: the client caused it by sending the message
                // again.
            } else if number < self.next_number() {
                stats.duplicates += 1;
            } else {
                stats.unexpected_frames += 1;
            }
            return None;
        };
        self.messages[(number - self.first_number) as usize] = None;
        self.pending_count -= 1;
        self.abandoned_count -= usize::from(message.is_abandoned);
        while let Some(None) = self.messages.front() {
            self.messages.pop_front();
            self.first_number += 1;
        }
        if outcome == MessageOutcome::Rejected {
            stats.rejected += 1;
            return None;
        }
        if number < self.answered_up_to {
            stats.out_of_order += 1;
        }
        self.answered_up_to = self.answered_up_to.max(number + 1);
        let latency = now - message.scheduled_at;
        if !message.is_accepted {
            // The outcome arrived before `accepted`, and shows that the message was accepted.
            stats.accepted += 1;
            if self.is_v1 {
                stats.accept_time.record(latency);
            }
        }
        if outcome == MessageOutcome::Delivered {
            stats.delivered += 1;
            stats.whole_answer.record(latency);
        } else {
            stats.failed += 1;
        }
        Some(latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_duplicates_and_order_violations_are_counted() {
        let (mut tracker, mut stats) = (MessageTracker::new(true), Stats::new());
        let now = Instant::now();
        for _ in 0..5 {
            tracker.record_sent(now);
        }
        for (number, outcome) in [
            (0, MessageOutcome::Delivered),
            (0, MessageOutcome::Delivered),
            (2, MessageOutcome::Delivered),
            (1, MessageOutcome::Failed),
            (2, MessageOutcome::Delivered),
            (3, MessageOutcome::Rejected),
            (9, MessageOutcome::Delivered),
        ] {
            tracker.record_outcome(number, outcome, now, &mut stats);
        }
        assert_eq!(
            (tracker.pending_count(), tracker.oldest_pending()),
            (1, Some(4))
        );
        assert_eq!((stats.delivered, stats.failed, stats.rejected), (2, 1, 1));
        assert_eq!(
            (
                stats.duplicates,
                stats.out_of_order,
                stats.unexpected_frames
            ),
            (2, 1, 1)
        );
    }

    #[test]
    fn accept_time_is_recorded_whatever_the_order_of_frames() {
        let (mut tracker, mut stats) = (MessageTracker::new(true), Stats::new());
        let now = Instant::now();
        for _ in 0..3 {
            tracker.record_sent(now);
        }
        tracker.record_accepted(0, now, &mut stats);
        tracker.record_outcome(0, MessageOutcome::Delivered, now, &mut stats);
        tracker.record_outcome(1, MessageOutcome::Delivered, now, &mut stats);
        tracker.record_accepted(1, now, &mut stats);
        tracker.record_outcome(2, MessageOutcome::Rejected, now, &mut stats);
        assert_eq!((stats.accepted, stats.accept_time.count()), (2, 2));
    }

    #[test]
    fn resent_message_may_be_answered_twice_but_not_three_times() {
        let (mut tracker, mut stats) = (MessageTracker::new(true), Stats::new());
        let now = Instant::now();
        for _ in 0..3 {
            tracker.record_sent(now);
        }
        tracker.record_accepted(1, now, &mut stats);
        assert_eq!(tracker.messages_to_resend(false), [0, 2]);
        tracker.record_outcome(0, MessageOutcome::Delivered, now, &mut stats);
        assert_eq!(tracker.messages_to_resend(true), [1, 2]);
        assert!(!tracker.record_resent(0) && tracker.record_resent(1));
        for _ in 0..3 {
            tracker.record_outcome(1, MessageOutcome::Delivered, now, &mut stats);
        }
        assert_eq!((stats.delivered, stats.duplicates), (2, 1));
    }

    #[test]
    fn answers_of_a_lost_classic_connection_are_not_waited_for() {
        let (mut tracker, mut stats) = (MessageTracker::new(false), Stats::new());
        let now = Instant::now();
        tracker.record_sent(now);
        tracker.abandon_pending();
        tracker.record_sent(now);
        assert_eq!((tracker.pending_count(), tracker.in_flight_count()), (2, 1));
        assert_eq!(tracker.oldest_pending(), Some(1));
        tracker.record_outcome(1, MessageOutcome::Delivered, now, &mut stats);
        assert_eq!(tracker.oldest_pending(), Some(0));
        tracker.record_outcome(0, MessageOutcome::Delivered, now, &mut stats);
        assert_eq!((tracker.pending_count(), tracker.in_flight_count()), (0, 0));
    }

    #[test]
    fn latency_is_measured_from_the_scheduled_time() {
        let (mut tracker, mut stats) = (MessageTracker::new(true), Stats::new());
        let scheduled = Instant::now();
        let number = tracker.record_sent(scheduled);
        let now = scheduled + Duration::from_secs(2);
        tracker.record_first_token(number, now, &mut stats);
        let latency = tracker.record_outcome(number, MessageOutcome::Delivered, now, &mut stats);
        assert_eq!(latency, Some(Duration::from_secs(2)));
        assert!(stats.first_token.max_ms().unwrap() >= 1_999.0);
    }
}
