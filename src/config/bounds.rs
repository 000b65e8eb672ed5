//! The settings that limit what the fan-out stores and for how long, and what one user may request.

use std::time::Duration;

/// How long the fan-out retains each kind of data, and how much of it.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Retention of outcomes, cancel marks and ids of forgotten messages (`DEDUP_TTL`). A call
    /// that is repeated within this time is recognised and changes nothing.
    pub dedup_ttl: Duration,
    /// Retention of a mailbox frame (`MAILBOX_TTL`). A mailbox that is not used is removed after
    /// twice this time, so that its end outlives its frames.
    pub mailbox_ttl: Duration,
    /// Maximum number of frames in one mailbox. The oldest frames are trimmed.
    pub mailbox_frames: usize,
    /// Maximum size of all frames in one mailbox, in bytes. The oldest frames are trimmed.
    pub mailbox_bytes: usize,
    /// Maximum number of turns in one conversation (`HISTORY_TURNS`). The oldest turn is trimmed.
    pub history_turns: usize,
    /// Retention of a turn (`HISTORY_RETENTION`). A conversation is no longer listed this long
    /// after its newest turn.
    pub history_ttl: Duration,
    /// Retention of a pending message that never gets an outcome, and of an answer in flight whose
    /// lease is no longer renewed (`MESSAGE_MAX_AGE`).
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

/// Limits on what one user may request, across all gateways. In each field 0, the default, means
/// unlimited.
#[derive(Debug, Clone, Default)]
pub struct UserLimits {
    /// Maximum number of messages per window (`USER_RATE_LIMIT_MAX_REQUESTS`). A token bucket: a
    /// user may send this many messages at once, and one more after each `window / requests`.
    pub requests: u32,
    /// Length of the window that `requests` counts for (`USER_RATE_LIMIT_WINDOW_SECONDS`).
    pub window: Duration,
    /// Maximum number of model tokens per UTC day (`USER_DAILY_TOKENS`).
    pub daily_tokens: u64,
    /// Maximum number of conversations (`USER_MAX_CONVERSATIONS`).
    pub conversations: u32,
    /// Maximum number of pending messages (`USER_MAX_PENDING`).
    pub max_pending: u32,
}
