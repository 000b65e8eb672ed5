//! A message on its way from the gateway to its outcome: `admit`, `begin`, `live`, `keep`,
//! `cancel`. The order of the checks in each is the contract's (protocol.md section 3).

use std::sync::Arc;

use super::end::End;
use super::history::Told;
use super::keys;
use super::user::{Flight, UserState, millis};
use super::users::World;
use crate::fanout::{
    Admission, Admitted, Begin, Begun, CancelResult, Channel, Ending, Grown, Keep, Kept, LEASE,
    Live, LiveReply, Outcome, Recall, Result, Subject,
};
use crate::protocol::ids::MessageId;
use crate::store::{Batch, Table};

impl UserState {
    pub(super) fn admit(
        &mut self,
        subject: &Subject,
        content: &str,
        world: &World<'_>,
    ) -> Result<Admission> {
        let new = Admission {
            admitted: Admitted::New,
            watchers: self.watchers(),
        };
        match self.end(&subject.message_id, world)? {
            Some(End::Outcome(Outcome {
                frame,
                delivered: Some(position),
            })) => return Ok(Admitted::Delivered(frame, position).into()),
            Some(End::Outcome(_)) => return Ok(Admitted::Kept.into()),
            Some(End::Forgotten(Some(_))) => return Ok(Admitted::Forgotten.into()),
            // Nobody has been told yet: a worker will say that it is cancelled, once the log has
            // it. What was written is not noted again.
            Some(End::Forgotten(None)) => return Ok(new),
            None => {}
        }
        if !self.is_pending(&subject.message_id, world) {
            let mut batch = Batch::default();
            if let Some(limit) = self.over_limit(&mut batch, &subject.conversation, world)? {
                return Ok(Admitted::Refused(limit).into());
            }
            self.put_pending(&mut batch, subject, content, world);
            world.store.commit(batch)?;
        }
        Ok(new)
    }

    pub(super) fn accept(
        &mut self,
        message: &MessageId,
        frame: &str,
        world: &World<'_>,
    ) -> Result<()> {
        if self.end(message, world)?.is_none() {
            self.publish(Channel::Live, frame);
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, call: Begin, world: &World<'_>) -> Result<Begun> {
        let message = &call.subject.message_id;
        match self.end(message, world)? {
            Some(End::Outcome(outcome)) => return Ok(Begun::Ended(outcome)),
            Some(End::Forgotten(delivered)) => {
                let frame = call.cancelled.make().frame;
                return Ok(Begun::Ended(Outcome { frame, delivered }));
            }
            None => {}
        }
        if self.is_marked(message, world) {
            let (outcome, _) =
                self.store_outcome(&call.subject, call.cancelled.make(), 0, world)?;
            return Ok(Begun::Ended(outcome));
        }
        let number = match self.flight(message, world) {
            Some(flight) if flight.owner == call.owner && flight.attempt > call.had => {
                let number = flight.attempt;
                let taking = flight.owners.len() as u32;
                self.renew(message, world);
                return self.begun(number, taking, &call.subject, call.recall.as_ref(), world);
            }
            Some(flight) if flight.owner != call.owner && flight.lease_until_ms > world.now_ms => {
                let left = flight.lease_until_ms - world.now_ms;
                return Ok(Begun::Busy(std::time::Duration::from_millis(left as u64)));
            }
            Some(flight) => flight.attempt.max(call.had) + 1,
            None => call.had + 1,
        };
        let mut owners = match self.flights.remove(message) {
            Some(flight) => flight.owners,
            None => Vec::new(),
        };
        if !owners.contains(&call.owner) {
            owners.push(call.owner.clone());
        }
        let taking = owners.len() as u32;
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
                owners,
            },
        );
        self.renew(message, world);
        if number > 1 {
            self.publish_live(&call.subject, number, None);
        }
        self.begun(number, taking, &call.subject, call.recall.as_ref(), world)
    }

    fn begun(
        &mut self,
        number: u32,
        taking: u32,
        subject: &Subject,
        recall: Option<&Recall>,
        world: &World<'_>,
    ) -> Result<Begun> {
        let history = recall.map(|recall| self.recall(&subject.conversation, recall, world));
        Ok(Begun::Attempt {
            number,
            now_ms: world.now_ms,
            taking,
            history: history.transpose()?,
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
        if let Some((true, ..)) = known {
            return Ok(LiveReply::Fenced);
        }
        if known.is_none() {
            match self.end(message, world)? {
                Some(End::Forgotten(None)) => return Ok(LiveReply::Cancelled),
                Some(_) => return Ok(LiveReply::Fenced),
                None => {}
            }
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
        if known.is_none_or(|(ended, _)| ended) {
            match self.end(message, world)? {
                Some(End::Outcome(outcome)) => return Ok(Kept::Outcome(outcome)),
                Some(End::Forgotten(delivered)) => {
                    let frame = call.cancelled.make().frame;
                    return Ok(Kept::Outcome(Outcome { frame, delivered }));
                }
                None => {}
            }
        }
        if known.is_some_and(|(_, owns)| !owns) {
            return Ok(Kept::Fenced);
        }
        let tokens = match world.bounds.limits.daily_tokens {
            0 => 0,
            _ => call.ending.tokens(),
        };
        let is_marked = self.is_marked(message, world);
        let ending = if is_marked {
            call.cancelled.make()
        } else {
            Arc::unwrap_or_clone(call.ending)
        };
        let (outcome, grown) = self.store_outcome(&call.subject, ending, tokens, world)?;
        Ok(match grown {
            Some(grown) if !is_marked => Kept::Grown(outcome, grown),
            _ => Kept::Outcome(outcome),
        })
    }

    /// Stores how a message ends, and its turn. Returns without waiting for the disk: commits
    /// survive in their order, and what is done with the outcome (its record is appended, an
    /// offset stored) is committed to the same store later. So a machine that dies loses the
    /// outcome only together with everything that came of it.
    fn store_outcome(
        &mut self,
        subject: &Subject,
        ending: Ending,
        tokens: u64,
        world: &World<'_>,
    ) -> Result<(Outcome, Option<Grown>)> {
        let message = &subject.message_id;
        let Ending { frame, turn } = ending;
        let mut batch = Batch::default();
        self.count_tokens(&mut batch, tokens, world)?;
        let conversation = Some(&subject.conversation);
        self.put_outcome(&mut batch, message, conversation, None, &frame, world);
        let grown = self.put_turn(
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
        let outcome = Outcome {
            frame,
            delivered: None,
        };
        Ok((outcome, grown))
    }

    pub(super) fn cancel(
        &mut self,
        message: &MessageId,
        world: &World<'_>,
    ) -> Result<CancelResult> {
        if self.end(message, world)?.is_some() {
            return Ok(CancelResult::AlreadyDone);
        }
        if !self.is_marked(message, world) {
            let mut batch = Batch::default();
            let key = keys::mark(&self.user, message);
            batch.put(Table::Users, key, world.now_ms.to_be_bytes());
            world.store.commit(batch)?;
            self.marks.insert(message.clone(), world.now_ms);
        }
        self.publish_cancel(message);
        let known = self.is_pending(message, world) || self.flight(message, world).is_some();
        Ok(if known {
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
