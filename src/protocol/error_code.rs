//! The `code` values of `error` frames and their texts (protocol.md section 1.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The frame can't be understood; sending it again brings the same.
    InvalidMessage,
    /// The content or the frame is over its limit.
    TooLarge,
    /// Over the message rate.
    RateLimited,
    /// No or another user's token.
    Unauthorized,
    /// A part that is needed is away; sending again is safe.
    Unavailable,
    /// Stopped by its user.
    Cancelled,
    /// Waited longer than `MESSAGE_MAX_AGE`.
    Expired,
    /// The model did not begin, or not go on, in time.
    ProviderTimeout,
    /// The model's API refused for its rate or quota.
    ProviderRateLimited,
    /// The model's API refused the request for good.
    ProviderRejected,
    /// The model's API failed after all attempts.
    ProviderFailed,
    /// A fault of ours.
    Internal,
}

impl ErrorCode {
    /// With which a message that was accepted may end.
    pub const OF_ENDINGS: [Self; 6] = [
        Self::Expired,
        Self::ProviderTimeout,
        Self::ProviderRateLimited,
        Self::ProviderRejected,
        Self::ProviderFailed,
        Self::Internal,
    ];

    /// As it stands in frames and metric labels.
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

    /// The text for people where nothing more exact is known. The texts for `rate_limited` and
    /// for everything that the original called unavailable are the original's.
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

    /// Whether the same message, sent again as a new one, may well be answered.
    pub fn retryable(self) -> bool {
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
