//! Publishes frames to a user's subscriptions. Every frame but the later pieces of a part has a
//! sequence number.

use bytes::Bytes;
use serde::Serialize;

use super::UserState;
use crate::fanout::{Channel, MessageRef, Owner, Piece};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, StreamId, UserId};
use crate::protocol::v1::{DeltaTarget, PartOpening, delta_frame};

/// The frame `restarted` without its sequence number.
#[derive(Serialize)]
struct RestartedFrame<'a> {
    r#type: &'static str,
    userid: &'a UserId,
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    stream: &'a StreamId,
    attempt: u32,
}

/// The target of a `delta` about this message.
fn delta_target<'a>(
    message: &'a MessageRef,
    stream: &'a StreamId,
    attempt: u32,
) -> DeltaTarget<'a> {
    DeltaTarget {
        message_id: &message.message_id,
        id: message.id.as_ref(),
        conversation: &message.conversation,
        stream,
        attempt,
    }
}

/// Returns the JSON of a frame with `n` and `n_id` inserted before its closing brace.
fn with_sequence_number(frame: &str, n: u64, n_id: &str) -> Bytes {
    let Some(end) = frame.rfind('}') else {
        return Bytes::copy_from_slice(frame.as_bytes());
    };
    let body = frame[..end].trim_end();
    let comma = if body.ends_with('{') { "" } else { "," };
    format!("{body}{comma}\"n\":{n},\"n_id\":\"{n_id}\"}}").into()
}

impl UserState {
    /// Publishes a frame with the next sequence number, and returns the number of subscriptions to
    /// the channel.
    pub(in crate::fanout::embedded) fn publish(&mut self, channel: Channel, frame: &str) -> u64 {
        self.n += 1;
        let (n, n_id) = (self.n, &self.n_id);
        self.subscriptions
            .publish(&self.user, channel, || with_sequence_number(frame, n, n_id))
    }

    /// Publishes the notice on the cancel channel that tells a worker to stop generating the answer
    /// to a message.
    pub(super) fn publish_cancel(&mut self, message: &MessageId) {
        self.subscriptions.publish(&self.user, Channel::Cancel, || {
            let notice = serde_json::json!({ "message_id": message });
            notice.to_string().into()
        });
    }

    /// Publishes the first piece of a part as its opening.
    pub(super) fn publish_opening(
        &mut self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        opening: PartOpening<'_>,
        piece: &Piece,
    ) {
        let stream = owner.stream(attempt);
        let target = delta_target(message, &stream, attempt);
        let frame = delta_frame(target, piece.range, Some(opening), &piece.text);
        self.publish(Channel::Live, &frame);
    }

    /// Publishes a later piece of a part, exactly as clients receive it. It has no sequence number:
    /// receivers notice a lost piece by the offset of the next one.
    pub(super) fn publish_delta(
        &mut self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        piece: &Piece,
    ) {
        self.subscriptions.publish(&self.user, Channel::Live, || {
            let stream = owner.stream(attempt);
            let target = delta_target(message, &stream, attempt);
            delta_frame(target, piece.range, None, &piece.text).into()
        });
    }

    /// Publishes the `restarted` frame, which says that an answer starts over in a new stream.
    pub(super) fn publish_restarted(&mut self, message: &MessageRef, owner: &Owner, attempt: u32) {
        let frame = RestartedFrame {
            r#type: "restarted",
            userid: &self.user,
            message_id: &message.message_id,
            id: message.id.as_ref(),
            conversation_id: &message.conversation,
            stream: &owner.stream(attempt),
            attempt,
        };
        // Serialization can't fail: it fails only for maps whose keys are not strings, and the
        // frame contains no map.
        let frame = serde_json::to_string(&frame).unwrap_or_default();
        self.publish(Channel::Live, &frame);
    }
}
