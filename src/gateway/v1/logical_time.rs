//! Orders the events that concern one user's `chatmesh.v1` connections.

/// A time of the logical clock in [`Subscribers`](super::subscribers::Subscribers), which counts
/// published frames and changes of a connection's state. A frame was published after a change of
/// state if its logical time is the higher one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gateway) struct LogicalTime(u64);

impl LogicalTime {
    /// Advances the clock to the time of the next event.
    pub(super) fn advance(&mut self) {
        self.0 += 1;
    }
}
