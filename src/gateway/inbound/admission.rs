//! Requests the admission of a message from the fan-out, and carries out the decision: appends the
//! message to the log, rejects it, or sends the answer that it already has.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{Inbound, Message};
use crate::fanout::{AdmissionDecision, Limit, MessageRef};
use crate::gateway::classic::pending::PendingAnswers;
use crate::gateway::client::Client;
use crate::gateway::context::Gateway;
use crate::gateway::delivery;
use crate::gateway::encoder::{Encoder as _, Rejection};
use crate::gateway::retry::retry_until;
use crate::gateway::user::FrameSource;
use crate::gateway::v1::encoder::V1Encoder;
use crate::gateway::v1::requests;
use crate::gateway::v1::state::V1State;
use crate::protocol::close::CloseReason;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::position::Position;
use crate::protocol::published::PublishedFrame;
use crate::telemetry::traces::SpanKind;

/// Number of messages over a limit in one rate window at which the connection is closed.
const MAX_RATE_LIMIT_HITS: u32 = 100;

/// Name of the fan-out in the health checks.
const FANOUT_HEALTH_NAME: &str = "redis";

/// A message and the fan-out's decision; `None` where the fan-out was unavailable.
pub(super) type AdmissionResult = (Message, Option<AdmissionDecision>);

/// Counts one connection's messages over a limit in the current rate window.
pub(super) struct RateLimitHits {
    window_start: Instant,
    count: u32,
}

impl RateLimitHits {
    pub(super) fn new() -> Self {
        Self {
            window_start: Instant::now(),
            count: 0,
        }
    }
}

impl Inbound {
    pub(super) fn begin_admission(&mut self, mut message: Message) {
        let span = &mut message.span;
        span.set_text("messaging.message.id", message.id.as_str());
        span.set_text("correlation_id", &message.correlation_id);
        let message_ref = self.message_ref(&message);
        let admission = admit(self.gateway.clone(), message_ref, message);
        let admissions = &mut self.in_progress().admissions;
        admissions.push_back(Box::pin(admission));
    }

    pub(super) fn handle_admission(
        &mut self,
        mut message: Message,
        decision: Option<AdmissionDecision>,
    ) {
        match decision {
            None => {
                message.span.fail(ErrorCode::Unavailable.as_str());
                self.reject_message(&message, ErrorCode::Unavailable);
            }
            Some(AdmissionDecision::Refused(limit)) => {
                message.span.fail(ErrorCode::RateLimited.as_str());
                self.reject_over_limit(limit, &message);
            }
            Some(AdmissionDecision::New) => {
                self.sessions.state().pending.add_ordered(
                    message.id.clone(),
                    message.correlation_id.clone(),
                    Some(message.conversation.clone()),
                );
                self.begin_append(message);
            }
            Some(AdmissionDecision::OutcomeStored) => {
                // The message was appended before, and its terminal frame will be delivered.
                let mut state = self.sessions.state();
                add_resent_message(&mut state.pending, &message);
                state.pending.set_in_log(&message.id);
                drop(state);
                self.send_accepted(&message);
            }
            Some(AdmissionDecision::Delivered(frame, position)) => {
                self.resend_answer(&message, &frame, position);
            }
            Some(AdmissionDecision::Forgotten) => {
                self.send_accepted(&message);
                let accepted = self.accepted_frame(&message);
                let encoder = self.client.encoder();
                let frame = encoder.encode_forgotten(&accepted, &message.correlation_id);
                self.client.push_reply(frame);
            }
        }
    }

    /// Rejects a message because a limit of the user is reached. Closes the connection at the
    /// [`MAX_RATE_LIMIT_HITS`]th such message in a rate window.
    fn reject_over_limit(&mut self, limit: Limit, message: &Message) {
        let code = ErrorCode::RateLimited;
        let (text, retry_after) = match limit {
            Limit::Rate(wait) => (code.text(), Some(wait)),
            Limit::Tokens(wait) => (
                "Rate limit exceeded. The budget of today is used up.",
                Some(wait),
            ),
            Limit::Pending => (
                "Rate limit exceeded. Too many messages wait for their answers.",
                None,
            ),
            Limit::Conversations => (
                "Rate limit exceeded. Delete a conversation before beginning another one.",
                None,
            ),
        };
        self.send_rejection(&Rejection {
            code,
            text,
            correlation_id: &message.correlation_id,
            client_id: message.client_id.as_ref(),
            retry_after,
        });
        let now = Instant::now();
        let hits = &mut self.rate_limit_hits;
        if now.duration_since(hits.window_start) >= self.gateway.settings.rate_window {
            *hits = RateLimitHits {
                window_start: now,
                count: 0,
            };
        }
        hits.count += 1;
        if hits.count >= MAX_RATE_LIMIT_HITS {
            self.client.outbound().close(CloseReason::RateAbused);
        }
    }

    /// Sends the answer to a message that the client sent again after its answer was delivered.
    fn resend_answer(&self, message: &Message, frame: &str, position: Position) {
        match &self.client {
            Client::Classic(_) => {
                add_resent_message(&mut self.sessions.state().pending, message);
                delivery::deliver_stored(
                    &self.gateway.metrics,
                    &self.sessions,
                    frame.as_bytes(),
                    position,
                    FrameSource::Mailbox,
                );
            }
            Client::V1(client) => {
                self.send_accepted(message);
                self.resend_to_subscriber(client, message, frame, &position);
            }
        }
    }

    /// Sends the answer at once if the connection has received it before. Otherwise the connection
    /// reads the mailbox, which sends the answer in order with other frames that are missing.
    fn resend_to_subscriber(
        &self,
        client: &Arc<V1State>,
        message: &Message,
        frame: &str,
        position: &Position,
    ) {
        let text = PublishedFrame::parse(frame.as_bytes())
            .ok()
            .and_then(|frame| V1Encoder.encode_published(&frame, &self.session.user));
        let Some(text) = text.map(Utf8Bytes::from) else {
            return;
        };
        let mut state = self.sessions.state();
        let subscribers = &mut state.subscribers;
        if subscribers.has_received(client, position) && client.outbound.try_push(text.clone()) {
            return;
        }
        if !subscribers.send_after_read(client, message.id.clone(), text) {
            drop(state);
            client.outbound.close(CloseReason::SlowConsumer);
        }
    }
}

/// Adds a message that its client has sent again and that was admitted before. Its place among the
/// messages that this gateway admitted is unknown.
fn add_resent_message(pending: &mut PendingAnswers, message: &Message) {
    pending.add_unordered(
        message.id.clone(),
        message.correlation_id.clone(),
        Some(message.conversation.clone()),
    );
}

/// Calls `admit`, with retries while the fan-out is unavailable, for at most half of
/// `PRODUCE_TIMEOUT_MS`, so that half of the time remains for the append. After the
/// admission of a new interrupt, cancels the earlier messages of its conversation.
async fn admit(
    gateway: Arc<Gateway>,
    message_ref: MessageRef,
    mut message: Message,
) -> AdmissionResult {
    let max_wait = gateway.settings.produce_timeout / 2;
    let deadline = message.received_at + max_wait;
    let _span = message
        .span
        .child(SpanKind::Internal, format_args!("admit"));
    // If the fan-out has been unavailable for longer than this message would wait, the message does
    // not wait at all.
    let admission = if gateway.health.unavailable_for(FANOUT_HEALTH_NAME) > max_wait {
        None
    } else {
        let admit = || gateway.fanout.admit(&message_ref, &message.content);
        retry_until(&gateway, "admit", deadline, admit).await
    };
    let decision = match admission {
        Some(admission) => {
            message.live_subscribers = admission.live_subscribers;
            Some(admission.decision)
        }
        // This setting admits messages without counting them against any limit, instead of
        // rejecting them, while the fan-out is unavailable.
        None if gateway.settings.rate_fail_open => Some(AdmissionDecision::New),
        None => None,
    };
    if message.interrupt
        && decision == Some(AdmissionDecision::New)
        && !requests::interrupt(&gateway, &message_ref, deadline).await
    {
        return (message, None);
    }
    (message, decision)
}
