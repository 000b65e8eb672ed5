//! The form in which a published frame is passed to a user's `chatmesh.v1` connections: encoded
//! once for all of them.

use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::trace_context::TraceContext;

/// A published frame, encoded for `chatmesh.v1` clients.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct LiveFrame {
    /// The frame's sequence number; `None` where an original relay published the frame.
    pub(in crate::gateway) number: Option<SequenceNumber>,
    pub(in crate::gateway) is_terminal: bool,
    pub(in crate::gateway) message_id: Option<MessageId>,
    /// The position of a terminal frame; `None` for any other frame, and where an original relay
    /// published the frame.
    pub(in crate::gateway) position: Option<Position>,
    /// In `accepted`: the id of the connection that sent the message. That connection does not
    /// receive the frame, because the gateway has confirmed the message to it already.
    pub(in crate::gateway) sender_connection: Option<Arc<str>>,
    /// The JSON that clients receive; `None` where the frame is not for clients, so that only its
    /// number matters.
    pub(in crate::gateway) text: Option<Utf8Bytes>,
    /// The trace context of a terminal frame; `None` where the frame carries none.
    pub(in crate::gateway) trace: Option<TraceContext>,
}
