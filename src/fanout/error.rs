//! The error type of all fan-out calls.

/// The error of a fan-out call. After an error it is unknown whether the call was carried out.
/// Repeating the call is always safe.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FanoutError {
    /// The fan-out is unreachable or too slow. The arguments of a call are never the cause of this
    /// error.
    #[error("fan-out unavailable: {0}")]
    Unavailable(String),
    /// The fan-out returned an invalid response (a key of another type, a script error). Until an
    /// operator has removed the cause, callers treat it like [`FanoutError::Unavailable`].
    #[error("fan-out answered unexpectedly: {0}")]
    Unexpected(String),
}

/// The result of a fan-out call.
pub type Result<T> = std::result::Result<T, FanoutError>;
