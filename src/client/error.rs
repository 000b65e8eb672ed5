//! The error that the methods of the client return.

use std::time::Duration;

/// Why the client cannot use the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server's address is not valid.
    #[error("{0} is no address of a server: http://host:port or ws://host:port/ws is expected")]
    InvalidAddress(String),
    /// The user's name is not valid.
    #[error("a userid is 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -")]
    InvalidUser,
    /// The HTTP client cannot be created on this machine.
    #[error("the HTTP client can't be created: {0}")]
    Setup(String),
    /// The server does not respond, or has stopped responding.
    #[error("{server} can't be reached: {reason}")]
    Unreachable {
        /// The server's address.
        server: String,
        /// Why the server can't be reached.
        reason: String,
    },
    /// The token is missing, invalid or expired.
    #[error("the server requires a valid token for this user: {0}")]
    Unauthorized(String),
    /// The user, or the origin, is not allowed.
    #[error("the server rejects this user or origin: {0}")]
    Forbidden(String),
    /// The server is overloaded or shutting down. A retry may succeed.
    #[error("the server accepts no connections now: {reason}; try again later")]
    Busy {
        /// The server's reason.
        reason: String,
        /// Minimum delay before a retry, if the server named such a delay.
        retry_after: Option<Duration>,
    },
    /// The server's response is none that this version of chatmesh sends.
    #[error("{0}")]
    UnexpectedResponse(String),
    /// The client was closed, or the server has rejected the client for good.
    #[error("the connection is closed: {0}")]
    Closed(String),
}

impl ClientError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }
}
