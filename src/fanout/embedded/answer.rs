//! A message on its way from the gateway to its outcome: `admit`, `begin`, `live`, `keep`,
//! `cancel`. The order of the checks in each is the contract's (protocol.md section 3).

use super::history::Told;
use super::keys;
use super::user::{Flight, UserState, millis};
use super::users::World;
use crate::fanout::{
    Admitted, Begin, Begun, CancelResult, Ending, Keep, Kept, LEASE, Live, LiveReply, Outcome,
    Result, Subject,
};
use crate::protocol::ids::MessageId;
use crate::store::{Batch, Table};

impl UserState {
    pub(super) fn admit(
        &mut self,
        subject: &Subject,
        content: &str,
        world: &World<'_>,
    ) -> Result<Admitted> {
        match self.outcome(&subject.message_id, world)? {
            Some(Outcome {
                frame,
                delivered: Some(position),
            }) => return Ok(Admitted::Delivered(frame, position)),
            Some(_) => return Ok(Admitted::Kept),
            None => {}
        }
        if !self.is_pending(&subject.message_id, world) {
            let mut batch = Batch::default();
            self.put_pending(&mut batch, subject, content, world);
            world.store.commit(batch)?;
        }
        Ok(Admitted::New)
    }

    pub(super) fn begin(&mut self, call: Begin, world: &World<'_>) -> Result<Begun> {
        let message = &call.subject.message_id;
        if let Some(outcome) = self.outcome(message, world)? {
            return Ok(Begun::Ended(outcome));
        }
        if self.is_marked(message, world) {
            let outcome = self.store_outcome(&call.subject, call.cancelled, world)?;
            return Ok(Begun::Ended(outcome));
        }
        let number = match self.flight(message, world) {
            Some(flight) if flight.owner == call.owner && flight.attempt > call.had => {
                let number = flight.attempt;
                self.renew(message, world);
                return Ok(Begun::Attempt {
                    number,
                    now_ms: world.now_ms,
                });
            }
            Some(flight) if flight.owner != call.owner && flight.lease_until_ms > world.now_ms => {
                let left = flight.lease_until_ms - world.now_ms;
                return Ok(Begun::Busy(std::time::Duration::from_millis(left as u64)));
            }
            Some(flight) => flight.attempt.max(call.had) + 1,
            None => call.had + 1,
        };
        self.flights.insert(
            message.clone(),
            Flight {
                id: call.subject.id.clone(),
                conversation: call.subject.conversation.clone(),
                owner: call.owner,
                attempt: number,
                index: 0,
                text: String::new(),
                lease_until_ms: 0,
                touched_ms: world.now_ms,
                ended: false,
                told: None,
            },
        );
        self.renew(message, world);
        if number > 1 {
            self.publish_live(&call.subject, number, None);
        }
        Ok(Begun::Attempt {
            number,
            now_ms: world.now_ms,
        })
    }

    fn renew(&mut self, message: &MessageId, world: &World<'_>) {
        if let Some(flight) = self.flights.get_mut(message) {
            flight.touched_ms = world.now_ms;
            flight.lease_until_ms = world.now_ms.saturating_add(millis(LEASE));
        }
    }

    pub(super) fn live(&mut self, call: &Live, world: &World<'_>) -> Result<LiveReply> {
        let message = &call.subject.message_id;
        let known = self.flight(message, world).map(|flight| {
            (
                flight.ended,
                flight.index,
                flight.belongs_to(&call.owner, call.attempt),
            )
        });
        // Every outcome passes through this state, so where an answer is in flight, it knows.
        let ended = match known {
            Some((ended, ..)) => ended,
            None => self.outcome(message, world)?.is_some(),
        };
        if ended {
            return Ok(LiveReply::Fenced);
        }
        if self.is_marked(message, world) {
            return Ok(LiveReply::Cancelled);
        }
        let Some((_, next, owns)) = known else {
            return Ok(LiveReply::Lost);
        };
        if !owns {
            return Ok(LiveReply::Fenced);
        }
        self.renew(message, world);
        let Some((index, content)) = &call.delta else {
            return Ok(LiveReply::Written);
        };
        if *index != next {
            return Ok(LiveReply::Expected(next));
        }
        if let Some(flight) = self.flights.get_mut(message) {
            flight.text.push_str(content);
            flight.index += 1;
        }
        self.publish_live(&call.subject, call.attempt, Some((*index, content)));
        Ok(LiveReply::Written)
    }

    pub(super) fn keep(&mut self, call: Keep, world: &World<'_>) -> Result<Kept> {
        let message = &call.subject.message_id;
        let known = self
            .flight(message, world)
            .map(|flight| (flight.ended, flight.belongs_to(&call.owner, call.attempt)));
        if known.is_none_or(|(ended, _)| ended)
            && let Some(outcome) = self.outcome(message, world)?
        {
            return Ok(Kept::Outcome(outcome));
        }
        if known.is_some_and(|(_, owns)| !owns) {
            return Ok(Kept::Fenced);
        }
        let ending = if self.is_marked(message, world) {
            call.cancelled
        } else {
            call.ending
        };
        self.store_outcome(&call.subject, ending, world)
            .map(Kept::Outcome)
    }

    /// Stores how a message ends, and its turn. Returns without waiting for the disk: commits
    /// survive in their order, and what is done with the outcome (its record is appended, an
    /// offset stored) is committed to the same store later. So a machine that dies loses the
    /// outcome only together with everything that came of it.
    fn store_outcome(
        &mut self,
        subject: &Subject,
        ending: Ending,
        world: &World<'_>,
    ) -> Result<Outcome> {
        let message = &subject.message_id;
        let Ending { frame, turn } = ending;
        let mut batch = Batch::default();
        self.put_outcome(&mut batch, message, None, &frame, world);
        self.put_turn(
            &mut batch,
            &subject.conversation,
            message,
            &Told {
                question: turn.question.as_deref(),
                answer: &turn.answer,
                status: turn.status,
            },
            world,
        )?;
        world.store.commit(batch)?;
        if let Some(flight) = self.flights.get_mut(message) {
            flight.ended = true;
            flight.told = Some((turn.answer, turn.status));
        }
        Ok(Outcome {
            frame,
            delivered: None,
        })
    }

    pub(super) fn cancel(
        &mut self,
        message: &MessageId,
        world: &World<'_>,
    ) -> Result<CancelResult> {
        if self.outcome(message, world)?.is_some() {
            return Ok(CancelResult::AlreadyDone);
        }
        // The mark is what stops the owner: the next `live`, at most a second away, says so.
        if !self.is_marked(message, world) {
            let mut batch = Batch::default();
            let key = keys::mark(&self.user, message);
            batch.put(Table::Users, key, world.now_ms.to_be_bytes());
            world.store.commit(batch)?;
            self.marks.insert(message.clone(), world.now_ms);
        }
        Ok(if self.is_pending(message, world) {
            CancelResult::Cancelling
        } else {
            CancelResult::Unknown
        })
    }

    /// Beside an original relay: the message's answer was seen.
    pub(super) fn clear_pending(&mut self, message: &MessageId, world: &World<'_>) -> Result<()> {
        let mut batch = Batch::default();
        self.remove_pending(&mut batch, message);
        if !batch.is_empty() {
            world.store.commit(batch)?;
        }
        Ok(())
    }
}
