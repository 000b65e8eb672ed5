//! Who is connected, and with which protocol.

use std::sync::Arc;

use tokio::time::Instant;

use super::auth;
use crate::protocol::ids::UserId;
use crate::protocol::position::Position;
use crate::protocol::trace_context::TraceContext;

/// The protocol of a connection, and what its upgrade request asked for.
#[derive(Debug, Clone)]
pub(super) enum Protocol {
    Classic,
    V1 {
        /// The position from which the client wants to resume; `None` begins at the present.
        since: Option<Position>,
        /// When the token expires and the connection is closed with it; `None` never.
        expires_at: Option<Instant>,
    },
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
    pub(super) grant: auth::Grant,
    pub(super) protocol: Protocol,
}
