//! What was asked, and how it ended, for `GET /stats`.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) calls: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) streamed: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) rate_limited: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) invalid: AtomicU64,
    pub(super) hung_up: AtomicU64,
    pub(super) in_flight: AtomicU64,
    pub(super) in_flight_most: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Stats {
    /// A call has begun; its number.
    pub(super) fn begun(&self) -> u64 {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_most.fetch_max(now, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// A call has ended, in whichever way.
    pub(super) fn ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn json(&self) -> Value {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "calls": value(&self.calls),
            "answered": value(&self.answered),
            "streamed": value(&self.streamed),
            "tokens": value(&self.tokens),
            "errors": value(&self.errors),
            "rate_limited": value(&self.rate_limited),
            "cut": value(&self.cut),
            "invalid": value(&self.invalid),
            "hung_up": value(&self.hung_up),
            "in_flight": value(&self.in_flight),
            "in_flight_most": value(&self.in_flight_most),
        })
    }
}
