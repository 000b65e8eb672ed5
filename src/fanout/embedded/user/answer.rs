//! The calls `begin` and `keep` on a user's state: lease and outcome of an answer.
//! `docs/consistency.md` specifies the order of their checks.

use std::sync::Arc;
use std::time::Duration;

use super::UserState;
use super::final_state::FinalState;
use super::history::TurnContent;
use super::stream::StreamParts;
use crate::fanout::embedded::context::{StoreContext, millis};
use crate::fanout::{
    BeginRequest, BeginResponse, DeliverRequest, HistoryRequest, KeepRequest, KeepResponse, LEASE,
    MessageRef, NewOutcome, Owner, Result, StoredOutcome, Turn, TurnAppend,
};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId};
use crate::protocol::open_message::InFlightAnswer;
use crate::store::Batch;

/// An answer that a worker is generating, or whose outcome was not delivered yet.
#[derive(Debug)]
pub(super) struct AnswerInFlight {
    /// The id that the client chose for the message.
    pub(super) client_id: Option<ClientMessageId>,
    pub(super) conversation: ConversationId,
    /// The worker that has or last had the lease.
    pub(super) owner: Owner,
    pub(super) attempt: u32,
    /// The parts of the attempt's stream so far.
    pub(super) stream: StreamParts,
    pub(super) lease_until_ms: i64,
    /// When the lease was last renewed. The answer expires `pending_ttl` after that.
    pub(super) lease_renewed_ms: i64,
    /// Whether the message has an outcome. The answer stays in flight until the outcome is
    /// delivered, so that clients that connect before the delivery still get a snapshot.
    pub(super) has_outcome: bool,
    /// The turn that was stored with the outcome, without its question.
    pub(super) stored_turn: Option<Turn>,
    /// All owners that have begun the message; their number is the delivery count.
    pub(super) owners: Vec<Owner>,
}

impl AnswerInFlight {
    /// Whether this attempt of this owner is the current one.
    pub(super) fn is_owned_by(&self, owner: &Owner, attempt: u32) -> bool {
        self.owner == *owner && self.attempt == attempt
    }

    /// Whether the turn that was stored with the outcome has the answer, the parts and the status
    /// of this delivery, so that the turn does not have to be written again.
    pub(super) fn has_stored_turn_of(&self, call: &DeliverRequest) -> bool {
        self.stored_turn.as_ref().is_some_and(|turn| {
            turn.answer == call.answer && turn.parts == call.parts && turn.status == call.status
        })
    }
}

impl UserState {
    /// The answer in flight to a message; `None` if there is none or it has expired.
    pub(super) fn in_flight(
        &self,
        message: &MessageId,
        context: &StoreContext<'_>,
    ) -> Option<&AnswerInFlight> {
        let ttl = context.bounds.pending_ttl;
        self.in_flight
            .get(message)
            .filter(|answer| !context.is_expired(answer.lease_renewed_ms, ttl))
    }

    /// All answers in flight that have not expired, sorted by message id.
    pub(super) fn in_flight_answers(&self, context: &StoreContext<'_>) -> Vec<InFlightAnswer> {
        let ttl = context.bounds.pending_ttl;
        let mut answers: Vec<_> = self
            .in_flight
            .iter()
            .filter(|(_, answer)| !context.is_expired(answer.lease_renewed_ms, ttl))
            .map(|(message_id, answer)| InFlightAnswer {
                message_id: message_id.clone(),
                id: answer.client_id.clone(),
                conversation: answer.conversation.clone(),
                attempt: answer.attempt,
                stream: answer.owner.stream(answer.attempt),
                parts: answer.stream.as_slice().to_vec(),
            })
            .collect();
        answers.sort_by(|left, right| left.message_id.cmp(&right.message_id));
        answers
    }

    pub(in crate::fanout::embedded) fn begin(
        &mut self,
        call: BeginRequest,
        context: &StoreContext<'_>,
    ) -> Result<BeginResponse> {
        let message = &call.message.message_id;
        match self.final_state(message, context)? {
            Some(FinalState::Outcome(outcome)) => return Ok(BeginResponse::Ended(outcome)),
            Some(FinalState::Tombstone(delivered_at)) => {
                let frame = call.cancelled_outcome.build().frame;
                return Ok(BeginResponse::Ended(StoredOutcome {
                    frame,
                    delivered_at,
                }));
            }
            None => {}
        }
        if self.is_cancelled(message, context) {
            let (outcome, _) =
                self.store_outcome(&call.message, call.cancelled_outcome.build(), 0, context)?;
            return Ok(BeginResponse::Ended(outcome));
        }
        let number = match self.in_flight(message, context) {
            Some(answer) if answer.owner == call.owner && answer.attempt > call.last_attempt => {
                // This call is a repeat, so the attempt and the parts that were opened since stay.
                let number = answer.attempt;
                self.renew_lease(message, context);
                return self.attempt_response(
                    number,
                    &call.message,
                    call.history.as_ref(),
                    context,
                );
            }
            Some(answer)
                if answer.owner != call.owner && answer.lease_until_ms > context.now_ms =>
            {
                let remaining_ms = answer.lease_until_ms - context.now_ms;
                return Ok(BeginResponse::Busy(Duration::from_millis(
                    remaining_ms as u64,
                )));
            }
            Some(answer) => answer.attempt.max(call.last_attempt) + 1,
            None => call.last_attempt + 1,
        };
        self.start_attempt(number, &call, context);
        if number > 1 {
            self.publish_restarted(&call.message, &call.owner, number);
        }
        self.attempt_response(number, &call.message, call.history.as_ref(), context)
    }

    /// Replaces the answer in flight with an answer with this attempt number, the caller as owner
    /// and no parts.
    fn start_attempt(&mut self, number: u32, call: &BeginRequest, context: &StoreContext<'_>) {
        let message = &call.message.message_id;
        let previous = self.in_flight.remove(message);
        let mut owners = previous.map_or_else(Vec::new, |previous| previous.owners);
        if !owners.contains(&call.owner) {
            owners.push(call.owner.clone());
        }
        self.in_flight.insert(
            message.clone(),
            AnswerInFlight {
                client_id: call.message.id.clone(),
                conversation: call.message.conversation.clone(),
                owner: call.owner.clone(),
                attempt: number,
                stream: StreamParts::default(),
                lease_until_ms: 0,
                lease_renewed_ms: context.now_ms,
                has_outcome: false,
                stored_turn: None,
                owners,
            },
        );
        self.renew_lease(message, context);
    }

    /// The response with an attempt, and with the history if the caller requested it.
    fn attempt_response(
        &mut self,
        number: u32,
        message: &MessageRef,
        request: Option<&HistoryRequest>,
        context: &StoreContext<'_>,
    ) -> Result<BeginResponse> {
        let answer = self.in_flight.get(&message.message_id);
        let delivery_count = answer.map_or(1, |answer| answer.owners.len() as u32);
        let history = request
            .map(|request| self.requested_history(&message.conversation, request, context))
            .transpose()?;
        Ok(BeginResponse::Attempt {
            number,
            now_ms: context.now_ms,
            delivery_count,
            history,
        })
    }

    pub(super) fn renew_lease(&mut self, message: &MessageId, context: &StoreContext<'_>) {
        if let Some(answer) = self.in_flight.get_mut(message) {
            answer.lease_renewed_ms = context.now_ms;
            answer.lease_until_ms = context.now_ms.saturating_add(millis(LEASE));
        }
    }

    pub(in crate::fanout::embedded) fn keep(
        &mut self,
        call: KeepRequest,
        context: &StoreContext<'_>,
    ) -> Result<KeepResponse> {
        let message = &call.message.message_id;
        let in_flight = self.in_flight(message, context).map(|answer| {
            (
                answer.has_outcome,
                answer.is_owned_by(&call.owner, call.attempt),
            )
        });
        if in_flight.is_none_or(|(has_outcome, _)| has_outcome) {
            match self.final_state(message, context)? {
                Some(FinalState::Outcome(outcome)) => return Ok(KeepResponse::Outcome(outcome)),
                Some(FinalState::Tombstone(delivered_at)) => {
                    let frame = call.cancelled_outcome.build().frame;
                    return Ok(KeepResponse::Outcome(StoredOutcome {
                        frame,
                        delivered_at,
                    }));
                }
                None => {}
            }
        }
        if in_flight.is_some_and(|(_, is_owner)| !is_owner) {
            return Ok(KeepResponse::Fenced);
        }
        let tokens = match context.bounds.limits.daily_tokens {
            0 => 0,
            _ => call.outcome.tokens(),
        };
        let is_cancelled = self.is_cancelled(message, context);
        let outcome = if is_cancelled {
            call.cancelled_outcome.build()
        } else {
            Arc::unwrap_or_clone(call.outcome)
        };
        let (outcome, appended) = self.store_outcome(&call.message, outcome, tokens, context)?;
        Ok(match appended {
            Some(appended) if !is_cancelled => KeepResponse::Appended(outcome, appended),
            _ => KeepResponse::Outcome(outcome),
        })
    }

    /// Stores a message's outcome and its turn. Returns the append of the turn, if it is the only
    /// change to the history.
    ///
    /// Returns without waiting until the commit is on the disk. Commits survive in their order, and
    /// everything that follows from the outcome (its record is appended, an offset is stored) is
    /// committed to the same store later. A machine that dies therefore loses the outcome only
    /// together with all its consequences.
    fn store_outcome(
        &mut self,
        message: &MessageRef,
        outcome: NewOutcome,
        tokens: u64,
        context: &StoreContext<'_>,
    ) -> Result<(StoredOutcome, Option<TurnAppend>)> {
        let message_id = &message.message_id;
        let conversation = &message.conversation;
        let NewOutcome { frame, turn } = outcome;
        let mut batch = Batch::default();
        self.count_tokens(&mut batch, tokens, context)?;
        self.put_outcome(
            &mut batch,
            message_id,
            Some(conversation),
            None,
            &frame,
            context,
        );
        let content = TurnContent {
            question: turn.question.as_deref(),
            answer: &turn.answer,
            parts: turn.parts.as_ref(),
            status: turn.status,
        };
        let appended = self.put_turn(&mut batch, conversation, message_id, &content, context)?;
        context.store.commit(batch)?;
        if let Some(answer) = self.in_flight.get_mut(message_id) {
            answer.has_outcome = true;
            answer.stored_turn = Some(Turn {
                question: None,
                ..turn
            });
        }
        let outcome = StoredOutcome {
            frame,
            delivered_at: None,
        };
        Ok((outcome, appended))
    }
}
