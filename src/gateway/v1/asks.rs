//! What a client asks of the fan-out about messages that it sent before: to cancel them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::Backoff;
use crate::fanout::{FanoutError, MessageRef, ReadRequest};
use crate::gateway::Gateway;
use crate::protocol::ids::{ClientMessageId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;

/// A client's `cancel`.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Cancel {
    pub(in crate::gateway) message_id: MessageId,
    pub(in crate::gateway) id: Option<ClientMessageId>,
    pub(in crate::gateway) correlation_id: Arc<str>,
}

/// Asks the fan-out, again where it is away, until the deadline. `None`: it was away all the time.
pub(in crate::gateway) async fn ask<T, F>(
    gateway: &Gateway,
    operation: &'static str,
    deadline: Instant,
    mut call: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, FanoutError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::MAX);
    loop {
        let error = match timeout_at(deadline, call()).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        gateway.counters.redis_error(operation);
        let pause = backoff.next_delay();
        if Instant::now() + pause >= deadline {
            tracing::warn!(operation, error, "the fan-out did not answer in time");
            return None;
        }
        sleep(pause).await;
    }
}

/// Stops a message.
pub(in crate::gateway) async fn cancel(
    gateway: &Gateway,
    user: &UserId,
    message_id: &MessageId,
    deadline: Instant,
) -> Option<CancelResult> {
    ask(gateway, "cancel", deadline, || {
        gateway.fanout.cancel(user, message_id)
    })
    .await
}

/// Stops what is pending before this message in its conversation. The message is pending itself
/// by now, which tells what was before it: an `interrupt` that is sent again, after its message
/// was admitted, does not stop what came later. False where the fan-out was away.
pub(in crate::gateway) async fn interrupt(
    gateway: &Gateway,
    subject: &MessageRef,
    deadline: Instant,
) -> bool {
    let look = ask(gateway, "read", deadline, || {
        gateway.fanout.read(ReadRequest {
            user: subject.user.clone(),
            after: None,
            from_start: false,
            max_bytes: 1,
        })
    })
    .await;
    let Some(look) = look else {
        return false;
    };
    let before = look
        .pending
        .iter()
        .take_while(|one| one.message_id != subject.message_id)
        .filter(|one| one.conversation == subject.conversation);
    for one in before {
        if cancel(gateway, &subject.user, &one.message_id, deadline)
            .await
            .is_none()
        {
            return false;
        }
    }
    true
}
