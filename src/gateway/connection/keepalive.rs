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
    heard_at: Instant,
    /// When the ping was sent that the client has not responded to.
    pinged_at: Option<Instant>,
}

impl Keepalive {
    /// A client that is silent for `interval` is pinged, and has `timeout` to respond.
    pub(super) fn new(interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            heard_at: Instant::now(),
            pinged_at: None,
        }
    }

    /// When the timer fires first.
    pub(super) fn first_check(&self) -> Instant {
        self.heard_at + self.interval
    }

    /// Records that the client was heard. Returns when the timer fires next, where that changed.
    pub(super) fn record_frame(&mut self) -> Option<Instant> {
        self.heard_at = Instant::now();
        self.pinged_at.take().map(|_| self.heard_at + self.interval)
    }

    /// The timer fired. `is_reading` says whether the socket is read at all: otherwise the silence
    /// is not the client's.
    pub(super) fn check(&mut self, is_reading: bool) -> KeepaliveAction {
        let now = Instant::now();
        if !is_reading {
            self.heard_at = now;
            self.pinged_at = None;
        }
        match self.pinged_at {
            Some(at) if now >= at + self.timeout => KeepaliveAction::Disconnect,
            Some(at) => KeepaliveAction::Wait(at + self.timeout),
            None if now >= self.heard_at + self.interval => {
                self.pinged_at = Some(now);
                KeepaliveAction::Ping(now + self.timeout)
            }
            None => KeepaliveAction::Wait(self.heard_at + self.interval),
        }
    }
}
