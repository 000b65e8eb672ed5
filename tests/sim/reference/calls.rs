//! The atomic calls of the fan-out (docs/consistency.md).

use super::{
    AdmissionDecision, BeginResponse, CancelResult, DeliverResponse, Frame, InFlight, KeepResponse,
    LEASE_MS, Mailbox, Marker, Message, Offset, Outcome, Owner, Position, Rule, SharedState,
    StoredOutcome, UserView, next_id, partition_of,
};

impl SharedState {
    pub(crate) fn admit(&mut self, message: Message) -> AdmissionDecision {
        match self.message(message).outcome {
            Some(StoredOutcome::Forgotten(None)) => return AdmissionDecision::New,
            Some(StoredOutcome::Forgotten(Some(_))) => return AdmissionDecision::Forgotten,
            Some(StoredOutcome::Outcome(outcome, Some(offset))) => {
                return AdmissionDecision::Delivered(outcome, offset);
            }
            Some(StoredOutcome::Outcome(_, None)) => return AdmissionDecision::OutcomeStored,
            None => {}
        }
        if !self.pending.contains(&message) {
            self.pending.push(message);
        }
        AdmissionDecision::New
    }

    pub(crate) fn accept(&mut self, message: Message) {
        if self.message(message).outcome.is_none() {
            self.publish(Frame::Accepted(message));
        }
    }

    pub(crate) fn clear_pending(&mut self, message: Message) {
        self.pending.retain(|pending| *pending != message);
    }

    /// `last_attempt` is the highest attempt that the owner has used, `cancelled` the outcome to
    /// store if a cancel was requested.
    pub(crate) fn begin(
        &mut self,
        message: Message,
        owner: Owner,
        last_attempt: u8,
        cancelled: Outcome,
    ) -> BeginResponse {
        match self.message(message).outcome {
            Some(StoredOutcome::Outcome(outcome, offset)) => {
                return BeginResponse::Ended(outcome, offset);
            }
            Some(StoredOutcome::Forgotten(offset)) => {
                return BeginResponse::Ended(cancelled, offset);
            }
            None => {}
        }
        if self.message(message).cancel_requested {
            self.store_outcome(message, cancelled);
            return BeginResponse::Ended(cancelled, None);
        }
        let lease_excludes = self.enforces(Rule::LeaseExcludesOthers);
        let is_idempotent = self.enforces(Rule::BeginIdempotent);
        let mut owners = Vec::new();
        let mut attempt = 0;
        if let Some(in_flight) = &mut self.message(message).in_flight {
            if in_flight.owner != owner && in_flight.lease > 0 && lease_excludes {
                return BeginResponse::Busy(in_flight.lease);
            }
            if in_flight.owner == owner && in_flight.attempt > last_attempt && is_idempotent {
                in_flight.lease = LEASE_MS;
                return BeginResponse::Attempt {
                    number: in_flight.attempt,
                    delivery_count: in_flight.owners.len() as u8,
                };
            }
            attempt = in_flight.attempt;
            owners = std::mem::take(&mut in_flight.owners);
        }
        let last_attempt = if self.enforces(Rule::AttemptAboveLast) {
            last_attempt
        } else {
            0
        };
        let number = attempt.max(last_attempt) + 1;
        if !owners.contains(&owner) {
            owners.push(owner);
        }
        let delivery_count = owners.len() as u8;
        let stream = self.stream_of(owner, number);
        self.remove_lists(message);
        self.message(message).in_flight = Some(InFlight {
            owner,
            lease: LEASE_MS,
            attempt: number,
            stream,
            parts: 0,
            owners,
        });
        if number > 1 {
            self.publish(Frame::Restarted(message, number, stream));
        }
        BeginResponse::Attempt {
            number,
            delivery_count,
        }
    }

    pub(crate) fn keep(
        &mut self,
        message: Message,
        owner: Owner,
        attempt: u8,
        outcome: Outcome,
        cancelled: Outcome,
    ) -> KeepResponse {
        let first_wins = self.enforces(Rule::FirstOutcomeWins);
        match self.message(message).outcome {
            Some(StoredOutcome::Outcome(stored, offset)) if first_wins => {
                return KeepResponse::Outcome(stored, offset);
            }
            Some(StoredOutcome::Forgotten(offset)) => {
                return KeepResponse::Outcome(cancelled, offset);
            }
            _ => {}
        }
        if let Some(in_flight) = &self.message(message).in_flight
            && (in_flight.owner != owner || in_flight.attempt != attempt)
        {
            return KeepResponse::Fenced;
        }
        let is_cancelled =
            self.message(message).cancel_requested && self.enforces(Rule::KeepChecksCancel);
        let outcome = if is_cancelled { cancelled } else { outcome };
        self.store_outcome(message, outcome);
        if !self.enforces(Rule::KeepRetainsParts) {
            self.message(message).in_flight = None;
            self.remove_lists(message);
        }
        KeepResponse::Outcome(outcome, None)
    }

    /// `known_end` is the offset of the last record that the relay delivered to this mailbox.
    /// `is_rewind` says that, according to the committed offsets, the record was delivered before.
    pub(crate) fn deliver(
        &mut self,
        message: Message,
        offset: Offset,
        known_end: Option<Offset>,
        outcome: Outcome,
        is_rewind: bool,
    ) -> DeliverResponse {
        let last = self
            .mailbox
            .as_ref()
            .and_then(|mailbox| mailbox.last_in_partition_of(offset));
        let known_end = known_end.filter(|end| partition_of(*end) == partition_of(offset));
        if self.enforces(Rule::LostMailboxDetected) && known_end.is_some() && last < known_end {
            return DeliverResponse::DataLost;
        }
        self.clear_pending(message);
        if last.is_some_and(|last| offset <= last) {
            return DeliverResponse::AlreadyDelivered;
        }
        let delivers_once = self.enforces(Rule::DeliveredOnce);
        let last_id = &mut self.last_ids.mailbox;
        let mailbox = Mailbox::prepare(&mut self.mailbox, offset, is_rewind, || next_id(last_id));
        if mailbox.last.is_none() {
            mailbox.floor = offset;
        }
        mailbox.last = Some(offset);
        let stored = self.messages[usize::from(message)].outcome;
        let was_delivered_elsewhere = stored
            .and_then(StoredOutcome::delivered_at)
            .is_some_and(|earlier| earlier != offset);
        if was_delivered_elsewhere && delivers_once {
            return DeliverResponse::AlreadyDelivered;
        }
        let delivered = if let Some(StoredOutcome::Forgotten(_)) = stored {
            StoredOutcome::Forgotten(Some(offset))
        } else {
            mailbox.push((offset, message, outcome), self.mailbox_frames);
            if is_rewind {
                mailbox.rebuilt_up_to = Some(offset);
            }
            let outcome = match stored {
                Some(StoredOutcome::Outcome(stored_outcome, _))
                    if !self.enforces(Rule::DeliveredOutcomeWins) =>
                {
                    stored_outcome
                }
                _ => outcome,
            };
            self.store_turn(message, false, outcome);
            StoredOutcome::Outcome(outcome, Some(offset))
        };
        self.message(message).outcome = Some(delivered);
        self.message(message).in_flight = None;
        self.remove_lists(message);
        self.publish(Frame::Terminal(message, offset, outcome));
        DeliverResponse::Published
    }

    pub(crate) fn cancel(&mut self, message: Message) -> CancelResult {
        if self.message(message).outcome.is_some() {
            return CancelResult::AlreadyDone;
        }
        self.message(message).cancel_requested = true;
        if self.pending.contains(&message) || self.message(message).in_flight.is_some() {
            CancelResult::Cancelling
        } else {
            CancelResult::Unknown
        }
    }

    pub(crate) fn read(&mut self, after: Option<Position>) -> UserView {
        let counter_id = match self.counter_id {
            Some(id) => id,
            None => next_id(&mut self.last_ids.counter),
        };
        self.counter_id = Some(counter_id);
        let in_flight = self.in_flight_answers();
        let last_id = &mut self.last_ids.mailbox;
        let mailbox = self
            .mailbox
            .get_or_insert_with(|| Mailbox::new(next_id(last_id), true, 0));
        let start = mailbox.start_for(after);
        let frames = mailbox.frames.iter().copied();
        let frames =
            frames.filter(|(offset, ..)| start.is_some_and(|start| i16::from(*offset) > start));
        UserView {
            n: self.n,
            counter_id,
            end: mailbox
                .last
                .map_or(Position::Empty(mailbox.id), Position::At),
            recovered: start.is_some(),
            frames: frames.collect(),
            rebuilt_up_to: mailbox.rebuilt_up_to,
            in_flight,
            pending: self.pending.clone(),
        }
    }

    /// Deletes one conversation, or all of them. Returns whether there was anything to delete.
    pub(crate) fn forget(&mut self, conversation: Option<u8>) -> bool {
        let mut has_forgotten = false;
        for message in 0..self.messages.len() as u8 {
            if conversation.is_some_and(|forgotten| forgotten != self.conversation(message)) {
                continue;
            }
            let is_listed = self.pending.contains(&message)
                || self.history.iter().any(|turn| turn.message == message);
            let state = self.message(message);
            let delivered_at = match state.outcome {
                Some(StoredOutcome::Outcome(_, offset)) => offset,
                None if is_listed || state.in_flight.is_some() => None,
                Some(StoredOutcome::Forgotten(_)) | None => continue,
            };
            state.outcome = Some(StoredOutcome::Forgotten(delivered_at));
            state.in_flight = None;
            has_forgotten = true;
            self.remove_lists(message);
            self.clear_pending(message);
            self.history.retain(|turn| turn.message != message);
            if let Some(mailbox) = &mut self.mailbox {
                mailbox
                    .frames
                    .retain(|(_, frame_message, _)| *frame_message != message);
            }
        }
        has_forgotten
    }

    /// A relay inspects the marker before its first delivery. If the marker is not complete, the
    /// relay stores a token and returns it. Otherwise it returns 0.
    pub(crate) fn begin_rebuild(&mut self) -> u8 {
        if self.marker == Marker::Complete {
            return 0;
        }
        let token = next_id(&mut self.last_ids.token);
        self.marker = Marker::Rebuilding(token);
        token
    }

    /// Sets the marker after the relay's rewind. Returns false if data was lost since it began.
    pub(crate) fn complete_rebuild(&mut self, token: u8) -> bool {
        let is_valid = self.marker == Marker::Complete || self.marker == Marker::Rebuilding(token);
        if is_valid || !self.enforces(Rule::MarkerToken) {
            self.marker = Marker::Complete;
            return true;
        }
        false
    }
}
