//! The state that all calls share, and the random decisions and the outcome of one call.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::answer::AnswerEncoder;
use super::args::MockArgs;
use super::random::{Fraction, NumberRange, splitmix64};
use super::stats::{Stats, add_to_counter};

/// The state of the server that all calls share: settings, encoder and counters.
pub(super) struct MockState {
    pub(super) encoder: AnswerEncoder,
    pub(super) stats: Stats,
    pub(super) tokens_per_second: f64,
    pub(super) latency_ms: NumberRange,
    pub(super) error_share: Fraction,
    pub(super) rate_limit_share: Fraction,
    pub(super) cut_share: Fraction,
    /// `Retry-After` of a response with status 429, in seconds.
    pub(super) retry_after_seconds: u32,
    pub(super) model: String,
    seed: u64,
}

impl MockState {
    pub(super) fn new(args: &MockArgs) -> Self {
        Self {
            encoder: AnswerEncoder::new(args),
            stats: Stats::default(),
            tokens_per_second: args.tokens_per_second,
            latency_ms: args.latency_ms,
            error_share: args.error_share,
            rate_limit_share: args.rate_limit_share,
            cut_share: args.cut_share,
            retry_after_seconds: args.retry_after,
            seed: args.seed,
            model: args.model.clone(),
        }
    }
}

/// A random decision about a call. The random bits depend on the variant's number, so the order of
/// the variants must not change: a seed would get other outcomes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Decision {
    /// Whether the call is refused with status 429.
    RateLimit,
    /// Whether the call fails with status 500, 502 or 503.
    Error,
    /// The status with which the call fails.
    ErrorStatus,
    /// The time before the first token.
    Latency,
    /// Whether the stream is cut off.
    Cut,
}

/// One call, from its request to the end of its response. A call that is dropped without a recorded
/// outcome counts as a client that hung up.
pub(super) struct Call {
    pub(super) state: Arc<MockState>,
    /// Number of the call since the start of the server, from 0.
    number: u64,
    has_outcome: bool,
}

impl Call {
    pub(super) fn start(state: &Arc<MockState>) -> Self {
        Self {
            state: Arc::clone(state),
            number: state.stats.start_call(),
            has_outcome: false,
        }
    }

    /// Counts the outcome of the call in the counter that `counter` selects.
    pub(super) fn record_outcome(&mut self, counter: impl Fn(&Stats) -> &AtomicU64) {
        add_to_counter(counter(&self.state.stats), 1);
        self.has_outcome = true;
    }

    /// Returns the random bits for a decision about this call. They are the same for the same seed
    /// and number of the call.
    pub(super) fn random_bits(&self, decision: Decision) -> u64 {
        let decision = self.number.wrapping_mul(8).wrapping_add(decision as u64);
        splitmix64(self.state.seed ^ splitmix64(decision))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.state.stats.end_call();
        if !self.has_outcome {
            add_to_counter(&self.state.stats.hung_up, 1);
        }
    }
}
