//! JSON that the fan-out on Redis builds itself: `restarted`, the cancel notice and pending entries.
//! The scripts add the sequence number (`n` and `n_id`) to frames when they publish them.

use serde::{Deserialize, Serialize};

use super::reply::unreadable_reply_error;
use crate::fanout::{MessageRef, Result};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::open_message::PendingMessage;

/// JSON of the `restarted` frame without its sequence number and without `stream` and `attempt`,
/// which the script inserts.
pub(super) fn restarted(message: &MessageRef) -> String {
    #[derive(Serialize)]
    struct Restarted<'a> {
        r#type: &'static str,
        userid: &'a UserId,
        message_id: &'a MessageId,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a ClientMessageId>,
        conversation_id: &'a ConversationId,
    }
    let frame = Restarted {
        r#type: "restarted",
        userid: &message.user,
        message_id: &message.message_id,
        id: message.id.as_ref(),
        conversation_id: &message.conversation,
    };
    // Serialization can't fail: it fails only for maps whose keys are not strings, and a frame
    // contains no map.
    serde_json::to_string(&frame).unwrap_or_default()
}

/// JSON of the notice on `{user:alice}:cancel` for the worker that generates the answer.
pub(super) fn cancel_notice(message_id: &MessageId) -> String {
    serde_json::json!({ "message_id": message_id }).to_string()
}

/// The stored form of a pending message; its message id is the field's name in the Redis hash.
#[derive(Serialize, Deserialize)]
struct PendingEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<ClientMessageId>,
    conversation: ConversationId,
    content: String,
}

/// Encodes a pending message as the JSON that `admit` stores.
pub(super) fn pending_entry(message: &MessageRef, content: &str) -> String {
    let entry = PendingEntry {
        id: message.id.clone(),
        conversation: message.conversation.clone(),
        content: content.to_owned(),
    };
    serde_json::to_string(&entry).unwrap_or_default()
}

/// Decodes a pending message from the JSON that `admit` has stored.
pub(super) fn decode_pending(message_id: MessageId, entry: &str) -> Result<PendingMessage> {
    let entry: PendingEntry =
        serde_json::from_str(entry).map_err(|_| unreadable_reply_error("pending message"))?;
    Ok(PendingMessage {
        message_id,
        id: entry.id,
        conversation: entry.conversation,
        content: entry.content,
    })
}
