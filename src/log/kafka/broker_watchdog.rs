//! Detects a client whose librdkafka handle has lost every broker and cannot recover.
//!
//! A broker that was stopped for a while answers its first metadata request, before it has found
//! its controller again, with topics but no brokers. librdkafka then drops every broker that it
//! knows, even the configured brokers, and sends no further request (its issue 5301, open in 2.15).
//! Such a client reports no error and never works again; the only remedy is to create a new client.

use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::Statistics;

/// Number of consecutive statistics without a broker after which a client counts as disconnected.
/// More than 1, because the statistics may list no broker while one broker replaces another.
const DISCONNECTED_AFTER_STATISTICS: u32 = 2;

/// librdkafka's property `statistics.interval.ms`: the time between two statistics of a client, in
/// milliseconds.
pub(super) const STATISTICS_INTERVAL_MS: &str = "5000";

/// Counts the consecutive statistics of one client that list no broker.
#[derive(Debug, Default)]
pub(super) struct BrokerWatchdog {
    statistics_without_broker: AtomicU32,
}

impl BrokerWatchdog {
    /// Counts statistics without a broker. Statistics with a broker set the count to 0.
    pub(super) fn observe(&self, statistics: &Statistics) {
        let sources = statistics.brokers.values().map(|broker| &*broker.source);
        self.observe_sources(sources);
    }

    /// Evaluates the source of each listed broker. Only `learned` and `configured` brokers count,
    /// because the group's coordinator is listed as `logical` even without a broker.
    fn observe_sources<'a>(&self, mut sources: impl Iterator<Item = &'a str>) {
        if sources.any(|source| matches!(source, "learned" | "configured")) {
            self.statistics_without_broker.store(0, Ordering::Release);
        } else {
            self.statistics_without_broker
                .fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether the client has lost every broker and must be recreated.
    pub(super) fn is_disconnected(&self) -> bool {
        self.statistics_without_broker.load(Ordering::Acquire) >= DISCONNECTED_AFTER_STATISTICS
    }

    /// Makes the client look as if it had lost every broker.
    #[cfg(test)]
    pub(super) fn simulate_loss(&self) {
        self.statistics_without_broker
            .store(DISCONNECTED_AFTER_STATISTICS, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_disconnected_after_two_statistics_without_a_real_broker() {
        let watchdog = BrokerWatchdog::default();
        watchdog.observe_sources(["logical"].into_iter());
        assert!(!watchdog.is_disconnected());
        watchdog.observe_sources(["logical", "learned"].into_iter());
        watchdog.observe_sources(["logical", "internal"].into_iter());
        assert!(!watchdog.is_disconnected());
        watchdog.observe_sources([].into_iter());
        assert!(watchdog.is_disconnected());
        watchdog.observe_sources(["configured"].into_iter());
        assert!(!watchdog.is_disconnected());
    }
}
