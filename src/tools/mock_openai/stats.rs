//! Counters of calls and their outcomes, which `GET /stats` returns.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Counters since the start of the server.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) calls: AtomicU64,
    pub(super) answered: AtomicU64,
    /// Number of calls whose response is a stream, whatever their outcome.
    pub(super) streamed: AtomicU64,
    /// Number of tokens that were written, of all calls together.
    pub(super) tokens: AtomicU64,
    /// Number of calls that failed because of `--error-share`.
    pub(super) errors: AtomicU64,
    /// Number of calls that were refused because of `--rate-limit-share`.
    pub(super) rate_limited: AtomicU64,
    /// Number of streams that were cut off because of `--cut-share`.
    pub(super) cut: AtomicU64,
    /// Number of calls with a request that can't be parsed.
    pub(super) invalid: AtomicU64,
    /// Number of calls whose client disconnected before the end of the response.
    pub(super) hung_up: AtomicU64,
    /// Number of calls that have not ended.
    pub(super) in_flight: AtomicU64,
    /// Highest value of `in_flight` so far.
    pub(super) max_in_flight: AtomicU64,
}

pub(super) fn add_to_counter(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Stats {
    /// Counts a new call and returns its number, from 0.
    pub(super) fn start_call(&self) -> u64 {
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts the end of a call, whatever its outcome.
    pub(super) fn end_call(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn to_json(&self) -> Value {
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
            "in_flight_most": value(&self.max_in_flight),
        })
    }
}
