//! Appends an admitted message to the log, confirms it, and announces it to the user's other
//! connections.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::{FinishedTask, Inbound, Message};
use crate::gateway::client::Client;
use crate::gateway::retry::retry_until;
use crate::log::{AppendError, LogOffset};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::log_record::NewRecord;
use crate::protocol::record::{QuestionRecord, add_trace_headers, header};
use crate::protocol::timestamp::now_rfc3339;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1::AcceptedFrame;
use crate::telemetry::traces::{self, Kind, Span};

/// A message that was appended, or could not be.
pub(super) struct AppendResult {
    message: Message,
    /// `None` where the log did not acknowledge in time.
    result: Option<Result<LogOffset, AppendError>>,
}

impl Inbound {
    /// Appends the message. The order of these calls is the order in the log; the acknowledgement
    /// completes as a later step.
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
            FinishedTask::Appended(Box::new(AppendResult { message, result }))
        });
    }

    fn begin_append_span(&self, message: &Message) -> Span {
        let topic = &self.gateway.settings.messages_topic;
        let name = format_args!("send {topic}");
        let mut span = message.span.child(Kind::Producer, name);
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
            // Set for a classic client, too: another of the user's devices may follow the answer.
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

    /// Confirms a message that the log has acknowledged, or rejects it.
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

    /// Rejects a message that the log refused, or did not acknowledge in time (`None`).
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

    /// Publishes the question to the user's other connections, if there are any: most users have
    /// one, and one that connects after the admission finds the message in `pending`.
    fn publish_accepted(&mut self, message: &Message) {
        // A `chatmesh.v1` connection is itself a subscriber, and so is this gateway because of it.
        let (own, origin) = match &self.client {
            Client::Classic(_) => (0, None),
            Client::V1(client) => (1, Some(&*client.origin)),
        };
        let has_other_gateways = message.live_subscribers > own as u64;
        if !has_other_gateways && self.sessions.state().subscribers.len() <= own {
            return;
        }
        let message_ref = self.message_ref(message);
        let frame = AcceptedFrame {
            content: Some(&message.content),
            origin,
            ..self.accepted_frame(message)
        };
        let frame = frame.to_json();
        let gateway = self.gateway.clone();
        let deadline = Instant::now() + gateway.settings.produce_timeout / 2;
        self.push_step(async move {
            // A connection that misses this still receives the answer, and finds the question in
            // the history.
            retry_until(&gateway, "accept", deadline, || {
                gateway.fanout.accept(&message_ref, frame.clone())
            })
            .await;
            FinishedTask::AcceptedPublished
        });
    }
}
