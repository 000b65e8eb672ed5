//! Appends an admitted message to the log, confirms it, and announces it to the user's other
//! connections.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::{FinishedStep, Inbound, Message};
use crate::gateway::client::Client;
use crate::gateway::retry::retry_until;
use crate::log::{AppendError, LogOffset};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::log_record::NewRecord;
use crate::protocol::record::{QuestionRecord, add_trace_headers, header};
use crate::protocol::timestamp::now_rfc3339;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1::AcceptedFrame;
use crate::telemetry::traces::{self, Span, SpanKind};

/// The result of appending one message to the log.
pub(super) struct AppendResult {
    message: Message,
    /// `None` where the log did not acknowledge the message in time.
    result: Option<Result<LogOffset, AppendError>>,
}

impl Inbound {
    /// Appends the message to the log. Messages are in the log in the order of these calls. The
    /// acknowledgement is handled as a later step.
    pub(super) fn begin_append(&mut self, message: Message) {
        let mut span = self.begin_append_span(&message);
        let appended = self.append(&message, span.context());
        let deadline = message.received_at + self.gateway.settings.produce_timeout;
        self.push_step(async move {
            let result = timeout_at(deadline, appended).await.ok();
            match &result {
                Some(Ok(log_offset)) => {
                    span.set_number("messaging.kafka.offset", log_offset.offset);
                }
                Some(Err(_)) => span.fail("refused"),
                None => span.fail("timeout"),
            }
            FinishedStep::Appended(Box::new(AppendResult { message, result }))
        });
    }

    fn begin_append_span(&self, message: &Message) -> Span {
        let topic = &self.gateway.settings.messages_topic;
        let name = format_args!("send {topic}");
        let mut span = message.span.child(SpanKind::Producer, name);
        span.set_text("messaging.system", traces::log_system());
        span.set_text("messaging.operation.name", "send");
        span.set_text("messaging.operation.type", "send");
        span.set_text("messaging.destination.name", topic);
        span.set_text("messaging.message.id", message.id.as_str());
        span
    }

    fn append(
        &self,
        message: &Message,
        trace: Option<&TraceContext>,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let settings = &self.gateway.settings;
        let record = QuestionRecord {
            v: 1,
            kind: "message",
            content: &message.content,
            userid: &self.session.user,
            timestamp: now_rfc3339(),
            server_id: &settings.server_id,
            correlation_id: &message.correlation_id,
            message_id: &message.id,
            id: message.client_id.as_ref(),
            conversation_id: &message.conversation,
            // True also for the message of a classic client, because the user may have another
            // device that receives deltas.
            stream: true,
        };
        let value = match serde_json::to_vec(&record) {
            Ok(value) => value,
            Err(error) => {
                let error = AppendError::Refused(error.to_string());
                return Box::pin(async move { Err(error) });
            }
        };
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let mut headers = vec![
            (header::MESSAGE_ID.to_owned(), bytes(message.id.as_str())),
            (
                header::CORRELATION_ID.to_owned(),
                bytes(&message.correlation_id),
            ),
        ];
        add_trace_headers(&mut headers, trace);
        self.gateway.log.append(
            &settings.messages_topic,
            NewRecord {
                key: Some(bytes(self.session.user.as_str())),
                value: value.into(),
                null_value: false,
                headers,
            },
        )
    }

    /// Confirms the message if the log has acknowledged it; otherwise rejects it.
    pub(super) fn handle_appended(&mut self, appended: AppendResult) {
        let AppendResult { message, result } = appended;
        match result {
            Some(Ok(log_offset)) => self.confirm(&message, &log_offset),
            Some(Err(error)) => self.reject_unacknowledged(message, Some(error)),
            None => self.reject_unacknowledged(message, None),
        }
    }

    fn confirm(&mut self, message: &Message, log_offset: &LogOffset) {
        let metrics = &self.gateway.metrics;
        metrics.appends.increment(1);
        metrics
            .acknowledgement_seconds
            .record(message.received_at.elapsed().as_secs_f64());
        tracing::info!(
            correlation_id = &*message.correlation_id,
            message_id = message.id.as_str(),
            trace_id = message.span.trace_id(),
            partition = log_offset.partition,
            offset = log_offset.offset,
            "message accepted"
        );
        self.sessions.state().pending.set_in_log(&message.id);
        self.send_accepted(message);
        self.publish_accepted(message);
    }

    /// Rejects a message that the log refused or did not acknowledge in time; `error` is `None` in
    /// the second case.
    fn reject_unacknowledged(&mut self, mut message: Message, error: Option<AppendError>) {
        self.gateway.metrics.append_errors.increment(1);
        let text = match &error {
            Some(error) => error.to_string(),
            None => "the log did not acknowledge in time".to_owned(),
        };
        tracing::warn!(
            correlation_id = &*message.correlation_id,
            message_id = message.id.as_str(),
            trace_id = message.span.trace_id(),
            error = text,
            "message not acknowledged by the log; the client got an error and may send it again"
        );
        message.span.fail("not_acknowledged");
        let code = if let Some(AppendError::Refused(_)) = error {
            // The message will never be in the log.
            self.sessions.state().pending.remove(&message.id);
            ErrorCode::Internal
        } else {
            // The message may be in the log, and its answer follows then.
            ErrorCode::Unavailable
        };
        self.reject_message(&message, code);
    }

    /// Publishes `accepted` with the question to the user's other `chatmesh.v1` connections. Does
    /// nothing where there is no other connection, as for most users. A connection that subscribes
    /// after the admission finds the message in `pending`.
    fn publish_accepted(&mut self, message: &Message) {
        // A `chatmesh.v1` connection is among the subscribers of its own gateway, and because of it
        // the gateway is counted in `live_subscribers`.
        let (own_subscriptions, sender_connection) = match &self.client {
            Client::Classic(_) => (0, None),
            Client::V1(client) => (1, Some(&*client.connection_id)),
        };
        let has_other_gateway = message.live_subscribers > own_subscriptions as u64;
        let has_other_connection = || self.sessions.state().subscribers.len() > own_subscriptions;
        if !has_other_gateway && !has_other_connection() {
            return;
        }
        let message_ref = self.message_ref(message);
        let frame = AcceptedFrame {
            content: Some(&message.content),
            origin: sender_connection,
            ..self.accepted_frame(message)
        };
        let frame = frame.to_json();
        let gateway = self.gateway.clone();
        let deadline = Instant::now() + gateway.settings.produce_timeout / 2;
        self.push_step(async move {
            // The call may fail: a connection that does not receive `accepted` still receives the
            // answer, and finds the question in the history.
            retry_until(&gateway, "accept", deadline, || {
                gateway.fanout.accept(&message_ref, frame.clone())
            })
            .await;
            FinishedStep::AcceptedPublished
        });
    }
}
