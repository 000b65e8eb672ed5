//! The inbound path of one connection: validates the client's frames, admits a message, appends it
//! to the log in order, and confirms it once the log has acknowledged it. The receive loop of the
//! connection calls it.
//!
//! Several messages are in progress at once, so that a client need not wait for the log before it
//! sends its next message. Their number is bounded, and at the bound the socket is not read.
//! Messages keep their order because admissions complete in order, and a record's place in the log
//! is determined by the call of `append`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::time::Instant;

use super::client::Client;
use super::context::Gateway;
use super::encoder::Rejection;
use super::session::{MAX_FRAMES_IN_PROGRESS, Session};
use super::sessions::UserSessions;
use super::v1::requests::CancelRequest;
use crate::fanout::MessageRef;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::v1::{self, AcceptedFrame};
use crate::telemetry::traces::Span;

mod admission;
mod append;
mod receive;

use admission::{AdmissionResult, RateLimitHits};
use append::AppendResult;

/// A message on its way to the log.
struct Message {
    id: MessageId,
    /// The client's own identifier of the message; `None` on the classic protocol.
    client_id: Option<ClientMessageId>,
    conversation: ConversationId,
    /// Whether the message cancels the messages that are pending before it in its conversation.
    interrupt: bool,
    correlation_id: Arc<str>,
    content: String,
    received_at: Instant,
    /// Number of gateways that subscribe to the user's live channel;
    /// [`UNKNOWN_SUBSCRIBERS`](receive::UNKNOWN_SUBSCRIBERS) until the admission has returned it.
    live_subscribers: u64,
    /// Covers the message from its receipt until the log has acknowledged it.
    span: Span,
}

/// The result of a step that follows an admission or a barrier. Such steps complete in any order.
enum FinishedStep {
    /// The append has ended, successfully or not.
    Appended(Box<AppendResult>),
    /// The fan-out has answered a `cancel`; the result is `None` where it was unavailable.
    Cancelled(CancelRequest, Option<CancelResult>),
    /// The call that publishes `accepted` to the user's other connections has ended.
    AcceptedPublished,
}

/// A request that begins only after all earlier messages of the connection were admitted. No
/// further frame is read until it has begun.
enum Barrier {
    Interrupt(Box<Message>),
    Cancel(CancelRequest),
}

/// The frames of one client that are in progress: read, and not yet completely processed.
#[derive(Default)]
struct InProgress {
    admissions: FuturesOrdered<BoxFuture<'static, AdmissionResult>>,
    barrier: Option<Barrier>,
    steps: FuturesUnordered<BoxFuture<'static, FinishedStep>>,
}

impl InProgress {
    fn is_empty(&self) -> bool {
        self.admissions.is_empty() && self.steps.is_empty() && self.barrier.is_none()
    }

    fn has_room(&self) -> bool {
        let count = self.admissions.len() + self.steps.len();
        self.barrier.is_none() && count < MAX_FRAMES_IN_PROGRESS
    }
}

/// The inbound path of one connection: the state of its client's frames in progress.
pub(super) struct Inbound {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    sessions: Arc<UserSessions>,
    client: Client,
    /// `None` while no frame of the client is in progress, to save memory.
    in_progress: Option<Box<InProgress>>,
    rate_limit_hits: RateLimitHits,
}

impl Inbound {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        session: Arc<Session>,
        sessions: Arc<UserSessions>,
        client: Client,
    ) -> Self {
        Self {
            gateway,
            session,
            sessions,
            client,
            in_progress: None,
            rate_limit_hits: RateLimitHits::new(),
        }
    }

    /// The connections of the user whose client this is.
    pub(super) fn sessions(&self) -> Arc<UserSessions> {
        self.sessions.clone()
    }

    /// Whether no frame is in progress.
    pub(super) fn is_empty(&self) -> bool {
        self.in_progress
            .as_ref()
            .is_none_or(|in_progress| in_progress.is_empty())
    }

    /// Whether another frame may be read: the number of frames in progress is below the bound, and
    /// no request waits in the barrier.
    pub(super) fn has_room(&self) -> bool {
        self.in_progress
            .as_ref()
            .is_none_or(|in_progress| in_progress.has_room())
    }

    /// Frees the memory for frames in progress where no frame is in progress.
    pub(super) fn release_buffers(&mut self) {
        if self.is_empty() {
            self.in_progress = None;
        }
    }

    fn in_progress(&mut self) -> &mut InProgress {
        self.in_progress.get_or_insert_default()
    }

    fn push_step(&mut self, step: impl Future<Output = FinishedStep> + Send + 'static) {
        self.in_progress().steps.push(Box::pin(step));
    }

    /// Waits until an admission or a step has completed, and processes its result. Never returns
    /// while no frame is in progress. Cancel-safe.
    pub(super) async fn step(&mut self) {
        poll_fn(|cx| self.poll_step(cx)).await;
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(in_progress) = &mut self.in_progress else {
            return Poll::Pending;
        };
        if let Poll::Ready(Some((message, decision))) = in_progress.admissions.poll_next_unpin(cx) {
            self.handle_admission(message, decision);
            self.release_barrier();
            return Poll::Ready(());
        }
        let Poll::Ready(Some(step)) = in_progress.steps.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        match step {
            FinishedStep::Appended(appended) => self.handle_appended(*appended),
            FinishedStep::Cancelled(request, result) => self.send_cancel_result(&request, result),
            FinishedStep::AcceptedPublished => {}
        }
        Poll::Ready(())
    }

    fn message_ref(&self, message: &Message) -> MessageRef {
        MessageRef {
            user: self.session.user.clone(),
            message_id: message.id.clone(),
            id: message.client_id.clone(),
            conversation: message.conversation.clone(),
        }
    }

    /// The `accepted` frame of a message for the connection that sent it.
    fn accepted_frame<'a>(&'a self, message: &'a Message) -> AcceptedFrame<'a> {
        AcceptedFrame {
            userid: &self.session.user,
            message_id: &message.id,
            id: message.client_id.as_ref(),
            conversation_id: &message.conversation,
            content: None,
            origin: None,
        }
    }

    /// Confirms a message to the client that sent it, if its protocol has the frame `accepted`.
    fn send_accepted(&self, message: &Message) {
        let accepted = self.accepted_frame(message);
        if let Some(frame) = self.client.encoder().encode_accepted(&accepted) {
            self.client.push_reply(frame);
        }
    }

    fn send_rejection(&self, rejection: &Rejection<'_>) {
        let (code, correlation_id) = (rejection.code.as_str(), rejection.correlation_id);
        self.gateway.metrics.count_message_error(code);
        tracing::debug!(correlation_id, code, "message rejected");
        let frame = self
            .client
            .encoder()
            .encode_rejection(&self.session.user, rejection);
        self.client.push_reply(frame);
    }

    /// Rejects a message with the standard text of `code`.
    fn reject_message(&self, message: &Message, code: ErrorCode) {
        self.send_rejection(&Rejection {
            code,
            text: code.text(),
            correlation_id: &message.correlation_id,
            client_id: message.client_id.as_ref(),
            retry_after: None,
        });
    }

    /// Replies to a `cancel` frame; `result` is `None` where the fan-out was unavailable.
    fn send_cancel_result(&self, request: &CancelRequest, result: Option<CancelResult>) {
        let correlation_id = &*request.correlation_id;
        let client_id = request.client_id.as_ref();
        let Some(result) = result else {
            let code = ErrorCode::Unavailable;
            self.send_rejection(&Rejection {
                code,
                text: code.text(),
                correlation_id,
                client_id,
                retry_after: None,
            });
            return;
        };
        tracing::info!(
            correlation_id,
            message_id = %request.message_id,
            ?result,
            "cancel request answered"
        );
        let user = &self.session.user;
        let frame = v1::cancel_result_frame(user, &request.message_id, client_id, result);
        self.client.push_reply(frame);
    }
}
