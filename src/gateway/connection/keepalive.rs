//! Decides when a silent client is pinged, and when it counts as disconnected. The receive loop of
//! a connection owns the timer and calls it.

use std::time::Duration;

use tokio::time::Instant;

/// What the receive loop does when the keepalive timer has fired.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeepaliveAction {
    /// Set the timer to this time, and do nothing else.
    Wait(Instant),
    /// Send a ping, and set the timer to this time.
    Ping(Instant),
    /// Close the connection, because the client has not responded to the ping in time.
    Disconnect,
}

/// Tracks when the last frame of a client was received, and whether a ping is unanswered.
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    last_received_at: Instant,
    /// When the last ping was sent; `None` once a frame was received since.
    pinged_at: Option<Instant>,
}

impl Keepalive {
    /// A client that is silent for `interval` is pinged, and has `timeout` to respond.
    pub(super) fn new(interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            last_received_at: Instant::now(),
            pinged_at: None,
        }
    }

    /// The time at which the timer fires first.
    pub(super) fn first_check(&self) -> Instant {
        self.last_received_at + self.interval
    }

    /// Records that a frame of the client was received. Returns the time to which the timer must be
    /// set, or `None` if the timer stays as it is.
    pub(super) fn record_frame(&mut self) -> Option<Instant> {
        self.last_received_at = Instant::now();
        self.pinged_at
            .take()
            .map(|_| self.last_received_at + self.interval)
    }

    /// Returns what to do when the timer has fired. While the gateway does not read the socket
    /// (`is_reading` is false), silence does not count against the client.
    pub(super) fn check(&mut self, is_reading: bool) -> KeepaliveAction {
        let now = Instant::now();
        if !is_reading {
            self.last_received_at = now;
            self.pinged_at = None;
        }
        match self.pinged_at {
            Some(at) if now >= at + self.timeout => KeepaliveAction::Disconnect,
            Some(at) => KeepaliveAction::Wait(at + self.timeout),
            None if now >= self.last_received_at + self.interval => {
                self.pinged_at = Some(now);
                KeepaliveAction::Ping(now + self.timeout)
            }
            None => KeepaliveAction::Wait(self.last_received_at + self.interval),
        }
    }
}
