//! The protocol `chatmesh.v1` as the gateway reads and writes it (protocol.md section 1.2): parses
//! the frames of clients, and encodes the frames that they receive.
//!
//! The complete shapes of the frames, as clients see them, are in [`super::wire::v1`].

mod client_frame;
mod delta;
mod published;
mod server_frame;

pub use client_frame::{ClientFrame, RejectedFrame, parse_client_frame};
pub use delta::{DeltaHead, DeltaTarget, PartOpening, delta_frame};
pub use published::encode_published;
pub use server_frame::{
    AcceptedFrame, PONG_FRAME, WelcomeFrame, cancel_result_frame, closing_frame, error_frame,
    error_frame_with_retry, forgotten_message_frame, snapshot_frame,
};

/// The subprotocol's name in `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "chatmesh.v1";
