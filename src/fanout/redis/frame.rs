//! The frames that the fan-out makes itself. `n` and `n_id` are added where they are published.

use serde::{Deserialize, Serialize};

use crate::fanout::{MessageRef, Result};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::open_message::PendingMessage;

use super::reply::unreadable;

#[derive(Serialize)]
struct LiveFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    userid: &'a UserId,
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ClientMessageId>,
    conversation_id: &'a ConversationId,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl<'a> LiveFrame<'a> {
    fn of(kind: &'static str, subject: &'a MessageRef) -> Self {
        Self {
            kind,
            userid: &subject.user,
            message_id: &subject.message_id,
            id: subject.id.as_ref(),
            conversation_id: &subject.conversation,
            attempt: None,
            index: None,
            content: None,
        }
    }

    fn json(&self) -> String {
        // Only maps with other keys than strings can fail, and there are none.
        serde_json::to_string(self).unwrap_or_default()
    }
}

pub(super) fn delta(subject: &MessageRef, attempt: u32, index: u32, content: &str) -> String {
    LiveFrame {
        attempt: Some(attempt),
        index: Some(index),
        content: Some(content),
        ..LiveFrame::of("delta", subject)
    }
    .json()
}

/// Without its `attempt`: only the script knows it.
pub(super) fn restarted(subject: &MessageRef) -> String {
    LiveFrame::of("restarted", subject).json()
}

/// Tells the worker that owns the message, on `{user:alice}:cancel`.
pub(super) fn cancel(message_id: &MessageId) -> String {
    serde_json::json!({ "message_id": message_id }).to_string()
}

/// An entry of `pending` as it is stored.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<ClientMessageId>,
    conversation: ConversationId,
    content: String,
}

pub(super) fn pending_entry(subject: &MessageRef, content: &str) -> String {
    let entry = Entry {
        id: subject.id.clone(),
        conversation: subject.conversation.clone(),
        content: content.to_owned(),
    };
    serde_json::to_string(&entry).unwrap_or_default()
}

pub(super) fn read_pending(message_id: MessageId, entry: &str) -> Result<PendingMessage> {
    let entry: Entry = serde_json::from_str(entry).map_err(|_| unreadable("pending message"))?;
    Ok(PendingMessage {
        message_id,
        id: entry.id,
        conversation: entry.conversation,
        content: entry.content,
    })
}
