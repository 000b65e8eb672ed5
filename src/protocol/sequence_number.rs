//! The sequence number of a published frame, by which a gateway detects that it has missed a frame.

use std::sync::Arc;

/// The number of a frame in the sequence of all frames that were published for one user: `n` and
/// `n_id` of a published frame. Each frame's number is one above the number of the frame before, so
/// a subscriber detects a frame that it has not received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceNumber {
    /// The random id of the counter. Numbers of different counters can't be compared; a new
    /// counter begins when the fan-out has lost the old counter.
    pub counter: Arc<str>,
    /// Number of frames that were published since the counter began, this frame included.
    pub n: u64,
}

impl SequenceNumber {
    /// The `n`th number of `counter`.
    pub fn new(counter: &str, n: u64) -> Self {
        let counter = counter.into();
        Self { counter, n }
    }

    /// Whether this number equals `other` or follows it. False for numbers of different counters.
    pub fn is_at_or_after(&self, other: &Self) -> bool {
        self.counter == other.counter && self.n >= other.n
    }
}
