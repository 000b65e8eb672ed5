//! The state that all calls share, and the accounting of one call.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::answer::AnswerEncoder;
use super::args::MockArgs;
use super::random::{Fraction, NumberRange, splitmix64};
use super::stats::{Stats, add};

/// Settings, encoder and counters of the server.
pub(super) struct MockState {
    pub(super) encoder: AnswerEncoder,
    pub(super) stats: Stats,
    pub(super) tokens_per_second: f64,
    pub(super) latency_ms: NumberRange,
    pub(super) error_share: Fraction,
    pub(super) rate_limit_share: Fraction,
    pub(super) cut_share: Fraction,
    /// Seconds.
    pub(super) retry_after: u32,
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
            retry_after: args.retry_after,
            seed: args.seed,
            model: args.model.clone(),
        }
    }
}

/// What is decided at random for each call. The order is part of what a seed reproduces.
#[derive(Debug, Clone, Copy)]
pub(super) enum Decision {
    RateLimit,
    Error,
    ErrorStatus,
    Latency,
    Cut,
}

/// One call, from its request to the end of its response. A call that is dropped without a recorded
/// outcome counts as a client that hung up.
pub(super) struct Call {
    pub(super) state: Arc<MockState>,
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

    /// Counts the outcome of the call.
    pub(super) fn record_outcome(&mut self, counter: impl Fn(&Stats) -> &AtomicU64) {
        add(counter(&self.state.stats), 1);
        self.has_outcome = true;
    }

    /// Random bits for one decision of this call; the same for the same seed and call number.
    pub(super) fn random_bits(&self, decision: Decision) -> u64 {
        let decision = self.number.wrapping_mul(8).wrapping_add(decision as u64);
        splitmix64(self.state.seed ^ splitmix64(decision))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.state.stats.end_call();
        if !self.has_outcome {
            add(&self.state.stats.hung_up, 1);
        }
    }
}
