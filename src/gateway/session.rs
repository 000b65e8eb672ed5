//! The session of one connection: its user, the grant of its token, and its protocol.

use std::sync::Arc;

use tokio::time::Instant;

use crate::protocol::ids::UserId;
use crate::protocol::position::Position;
use crate::protocol::trace_context::TraceContext;

/// Messages of one connection that may be unacknowledged by the log at the same time. Above it the
/// socket is not read.
pub(super) const MAX_UNACKNOWLEDGED: usize = 64;

/// The protocol of a connection, and what its upgrade request asked for.
#[derive(Debug, Clone)]
pub(super) enum Protocol {
    Classic,
    V1 {
        /// The position from which the client resumes; `None` begins at the present.
        resume_after: Option<Position>,
        /// When the token expires and the connection is closed with it; `None` never.
        expires_at: Option<Instant>,
    },
}

/// What a valid token allows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Grant {
    /// When the token expires; `None` never.
    pub(super) expires_at: Option<Instant>,
    /// Milliseconds since the Unix epoch: when a signed token was issued, or any other was checked.
    /// A later revocation ends the grant.
    pub(super) granted_at_ms: i64,
    /// The token is one that the fan-out stores.
    pub(super) from_stored_token: bool,
}

impl Grant {
    /// When the token expires, if that closes a classic connection: the expiry of a stored token
    /// does not.
    pub(super) fn expires_at_for_classic(self) -> Option<Instant> {
        self.expires_at.filter(|_| !self.from_stored_token)
    }
}

/// The identity of one connection, fixed when its upgrade request is accepted.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) user: UserId,
    /// Identifies the connection in logs. A message's correlation id is this one with a number
    /// appended.
    pub(super) correlation_id: Arc<str>,
    /// The trace context of the upgrade request, used for messages that carry none of their own.
    /// Boxed because most clients send none.
    pub(super) trace: Option<Box<TraceContext>>,
    /// What the token that was presented allows, and for how long.
    pub(super) grant: Grant,
    pub(super) protocol: Protocol,
}
