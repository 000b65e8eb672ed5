//! The shared state of one user and the atomic calls over it, written from protocol.md section 3
//! and from nothing else. Small numbers stand for names, texts and times, so that states can be
//! counted, compared and searched.

/// A message of the user.
pub(crate) type Message = u8;
/// A worker's random id for one taking.
pub(crate) type Owner = u8;
/// Of a record in `responses`: its partition and its place there.
pub(crate) type Offset = u8;

/// Places in one partition.
pub(crate) const PARTITION: Offset = 32;

/// Other partitions in which a mailbox remembers its end.
const OTHERS: usize = 16;

fn partition(at: Offset) -> Offset {
    at / PARTITION
}

const COUNTER: usize = 0;
const MAILBOX: usize = 1;
const TOKEN: usize = 2;

/// How long a lease lasts, in the model's time.
pub(crate) const LEASE: u16 = 3000;

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum How {
    Answered,
    Cancelled,
    Failed,
}

/// A terminal frame: so many pieces of what one call of the model said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct End {
    pub(crate) call: u8,
    pub(crate) pieces: u8,
    pub(crate) how: How,
}

/// A position: a mailbox that never held a frame, by its id, or a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Position {
    Empty(u8),
    At(Offset),
}

/// What is known of a message that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ended {
    Outcome(End, Option<Offset>),
    Forgotten(Option<Offset>),
}

/// An answer being written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Flight {
    pub(crate) owner: Owner,
    /// What is left of the lease.
    pub(crate) lease: u16,
    pub(crate) attempt: u8,
    /// For each piece the call of the model that it is from.
    pub(crate) text: Vec<u8>,
    /// Everybody who has begun it.
    pub(crate) owners: Vec<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mailbox {
    pub(crate) id: u8,
    /// As a `read` made it and untrimmed: the empty mailbox's position is good.
    pub(crate) good: bool,
    /// Every frame after this one is here.
    pub(crate) floor: Offset,
    /// Its last frame apart from its bounds.
    pub(crate) end: Option<Offset>,
    pub(crate) frames: Vec<(Offset, Message, End)>,
    /// Its user has moved here from other partitions: where it ended there, the latest first.
    pub(crate) was: Vec<Offset>,
    /// It was moved by a rewind, and nothing new has come since: no position is good.
    pub(crate) mixed: bool,
    /// No position below this one is good.
    pub(crate) good_from: Offset,
    /// The last frame that a rewind has put here.
    pub(crate) rebuilt: Option<Offset>,
}

impl Mailbox {
    fn new(id: u8, good: bool, floor: Offset) -> Self {
        Self {
            id,
            good,
            floor,
            end: None,
            frames: Vec::new(),
            was: Vec::new(),
            mixed: false,
            good_from: 0,
            rebuilt: None,
        }
    }

    /// Where it ended in the partition of this position.
    fn end_beside(&self, at: Offset) -> Option<Offset> {
        let mut ends = self.end.iter().chain(&self.was).copied();
        ends.find(|end| partition(*end) == partition(at))
    }

    /// What comes after it for a user who has moved to another partition.
    fn moved(&self, id: u8, to: Offset, rewind: bool) -> Self {
        let ends = self.end.iter().chain(&self.was).copied();
        let other = |end: &Offset| partition(*end) != partition(to);
        Self {
            was: ends.filter(other).take(OTHERS).collect(),
            mixed: rewind,
            ..Self::new(id, false, to)
        }
    }
}

/// A turn of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Turn {
    pub(crate) message: Message,
    pub(crate) question: bool,
    pub(crate) end: End,
}

/// What is kept of one message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Kept {
    pub(crate) marked: bool,
    pub(crate) flight: Option<Flight>,
    pub(crate) ended: Option<Ended>,
}

/// A frame on the user's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    Accepted(Message),
    Restarted(Message, u8),
    Delta {
        message: Message,
        attempt: u8,
        index: u8,
        call: u8,
    },
    Terminal(Message, Offset, End),
}

/// A published frame with the number and the id of its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    pub(crate) id: u8,
    pub(crate) n: u8,
    pub(crate) frame: Frame,
}

/// The marker of the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Marker {
    Gone,
    /// A relay that found it gone brings the mailboxes back; this is its token.
    Rebuilding(u8),
    Complete,
}

/// A rule that is left out, to see that it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// `deliver` answers `lost` where the mailbox ends below what the relay knows.
    Known,
    /// `begin` gives a number above every one that the owner has had.
    Had,
    /// `begin` answers `busy` while another owner's lease is alive.
    Busy,
    /// A repeated `begin` changes nothing.
    Repeat,
    /// `live` is taken from the current owner and attempt only.
    Fenced,
    /// `live` is taken at the next index only.
    Index,
    /// `keep` returns an outcome that is there.
    FirstOutcome,
    /// `deliver` makes the frame the outcome and the answer in the history.
    Told,
    /// A second record of a message is not told.
    Once,
    /// A cancel mark is looked at by `keep`.
    Mark,
    /// A socket reads what follows a gap in `n`.
    Gap,
    /// A socket never gets what is at or below its position.
    Filter,
    /// A relay goes back when a partition comes to it.
    Rewind,
    /// Only a kept outcome is produced.
    KeptOnly,
    /// The conversation's next message waits for the log's acknowledgement of the one before.
    Lane,
    /// An offset is committed when everything before it is finished.
    Contiguous,
    /// The marker is written only where it was seen, or this rebuilding had begun.
    MarkerToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Admitted {
    New,
    Kept,
    Delivered(End, Offset),
    Forgotten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Begun {
    Ended(End, Option<Offset>),
    Busy(u16),
    Attempt { number: u8, taking: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lived {
    Written,
    Expected(u8),
    Fenced,
    Cancelled,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Keeping {
    Outcome(End, Option<Offset>),
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Delivered {
    Published,
    Already,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cancelled {
    Cancelling,
    AlreadyDone,
    Unknown,
}

/// One consistent look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) n: u8,
    pub(crate) id: u8,
    pub(crate) end: Position,
    pub(crate) recovered: bool,
    pub(crate) frames: Vec<(Offset, Message, End)>,
    pub(crate) rebuilt: Option<Offset>,
    /// Message, attempt, text.
    pub(crate) in_flight: Vec<(Message, u8, Vec<u8>)>,
    pub(crate) pending: Vec<Message>,
}

/// All of one user that Redis holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shared {
    /// The conversation of each message.
    conversations: Vec<u8>,
    /// Frames that a mailbox holds.
    frames: usize,
    without: Option<Rule>,
    /// Numbers for random ids, of counters, mailboxes and markers; they never go back.
    pub(crate) fresh: [u8; 3],
    pub(crate) n: u8,
    pub(crate) n_id: Option<u8>,
    pub(crate) mailbox: Option<Mailbox>,
    pub(crate) messages: Vec<Kept>,
    pub(crate) pending: Vec<Message>,
    /// All conversations, in the order in which turns were first stored.
    pub(crate) history: Vec<Turn>,
    pub(crate) marker: Marker,
    /// Published by the call at hand.
    pub(crate) out: Vec<Published>,
}

impl Shared {
    pub(crate) fn new(conversations: &[u8], frames: usize, without: Option<Rule>) -> Self {
        Self {
            conversations: conversations.to_vec(),
            frames,
            without,
            fresh: [0; 3],
            n: 0,
            n_id: None,
            mailbox: None,
            messages: vec![Kept::default(); conversations.len()],
            pending: Vec::new(),
            history: Vec::new(),
            marker: Marker::Gone,
            out: Vec::new(),
        }
    }

    pub(crate) fn conversation(&self, message: Message) -> u8 {
        self.conversations[usize::from(message)]
    }

    /// The rule holds.
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Everything is lost.
    pub(crate) fn empty(&mut self) {
        let fresh = self.fresh;
        *self = Self::new(&self.conversations, self.frames, self.without);
        self.fresh = fresh;
    }

    fn fresh(&mut self, kind: usize) -> u8 {
        self.fresh[kind] += 1;
        self.fresh[kind]
    }

    fn kept(&mut self, message: Message) -> &mut Kept {
        &mut self.messages[usize::from(message)]
    }

    fn publish(&mut self, frame: Frame) {
        self.n += 1;
        let id = match self.n_id {
            Some(id) => id,
            None => self.fresh(COUNTER),
        };
        self.n_id = Some(id);
        self.out.push(Published {
            id,
            n: self.n,
            frame,
        });
    }

    /// Time passes.
    pub(crate) fn pass(&mut self, time: u16) {
        for kept in &mut self.messages {
            if let Some(flight) = &mut kept.flight {
                flight.lease = flight.lease.saturating_sub(time);
            }
        }
    }

    pub(crate) fn admit(&mut self, message: Message) -> Admitted {
        match self.kept(message).ended {
            Some(Ended::Forgotten(None)) => return Admitted::New,
            Some(Ended::Forgotten(Some(_))) => return Admitted::Forgotten,
            Some(Ended::Outcome(end, Some(at))) => return Admitted::Delivered(end, at),
            Some(Ended::Outcome(_, None)) => return Admitted::Kept,
            None => {}
        }
        if !self.pending.contains(&message) {
            self.pending.push(message);
        }
        Admitted::New
    }

    pub(crate) fn accept(&mut self, message: Message) {
        if self.kept(message).ended.is_none() {
            self.publish(Frame::Accepted(message));
        }
    }

    fn put_turn(&mut self, message: Message, question: bool, end: End) {
        let turn = self.history.iter_mut().find(|one| one.message == message);
        if let Some(turn) = turn {
            turn.end = end;
            turn.question |= question;
        } else {
            self.history.push(Turn {
                message,
                question,
                end,
            });
        }
    }

    fn store(&mut self, message: Message, end: End) {
        self.kept(message).ended = Some(Ended::Outcome(end, None));
        self.put_turn(message, true, end);
    }

    pub(crate) fn begin(
        &mut self,
        message: Message,
        owner: Owner,
        had: u8,
        cancelled: End,
    ) -> Begun {
        match self.kept(message).ended {
            Some(Ended::Outcome(end, at)) => return Begun::Ended(end, at),
            Some(Ended::Forgotten(at)) => return Begun::Ended(cancelled, at),
            None => {}
        }
        if self.kept(message).marked {
            self.store(message, cancelled);
            return Begun::Ended(cancelled, None);
        }
        let (busy, repeat, counts) = (
            self.keeps(Rule::Busy),
            self.keeps(Rule::Repeat),
            self.keeps(Rule::Had),
        );
        let mut owners = Vec::new();
        let mut attempt = 0;
        if let Some(flight) = &mut self.kept(message).flight {
            if flight.owner != owner && flight.lease > 0 && busy {
                return Begun::Busy(flight.lease);
            }
            if flight.owner == owner && flight.attempt > had && repeat {
                flight.lease = LEASE;
                return Begun::Attempt {
                    number: flight.attempt,
                    taking: flight.owners.len() as u8,
                };
            }
            attempt = flight.attempt;
            owners = std::mem::take(&mut flight.owners);
        }
        let had = if counts { had } else { 0 };
        let number = attempt.max(had) + 1;
        if !owners.contains(&owner) {
            owners.push(owner);
        }
        let taking = owners.len() as u8;
        self.kept(message).flight = Some(Flight {
            owner,
            lease: LEASE,
            attempt: number,
            text: Vec::new(),
            owners,
        });
        if number > 1 {
            self.publish(Frame::Restarted(message, number));
        }
        Begun::Attempt { number, taking }
    }

    /// A piece is its index and the call of the model that said it.
    pub(crate) fn live(
        &mut self,
        message: Message,
        owner: Owner,
        attempt: u8,
        piece: Option<(u8, u8)>,
    ) -> Lived {
        match self.kept(message).ended {
            Some(Ended::Forgotten(None)) => return Lived::Cancelled,
            Some(_) => return Lived::Fenced,
            None => {}
        }
        if self.kept(message).marked {
            return Lived::Cancelled;
        }
        let (fenced, next) = (self.keeps(Rule::Fenced), self.keeps(Rule::Index));
        let Some(flight) = &mut self.kept(message).flight else {
            return Lived::Lost;
        };
        if fenced && (flight.owner != owner || flight.attempt != attempt) {
            return Lived::Fenced;
        }
        flight.lease = LEASE;
        let Some((index, call)) = piece else {
            return Lived::Written;
        };
        if next && usize::from(index) != flight.text.len() {
            return Lived::Expected(flight.text.len() as u8);
        }
        flight.text.push(call);
        self.publish(Frame::Delta {
            message,
            attempt,
            index,
            call,
        });
        Lived::Written
    }

    pub(crate) fn keep(
        &mut self,
        message: Message,
        owner: Owner,
        attempt: u8,
        end: End,
        cancelled: End,
    ) -> Keeping {
        let first = self.keeps(Rule::FirstOutcome);
        match self.kept(message).ended {
            Some(Ended::Outcome(end, at)) if first => {
                return Keeping::Outcome(end, at);
            }
            Some(Ended::Forgotten(at)) => return Keeping::Outcome(cancelled, at),
            _ => {}
        }
        if let Some(flight) = &self.kept(message).flight
            && (flight.owner != owner || flight.attempt != attempt)
        {
            return Keeping::Fenced;
        }
        let marked = self.kept(message).marked && self.keeps(Rule::Mark);
        let end = if marked { cancelled } else { end };
        self.store(message, end);
        Keeping::Outcome(end, None)
    }

    /// `rewind`: it was delivered before, as far as the relay's commits say.
    pub(crate) fn deliver(
        &mut self,
        message: Message,
        offset: Offset,
        known: Option<Offset>,
        end: End,
        rewind: bool,
    ) -> Delivered {
        let ended_beside = |at| self.mailbox.as_ref().and_then(|one| one.end_beside(at));
        let last = ended_beside(offset);
        let knows = |known: &Offset| partition(*known) == partition(offset);
        if self.keeps(Rule::Known) && known.filter(knows).is_some_and(|known| last < Some(known)) {
            return Delivered::Lost;
        }
        self.pending.retain(|one| *one != message);
        if last.is_some_and(|last| offset <= last) {
            return Delivered::Already;
        }
        let elsewhere = |end| partition(end) != partition(offset);
        let current = self.mailbox.as_ref().map(|mailbox| mailbox.end);
        let anew = current.is_none_or(|end| end.is_some_and(elsewhere));
        let id = if anew { self.fresh(MAILBOX) } else { 0 };
        match &mut self.mailbox {
            None => self.mailbox = Some(Mailbox::new(id, false, offset)),
            Some(one) if anew => *one = one.moved(id, offset, rewind),
            Some(one) => {
                if one.mixed && !rewind {
                    one.mixed = false;
                    one.good_from = offset;
                }
            }
        }
        let bound = self.frames;
        let once = self.keeps(Rule::Once);
        let told = self.keeps(Rule::Told);
        let ended = self.kept(message).ended;
        let mailbox = self.mailbox.as_mut().unwrap();
        if mailbox.end.is_none() {
            mailbox.floor = offset;
        }
        mailbox.end = Some(offset);
        let elsewhere = match ended {
            Some(Ended::Outcome(_, at) | Ended::Forgotten(at)) => at.is_some_and(|at| at != offset),
            None => false,
        };
        if elsewhere && once {
            return Delivered::Already;
        }
        if let Some(Ended::Forgotten(_)) = ended {
            self.kept(message).ended = Some(Ended::Forgotten(Some(offset)));
            self.kept(message).flight = None;
            self.publish(Frame::Terminal(message, offset, end));
            return Delivered::Published;
        }
        mailbox.frames.push((offset, message, end));
        if rewind {
            mailbox.rebuilt = Some(offset);
        }
        while mailbox.frames.len() > bound {
            mailbox.floor = mailbox.frames.remove(0).0;
            mailbox.good = false;
        }
        self.kept(message).flight = None;
        let outcome = match ended {
            Some(Ended::Outcome(kept, _)) if !told => kept,
            _ => end,
        };
        self.kept(message).ended = Some(Ended::Outcome(outcome, Some(offset)));
        self.put_turn(message, false, outcome);
        self.publish(Frame::Terminal(message, offset, end));
        Delivered::Published
    }

    pub(crate) fn cancel(&mut self, message: Message) -> Cancelled {
        if self.kept(message).ended.is_some() {
            return Cancelled::AlreadyDone;
        }
        self.kept(message).marked = true;
        if self.pending.contains(&message) || self.kept(message).flight.is_some() {
            Cancelled::Cancelling
        } else {
            Cancelled::Unknown
        }
    }

    pub(crate) fn read(&mut self, after: Option<Position>) -> Look {
        if self.n_id.is_none() {
            self.n_id = Some(self.fresh(COUNTER));
        }
        if self.mailbox.is_none() {
            let id = self.fresh(MAILBOX);
            self.mailbox = Some(Mailbox::new(id, true, 0));
        }
        let mailbox = self.mailbox.as_ref().unwrap();
        let from = match after {
            Some(Position::Empty(id)) => (mailbox.good && mailbox.id == id).then_some(-1),
            Some(Position::At(at)) => mailbox
                .end
                .filter(|end| {
                    let good = mailbox.floor.max(mailbox.good_from);
                    !mailbox.mixed
                        && partition(*end) == partition(at)
                        && (good..=*end).contains(&at)
                })
                .map(|_| i16::from(at)),
            None => None,
        };
        let frames = mailbox.frames.iter().copied();
        let frames = frames.filter(|(at, ..)| from.is_some_and(|from| i16::from(*at) > from));
        let flights = self.messages.iter().enumerate();
        Look {
            n: self.n,
            id: self.n_id.unwrap_or(0),
            end: mailbox
                .end
                .map_or(Position::Empty(mailbox.id), Position::At),
            recovered: from.is_some(),
            frames: frames.collect(),
            rebuilt: mailbox.rebuilt,
            in_flight: flights
                .filter_map(|(message, kept)| {
                    let flight = kept.flight.as_ref()?;
                    Some((message as u8, flight.attempt, flight.text.clone()))
                })
                .collect(),
            pending: self.pending.clone(),
        }
    }

    /// One conversation, or everything. Whether there was anything.
    pub(crate) fn forget(&mut self, only: Option<u8>) -> bool {
        let mut found = false;
        for message in 0..self.messages.len() as u8 {
            if only.is_some_and(|only| only != self.conversations[usize::from(message)]) {
                continue;
            }
            let listed = self.pending.contains(&message)
                || self.history.iter().any(|turn| turn.message == message);
            let kept = self.kept(message);
            let at = match kept.ended {
                Some(Ended::Outcome(_, at)) => at,
                None if listed || kept.flight.is_some() => None,
                Some(Ended::Forgotten(_)) | None => continue,
            };
            kept.ended = Some(Ended::Forgotten(at));
            kept.flight = None;
            found = true;
            self.pending.retain(|one| *one != message);
            self.history.retain(|turn| turn.message != message);
            if let Some(mailbox) = &mut self.mailbox {
                mailbox.frames.retain(|(_, of, _)| *of != message);
            }
        }
        found
    }

    /// A relay looks at the marker before its first delivery; where it is gone, it leaves a
    /// token. Returns that; 0 where the marker was there.
    pub(crate) fn look_at_marker(&mut self) -> u8 {
        if self.marker == Marker::Complete {
            return 0;
        }
        let token = self.fresh(TOKEN);
        self.marker = Marker::Rebuilding(token);
        token
    }

    /// The rewind has reached where it began. False: data was lost meanwhile.
    pub(crate) fn set_marker(&mut self, token: u8) -> bool {
        let seen =
            matches!(self.marker, Marker::Complete) || self.marker == Marker::Rebuilding(token);
        if seen || !self.keeps(Rule::MarkerToken) {
            self.marker = Marker::Complete;
            return true;
        }
        false
    }
}
