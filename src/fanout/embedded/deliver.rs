//! A terminal record comes to its user.

use super::end::End;
use super::history::Told;
use super::mailbox::{Mailbox, StoredFrame};
use super::user::UserState;
use super::users::World;
use crate::fanout::{Channel, DeliverRequest, DeliverResponse, Result};
use crate::store::Batch;

impl UserState {
    pub(super) fn deliver(
        &mut self,
        call: &DeliverRequest,
        world: &World<'_>,
    ) -> Result<DeliverResponse> {
        let position = &call.position;
        self.drop_unused_mailbox(world)?;
        let mut batch = Batch::default();
        let mailbox = self.mailbox.as_ref();
        let last = mailbox.and_then(|one| one.end_in(&position.epoch));
        // What is known of another epoch says nothing about this one.
        let known = call.known_end.as_ref();
        if known.is_some_and(|known| known.epoch == position.epoch && last < Some(known.offset)) {
            return Ok(DeliverResponse::DataLost);
        }
        if last.is_some_and(|last| position.offset <= last) {
            self.clear_pending(&call.message_id, world)?;
            return Ok(DeliverResponse::AlreadyDelivered);
        }

        let current = mailbox.and_then(|one| one.last.as_ref());
        if current.is_some_and(|last| last.epoch != position.epoch) {
            let moved = self
                .mailbox
                .as_mut()
                .map(|one| one.moved(&position.epoch, call.is_rewind, world.now_ms));
            self.drop_mailbox(world)?;
            self.mailbox = moved;
        } else if let Some(mailbox) = &mut self.mailbox
            && !call.is_rewind
        {
            mailbox.comes_new(position.offset);
        }
        self.remove_pending(&mut batch, &call.message_id);
        let end = self.end(&call.message_id, world)?;
        let forgotten = matches!(end, Some(End::Forgotten(_)));
        let elsewhere = end
            .and_then(End::delivered)
            .is_some_and(|at| at != *position);
        let mailbox = self
            .mailbox
            .get_or_insert_with(|| Mailbox::empty(None, world.now_ms));
        if elsewhere {
            // The client has had this answer. The end moves all the same, for the relay names
            // this position as known next.
            mailbox.pass(position, world);
            mailbox.put(&mut batch, &self.user);
            world.store.commit(batch)?;
            return Ok(DeliverResponse::AlreadyDelivered);
        }
        let channel = if call.is_rewind {
            Channel::Live
        } else {
            Channel::Terminal
        };
        if forgotten {
            // Its end is still told, once, and nothing of it is kept.
            mailbox.pass(position, world);
            mailbox.put(&mut batch, &self.user);
            self.put_forgotten(&mut batch, &call.message_id, Some(position), world);
            world.store.commit(batch)?;
            self.flights.remove(&call.message_id);
            return Ok(DeliverResponse::Published(
                self.publish(channel, &call.frame),
            ));
        }
        let stored = StoredFrame {
            at_ms: world.now_ms,
            message: call.message_id.clone(),
            conversation: call.conversation.clone(),
            json: &call.frame,
        };
        mailbox.push(&mut batch, &self.user, position, &stored, world)?;
        if call.is_rewind {
            mailbox.rebuilt = Some(position.offset);
        }
        mailbox.put(&mut batch, &self.user);
        self.put_outcome(
            &mut batch,
            &call.message_id,
            call.conversation.as_ref(),
            Some(position),
            &call.frame,
            world,
        );
        if let Some(conversation) = &call.conversation {
            let told = self.flights.get(&call.message_id).is_some_and(|flight| {
                flight.conversation == *conversation
                    && flight.told.as_ref().is_some_and(|(answer, status)| {
                        *answer == call.answer && *status == call.status
                    })
            });
            if !told {
                self.put_turn(
                    &mut batch,
                    conversation,
                    &call.message_id,
                    &Told {
                        question: None,
                        answer: &call.answer,
                        status: call.status,
                    },
                    world,
                )?;
            }
        }
        // No wait for the disk: the relay's offset is committed to the same store after this, so
        // what survives of the two is in that order, and an offset that did not survive brings
        // the record again.
        world.store.commit(batch)?;
        self.flights.remove(&call.message_id);
        Ok(DeliverResponse::Published(
            self.publish(channel, &call.frame),
        ))
    }
}
