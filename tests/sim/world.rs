//! The processes around the shared state: gateways, workers, relays, the two topics, a client. Each
//! does what protocol.md and ARCHITECTURE.md say, one atomic step at a time; faults cost a budget.

mod possible;
mod relay;
mod worker;

use crate::client::Client;
use crate::reference::{
    Admitted, Begun, Cancelled, Delivered, End, Ended, How, Keeping, Lived, Marker, Message,
    Offset, Owner, Position, Rule, Shared,
};

/// What can go wrong, or is asked for besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    CrashWorker,
    CrashRelay,
    CrashGateway,
    MoveWorker,
    MoveRelay,
    /// A process stands still for longer than its lease.
    Pause,
    /// The Redis client sends a call again, at any later time.
    Repeat,
    LosePublish,
    DropSocket,
    Empty,
    RollBack,
    Cancel,
    Resend,
}

const KINDS: usize = 13;

/// How much of what a search goes through.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) conversations: &'static [u8],
    pub(crate) pieces: u8,
    /// Records that a relay goes back where the marker is there.
    pub(crate) window: u8,
    /// Faults altogether.
    pub(crate) faults: u8,
    /// Faults of a kind; what is not named is left out.
    pub(crate) each: &'static [(Fault, u8)],
    /// Steps before the search begins.
    pub(crate) after: &'static [Step],
    pub(crate) without: Option<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Gateway {
    Idle,
    Admits(Message),
    Produces(Message),
    Accepts(Message),
}

/// A worker's next step for one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Begins,
    Writes,
    Keeps(End),
    Produces(End),
    Done,
}

/// A worker's taking of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Taking {
    pub(crate) owner: Owner,
    pub(crate) attempt: u8,
    /// Of the model; 0 for none yet.
    pub(crate) call: u8,
    /// Pieces that the fan-out has.
    pub(crate) sent: u8,
    /// The whole answer, where it is there already and could not be kept.
    pub(crate) written: Option<End>,
    pub(crate) stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Worker {
    /// By record of `incoming_messages`.
    pub(crate) tasks: Vec<Option<Taking>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Relay {
    pub(crate) started: bool,
    pub(crate) next: Offset,
    pub(crate) until: Offset,
    pub(crate) known: Option<Offset>,
    pub(crate) settled: bool,
    pub(crate) token: u8,
    /// Its connection to Redis was lost and it has not been told yet.
    pub(crate) disrupted: bool,
}

/// A call that the Redis client may send once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Admit(Message),
    Accept(Message),
    Begin(Message, Owner, u8, End),
    Live(Message, Owner, u8, (u8, u8)),
    Keep(Message, Owner, u8, End, End),
    Deliver(Message, Offset, Option<Offset>, End),
    SetMarker(u8),
}

/// One atomic step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Connect,
    Read,
    Feed,
    Receive,
    Check,
    Send(usize, Message),
    Gateway(usize),
    Work(usize, usize),
    CommitWorker(usize),
    LeaseEnds(Message),
    Relay(usize),
    CommitRelay(usize),
    /// The relay learns that its connection was lost.
    Notice(usize),
    /// The relay looks at the marker and finds it gone.
    Look(usize),
    /// The repeated call arrives.
    Again,
    Snapshot,
    CopyGateway(usize),
    CopyWorker(usize, usize),
    CopyRelay(usize),
    Fault(Fault, usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) shared: Shared,
    pub(crate) saved: Option<Box<Shared>>,
    pub(crate) incoming: Vec<Message>,
    pub(crate) committed_in: u8,
    pub(crate) responses: Vec<(Message, End)>,
    pub(crate) committed_out: Offset,
    /// Whose partition of `incoming_messages` and of `responses` it is.
    pub(crate) reader: usize,
    pub(crate) deliverer: usize,
    pub(crate) gateways: [Gateway; 2],
    pub(crate) workers: [Worker; 2],
    pub(crate) relays: [Relay; 2],
    pub(crate) repeated: Option<Call>,
    pub(crate) client: Client,
    left: [u8; KINDS],
    faults_left: u8,
    unsent: Vec<Message>,
    pub(crate) calls: u8,
    /// By message: calls of the model, and leases that ended while somebody held them.
    pub(crate) paid: Vec<u8>,
    pub(crate) expired: Vec<u8>,
    pub(crate) losses: u8,
    /// The client was told that these are being cancelled.
    cancelling: Vec<bool>,
    owners: [[Owner; 4]; 2],
    pieces: u8,
    window: u8,
}

/// What is wrong with a state.
pub(crate) type Violation = String;
type Checked = Result<(), Violation>;

impl World {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let mut left = [0; KINDS];
        for (fault, most) in bounds.each {
            left[*fault as usize] = *most;
        }
        let messages = bounds.conversations.len();
        Self {
            shared: Shared::new(bounds.conversations, 200, bounds.without),
            saved: None,
            incoming: Vec::new(),
            committed_in: 0,
            responses: Vec::new(),
            committed_out: 0,
            reader: 0,
            deliverer: 0,
            gateways: [Gateway::Idle; 2],
            workers: Default::default(),
            relays: Default::default(),
            repeated: None,
            client: Client::new(messages),
            left,
            faults_left: bounds.faults,
            unsent: (0..messages as u8).collect(),
            calls: 0,
            paid: vec![0; messages],
            expired: vec![0; messages],
            losses: 0,
            cancelling: vec![false; messages],
            owners: Default::default(),
            pieces: bounds.pieces,
            window: bounds.window,
        }
    }

    /// The first record of a message: what the client has to be told.
    pub(crate) fn first_end(&self, message: Message) -> Option<End> {
        let mut records = self.responses.iter();
        records.find(|(of, _)| *of == message).map(|(_, end)| *end)
    }

    /// Messages of the same conversation that were accepted before.
    pub(crate) fn before(&self, message: Message) -> impl Iterator<Item = Message> + '_ {
        let place = |of| self.incoming.iter().position(|one| *one == of);
        let here = place(message);
        (0..self.paid.len() as u8).filter(move |other| {
            self.shared.conversation(*other) == self.shared.conversation(message)
                && matches!((place(*other), here), (Some(other), Some(here)) if other < here)
        })
    }

    fn can(&self, fault: Fault) -> bool {
        self.faults_left > 0 && self.left[fault as usize] > 0
    }

    fn spend(&mut self, fault: Fault) {
        self.faults_left -= 1;
        self.left[fault as usize] -= 1;
        if self.faults_left == 0 {
            // What can't be spent any more does not tell states apart.
            self.left = [0; KINDS];
        }
    }

    pub(crate) fn apply(&mut self, step: Step) -> Checked {
        match step {
            Step::Connect => self.client.connect(),
            Step::Read => self.client.read(&mut self.shared),
            Step::Feed => self.client.feed(
                self.shared.keeps(Rule::Gap),
                self.shared.keeps(Rule::Filter),
            ),
            Step::Receive => return self.receive(),
            Step::Check => self.client.set_stale(),
            Step::Send(gateway, message) => {
                self.unsent.retain(|one| *one != message);
                self.gateways[gateway] = Gateway::Admits(message);
            }
            Step::Gateway(index) => self.gateway(index),
            Step::Work(worker, record) => return self.work(worker, record),
            Step::CommitWorker(worker) => self.committed_in = self.finished(worker),
            Step::LeaseEnds(message) => self.end_lease(message),
            Step::Relay(index) => self.relay(index),
            Step::CommitRelay(index) => self.committed_out = self.relays[index].next,
            Step::Notice(index) | Step::Look(index) => self.go_back(index),
            Step::Again => {
                if let Some(call) = self.repeated.take() {
                    self.call(call);
                }
            }
            Step::Snapshot => self.saved = Some(Box::new(self.shared.clone())),
            Step::CopyGateway(index) => {
                self.spend(Fault::Repeat);
                self.repeated = match self.gateways[index] {
                    Gateway::Admits(message) => Some(Call::Admit(message)),
                    Gateway::Accepts(message) => Some(Call::Accept(message)),
                    _ => None,
                };
            }
            Step::CopyWorker(worker, record) => {
                self.spend(Fault::Repeat);
                self.repeated = self.worker_call(worker, record);
            }
            Step::CopyRelay(index) => {
                self.spend(Fault::Repeat);
                self.repeated = self.relay_call(&self.relays[index]);
            }
            Step::Fault(fault, about) => return self.fault(fault, about),
        }
        self.spread();
        Ok(())
    }

    /// What was published is on its way to the client.
    fn spread(&mut self) {
        let out = std::mem::take(&mut self.shared.out);
        self.client.published(&out);
    }

    fn fault(&mut self, fault: Fault, about: usize) -> Checked {
        self.spend(fault);
        let saved = self.saved.take();
        if self.can(Fault::RollBack) {
            self.saved.clone_from(&saved);
        }
        match fault {
            Fault::CrashWorker => self.workers[about].tasks.clear(),
            Fault::CrashRelay => self.relays[about] = Relay::default(),
            Fault::CrashGateway => self.gateways[about] = Gateway::Idle,
            Fault::MoveWorker => {
                self.reader = about;
                self.workers[about].tasks.clear();
            }
            Fault::MoveRelay => {
                self.relays[self.deliverer] = Relay::default();
                self.relays[about] = Relay::default();
                self.deliverer = about;
            }
            Fault::Pause => self.end_lease(about as u8),
            Fault::LosePublish => self.client.lose(),
            Fault::DropSocket => self.client.drop_socket(),
            Fault::Empty => {
                self.shared.empty();
                self.disrupt();
            }
            Fault::RollBack => {
                if let Some(saved) = saved {
                    let fresh = self.shared.fresh;
                    self.shared = *saved;
                    self.shared.fresh = fresh;
                    self.disrupt();
                }
            }
            Fault::Cancel => {
                let message = about as Message;
                let ended = self.shared.messages[about].ended;
                let result = self.shared.cancel(message);
                let done = matches!(ended, Some(Ended::Outcome(..)));
                if done != (result == Cancelled::AlreadyDone) {
                    return Err(format!("cancel of message {about} claims {result:?}"));
                }
                self.cancelling[about] |= result == Cancelled::Cancelling;
            }
            Fault::Resend => self.gateways[1] = Gateway::Admits(about as u8),
            Fault::Repeat => {}
        }
        self.spread();
        Ok(())
    }

    /// Every connection to Redis is lost, subscriptions among them.
    fn disrupt(&mut self) {
        self.losses += 1;
        self.client.disrupt();
        for relay in &mut self.relays {
            relay.disrupted = relay.started;
        }
    }

    fn end_lease(&mut self, message: Message) {
        let index = usize::from(message);
        if let Some(flight) = &mut self.shared.messages[index].flight {
            flight.lease = 0;
            self.expired[index] += 1;
        }
    }

    fn is_alive(&self, owner: Owner) -> bool {
        let tasks = self
            .workers
            .iter()
            .flat_map(|one| one.tasks.iter().flatten());
        tasks
            .filter(|one| one.stage != Stage::Done)
            .any(|one| one.owner == owner)
    }

    fn gateway(&mut self, index: usize) {
        self.gateways[index] = match self.gateways[index] {
            Gateway::Idle => Gateway::Idle,
            Gateway::Admits(message) => match self.shared.admit(message) {
                Admitted::New => Gateway::Produces(message),
                Admitted::Kept | Admitted::Forgotten => Gateway::Idle,
                Admitted::Delivered(end, at) => {
                    self.client.tell_again(message, at, end);
                    Gateway::Idle
                }
            },
            Gateway::Produces(message) => {
                self.incoming.push(message);
                Gateway::Accepts(message)
            }
            Gateway::Accepts(message) => {
                self.shared.accept(message);
                Gateway::Idle
            }
        };
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Admit(message) => {
                self.shared.admit(message);
            }
            Call::Accept(message) => self.shared.accept(message),
            Call::Begin(message, owner, had, cancelled) => {
                self.shared.begin(message, owner, had, cancelled);
            }
            Call::Live(message, owner, attempt, piece) => {
                self.shared.live(message, owner, attempt, Some(piece));
            }
            Call::Keep(message, owner, attempt, end, cancelled) => {
                self.shared.keep(message, owner, attempt, end, cancelled);
            }
            Call::Deliver(message, at, known, end) => {
                self.shared.deliver(message, at, known, end, false);
            }
            Call::SetMarker(token) => {
                self.shared.set_marker(token);
            }
        }
    }

    fn receive(&mut self) -> Checked {
        let Some(frame) = self.client.wire_front() else {
            return Ok(());
        };
        let mut client = self.client.clone();
        let checked = client.receive(frame, self);
        self.client = client;
        checked
    }

    /// Nothing is left to do: every message has its one end, and everybody says the same.
    pub(crate) fn check_rest(&self) -> Checked {
        for message in 0..self.paid.len() as u8 {
            if !self.incoming.contains(&message) {
                continue;
            }
            let Some(first) = self.first_end(message) else {
                return Err(format!("message {message} was accepted and has no end"));
            };
            // The mark is lost with the data.
            let told = self.cancelling[usize::from(message)] && self.losses == 0;
            if told && first.how != How::Cancelled {
                return Err(format!(
                    "message {message} was to be cancelled and is {first:?}"
                ));
            }
            let seen = self.client.seen(message);
            if seen != Some(first) {
                return Err(format!(
                    "the log says that message {message} ended as {first:?}, the client {seen:?}"
                ));
            }
            let mut turns = self.shared.history.iter();
            let turn = turns
                .find(|turn| turn.message == message)
                .map(|one| one.end);
            if turn != Some(first) {
                return Err(format!(
                    "the log says that message {message} ended as {first:?}, the history {turn:?}"
                ));
            }
            if self.shared.pending.contains(&message) {
                return Err(format!("message {message} is pending for ever"));
            }
        }
        if usize::from(self.committed_in) < self.incoming.len() {
            return Err("a message's offset was never committed".into());
        }
        Ok(())
    }

    /// The mailbox's end, for the scenarios.
    pub(crate) fn mailbox_end(&self) -> Option<Offset> {
        self.shared.mailbox.as_ref().and_then(|mailbox| mailbox.end)
    }

    /// The client's position, for the scenarios.
    pub(crate) fn position(&self) -> Option<Position> {
        self.client.position()
    }
}
