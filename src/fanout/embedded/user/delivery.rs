//! The call `deliver` on a user's state: delivers a terminal record into the mailbox and publishes
//! its frame.

use super::UserState;
use super::final_state::FinalState;
use super::history::TurnContent;
use super::mailbox::{Mailbox, StoredFrame};
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::{Channel, DeliverRequest, DeliverResponse, Result};
use crate::store::Batch;

/// The channel on which the terminal frame is published. In a rewind that is the live channel,
/// because classic clients would receive old answers again on the terminal channel: they can't
/// filter frames by position.
fn channel(call: &DeliverRequest) -> Channel {
    if call.is_rewind {
        Channel::Live
    } else {
        Channel::Terminal
    }
}

impl UserState {
    pub(in crate::fanout::embedded) fn deliver(
        &mut self,
        call: &DeliverRequest,
        context: &StoreContext<'_>,
    ) -> Result<DeliverResponse> {
        let position = &call.position;
        self.drop_unused_mailbox(context)?;
        let mailbox = self.mailbox.as_ref();
        let end = mailbox.and_then(|mailbox| mailbox.end_in(&position.epoch));
        // A known end in another epoch is ignored, because positions of two epochs can't be
        // compared.
        let known_end = call.known_end.as_ref();
        if known_end.is_some_and(|known| known.epoch == position.epoch && end < Some(known.offset))
        {
            return Ok(DeliverResponse::DataLost);
        }
        if end.is_some_and(|end| position.offset <= end) {
            self.clear_pending(&call.message_id, context)?;
            return Ok(DeliverResponse::AlreadyDelivered);
        }

        self.prepare_mailbox(call, context)?;
        let mut batch = Batch::default();
        self.remove_pending(&mut batch, &call.message_id);
        let state = self.final_state(&call.message_id, context)?;
        let is_forgotten = matches!(state, Some(FinalState::Tombstone(_)));
        let is_delivered_at_other_position = state
            .and_then(FinalState::delivered_at)
            .is_some_and(|delivered_at| delivered_at != *position);
        if is_delivered_at_other_position {
            // Another record of the message was delivered, so this record is not. The mailbox's end
            // advances all the same, because the relay passes this position as the known end next.
            self.advance_mailbox(&mut batch, call, context);
            context.store.commit(batch)?;
            return Ok(DeliverResponse::AlreadyDelivered);
        }
        if is_forgotten {
            // The terminal frame of a forgotten message is published once and not stored.
            self.advance_mailbox(&mut batch, call, context);
            self.put_tombstone(&mut batch, &call.message_id, Some(position), context);
        } else {
            self.append_frame(&mut batch, call, context)?;
        }
        // The call does not wait until the commit is on the disk. The relay's offset is committed
        // to the same store later, and commits survive in their order. If this commit is lost, the
        // offset is lost too, and the relay reads the record again.
        context.store.commit(batch)?;
        self.in_flight.remove(&call.message_id);
        Ok(DeliverResponse::Published(
            self.publish(channel(call), &call.frame),
        ))
    }

    /// Prepares the mailbox for a record: creates it, or replaces it with an empty mailbox if its
    /// end is in another epoch than the record.
    fn prepare_mailbox(&mut self, call: &DeliverRequest, context: &StoreContext<'_>) -> Result<()> {
        let epoch = &call.position.epoch;
        let Some(mailbox) = &mut self.mailbox else {
            self.mailbox = Some(Mailbox::empty(None, context.now_ms));
            return Ok(());
        };
        if mailbox
            .last_position
            .as_ref()
            .is_some_and(|last| last.epoch != *epoch)
        {
            let successor = mailbox.successor_in(epoch, call.is_rewind, context.now_ms);
            self.drop_mailbox(context)?;
            self.mailbox = Some(successor);
        } else if !call.is_rewind {
            mailbox.validate_positions_from(call.position.offset);
        }
        Ok(())
    }

    /// Advances the mailbox's end to the record without storing its frame.
    fn advance_mailbox(
        &mut self,
        batch: &mut Batch,
        call: &DeliverRequest,
        context: &StoreContext<'_>,
    ) {
        if let Some(mailbox) = &mut self.mailbox {
            mailbox.advance_end(&call.position, context);
            mailbox.put(batch, &self.user);
        }
    }

    /// Stores the frame in the mailbox and as the message's outcome, and the answer in the history.
    fn append_frame(
        &mut self,
        batch: &mut Batch,
        call: &DeliverRequest,
        context: &StoreContext<'_>,
    ) -> Result<()> {
        let (message, position) = (&call.message_id, &call.position);
        let conversation = call.conversation.as_ref();
        if let Some(mailbox) = &mut self.mailbox {
            let frame = StoredFrame {
                at_ms: context.now_ms,
                message: message.clone(),
                conversation: conversation.cloned(),
                json: &call.frame,
            };
            mailbox.append(batch, &self.user, position, &frame, context)?;
            if call.is_rewind {
                mailbox.rebuilt_up_to = Some(position.offset);
            }
            mailbox.put(batch, &self.user);
        }
        self.put_outcome(
            batch,
            message,
            conversation,
            Some(position),
            &call.frame,
            context,
        );
        let Some(conversation) = conversation else {
            return Ok(());
        };
        let is_turn_stored = self.in_flight.get(message).is_some_and(|answer| {
            answer.conversation == *conversation && answer.has_stored_turn_of(call)
        });
        if !is_turn_stored {
            let content = TurnContent {
                question: None,
                answer: &call.answer,
                parts: call.parts.as_ref(),
                status: call.status,
            };
            self.put_turn(batch, conversation, message, &content, context)?;
        }
        Ok(())
    }
}
