//! The processes around the shared state: two gateways, workers and relays, the two topics (one
//! partition each) and a client. Each takes one atomic step at a time and does what
//! docs/consistency.md and ARCHITECTURE.md say. Faults are limited by a budget.

mod faults;
mod relay;
mod steps;
mod worker;

use crate::client::Client;
use crate::reference::{
    AdmissionDecision, BeginResponse, CancelResult, DeliverResponse, KeepResponse, Marker, Message,
    Offset, Outcome, OutcomeKind, Owner, Piece, Position, Rule, SharedState, StoredOutcome, Stream,
    StreamResponse,
};

pub(crate) use faults::Fault;
use faults::FaultBudget;

/// The limits of one search.
#[derive(Debug, Clone)]
pub(crate) struct SearchBounds {
    /// The conversation of each message that the client sends.
    pub(crate) conversations: &'static [u8],
    /// Number of pieces of each answer.
    pub(crate) pieces: u8,
    /// Number of records that a relay rewinds if the marker is complete.
    pub(crate) rewind_window: u8,
    /// Number of faults in total.
    pub(crate) max_faults: u8,
    /// Number of faults of each kind; a kind that is not listed does not happen.
    pub(crate) faults: &'static [(Fault, u8)],
    /// The steps that lead to the state in which the search begins.
    pub(crate) prefix: &'static [Step],
    /// The rule that the model does not enforce.
    pub(crate) omitted_rule: Option<Rule>,
}

/// What a gateway does next for the message that it handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Gateway {
    Idle,
    Admit(Message),
    Produce(Message),
    Accept(Message),
}

/// A worker's next step for one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Begin,
    /// The worker sends its next piece of text.
    Generate,
    /// A piece was added to the stream's list, which then had `stored` pieces, and is not published
    /// yet.
    PublishPiece {
        stored: u8,
    },
    Renew,
    Keep(Outcome),
    Produce(Outcome),
    Done,
}

/// A worker's handling of one delivery of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RecordTask {
    pub(crate) owner: Owner,
    pub(crate) attempt: u8,
    /// The number of the model call; 0 before the first.
    pub(crate) call: u8,
    /// Number of pieces that the fan-out has confirmed.
    pub(crate) sent: u8,
    /// Number of pieces of the stream that the fan-out had last.
    pub(crate) stored: u8,
    /// The complete answer, if the worker generated it and could not store it yet.
    pub(crate) generated: Option<Outcome>,
    pub(crate) stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Worker {
    /// The task of each record of `incoming_messages`.
    pub(crate) tasks: Vec<Option<RecordTask>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Relay {
    pub(crate) is_started: bool,
    /// The offset of the record that the relay delivers next.
    pub(crate) next: Offset,
    /// The offset at which the rewind ends.
    pub(crate) rewind_until: Offset,
    /// The offset of the last record that the relay delivered since its start.
    pub(crate) known_end: Option<Offset>,
    /// Whether the rewind is complete and the marker is set.
    pub(crate) has_set_marker: bool,
    /// The token of the rebuild; 0 if the marker was complete at the start.
    pub(crate) token: u8,
    /// Whether the connection to Redis broke and the relay has not noticed yet.
    pub(crate) is_disrupted: bool,
}

/// A call that the Redis client may send a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RedisCall {
    Admit(Message),
    Accept(Message),
    Begin(Message, Owner, u8, Outcome),
    OpenPart(Message, Owner, u8, Piece),
    PushPiece(Message, Stream, Piece),
    PublishPiece(Message, Stream, Piece),
    Renew(Message, Owner, u8, u8, u8),
    Keep(Message, Owner, u8, Outcome, Outcome),
    Deliver(Message, Offset, Option<Offset>, Outcome),
    CompleteMarker(u8),
}

/// One atomic step. Processes are named by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// The client connects with its position.
    Connect,
    /// The client's gateway reads the mailbox.
    Read,
    /// The client's gateway handles the next published frame.
    HandlePublishedFrame,
    /// The client handles the next frame of its socket.
    Receive,
    /// The client's gateway runs its periodic check for lost frames.
    CheckForGap,
    /// The client sends a message through this gateway.
    Send(usize, Message),
    Gateway(usize),
    /// The worker takes the next step for a record.
    Worker(usize, usize),
    /// The worker's timer lets it renew its lease on a record.
    RenewLease(usize, usize),
    CommitWorker(usize),
    ExpireLease(Message),
    Relay(usize),
    CommitRelay(usize),
    /// The relay notices that its connection broke.
    NoticeDisruption(usize),
    /// The relay's periodic check finds the marker missing.
    FindMarkerMissing(usize),
    /// The duplicate of a call reaches Redis.
    ArriveDuplicate,
    /// Redis saves a copy of its data, to which it may roll back.
    SaveSnapshot,
    DuplicateGatewayCall(usize),
    DuplicateWorkerCall(usize, usize),
    DuplicateRelayCall(usize),
    Fault(Fault, usize),
}

/// The state of the whole system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    pub(crate) shared: SharedState,
    pub(crate) snapshot: Option<Box<SharedState>>,
    /// The records of `incoming_messages`, and the offset that its consumers committed.
    pub(crate) messages: Vec<Message>,
    pub(crate) messages_committed: u8,
    /// The records of `responses`, and the offset that its consumers committed.
    pub(crate) responses: Vec<(Message, Outcome)>,
    pub(crate) responses_committed: Offset,
    /// The worker that has the partition of `incoming_messages`.
    pub(crate) assigned_worker: usize,
    /// The relay that has the partition of `responses`.
    pub(crate) assigned_relay: usize,
    pub(crate) gateways: [Gateway; 2],
    pub(crate) workers: [Worker; 2],
    pub(crate) relays: [Relay; 2],
    pub(crate) duplicate: Option<RedisCall>,
    pub(crate) client: Client,
    budget: FaultBudget,
    unsent: Vec<Message>,
    model_calls: u8,
    /// For each message, the number of model calls.
    pub(crate) calls_by_message: Vec<u8>,
    /// For each message, the number of leases that expired.
    pub(crate) expired_leases: Vec<u8>,
    pub(crate) data_losses: u8,
    /// For each message, whether a call of `cancel` returned `Cancelling`.
    cancel_confirmed: Vec<bool>,
    /// For each worker and record, the number of deliveries.
    deliveries: [[Owner; 4]; 2],
    pieces: u8,
    rewind_window: u8,
}

/// Number of pieces of each part of an answer.
pub(crate) const PIECES_PER_PART: u8 = 2;

/// A description of how a state or a step breaks the promises of docs/consistency.md.
pub(crate) type Violation = String;
type CheckResult = Result<(), Violation>;

impl Model {
    pub(crate) fn new(bounds: &SearchBounds) -> Self {
        let messages = bounds.conversations.len();
        Self {
            shared: SharedState::new(bounds.conversations, 200, bounds.omitted_rule),
            snapshot: None,
            messages: Vec::new(),
            messages_committed: 0,
            responses: Vec::new(),
            responses_committed: 0,
            assigned_worker: 0,
            assigned_relay: 0,
            gateways: [Gateway::Idle; 2],
            workers: Default::default(),
            relays: Default::default(),
            duplicate: None,
            client: Client::new(messages),
            budget: FaultBudget::new(bounds),
            unsent: (0..messages as u8).collect(),
            model_calls: 0,
            calls_by_message: vec![0; messages],
            expired_leases: vec![0; messages],
            data_losses: 0,
            cancel_confirmed: vec![false; messages],
            deliveries: Default::default(),
            pieces: bounds.pieces,
            rewind_window: bounds.rewind_window,
        }
    }

    /// The outcome that the client must receive: that of the message's first record.
    pub(crate) fn first_outcome(&self, message: Message) -> Option<Outcome> {
        let mut records = self.responses.iter();
        records
            .find(|(record_message, _)| *record_message == message)
            .map(|(_, outcome)| *outcome)
    }

    /// The messages of the same conversation that precede this one in the log.
    pub(crate) fn predecessors(&self, message: Message) -> impl Iterator<Item = Message> + '_ {
        let first_offset = |wanted| self.messages.iter().position(|record| *record == wanted);
        let own_offset = first_offset(message);
        (0..self.calls_by_message.len() as u8).filter(move |other| {
            self.shared.conversation(*other) == self.shared.conversation(message)
                && matches!(
                    (first_offset(*other), own_offset),
                    (Some(other), Some(own)) if other < own
                )
        })
    }

    pub(crate) fn apply(&mut self, step: Step) -> CheckResult {
        match step {
            Step::Connect => self.client.connect(),
            Step::Read => {
                self.client.read(&mut self.shared);
                return self.check_snapshots();
            }
            Step::HandlePublishedFrame => self.client.handle_published_frame(&self.shared),
            Step::Receive => return self.receive_frame(),
            Step::CheckForGap => self.client.require_read(),
            Step::Send(gateway, message) => {
                self.unsent.retain(|unsent| *unsent != message);
                self.gateways[gateway] = Gateway::Admit(message);
            }
            Step::Gateway(index) => self.step_gateway(index),
            Step::Worker(worker, record) => return self.step_worker(worker, record),
            Step::RenewLease(worker, record) => self.renew_lease(worker, record),
            Step::CommitWorker(worker) => self.messages_committed = self.finished_up_to(worker),
            Step::ExpireLease(message) => self.expire_lease(message),
            Step::Relay(index) => self.step_relay(index),
            Step::CommitRelay(index) => self.responses_committed = self.relays[index].next,
            Step::NoticeDisruption(index) | Step::FindMarkerMissing(index) => {
                self.rewind_relay(index);
            }
            Step::ArriveDuplicate => {
                if let Some(call) = self.duplicate.take() {
                    self.apply_call(call);
                }
            }
            Step::SaveSnapshot => self.snapshot = Some(Box::new(self.shared.clone())),
            Step::DuplicateGatewayCall(index) => {
                self.budget.spend(Fault::DuplicateCall);
                self.duplicate = match self.gateways[index] {
                    Gateway::Admit(message) => Some(RedisCall::Admit(message)),
                    Gateway::Accept(message) => Some(RedisCall::Accept(message)),
                    Gateway::Idle | Gateway::Produce(_) => None,
                };
            }
            Step::DuplicateWorkerCall(worker, record) => {
                self.budget.spend(Fault::DuplicateCall);
                self.duplicate = self.worker_call(worker, record);
            }
            Step::DuplicateRelayCall(index) => {
                self.budget.spend(Fault::DuplicateCall);
                self.duplicate = self.relay_call(&self.relays[index]);
            }
            Step::Fault(fault, target) => return self.apply_fault(fault, target),
        }
        self.dispatch_published();
        Ok(())
    }

    /// Sends the frames of the last call to the client's gateway.
    fn dispatch_published(&mut self) {
        let published = std::mem::take(&mut self.shared.published);
        self.client.publish(&published);
    }

    fn expire_lease(&mut self, message: Message) {
        let index = usize::from(message);
        if let Some(in_flight) = &mut self.shared.messages[index].in_flight {
            in_flight.lease = 0;
            self.expired_leases[index] += 1;
        }
    }

    /// Whether a worker still handles a delivery under this owner id.
    fn is_alive(&self, owner: Owner) -> bool {
        let workers = self.workers.iter();
        let mut tasks = workers.flat_map(|worker| worker.tasks.iter().flatten());
        tasks.any(|task| task.stage != Stage::Done && task.owner == owner)
    }

    fn step_gateway(&mut self, index: usize) {
        self.gateways[index] = match self.gateways[index] {
            Gateway::Idle => Gateway::Idle,
            Gateway::Admit(message) => match self.shared.admit(message) {
                AdmissionDecision::New => Gateway::Produce(message),
                AdmissionDecision::OutcomeStored | AdmissionDecision::Forgotten => Gateway::Idle,
                AdmissionDecision::Delivered(outcome, offset) => {
                    self.client.send_resend_reply(message, offset, outcome);
                    Gateway::Idle
                }
            },
            Gateway::Produce(message) => {
                self.messages.push(message);
                Gateway::Accept(message)
            }
            Gateway::Accept(message) => {
                self.shared.accept(message);
                Gateway::Idle
            }
        };
    }

    fn apply_call(&mut self, call: RedisCall) {
        match call {
            RedisCall::Admit(message) => {
                self.shared.admit(message);
            }
            RedisCall::Accept(message) => self.shared.accept(message),
            RedisCall::Begin(message, owner, last_attempt, cancelled) => {
                self.shared.begin(message, owner, last_attempt, cancelled);
            }
            RedisCall::OpenPart(message, owner, attempt, piece) => {
                self.shared.open_part(message, owner, attempt, piece);
            }
            RedisCall::PushPiece(message, stream, piece) => {
                self.shared.push_piece(message, stream, piece);
            }
            RedisCall::PublishPiece(message, stream, piece) => {
                self.shared.publish_piece(message, stream, piece);
            }
            RedisCall::Renew(message, owner, attempt, parts, last_length) => {
                self.shared
                    .renew(message, owner, attempt, parts, last_length);
            }
            RedisCall::Keep(message, owner, attempt, outcome, cancelled) => {
                self.shared
                    .keep(message, owner, attempt, outcome, cancelled);
            }
            RedisCall::Deliver(message, offset, known_end, outcome) => {
                self.shared
                    .deliver(message, offset, known_end, outcome, false);
            }
            RedisCall::CompleteMarker(token) => {
                self.shared.complete_rebuild(token);
            }
        }
    }

    fn receive_frame(&mut self) -> CheckResult {
        let Some(frame) = self.client.next_frame() else {
            return Ok(());
        };
        let mut client = self.client.clone();
        let result = client.receive(frame, self);
        self.client = client;
        result
    }

    /// Checks that a read still returns the whole text of an answer that ended and was not delivered
    /// yet, unless data was lost.
    fn check_snapshots(&self) -> CheckResult {
        for (message, state) in self.shared.messages.iter().enumerate() {
            let Some(StoredOutcome::Outcome(outcome, None)) = state.outcome else {
                continue;
            };
            let answers = self.shared.in_flight_answers();
            let mut answers = answers.iter();
            let answer = answers.find(|answer| usize::from(answer.message) == message);
            let length = answer.map_or(0, |answer| answer.parts.iter().map(Vec::len).sum());
            if self.data_losses == 0 && length < usize::from(outcome.pieces) {
                return Err(format!(
                    "a device that joins before the delivery of {outcome:?} sees {answer:?}"
                ));
            }
        }
        Ok(())
    }

    /// Checks a state in which no step is possible any more: every accepted message has exactly one
    /// outcome, on which the log, the client and the history agree.
    pub(crate) fn check_final_state(&self) -> CheckResult {
        for message in 0..self.calls_by_message.len() as u8 {
            if !self.messages.contains(&message) {
                continue;
            }
            let Some(first) = self.first_outcome(message) else {
                return Err(format!("message {message} was accepted and never ended"));
            };
            // A requested cancel is lost with the data.
            let must_be_cancelled =
                self.cancel_confirmed[usize::from(message)] && self.data_losses == 0;
            if must_be_cancelled && first.kind != OutcomeKind::Cancelled {
                return Err(format!(
                    "the cancel of message {message} was confirmed, and it ended as {first:?}"
                ));
            }
            let known = self.client.known_outcome(message);
            if known != Some(first) {
                return Err(format!(
                    "message {message} ended as {first:?} in the log and as {known:?} at the client"
                ));
            }
            let mut turns = self.shared.history.iter();
            let turn = turns
                .find(|turn| turn.message == message)
                .map(|turn| turn.outcome);
            if turn != Some(first) {
                return Err(format!(
                    "message {message} ended as {first:?} in the log and as {turn:?} in the history"
                ));
            }
            if self.shared.pending.contains(&message) {
                return Err(format!(
                    "message {message} is still pending in the final state"
                ));
            }
        }
        if usize::from(self.messages_committed) < self.messages.len() {
            return Err("the offset of a message was never committed".into());
        }
        Ok(())
    }

    /// The offset of the mailbox's last frame.
    pub(crate) fn mailbox_end(&self) -> Option<Offset> {
        self.shared
            .mailbox
            .as_ref()
            .and_then(|mailbox| mailbox.last)
    }

    /// The client's position.
    pub(crate) fn position(&self) -> Option<Position> {
        self.client.position()
    }
}
