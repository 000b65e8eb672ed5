//! The frames that the gateway writes in the protocol of the client that receives them.

use std::time::Duration;

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, UserId};
use crate::protocol::published::PublishedFrame;
use crate::protocol::v1::AcceptedFrame;

/// Why a client's frame is rejected.
pub(super) struct Rejection<'a> {
    pub(super) code: ErrorCode,
    /// A sentence for people.
    pub(super) text: &'a str,
    pub(super) correlation_id: &'a str,
    /// The identifier that the client gave the message; `None` on the classic protocol, and where
    /// the frame could not be parsed.
    pub(super) client_id: Option<&'a ClientMessageId>,
    /// When a retry can succeed, where that is known.
    pub(super) retry_after: Option<Duration>,
}

/// Encodes the gateway's frames for one protocol. `None` means that the protocol has no such frame.
pub(super) trait Encoder {
    /// The reply to a frame that was not accepted.
    fn rejection(&self, user: &UserId, rejection: &Rejection<'_>) -> String;

    /// The confirmation that a message is in the log.
    fn accepted(&self, accepted: &AcceptedFrame<'_>) -> Option<String>;

    /// The terminal frame of a resent message whose conversation the user has deleted: only the
    /// fact that it ended is still known.
    fn forgotten(&self, message: &AcceptedFrame<'_>, correlation_id: &str) -> String;

    /// A frame that was published or stored by the relay.
    fn published(&self, frame: &PublishedFrame<'_>, user: &UserId) -> Option<String>;

    /// The announcement that the gateway is about to close the connection.
    fn closing(&self, user: &UserId, reason: &str, retry_after: Duration) -> Option<String>;
}
