//! A published frame on its way to a user's `chatmesh.v1` connections.

use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::trace_context::TraceContext;

/// A published frame, encoded for `chatmesh.v1` clients.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct LiveFrame {
    /// `None` where an original relay published the frame.
    pub(in crate::gateway) number: Option<SequenceNumber>,
    pub(in crate::gateway) is_terminal: bool,
    pub(in crate::gateway) message_id: Option<MessageId>,
    /// Set for terminal frames.
    pub(in crate::gateway) position: Option<Position>,
    /// The connection that must not receive the frame, because it caused it.
    pub(in crate::gateway) origin: Option<Arc<str>>,
    /// `None` where the frame is not for clients, and only its number counts.
    pub(in crate::gateway) text: Option<Utf8Bytes>,
    /// Set for terminal frames of a recorded trace.
    pub(in crate::gateway) trace: Option<TraceContext>,
}
