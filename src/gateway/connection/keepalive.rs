//! When a silent client is pinged, and when it counts as disconnected.

use std::time::Duration;

use tokio::time::Instant;

/// What to do when the keepalive timer fires.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeepaliveAction {
    /// Fire again at this time.
    Wait(Instant),
    /// Send a ping, and fire again at this time.
    Ping(Instant),
    /// The client has not responded to the ping in time.
    Disconnect,
}

/// Tracks when a client was last heard.
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    last_received_at: Instant,
    /// When the ping was sent that the client has not responded to.
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

    /// When the timer fires first.
    pub(super) fn first_check(&self) -> Instant {
        self.last_received_at + self.interval
    }

    /// Records that the client was heard. Returns when the timer fires next, where that changed.
    pub(super) fn record_frame(&mut self) -> Option<Instant> {
        self.last_received_at = Instant::now();
        self.pinged_at
            .take()
            .map(|_| self.last_received_at + self.interval)
    }

    /// The timer fired. While the gateway does not read the socket (`is_reading` is false), silence
    /// does not count against the client.
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
