//! The plan of a test: what the clients do and when.

use std::net::IpAddr;
use std::time::Duration;

use super::target::Target;
use super::token::TokenSource;

/// When clients send messages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum SendMode {
    /// Clients send no messages, and only hold their connections.
    Idle,
    /// All clients together send this number of messages a second, regardless of the answers.
    OpenLoop(f64),
    /// A client sends whenever fewer than this number of its messages are in flight.
    ClosedLoop(usize),
}

/// The plan of a test, which all clients follow.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) targets: Vec<Target>,
    /// Local addresses that clients connect from, in turn; empty if the system chooses the address.
    pub(super) sources: Vec<IpAddr>,
    pub(super) tokens: TokenSource,
    /// Number of clients.
    pub(super) client_count: usize,
    /// Whether clients use chatmesh.v1; otherwise they use the classic protocol.
    pub(super) is_v1: bool,
    pub(super) mode: SendMode,
    /// Number of messages of each client; `u64::MAX` when only `duration` limits it.
    pub(super) messages_per_client: u64,
    /// How long messages are sent; `None` when only `messages_per_client` limits it.
    pub(super) duration: Option<Duration>,
    /// Time over which the clients connect.
    pub(super) ramp_up: Duration,
    /// Prefix of the user names. The client's number follows it.
    pub(super) user_prefix: String,
    /// Text that follows the marker in each message.
    pub(super) padding: String,
}

impl Plan {
    /// How long the schedule takes; `None` when it depends on the answers.
    pub(super) fn scheduled_length(&self) -> Option<Duration> {
        match self.mode {
            SendMode::ClosedLoop(_) if self.messages_per_client == u64::MAX => self.duration,
            SendMode::Idle | SendMode::ClosedLoop(_) => None,
            SendMode::OpenLoop(rate) => {
                let seconds = self.messages_per_client as f64 * self.client_count as f64 / rate;
                let for_all_messages = Duration::try_from_secs_f64(seconds).ok();
                for_all_messages.into_iter().chain(self.duration).min()
            }
        }
    }

    /// Time from the start of the schedule until a client sends its message with this index, if all
    /// clients together send `rate` messages a second. Both `client` and `index` count from 0.
    pub(super) fn send_offset(&self, rate: f64, client: usize, index: u64) -> Duration {
        let earlier_messages = client as f64 + index as f64 * self.client_count as f64;
        Duration::from_secs_f64(earlier_messages / rate)
    }

    /// Number of messages that the schedule has for a client, in total or `until` a time after its
    /// start. In a closed loop the number depends on the answers, unless only `messages_per_client`
    /// limits it: then returns this number, otherwise 0.
    pub(super) fn scheduled_messages(&self, client: usize, until: Option<Duration>) -> u64 {
        let rate = match self.mode {
            SendMode::OpenLoop(rate) => rate,
            SendMode::ClosedLoop(_) if until.is_none() && self.duration.is_none() => {
                return self.messages_per_client;
            }
            SendMode::ClosedLoop(_) | SendMode::Idle => return 0,
        };
        let Some(limit) = until.into_iter().chain(self.duration).min() else {
            return self.messages_per_client;
        };
        let estimate = (limit.as_secs_f64() * rate - client as f64) / self.client_count as f64;
        // From just below the estimate on, messages are counted with the formula that the clients
        // use, so that both round in the same way.
        let mut count = (estimate.max(1.0) as u64 - 1).min(self.messages_per_client);
        while count < self.messages_per_client && self.send_offset(rate, client, count) < limit {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mode: SendMode, messages_per_client: u64, seconds: Option<u64>) -> Plan {
        Plan {
            targets: Vec::new(),
            sources: Vec::new(),
            tokens: TokenSource::Fixed(String::new()),
            client_count: 3,
            is_v1: true,
            mode,
            messages_per_client,
            duration: seconds.map(Duration::from_secs),
            ramp_up: Duration::ZERO,
            user_prefix: String::new(),
            padding: String::new(),
        }
    }

    fn scheduled_by_client(plan: &Plan, until: Option<u64>) -> [u64; 3] {
        [0, 1, 2].map(|client| plan.scheduled_messages(client, until.map(Duration::from_millis)))
    }

    #[test]
    fn open_loop_schedules_messages_by_rate_and_duration() {
        let unlimited_messages = plan(SendMode::OpenLoop(10.0), u64::MAX, Some(2));
        assert_eq!(
            unlimited_messages.scheduled_length(),
            Some(Duration::from_secs(2))
        );
        assert_eq!(scheduled_by_client(&unlimited_messages, None), [7, 7, 6]);
        assert_eq!(
            scheduled_by_client(&unlimited_messages, Some(450)),
            [2, 2, 1]
        );
        assert_eq!(scheduled_by_client(&unlimited_messages, Some(0)), [0, 0, 0]);
        let few_messages = plan(SendMode::OpenLoop(10.0), 2, Some(2));
        assert_eq!(
            few_messages.scheduled_length(),
            Some(Duration::from_millis(600))
        );
        assert_eq!(scheduled_by_client(&few_messages, None), [2, 2, 2]);
        assert_eq!(scheduled_by_client(&few_messages, Some(150)), [1, 1, 0]);
    }

    #[test]
    fn closed_loop_with_a_duration_schedules_no_fixed_number() {
        assert_eq!(
            scheduled_by_client(&plan(SendMode::ClosedLoop(1), 5, None), None),
            [5, 5, 5]
        );
        let timed = plan(SendMode::ClosedLoop(1), u64::MAX, Some(2));
        assert_eq!(scheduled_by_client(&timed, None), [0, 0, 0]);
        assert_eq!(timed.scheduled_length(), Some(Duration::from_secs(2)));
        assert_eq!(
            scheduled_by_client(&plan(SendMode::Idle, 10, None), None),
            [0, 0, 0]
        );
    }
}
