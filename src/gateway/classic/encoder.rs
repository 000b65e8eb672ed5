//! Frames of the classic protocol.

use std::time::Duration;

use crate::gateway::encoder::{Encoder, Rejection};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::frame::{Published, classic_error};
use crate::protocol::ids::UserId;
use crate::protocol::v1::Accepted;

/// Encodes frames for classic clients, which know only `response` and `error`.
pub(in crate::gateway) struct ClassicEncoder;

impl Encoder for ClassicEncoder {
    fn rejection(&self, user: &UserId, rejection: &Rejection<'_>) -> String {
        classic_error(
            user,
            rejection.code,
            rejection.text,
            rejection.correlation_id,
        )
    }

    fn accepted(&self, _: &Accepted<'_>) -> Option<String> {
        None
    }

    fn forgotten(&self, message: &Accepted<'_>, correlation_id: &str) -> String {
        let code = ErrorCode::Cancelled;
        classic_error(message.userid, code, code.text(), correlation_id)
    }

    fn published(&self, frame: &Published<'_>, user: &UserId) -> Option<String> {
        frame.to_classic(user)
    }

    fn closing(&self, _: &UserId, _: &str, _: Duration) -> Option<String> {
        None
    }
}
