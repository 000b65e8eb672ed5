//! The calls of [`Admissions`] on Redis: `admit`, `accept`, `cancel` and `clear_pending`.

use std::time::Duration;

use async_trait::async_trait;
use fred::types::Value;

use super::args::{random_id, text};
use super::reply::{Reply, unreadable_reply_error};
use super::{RedisFanout, frame, unexpected_reply_error};
use crate::fanout::{Admission, AdmissionDecision, Admissions, Limit, MessageRef, Result};
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::open_message::CancelResult;

/// Decodes the time in milliseconds after which a limit allows the next message.
fn decode_wait(reply: &mut Reply) -> Result<Duration> {
    Ok(Duration::from_millis(reply.parse("time to wait")?))
}

#[async_trait]
impl Admissions for RedisFanout {
    async fn admit(&self, message: &MessageRef, content: &str) -> Result<Admission> {
        let args = vec![
            text(message.message_id.as_str()),
            Value::from(frame::pending_entry(message, content)),
            text(message.conversation.as_str()),
        ];
        let script = &self.scripts.admit;
        let mut reply = self.run_for(script, &message.user, args).await?;
        let decision = match reply.text()?.as_str() {
            "new" => {
                return Ok(Admission {
                    decision: AdmissionDecision::New,
                    live_subscribers: reply.parse("number of subscribers")?,
                });
            }
            "rate" => AdmissionDecision::Refused(Limit::Rate(decode_wait(&mut reply)?)),
            "tokens" => AdmissionDecision::Refused(Limit::Tokens(decode_wait(&mut reply)?)),
            "pending" => AdmissionDecision::Refused(Limit::Pending),
            "conversations" => AdmissionDecision::Refused(Limit::Conversations),
            "kept" => AdmissionDecision::OutcomeStored,
            "forgotten" => AdmissionDecision::Forgotten,
            "delivered" => {
                let frame = reply.text()?;
                let position = reply
                    .position()?
                    .ok_or_else(|| unreadable_reply_error("position"))?;
                AdmissionDecision::Delivered(frame, position)
            }
            word => return Err(unexpected_reply_error(word)),
        };
        Ok(decision.into())
    }

    async fn accept(&self, message: &MessageRef, frame: String) -> Result<()> {
        let args = vec![
            random_id(),
            text(message.message_id.as_str()),
            text(frame.trim_end()),
        ];
        self.run_for(&self.scripts.accept, &message.user, args)
            .await
            .map(|_| ())
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        let args = vec![
            text(message_id.as_str()),
            Value::from(frame::cancel_notice(message_id)),
        ];
        let mut reply = self.run_for(&self.scripts.cancel, user, args).await?;
        match reply.text()?.as_str() {
            "cancelling" => Ok(CancelResult::Cancelling),
            "already_done" => Ok(CancelResult::AlreadyDone),
            "unknown" => Ok(CancelResult::Unknown),
            word => Err(unexpected_reply_error(word)),
        }
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        let args = vec![text(message_id.as_str())];
        self.run_for(&self.scripts.clear_pending, user, args)
            .await
            .map(|_| ())
    }
}
