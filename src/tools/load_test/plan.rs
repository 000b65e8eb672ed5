//! What the test's clients do, and when.

use std::net::IpAddr;
use std::time::Duration;

use super::target::{Target, Tokens};

/// When messages are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// Never.
    Idle,
    /// So many a second by all clients together, whatever becomes of them.
    Open(f64),
    /// As soon as there are fewer than so many of this client under way.
    Closed(usize),
}

/// What all clients do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) targets: Vec<Target>,
    pub(super) sources: Vec<IpAddr>,
    pub(super) tokens: Tokens,
    pub(super) clients: usize,
    pub(super) v1: bool,
    pub(super) pace: Pace,
    /// Of each client; the greatest number where only `duration` bounds them.
    pub(super) messages: u64,
    pub(super) duration: Option<Duration>,
    pub(super) ramp_up: Duration,
    /// Beginning of the users' names.
    pub(super) user: String,
    /// Text after the mark.
    pub(super) padding: String,
}

impl Plan {
    /// How long messages are to be sent; `None` where only the answers decide it.
    pub(super) fn length(&self) -> Option<Duration> {
        match self.pace {
            Pace::Closed(_) if self.messages == u64::MAX => self.duration,
            Pace::Idle | Pace::Closed(_) => None,
            Pace::Open(rate) => {
                let all = self.messages as f64 * self.clients as f64 / rate;
                let all = Duration::try_from_secs_f64(all).ok();
                all.into_iter().chain(self.duration).min()
            }
        }
    }

    /// When the `client`th client sends its `nth` message by the schedule of `rate`, after the
    /// beginning.
    pub(super) fn offset(&self, rate: f64, client: usize, nth: u64) -> Duration {
        let before = client as f64 + nth as f64 * self.clients as f64;
        Duration::from_secs_f64(before / rate)
    }

    /// How many messages the `client`th client was to send, in all or `until` then after the
    /// beginning. Where answers decide how many there are, those that it was given.
    pub(super) fn scheduled(&self, client: usize, until: Option<Duration>) -> u64 {
        let rate = match self.pace {
            Pace::Open(rate) => rate,
            Pace::Closed(_) if until.is_none() && self.duration.is_none() => return self.messages,
            Pace::Closed(_) | Pace::Idle => return 0,
        };
        let Some(limit) = until.into_iter().chain(self.duration).min() else {
            return self.messages;
        };
        let about = (limit.as_secs_f64() * rate - client as f64) / self.clients as f64;
        // Counted to its end as the clients themselves do it.
        let mut count = (about.max(1.0) as u64 - 1).min(self.messages);
        while count < self.messages && self.offset(rate, client, count) < limit {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pace: Pace, messages: u64, seconds: Option<u64>) -> Plan {
        Plan {
            targets: Vec::new(),
            sources: Vec::new(),
            tokens: Tokens::Given(String::new()),
            clients: 3,
            v1: true,
            pace,
            messages,
            duration: seconds.map(Duration::from_secs),
            ramp_up: Duration::ZERO,
            user: String::new(),
            padding: String::new(),
        }
    }

    fn all(plan: &Plan, until: Option<u64>) -> [u64; 3] {
        [0, 1, 2].map(|client| plan.scheduled(client, until.map(Duration::from_millis)))
    }

    #[test]
    fn a_schedule_has_as_many_messages_as_its_rate_and_time_say() {
        let endless = plan(Pace::Open(10.0), u64::MAX, Some(2));
        assert_eq!(endless.length(), Some(Duration::from_secs(2)));
        assert_eq!(all(&endless, None), [7, 7, 6]);
        assert_eq!(all(&endless, Some(450)), [2, 2, 1]);
        assert_eq!(all(&endless, Some(0)), [0, 0, 0]);
        let few = plan(Pace::Open(10.0), 2, Some(2));
        assert_eq!(few.length(), Some(Duration::from_millis(600)));
        assert_eq!(all(&few, None), [2, 2, 2]);
        assert_eq!(all(&few, Some(150)), [1, 1, 0]);
    }

    #[test]
    fn answers_decide_how_many_messages_a_closed_loop_has_in_its_time() {
        assert_eq!(all(&plan(Pace::Closed(1), 5, None), None), [5, 5, 5]);
        let timed = plan(Pace::Closed(1), u64::MAX, Some(2));
        assert_eq!(all(&timed, None), [0, 0, 0]);
        assert_eq!(timed.length(), Some(Duration::from_secs(2)));
        assert_eq!(all(&plan(Pace::Idle, 10, None), None), [0, 0, 0]);
    }
}
