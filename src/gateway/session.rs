//! The session of one connection: its user, the grant of its token, and its protocol.

use std::sync::Arc;

use tokio::time::Instant;

use crate::protocol::ids::UserId;
use crate::protocol::position::Position;
use crate::protocol::trace_context::TraceContext;

/// Maximum number of frames of one connection that are in progress at the same time; a message is
/// in progress at least until the log has acknowledged it. At this number the socket is not read.
pub(super) const MAX_FRAMES_IN_PROGRESS: usize = 64;

/// The protocol of a connection, with the properties that only `chatmesh.v1` connections have.
#[derive(Debug, Clone)]
pub(super) enum Protocol {
    Classic,
    V1 {
        /// The position from which the client resumes; `None` for a client that sent no position
        /// and begins at the mailbox's end.
        resume_after: Option<Position>,
        /// When the token expires, and the connection is closed; `None` for a token that does not
        /// expire.
        expires_at: Option<Instant>,
    },
}

/// The right to connect, which a valid token gives to its bearer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Grant {
    /// When the token expires; `None` for a token that does not expire.
    pub(super) expires_at: Option<Instant>,
    /// When a signed token was issued, or any other token was checked, in milliseconds since the
    /// Unix epoch. A revocation at this time or later ends the grant.
    pub(super) granted_at_ms: i64,
    /// Whether the token is stored in the fan-out, and not signed.
    pub(super) from_stored_token: bool,
}

impl Grant {
    /// When a classic connection is closed because its token expires; `None` where it is not. The
    /// expiry of a stored token closes no classic connection.
    pub(super) fn expires_at_for_classic(self) -> Option<Instant> {
        self.expires_at.filter(|_| !self.from_stored_token)
    }
}

/// The properties of one connection, which are fixed when its upgrade request is accepted.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) user: UserId,
    /// Identifies the connection in logs. The correlation id of a message is this id with a number
    /// appended.
    pub(super) correlation_id: Arc<str>,
    /// The trace context of the upgrade request, used for messages that carry none of their own.
    /// Boxed because most clients send none.
    pub(super) trace: Option<Box<TraceContext>>,
    /// The grant of the token that the client presented.
    pub(super) grant: Grant,
    pub(super) protocol: Protocol,
}
