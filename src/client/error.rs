//! What a client can't do, and why.

use std::time::Duration;

/// Why the server can't be reached, or does not let this client in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address has no usable form.
    #[error("{0} is no address of a server: http://host:port or ws://host:port/ws is expected")]
    Address(String),
    /// Not a user.
    #[error("a userid is 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -")]
    User,
    /// The HTTP client can't be made.
    #[error("connections can't be made from here: {0}")]
    Setup(String),
    /// Nothing answers there, or it stopped answering.
    #[error("{server} can't be reached: {why}")]
    Unreachable {
        /// Where.
        server: String,
        /// What happened.
        why: String,
    },
    /// The token is missing, wrong or over.
    #[error("the server wants a token for this user: {0}")]
    Unauthorized(String),
    /// This user, or this place, may not.
    #[error("the server does not let this user in: {0}")]
    Forbidden(String),
    /// The server has no room or stops; it may be tried again.
    #[error("the server takes no connections now: {why}")]
    Busy {
        /// What it says.
        why: String,
        /// After how long.
        retry_after: Option<Duration>,
    },
    /// What answers there is no chatmesh, or of another version.
    #[error("{0}")]
    Unexpected(String),
    /// The client has ended.
    #[error("the connection is over: {0}")]
    Over(String),
}

impl ClientError {
    /// Whether the same may work later.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }
}
