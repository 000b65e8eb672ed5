//! Orders the events that concern one user's `chatmesh.v1` connections.

/// A time of the logical clock in [`Subscribers`](super::subscribers::Subscribers). The clock
/// advances with every published frame, and when a connection becomes stale or live. A frame was
/// published after another event if the frame's time is above the time of that event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gateway) struct LogicalTime(u64);

impl LogicalTime {
    /// Advances the clock to the time of the next event.
    pub(super) fn advance(&mut self) {
        self.0 += 1;
    }
}
