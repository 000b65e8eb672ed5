//! Encodes the gateway's frames in the classic protocol.

use std::time::Duration;

use crate::gateway::encoder::{Encoder, Rejection};
use crate::protocol::classic;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::UserId;
use crate::protocol::published::PublishedFrame;
use crate::protocol::v1::AcceptedFrame;

/// Encodes frames for classic clients. The only frame types of their protocol are `response` and
/// `error`.
pub(in crate::gateway) struct ClassicEncoder;

impl Encoder for ClassicEncoder {
    fn encode_rejection(&self, user: &UserId, rejection: &Rejection<'_>) -> String {
        classic::error_frame(
            user,
            rejection.code,
            rejection.text,
            rejection.correlation_id,
        )
    }

    fn encode_accepted(&self, _: &AcceptedFrame<'_>) -> Option<String> {
        None
    }

    fn encode_forgotten(&self, message: &AcceptedFrame<'_>, correlation_id: &str) -> String {
        let code = ErrorCode::Cancelled;
        classic::error_frame(message.userid, code, code.text(), correlation_id)
    }

    fn encode_published(&self, frame: &PublishedFrame<'_>, user: &UserId) -> Option<String> {
        classic::encode_published(frame, user)
    }

    fn encode_closing(&self, _: &UserId, _: &str, _: Duration) -> Option<String> {
        None
    }
}
