//! Cancels messages at a client's request: one message (`cancel`), or all earlier messages of a
//! conversation (`interrupt`).

use std::sync::Arc;

use tokio::time::Instant;

use crate::fanout::{MessageRef, ReadRequest};
use crate::gateway::context::Gateway;
use crate::gateway::retry::retry_until;
use crate::protocol::ids::{ClientMessageId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;

/// A client's `cancel` frame.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct CancelRequest {
    pub(in crate::gateway) message_id: MessageId,
    /// The client's own identifier of the message, if the frame named the message by it.
    pub(in crate::gateway) client_id: Option<ClientMessageId>,
    pub(in crate::gateway) correlation_id: Arc<str>,
}

/// Cancels a message. Returns `None` where the fan-out was unavailable until the deadline.
pub(in crate::gateway) async fn cancel(
    gateway: &Gateway,
    user: &UserId,
    message_id: &MessageId,
    deadline: Instant,
) -> Option<CancelResult> {
    retry_until(gateway, "cancel", deadline, || {
        gateway.fanout.cancel(user, message_id)
    })
    .await
}

/// Cancels the messages that are pending before `message` in its conversation. `message` itself has
/// been admitted, so its place among the pending messages shows which messages precede it, and an
/// interrupt that is sent again does not cancel later messages. Returns false where the fan-out was
/// unavailable until the deadline.
pub(in crate::gateway) async fn interrupt(
    gateway: &Gateway,
    message: &MessageRef,
    deadline: Instant,
) -> bool {
    let view = retry_until(gateway, "read", deadline, || {
        gateway.fanout.read(ReadRequest {
            user: message.user.clone(),
            after: None,
            from_start: false,
            max_bytes: 1,
        })
    })
    .await;
    let Some(view) = view else {
        return false;
    };
    let earlier = view
        .pending
        .iter()
        .take_while(|pending| pending.message_id != message.message_id)
        .filter(|pending| pending.conversation == message.conversation);
    for pending in earlier {
        let result = cancel(gateway, &message.user, &pending.message_id, deadline).await;
        if result.is_none() {
            return false;
        }
    }
    true
}
