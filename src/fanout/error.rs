//! The error of every fan-out call.

/// The call was not carried out, or it is unknown whether it was. Repeating it is always safe.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FanoutError {
    /// The fan-out is unreachable or too slow. Never caused by the call's arguments.
    #[error("fan-out unavailable: {0}")]
    Unavailable(String),
    /// The fan-out returned an invalid response (a key of another type, a script error). Until an
    /// operator has removed the cause, callers treat it like [`FanoutError::Unavailable`].
    #[error("fan-out answered unexpectedly: {0}")]
    Unexpected(String),
}

/// The result of a fan-out call.
pub type Result<T> = std::result::Result<T, FanoutError>;
