//! The calls `admit`, `accept` and `cancel` on a user's state. `docs/consistency.md` specifies the
//! order of their checks.

use super::UserState;
use super::final_state::FinalState;
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::{Admission, AdmissionDecision, Channel, MessageRef, Result, StoredOutcome};
use crate::protocol::ids::MessageId;
use crate::protocol::open_message::CancelResult;
use crate::store::Batch;

impl UserState {
    pub(in crate::fanout::embedded) fn admit(
        &mut self,
        message: &MessageRef,
        content: &str,
        context: &StoreContext<'_>,
    ) -> Result<Admission> {
        let new = Admission {
            decision: AdmissionDecision::New,
            live_subscribers: self.subscriptions.count(Channel::Live),
        };
        match self.final_state(&message.message_id, context)? {
            Some(FinalState::Outcome(StoredOutcome {
                frame,
                delivered_at: Some(position),
            })) => return Ok(AdmissionDecision::Delivered(frame, position).into()),
            Some(FinalState::Outcome(_)) => return Ok(AdmissionDecision::OutcomeStored.into()),
            Some(FinalState::Tombstone(Some(_))) => return Ok(AdmissionDecision::Forgotten.into()),
            // No outcome was delivered, so the message is admitted: once the log has it, a worker
            // appends the cancelled outcome. The message is not recorded as pending, because its
            // content was forgotten.
            Some(FinalState::Tombstone(None)) => return Ok(new),
            None => {}
        }
        if !self.is_pending(&message.message_id, context) {
            let mut batch = Batch::default();
            if let Some(limit) = self.check_limits(&mut batch, &message.conversation, context)? {
                return Ok(AdmissionDecision::Refused(limit).into());
            }
            self.put_pending(&mut batch, message, content, context);
            context.store.commit(batch)?;
        }
        Ok(new)
    }

    pub(in crate::fanout::embedded) fn accept(
        &mut self,
        message: &MessageId,
        frame: &str,
        context: &StoreContext<'_>,
    ) -> Result<()> {
        if self.final_state(message, context)?.is_none() {
            self.publish(Channel::Live, frame);
        }
        Ok(())
    }

    pub(in crate::fanout::embedded) fn cancel(
        &mut self,
        message: &MessageId,
        context: &StoreContext<'_>,
    ) -> Result<CancelResult> {
        if self.final_state(message, context)?.is_some() {
            return Ok(CancelResult::AlreadyDone);
        }
        if !self.is_cancelled(message, context) {
            self.mark_cancelled(message, context)?;
        }
        self.publish_cancel(message);
        let is_pending_or_in_flight =
            self.is_pending(message, context) || self.in_flight(message, context).is_some();
        Ok(if is_pending_or_in_flight {
            CancelResult::Cancelling
        } else {
            CancelResult::Unknown
        })
    }
}
