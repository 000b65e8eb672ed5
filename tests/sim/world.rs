//! The processes around the shared state: gateways, workers, relays, the two topics, a client. Each
//! does what protocol.md and ARCHITECTURE.md say, one atomic step at a time; faults cost a budget.

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

    /// The steps that nothing has to go wrong for. Where there are none, all is done.
    pub(crate) fn steps(&self, steps: &mut Vec<Step>) {
        steps.clear();
        // What only concerns the client's own wire does not matter to anybody else: it goes first
        // where nothing can happen to it any more.
        let calm = !self.can(Fault::DropSocket);
        if self.client.can_receive() {
            steps.push(Step::Receive);
            if calm {
                return;
            }
        }
        if self.client.can_feed() {
            steps.push(Step::Feed);
            if calm && !self.can(Fault::LosePublish) && !self.can_lose() {
                return;
            }
        }
        if self.client.is_off() {
            steps.push(Step::Connect);
        }
        if self.client.is_stale() {
            steps.push(Step::Read);
        }
        if self.client.misses(&self.shared) {
            steps.push(Step::Check);
        }
        if !self.client.is_off()
            && let Some(next) = self.unsent.first()
            && self.gateways[0] == Gateway::Idle
        {
            steps.push(Step::Send(0, *next));
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            if *gateway != Gateway::Idle {
                steps.push(Step::Gateway(index));
            }
        }
        for worker in 0..2 {
            for record in 0..self.incoming.len() {
                if self.can_work(worker, record) {
                    steps.push(Step::Work(worker, record));
                }
            }
        }
        if self.finished(self.reader) > self.committed_in {
            steps.push(Step::CommitWorker(self.reader));
        }
        for (message, kept) in self.shared.messages.iter().enumerate() {
            if let Some(flight) = &kept.flight
                && flight.lease > 0
                && !self.is_alive(flight.owner)
            {
                steps.push(Step::LeaseEnds(message as u8));
            }
        }
        let relay = &self.relays[self.deliverer];
        if self.relay_has_work(relay) {
            steps.push(Step::Relay(self.deliverer));
        }
        if relay.started && relay.next > self.committed_out {
            steps.push(Step::CommitRelay(self.deliverer));
        }
        if relay.disrupted {
            steps.push(Step::Notice(self.deliverer));
        }
        if relay.settled && self.shared.marker != Marker::Complete {
            steps.push(Step::Look(self.deliverer));
        }
        if self.repeated.is_some() {
            steps.push(Step::Again);
        }
    }

    fn can_lose(&self) -> bool {
        self.can(Fault::Empty) || self.can(Fault::RollBack)
    }

    /// What can go wrong now.
    pub(crate) fn faults(&self, steps: &mut Vec<Step>) {
        if self.faults_left == 0 {
            return;
        }
        if self.can(Fault::RollBack) && self.saved.is_none() && self.shared.n > 0 {
            steps.push(Step::Snapshot);
        }
        let mut fault = |kind, about| {
            if self.can(kind) {
                steps.push(Step::Fault(kind, about));
            }
        };
        for worker in 0..2 {
            if self.workers[worker].tasks.iter().any(Option::is_some) {
                fault(Fault::CrashWorker, worker);
            }
        }
        if self.relays[self.deliverer].started {
            fault(Fault::CrashRelay, self.deliverer);
        }
        for gateway in 0..2 {
            if self.gateways[gateway] != Gateway::Idle {
                fault(Fault::CrashGateway, gateway);
            }
        }
        if !self.incoming.is_empty() {
            fault(Fault::MoveWorker, 1 - self.reader);
        }
        if !self.responses.is_empty() {
            fault(Fault::MoveRelay, 1 - self.deliverer);
        }
        for (message, kept) in self.shared.messages.iter().enumerate() {
            if kept
                .flight
                .as_ref()
                .is_some_and(|one| one.lease > 0 && self.is_alive(one.owner))
            {
                fault(Fault::Pause, message);
            }
        }
        if self.client.can_feed() {
            fault(Fault::LosePublish, 0);
        }
        if !self.client.is_off() {
            fault(Fault::DropSocket, 0);
        }
        if self.shared.n > 0 {
            fault(Fault::Empty, 0);
        }
        if self
            .saved
            .as_ref()
            .is_some_and(|saved| self.in_window(saved))
        {
            fault(Fault::RollBack, 0);
        }
        for message in 0..self.paid.len() {
            if !self.unsent.contains(&(message as u8)) {
                fault(Fault::Cancel, message);
                if self.gateways[1] == Gateway::Idle {
                    fault(Fault::Resend, message);
                }
            }
        }
        if self.repeated.is_none() && self.can(Fault::Repeat) {
            for gateway in 0..2 {
                if matches!(
                    self.gateways[gateway],
                    Gateway::Admits(_) | Gateway::Accepts(_)
                ) {
                    steps.push(Step::CopyGateway(gateway));
                }
            }
            for worker in 0..2 {
                for record in 0..self.incoming.len() {
                    if self.can_work(worker, record) && self.worker_call(worker, record).is_some() {
                        steps.push(Step::CopyWorker(worker, record));
                    }
                }
            }
            let relay = &self.relays[self.deliverer];
            if self.relay_has_work(relay) && self.relay_call(relay).is_some() {
                steps.push(Step::CopyRelay(self.deliverer));
            }
        }
    }

    /// A rollback further than a relay reads back is not promised.
    fn in_window(&self, saved: &Shared) -> bool {
        let end = saved.mailbox.as_ref().and_then(|mailbox| mailbox.end);
        let end = end.map_or(0, |end| end + 1);
        let delivered = self.relays[self.deliverer].next.max(self.committed_out);
        saved.marker != Marker::Complete || end >= delivered.saturating_sub(self.window)
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

    fn task(&self, worker: usize, record: usize) -> Option<Taking> {
        *self.workers[worker].tasks.get(record)?
    }

    fn can_work(&self, worker: usize, record: usize) -> bool {
        match self.task(worker, record) {
            Some(taking) => match taking.stage {
                Stage::Done => false,
                // Asking again while it is busy changes nothing.
                Stage::Begins => !self.is_busy(self.incoming[record], taking.owner),
                _ => true,
            },
            None => {
                let lane = self.shared.conversation(self.incoming[record]);
                worker == self.reader
                    && record >= usize::from(self.committed_in)
                    && (usize::from(self.committed_in)..record).all(|before| {
                        self.shared.conversation(self.incoming[before]) != lane
                            || self.task(worker, before).is_some_and(|one| {
                                one.stage == Stage::Done
                                    || !self.shared.keeps(Rule::Lane)
                                        && matches!(one.stage, Stage::Produces(_))
                            })
                    })
            }
        }
    }

    fn is_busy(&self, message: Message, owner: Owner) -> bool {
        let kept = &self.shared.messages[usize::from(message)];
        self.shared.keeps(Rule::Busy)
            && kept.ended.is_none()
            && !kept.marked
            && kept
                .flight
                .as_ref()
                .is_some_and(|one| one.owner != owner && one.lease > 0)
    }

    /// Everything below is finished.
    fn finished(&self, worker: usize) -> u8 {
        let done = |record: &usize| {
            self.task(worker, *record)
                .is_some_and(|one| one.stage == Stage::Done)
        };
        let from = usize::from(self.committed_in);
        if !self.shared.keeps(Rule::Contiguous) {
            let last = (from..self.incoming.len()).rev().find(done);
            return last.map_or(self.committed_in, |last| last as u8 + 1);
        }
        let rest = (from..self.incoming.len()).take_while(done).count();
        (from + rest) as u8
    }

    fn worker_call(&self, worker: usize, record: usize) -> Option<Call> {
        let message = self.incoming[record];
        let taking = self.task(worker, record)?;
        let cancelled = End {
            call: taking.call,
            pieces: taking.sent,
            how: How::Cancelled,
        };
        let Taking { owner, attempt, .. } = taking;
        match taking.stage {
            Stage::Begins => Some(Call::Begin(message, owner, attempt, cancelled)),
            Stage::Writes => {
                let piece = (taking.sent, taking.call);
                Some(Call::Live(message, owner, attempt, piece))
            }
            Stage::Keeps(end) => {
                let how = How::Cancelled;
                Some(Call::Keep(message, owner, attempt, end, End { how, ..end }))
            }
            Stage::Produces(_) | Stage::Done => None,
        }
    }

    fn work(&mut self, worker: usize, record: usize) -> Checked {
        let message = self.incoming[record];
        let tasks = &mut self.workers[worker].tasks;
        if tasks.len() <= record {
            tasks.resize(record + 1, None);
        }
        let Some(mut taking) = tasks[record] else {
            // One for each taking of this record by this worker.
            self.owners[worker][record] += 1;
            let owner = (worker as u8) << 6 | (record as u8) << 4 | self.owners[worker][record];
            tasks[record] = Some(Taking {
                owner,
                attempt: 0,
                call: 0,
                sent: 0,
                written: None,
                stage: Stage::Begins,
            });
            return Ok(());
        };
        let call = self.worker_call(worker, record);
        match (taking.stage, call) {
            (Stage::Begins, Some(Call::Begin(_, owner, had, cancelled))) => {
                match self.shared.begin(message, owner, had, cancelled) {
                    Begun::Ended(end, delivered) => {
                        taking.stage = delivered.map_or(Stage::Produces(end), |_| Stage::Done);
                    }
                    Begun::Busy(_) => taking.call = 0,
                    Begun::Attempt { number, .. } => {
                        taking.attempt = number;
                        taking.sent = 0;
                        if let Some(written) = taking.written {
                            taking.stage = Stage::Keeps(written);
                        } else {
                            if taking.call == 0 {
                                self.calls += 1;
                                taking.call = self.calls;
                                self.pay(message)?;
                            }
                            taking.stage = Stage::Writes;
                        }
                    }
                }
            }
            (Stage::Writes, Some(Call::Live(_, owner, attempt, piece))) => {
                match self.shared.live(message, owner, attempt, Some(piece)) {
                    Lived::Written => taking.sent += 1,
                    Lived::Expected(next) if next == taking.sent + 1 => taking.sent = next,
                    Lived::Expected(_) | Lived::Lost => taking.stage = Stage::Begins,
                    Lived::Fenced => {
                        taking.call = 0;
                        taking.stage = Stage::Begins;
                    }
                    Lived::Cancelled => {
                        taking.stage = Stage::Keeps(self.end(taking, How::Cancelled))
                    }
                }
                if taking.stage == Stage::Writes && taking.sent == self.pieces {
                    let end = self.end(taking, How::Answered);
                    taking.stage = if self.shared.keeps(Rule::KeptOnly) {
                        Stage::Keeps(end)
                    } else {
                        Stage::Produces(end)
                    };
                }
            }
            (Stage::Keeps(_), Some(Call::Keep(_, owner, attempt, end, cancelled))) => {
                match self.shared.keep(message, owner, attempt, end, cancelled) {
                    Keeping::Outcome(end, delivered) => {
                        taking.stage = delivered.map_or(Stage::Produces(end), |_| Stage::Done);
                    }
                    Keeping::Fenced => {
                        taking.written = Some(end);
                        taking.stage = Stage::Begins;
                    }
                }
            }
            (Stage::Produces(end), _) => {
                self.responses.push((message, end));
                taking.stage = Stage::Done;
            }
            _ => {}
        }
        self.workers[worker].tasks[record] = Some(taking);
        self.spread();
        Ok(())
    }

    fn end(&self, taking: Taking, how: How) -> End {
        End {
            call: taking.call,
            pieces: taking.sent,
            how,
        }
    }

    /// The model is not paid twice while a lease holds.
    fn pay(&mut self, message: Message) -> Checked {
        let index = usize::from(message);
        self.paid[index] += 1;
        if self.paid[index] > 1 + self.expired[index] + self.losses {
            return Err(format!("message {message} is paid twice"));
        }
        Ok(())
    }

    /// Nothing new is delivered before the relay has gone back; what is under way may arrive.
    fn relay_has_work(&self, relay: &Relay) -> bool {
        if relay.disrupted {
            return false;
        }
        !relay.started
            || usize::from(relay.next) < self.responses.len()
            || !relay.settled && relay.next >= relay.until
    }

    fn relay_call(&self, relay: &Relay) -> Option<Call> {
        if !relay.started {
            return None;
        }
        if !relay.settled && relay.next >= relay.until {
            return Some(Call::SetMarker(relay.token));
        }
        let (message, end) = *self.responses.get(usize::from(relay.next))?;
        Some(Call::Deliver(message, relay.next, relay.known, end))
    }

    fn relay(&mut self, index: usize) {
        let mut relay = self.relays[index].clone();
        if !relay.started {
            let token = self.shared.look_at_marker();
            let base = self.committed_out;
            let from = if token == 0 {
                base.saturating_sub(self.window)
            } else {
                0
            };
            self.relays[index] = Relay {
                started: true,
                next: if self.shared.keeps(Rule::Rewind) {
                    from
                } else {
                    base
                },
                until: base.max(relay.until),
                token,
                ..Relay::default()
            };
            return;
        }
        match self.relay_call(&relay) {
            Some(Call::SetMarker(token)) => {
                if self.shared.set_marker(token) {
                    relay.settled = true;
                } else {
                    relay.started = false;
                }
            }
            Some(Call::Deliver(message, at, known, end)) => {
                match self.shared.deliver(message, at, known, end, true) {
                    Delivered::Published | Delivered::Already => {
                        relay.known = Some(at);
                        relay.next = at + 1;
                    }
                    Delivered::Lost => {
                        self.go_back(index);
                        return;
                    }
                }
            }
            _ => {}
        }
        self.relays[index] = relay;
        self.spread();
    }

    fn go_back(&mut self, index: usize) {
        self.relays[index] = Relay {
            until: self.relays[index].next,
            ..Relay::default()
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
                self.shared.deliver(message, at, known, end, true);
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
