//! The interface by which the gateway encodes a frame in the protocol of the client that receives
//! it. `classic` and `v1` implement it.

use std::time::Duration;

use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, UserId};
use crate::protocol::published::PublishedFrame;
use crate::protocol::v1::AcceptedFrame;

/// Why the gateway rejects a client's frame.
pub(super) struct Rejection<'a> {
    pub(super) code: ErrorCode,
    /// The explanation for people.
    pub(super) text: &'a str,
    pub(super) correlation_id: &'a str,
    /// The identifier that the client gave the message; `None` on the classic protocol, and where
    /// it could not be read from the frame.
    pub(super) client_id: Option<&'a ClientMessageId>,
    /// Time after which the same frame can be accepted; `None` where that time is unknown.
    pub(super) retry_after: Option<Duration>,
}

/// Encodes frames for clients of one protocol as JSON. A function that returns an `Option` returns
/// `None` where the protocol has no such frame.
pub(super) trait Encoder {
    /// Encodes the `error` frame with which the gateway rejects a client's frame.
    fn encode_rejection(&self, user: &UserId, rejection: &Rejection<'_>) -> String;

    /// Encodes the confirmation that a message is in the log, for the connection that sent it.
    fn encode_accepted(&self, accepted: &AcceptedFrame<'_>) -> Option<String>;

    /// Encodes the reply to a resent message whose outcome was delivered earlier and which the user
    /// has forgotten since: cancelled, without content.
    fn encode_forgotten(&self, message: &AcceptedFrame<'_>, correlation_id: &str) -> String;

    /// Encodes a frame from the fan-out: received on a channel of the user, read from the mailbox,
    /// or the stored outcome of a resent message. Returns `None` also for frames that are not for
    /// clients.
    fn encode_published(&self, frame: &PublishedFrame<'_>, user: &UserId) -> Option<String>;

    /// Encodes the announcement that the gateway is about to close the connection and that the
    /// client should reconnect after `retry_after`.
    fn encode_closing(&self, user: &UserId, reason: &str, retry_after: Duration) -> Option<String>;
}
