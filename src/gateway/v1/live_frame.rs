//! The form in which a published frame is passed to a user's `chatmesh.v1` connections: encoded
//! once for all of them. A `delta` that is no opening is passed as the bytes that were published,
//! together with its [`DeltaHead`](crate::protocol::v1::DeltaHead).

use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::stream_key::StreamKey;
use crate::protocol::ids::MessageId;
use crate::protocol::parts::TextRange;
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::trace_context::TraceContext;

/// What a published frame changes about the answers in flight.
#[derive(Debug, Clone)]
pub(in crate::gateway) enum LiveFrameKind {
    /// The frame opens the next part of a stream.
    Opening {
        stream: StreamKey,
        /// Where the first piece of the part's text lies.
        range: TextRange,
        /// Length of the previous part; `None` for the first part.
        previous_end: Option<u32>,
    },
    /// The frame says that this stream, which has no parts, is the current one of its answer.
    Restarted { stream: StreamKey },
    /// The frame ends its message.
    Terminal,
    /// The frame changes no answer in flight.
    Other,
}

/// A published frame, encoded for `chatmesh.v1` clients.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct LiveFrame {
    /// The frame's sequence number; `None` where an original relay published the frame.
    pub(in crate::gateway) number: Option<SequenceNumber>,
    pub(in crate::gateway) kind: LiveFrameKind,
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
