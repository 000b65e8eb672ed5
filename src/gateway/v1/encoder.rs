//! Encodes the gateway's frames in the `chatmesh.v1` protocol.

use std::time::Duration;

use crate::gateway::encoder::{Encoder, Rejection};
use crate::protocol::ids::UserId;
use crate::protocol::published::PublishedFrame;
use crate::protocol::v1::{self, AcceptedFrame};

/// Encodes frames for `chatmesh.v1` clients.
pub(in crate::gateway) struct V1Encoder;

impl Encoder for V1Encoder {
    fn encode_rejection(&self, user: &UserId, rejection: &Rejection<'_>) -> String {
        v1::error_frame_with_retry(
            user,
            rejection.client_id,
            rejection.code,
            rejection.text,
            rejection.correlation_id,
            rejection.retry_after,
        )
    }

    fn encode_accepted(&self, accepted: &AcceptedFrame<'_>) -> Option<String> {
        Some(accepted.to_json())
    }

    fn encode_forgotten(&self, message: &AcceptedFrame<'_>, _: &str) -> String {
        v1::forgotten_message_frame(
            message.userid,
            message.message_id,
            message.id,
            message.conversation_id,
        )
    }

    fn encode_published(&self, frame: &PublishedFrame<'_>, user: &UserId) -> Option<String> {
        v1::encode_published(frame, user)
    }

    fn encode_closing(&self, user: &UserId, reason: &str, retry_after: Duration) -> Option<String> {
        let milliseconds = u64::try_from(retry_after.as_millis()).unwrap_or(0);
        Some(v1::closing_frame(user, reason, milliseconds))
    }
}
