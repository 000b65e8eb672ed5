//! A message on its way from the gateway to its outcome: `admit`, `begin`, `live`, `keep`,
//! `cancel`. The order of the checks in each is the contract's (protocol.md section 3).

use std::sync::Arc;

use super::end::End;
use super::history::Told;
use super::keys;
use super::user::{Flight, UserState, millis};
use super::users::World;
use crate::fanout::{
    Admission, AdmissionDecision, Appended, BeginRequest, BeginResponse, Channel, HistoryRequest,
    KeepRequest, KeepResponse, LEASE, LiveRequest, LiveResponse, MessageRef, NewOutcome, Result,
    StoredOutcome,
};
use crate::protocol::ids::MessageId;
use crate::protocol::open_message::CancelResult;
use crate::store::{Batch, Table};

impl UserState {
    pub(super) fn admit(
        &mut self,
        subject: &MessageRef,
        content: &str,
        world: &World<'_>,
    ) -> Result<Admission> {
        let new = Admission {
            decision: AdmissionDecision::New,
            live_subscribers: self.live_subscribers(),
        };
        match self.end(&subject.message_id, world)? {
            Some(End::Outcome(StoredOutcome {
                frame,
                delivered_at: Some(position),
            })) => return Ok(AdmissionDecision::Delivered(frame, position).into()),
            Some(End::Outcome(_)) => return Ok(AdmissionDecision::OutcomeStored.into()),
            Some(End::Forgotten(Some(_))) => return Ok(AdmissionDecision::Forgotten.into()),
            // Nobody has been told yet: a worker will say that it is cancelled, once the log has
            // it. What was written is not noted again.
            Some(End::Forgotten(None)) => return Ok(new),
            None => {}
        }
        if !self.is_pending(&subject.message_id, world) {
            let mut batch = Batch::default();
            if let Some(limit) = self.over_limit(&mut batch, &subject.conversation, world)? {
                return Ok(AdmissionDecision::Refused(limit).into());
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

    pub(super) fn begin(&mut self, call: BeginRequest, world: &World<'_>) -> Result<BeginResponse> {
        let message = &call.message.message_id;
        match self.end(message, world)? {
            Some(End::Outcome(outcome)) => return Ok(BeginResponse::Ended(outcome)),
            Some(End::Forgotten(delivered)) => {
                let frame = call.cancelled_outcome.make().frame;
                return Ok(BeginResponse::Ended(StoredOutcome {
                    frame,
                    delivered_at: delivered,
                }));
            }
            None => {}
        }
        if self.is_marked(message, world) {
            let (outcome, _) =
                self.store_outcome(&call.message, call.cancelled_outcome.make(), 0, world)?;
            return Ok(BeginResponse::Ended(outcome));
        }
        let number = match self.flight(message, world) {
            Some(flight) if flight.owner == call.owner && flight.attempt > call.last_attempt => {
                let number = flight.attempt;
                let delivery_count = flight.owners.len() as u32;
                self.renew(message, world);
                return self.begun(
                    number,
                    delivery_count,
                    &call.message,
                    call.history.as_ref(),
                    world,
                );
            }
            Some(flight) if flight.owner != call.owner && flight.lease_until_ms > world.now_ms => {
                let left = flight.lease_until_ms - world.now_ms;
                return Ok(BeginResponse::Busy(std::time::Duration::from_millis(
                    left as u64,
                )));
            }
            Some(flight) => flight.attempt.max(call.last_attempt) + 1,
            None => call.last_attempt + 1,
        };
        let mut owners = match self.flights.remove(message) {
            Some(flight) => flight.owners,
            None => Vec::new(),
        };
        if !owners.contains(&call.owner) {
            owners.push(call.owner.clone());
        }
        let delivery_count = owners.len() as u32;
        self.flights.insert(
            message.clone(),
            Flight {
                id: call.message.id.clone(),
                conversation: call.message.conversation.clone(),
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
            self.publish_live(&call.message, number, None);
        }
        self.begun(
            number,
            delivery_count,
            &call.message,
            call.history.as_ref(),
            world,
        )
    }

    fn begun(
        &mut self,
        number: u32,
        delivery_count: u32,
        subject: &MessageRef,
        recall: Option<&HistoryRequest>,
        world: &World<'_>,
    ) -> Result<BeginResponse> {
        let history = recall.map(|recall| self.recall(&subject.conversation, recall, world));
        Ok(BeginResponse::Attempt {
            number,
            now_ms: world.now_ms,
            delivery_count,
            history: history.transpose()?,
        })
    }

    fn renew(&mut self, message: &MessageId, world: &World<'_>) {
        if let Some(flight) = self.flights.get_mut(message) {
            flight.touched_ms = world.now_ms;
            flight.lease_until_ms = world.now_ms.saturating_add(millis(LEASE));
        }
    }

    pub(super) fn live(&mut self, call: &LiveRequest, world: &World<'_>) -> Result<LiveResponse> {
        let message = &call.message.message_id;
        let known = self.flight(message, world).map(|flight| {
            (
                flight.ended,
                flight.index,
                flight.belongs_to(&call.owner, call.attempt),
            )
        });
        // Every outcome passes through this state, so where an answer is in flight, it knows.
        if let Some((true, ..)) = known {
            return Ok(LiveResponse::Fenced);
        }
        if known.is_none() {
            match self.end(message, world)? {
                Some(End::Forgotten(None)) => return Ok(LiveResponse::Cancelled),
                Some(_) => return Ok(LiveResponse::Fenced),
                None => {}
            }
        }
        if self.is_marked(message, world) {
            return Ok(LiveResponse::Cancelled);
        }
        let Some((_, next, owns)) = known else {
            return Ok(LiveResponse::DataLost);
        };
        if !owns {
            return Ok(LiveResponse::Fenced);
        }
        self.renew(message, world);
        let Some((index, content)) = &call.delta else {
            return Ok(LiveResponse::Written);
        };
        if *index != next {
            return Ok(LiveResponse::Expected(next));
        }
        if let Some(flight) = self.flights.get_mut(message) {
            flight.text.push_str(content);
            flight.index += 1;
        }
        self.publish_live(&call.message, call.attempt, Some((*index, content)));
        Ok(LiveResponse::Written)
    }

    pub(super) fn keep(&mut self, call: KeepRequest, world: &World<'_>) -> Result<KeepResponse> {
        let message = &call.message.message_id;
        let known = self
            .flight(message, world)
            .map(|flight| (flight.ended, flight.belongs_to(&call.owner, call.attempt)));
        if known.is_none_or(|(ended, _)| ended) {
            match self.end(message, world)? {
                Some(End::Outcome(outcome)) => return Ok(KeepResponse::Outcome(outcome)),
                Some(End::Forgotten(delivered)) => {
                    let frame = call.cancelled_outcome.make().frame;
                    return Ok(KeepResponse::Outcome(StoredOutcome {
                        frame,
                        delivered_at: delivered,
                    }));
                }
                None => {}
            }
        }
        if known.is_some_and(|(_, owns)| !owns) {
            return Ok(KeepResponse::Fenced);
        }
        let tokens = match world.bounds.limits.daily_tokens {
            0 => 0,
            _ => call.outcome.tokens(),
        };
        let is_marked = self.is_marked(message, world);
        let ending = if is_marked {
            call.cancelled_outcome.make()
        } else {
            Arc::unwrap_or_clone(call.outcome)
        };
        let (outcome, appended) = self.store_outcome(&call.message, ending, tokens, world)?;
        Ok(match appended {
            Some(appended) if !is_marked => KeepResponse::Appended(outcome, appended),
            _ => KeepResponse::Outcome(outcome),
        })
    }

    /// Stores how a message ends, and its turn. Returns without waiting for the disk: commits
    /// survive in their order, and what is done with the outcome (its record is appended, an
    /// offset stored) is committed to the same store later. So a machine that dies loses the
    /// outcome only together with everything that came of it.
    fn store_outcome(
        &mut self,
        subject: &MessageRef,
        ending: NewOutcome,
        tokens: u64,
        world: &World<'_>,
    ) -> Result<(StoredOutcome, Option<Appended>)> {
        let message = &subject.message_id;
        let NewOutcome { frame, turn } = ending;
        let mut batch = Batch::default();
        self.count_tokens(&mut batch, tokens, world)?;
        let conversation = Some(&subject.conversation);
        self.put_outcome(&mut batch, message, conversation, None, &frame, world);
        let appended = self.put_turn(
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
        let outcome = StoredOutcome {
            frame,
            delivered_at: None,
        };
        Ok((outcome, appended))
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
