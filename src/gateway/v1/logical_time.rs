//! Orders the events that concern one user's `chatmesh.v1` connections.

/// A time of the logical clock in [`Subscribers`](super::subscribers::Subscribers). The clock
/// advances by one with each published frame and with each change of a connection's state, so the
/// times say which of two such events was first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gateway) struct LogicalTime(u64);

impl LogicalTime {
    /// Advances the clock to the time of the next event.
    pub(super) fn advance(&mut self) {
        self.0 += 1;
    }
}
