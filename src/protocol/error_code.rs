//! The `code` values of `error` frames and their texts (protocol.md section 1.6).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The machine-readable reason of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The frame is invalid. Sending it again has the same result.
    InvalidMessage,
    /// The content or the frame is larger than its limit.
    TooLarge,
    /// The user has exceeded a limit of messages, tokens or conversations.
    RateLimited,
    /// The token is missing, invalid, or of another user.
    Unauthorized,
    /// A required service did not respond in time. Sending the same `id` again is safe.
    Unavailable,
    /// The message was cancelled: by the user, by an interrupt, or because its conversation was
    /// deleted.
    Cancelled,
    /// The message waited longer than `MESSAGE_MAX_AGE`.
    Expired,
    /// The model's API sent no token in time.
    ProviderTimeout,
    /// The model's API rejected the request because of its rate or quota.
    ProviderRateLimited,
    /// The model's API rejected the request; a retry would not help.
    ProviderRejected,
    /// All attempts to call the model's API failed.
    ProviderFailed,
    /// A fault inside chatmesh.
    Internal,
}

impl ErrorCode {
    /// The codes with which an accepted message may fail. A cancelled message counts as ended, not
    /// as failed.
    pub const TERMINAL: [Self; 6] = [
        Self::Expired,
        Self::ProviderTimeout,
        Self::ProviderRateLimited,
        Self::ProviderRejected,
        Self::ProviderFailed,
        Self::Internal,
    ];

    /// The code in frames and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMessage => "invalid_message",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::ProviderTimeout => "provider_timeout",
            Self::ProviderRateLimited => "provider_rate_limited",
            Self::ProviderRejected => "provider_rejected",
            Self::ProviderFailed => "provider_failed",
            Self::Internal => "internal",
        }
    }

    /// The default human-readable text. "Rate limit exceeded…" and "Service temporarily
    /// unavailable" are texts of the original system, which classic clients may expect.
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidMessage => "Invalid message",
            Self::TooLarge => "Invalid message: too large",
            Self::RateLimited => "Rate limit exceeded. Please slow down.",
            Self::Unauthorized => "Unauthorized",
            Self::Cancelled => "Cancelled",
            Self::Expired => "The message waited too long and was not answered",
            Self::Unavailable
            | Self::ProviderTimeout
            | Self::ProviderRateLimited
            | Self::ProviderRejected
            | Self::ProviderFailed
            | Self::Internal => "Service temporarily unavailable",
        }
    }

    /// Whether another try with the same content may succeed.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Unavailable
                | Self::Expired
                | Self::ProviderTimeout
                | Self::ProviderRateLimited
                | Self::ProviderFailed
                | Self::Internal
        )
    }
}
