//! Validates a client's frame, and begins its processing or rejects it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::{Barrier, FinishedStep, Inbound, Message};
use crate::gateway::client::Client;
use crate::gateway::encoder::Rejection;
use crate::gateway::v1::requests::{self, CancelRequest};
use crate::protocol::classic;
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1::{self, ClientFrame};
use crate::telemetry::traces::{Span, SpanKind};

/// Value of [`Message::live_subscribers`] until the admission has returned the number. It is the
/// maximum, so that `accepted` is published in case other gateways subscribe.
pub(super) const UNKNOWN_SUBSCRIBERS: u64 = u64::MAX;

impl Inbound {
    /// Processes a text frame of the client.
    pub(in crate::gateway) fn handle_frame(&mut self, text: &str) {
        let gateway = &self.gateway;
        gateway.metrics.frames_received.increment(1);
        let number = gateway.next_message_number.fetch_add(1, Ordering::Relaxed);
        let correlation_id = format!("{}-{number}", self.session.correlation_id).into();
        match self.client {
            Client::Classic(_) => self.handle_classic_frame(text, correlation_id),
            Client::V1(_) => self.handle_v1_frame(text, correlation_id),
        }
    }

    fn handle_classic_frame(&mut self, text: &str, correlation_id: Arc<str>) {
        let max_chars = self.gateway.settings.max_content_chars;
        match classic::parse_message(text, &self.session.user, max_chars) {
            Err(invalid) => self.send_rejection(&Rejection {
                code: invalid.code,
                text: &invalid.text,
                correlation_id: &correlation_id,
                client_id: None,
                retry_after: None,
            }),
            Ok(content) => self.begin_admission(Message {
                id: MessageId::random(),
                client_id: None,
                conversation: ConversationId::default_conversation(),
                interrupt: false,
                correlation_id,
                content,
                received_at: Instant::now(),
                live_subscribers: UNKNOWN_SUBSCRIBERS,
                span: self.begin_span(None),
            }),
        }
    }

    fn handle_v1_frame(&mut self, text: &str, correlation_id: Arc<str>) {
        let max_chars = self.gateway.settings.max_content_chars;
        match v1::parse_client_frame(text, &self.session.user, max_chars) {
            Err(v1::RejectedFrame { rejection, id }) => self.send_rejection(&Rejection {
                code: rejection.code,
                text: &rejection.text,
                correlation_id: &correlation_id,
                client_id: id.as_ref(),
                retry_after: None,
            }),
            Ok(ClientFrame::Ping) => self.client.push_reply(v1::PONG_FRAME.into()),
            Ok(ClientFrame::Cancel { message_id, id }) => {
                self.set_barrier(Barrier::Cancel(CancelRequest {
                    message_id,
                    client_id: id,
                    correlation_id,
                }));
            }
            Ok(ClientFrame::Message {
                id,
                content,
                conversation,
                interrupt,
                trace,
            }) => {
                let message = Message {
                    id: MessageId::from_client_id(&self.session.user, &id),
                    client_id: Some(id),
                    conversation,
                    interrupt,
                    correlation_id,
                    content,
                    received_at: Instant::now(),
                    live_subscribers: UNKNOWN_SUBSCRIBERS,
                    span: self.begin_span(trace),
                };
                if interrupt {
                    self.set_barrier(Barrier::Interrupt(Box::new(message)));
                } else {
                    self.begin_admission(message);
                }
            }
        }
    }

    /// Begins a message's span, in the message's own trace if it has one, otherwise in the trace of
    /// the upgrade request.
    fn begin_span(&self, trace: Option<TraceContext>) -> Span {
        let parent = trace.or_else(|| self.session.trace.as_deref().cloned());
        Span::begin(parent, SpanKind::Server, format_args!("receive message"))
    }

    fn set_barrier(&mut self, barrier: Barrier) {
        self.in_progress().barrier = Some(barrier);
        self.release_barrier();
    }

    /// Begins the request that waits in the barrier, unless an admission is still in progress.
    pub(super) fn release_barrier(&mut self) {
        let in_progress = self.in_progress();
        if !in_progress.admissions.is_empty() {
            return;
        }
        match in_progress.barrier.take() {
            None => {}
            Some(Barrier::Interrupt(message)) => self.begin_admission(*message),
            Some(Barrier::Cancel(request)) => {
                let (gateway, user) = (self.gateway.clone(), self.session.user.clone());
                let deadline = Instant::now() + gateway.settings.produce_timeout / 2;
                self.push_step(async move {
                    let id = &request.message_id;
                    let result = requests::cancel(&gateway, &user, id, deadline).await;
                    FinishedStep::Cancelled(request, result)
                });
            }
        }
    }
}
