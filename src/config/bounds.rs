//! Retention bounds of the fan-out, and per-user limits.

use std::time::Duration;

/// How long the fan-out retains each kind of data, and how much of it.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Retention of outcomes, cancel marks and ids of forgotten messages (`DEDUP_TTL`). A repeated
    /// call within this time is recognised as a repeat.
    pub dedup_ttl: Duration,
    /// Retention of a mailbox frame, and of a whole mailbox that is not used (`MAILBOX_TTL`).
    pub mailbox_ttl: Duration,
    /// Maximum number of frames in one mailbox; the oldest is trimmed first.
    pub mailbox_frames: usize,
    /// Maximum size of all frames in one mailbox, in bytes; the oldest is trimmed first.
    pub mailbox_bytes: usize,
    /// Maximum number of turns in one conversation; the oldest is trimmed first.
    pub history_turns: usize,
    /// Retention of a turn, and of a conversation since its newest turn.
    pub history_ttl: Duration,
    /// Retention of a pending message that never gets an outcome, and of an answer in flight
    /// (`MESSAGE_MAX_AGE`).
    pub pending_ttl: Duration,
    /// Limits on what one user may request.
    pub limits: UserLimits,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            dedup_ttl: Duration::from_secs(24 * 3600),
            mailbox_ttl: Duration::from_secs(24 * 3600),
            mailbox_frames: 200,
            mailbox_bytes: 4 << 20,
            history_turns: 1000,
            history_ttl: Duration::from_secs(30 * 24 * 3600),
            pending_ttl: Duration::from_secs(12 * 3600),
            limits: UserLimits::default(),
        }
    }
}

/// Limits on what one user may request, across all gateways. For each of them 0, the default,
/// means unlimited.
#[derive(Debug, Clone, Default)]
pub struct UserLimits {
    /// Messages per window (`USER_RATE_LIMIT_MAX_REQUESTS`). A token bucket: this many at once,
    /// and one more after each `window / requests`.
    pub requests: u32,
    /// Length of the window of `requests` (`USER_RATE_LIMIT_WINDOW_SECONDS`).
    pub window: Duration,
    /// Model tokens per UTC day (`USER_DAILY_TOKENS`).
    pub daily_tokens: u64,
    /// Number of conversations (`USER_MAX_CONVERSATIONS`).
    pub conversations: u32,
    /// Number of messages without an outcome (`USER_MAX_PENDING`).
    pub max_pending: u32,
}
