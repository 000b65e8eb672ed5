//! Notices a client that librdkafka has left without any broker.
//!
//! A broker that was stopped for a while answers its first request for metadata, before it has
//! found its controller again, with topics but no brokers. librdkafka then lets go of every broker
//! that it knows, the configured ones too, and never asks again (its issue 5301, open in 2.15). Such a
//! client is dead and says nothing; the only cure is a new one.

use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::Statistics;

/// Statistics in a row without a broker until a client counts as left alone: they come every
/// [`INTERVAL_MS`], and between two brokers there may be a moment with none.
const IN_A_ROW: u32 = 2;

/// `statistics.interval.ms`.
pub(super) const INTERVAL_MS: &str = "5000";

/// What the statistics of one client say of its brokers.
#[derive(Debug, Default)]
pub(super) struct Brokers {
    none: AtomicU32,
}

impl Brokers {
    /// Takes what librdkafka counted.
    pub(super) fn look(&self, statistics: &Statistics) {
        // The group's coordinator is there as a "logical" one, with nobody behind it.
        let sources = statistics.brokers.values().map(|broker| &*broker.source);
        self.count(sources);
    }

    fn count<'a>(&self, mut sources: impl Iterator<Item = &'a str>) {
        if sources.any(|source| matches!(source, "learned" | "configured")) {
            self.none.store(0, Ordering::Release);
        } else {
            self.none.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether the client is left alone, and has to be made anew.
    pub(super) fn are_gone(&self) -> bool {
        self.none.load(Ordering::Acquire) >= IN_A_ROW
    }

    /// As if the brokers had gone.
    #[cfg(test)]
    pub(super) fn lose(&self) {
        self.none.store(IN_A_ROW, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_without_brokers_is_no_loss_and_a_coordinator_alone_is_no_broker() {
        let brokers = Brokers::default();
        brokers.count(["logical"].into_iter());
        assert!(!brokers.are_gone());
        brokers.count(["logical", "learned"].into_iter());
        brokers.count(["logical", "internal"].into_iter());
        assert!(!brokers.are_gone());
        brokers.count([].into_iter());
        assert!(brokers.are_gone());
        brokers.count(["configured"].into_iter());
        assert!(!brokers.are_gone());
    }
}
