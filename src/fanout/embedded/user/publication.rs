//! Publishes frames to a user's subscriptions, with sequence numbers.

use bytes::Bytes;
use serde::Serialize;

use super::UserState;
use crate::fanout::{Channel, MessageRef};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};

/// A `delta` or `restarted` frame, which the fan-out builds itself.
#[derive(Serialize)]
struct LiveFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    userid: &'a UserId,
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    n: u64,
    n_id: &'a str,
}

impl LiveFrame<'_> {
    fn to_json(&self) -> Bytes {
        // Serialization can't fail: it fails only for maps whose keys are not strings, and a frame
        // contains no map.
        serde_json::to_vec(self).unwrap_or_default().into()
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

    /// Publishes the `delta` frame with a piece of an answer's text.
    pub(super) fn publish_delta(
        &mut self,
        message: &MessageRef,
        attempt: u32,
        index: u32,
        content: &str,
    ) {
        self.publish_live("delta", message, attempt, Some((index, content)));
    }

    /// Publishes the `restarted` frame, which says that an answer's text starts over.
    pub(super) fn publish_restarted(&mut self, message: &MessageRef, attempt: u32) {
        self.publish_live("restarted", message, attempt, None);
    }

    /// Publishes a frame of this `kind` on the live channel. `delta` is the index and the text of a
    /// `delta` frame.
    fn publish_live(
        &mut self,
        kind: &'static str,
        message: &MessageRef,
        attempt: u32,
        delta: Option<(u32, &str)>,
    ) {
        self.n += 1;
        let frame = LiveFrame {
            kind,
            userid: &self.user,
            message_id: &message.message_id,
            id: message.id.as_ref(),
            conversation_id: &message.conversation,
            attempt,
            index: delta.map(|(index, _)| index),
            content: delta.map(|(_, content)| content),
            n: self.n,
            n_id: &self.n_id,
        };
        self.subscriptions
            .publish(&self.user, Channel::Live, || frame.to_json());
    }
}
