//! The reference implementation of the fan-out for one user: the shared state and the atomic calls
//! over it, written from the algorithms of docs/consistency.md and from nothing else.
//!
//! Small numbers stand for names, texts and times, so that states can be counted, compared and
//! searched.

mod calls;
mod mailbox;
mod streams;

pub(crate) use mailbox::Mailbox;
pub(crate) use streams::{Parts, Piece, PieceList};

/// A message of the user.
pub(crate) type Message = u8;
/// A worker's random id for one delivery of a record.
pub(crate) type Owner = u8;
/// The partition and offset of a record in `responses`, as one number.
pub(crate) type Offset = u8;

/// Number of offsets in one partition.
pub(crate) const PARTITION_SIZE: Offset = 32;

/// Duration of a lease, in the model's milliseconds.
pub(crate) const LEASE_MS: u16 = 3000;

/// Returns the partition of an offset.
fn partition_of(offset: Offset) -> Offset {
    offset / PARTITION_SIZE
}

/// The id of the stream of one attempt, made of owner and attempt.
pub(crate) type Stream = u16;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OutcomeKind {
    Answered,
    Cancelled,
    Failed,
}

/// A terminal frame: the first `pieces` pieces of the text of one model call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    pub(crate) call: u8,
    pub(crate) pieces: u8,
    pub(crate) kind: OutcomeKind,
}

/// A client's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Position {
    /// The position in a mailbox that never held a frame, by the mailbox's id.
    Empty(u8),
    /// The position of a record of `responses`.
    At(Offset),
}

/// The stored outcome of a message, with the offset of its record once it was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StoredOutcome {
    Outcome(Outcome, Option<Offset>),
    /// The user deleted the conversation; only the fact that the message ended remains.
    Forgotten(Option<Offset>),
}

impl StoredOutcome {
    pub(crate) fn delivered_at(self) -> Option<Offset> {
        match self {
            Self::Outcome(_, offset) | Self::Forgotten(offset) => offset,
        }
    }
}

/// An answer that a worker is generating.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct InFlight {
    pub(crate) owner: Owner,
    /// Remaining milliseconds of the lease.
    pub(crate) lease: u16,
    pub(crate) attempt: u8,
    pub(crate) stream: Stream,
    /// Number of open parts of the stream.
    pub(crate) parts: u8,
    /// All owners that have begun the message, so their number is the delivery count.
    pub(crate) owners: Vec<Owner>,
}

/// A turn of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Turn {
    pub(crate) message: Message,
    pub(crate) has_question: bool,
    pub(crate) outcome: Outcome,
}

/// The state of one message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct MessageState {
    pub(crate) cancel_requested: bool,
    pub(crate) in_flight: Option<InFlight>,
    pub(crate) outcome: Option<StoredOutcome>,
}

/// A frame on the user's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    Accepted(Message),
    Restarted(Message, u8, Stream),
    Delta(Message, Stream, Piece),
    Terminal(Message, Offset, Outcome),
}

/// The sequence number of a published frame, with the id of the counter that assigned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SequenceNumber {
    pub(crate) counter_id: u8,
    pub(crate) n: u8,
}

/// A published frame. A delta that is not the opening of a part has no sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PublishedFrame {
    pub(crate) number: Option<SequenceNumber>,
    pub(crate) frame: Frame,
}

/// The marker of the partition, which shows that Redis still has its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Marker {
    Missing,
    /// A relay found the marker missing and rebuilds the mailboxes under this token.
    Rebuilding(u8),
    Complete,
}

/// A rule that a search can omit, to show that some violation follows without the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// `deliver` returns `DataLost` if the mailbox ends below the last record that the relay
    /// delivered.
    LostMailboxDetected,
    /// `begin` assigns an attempt above every attempt that the owner has used.
    AttemptAboveLast,
    /// `begin` returns `Busy` while the lease of another owner is valid.
    LeaseExcludesOthers,
    /// A repeated `begin` has no effect.
    BeginIdempotent,
    /// `open_part` is accepted only from the current owner and attempt.
    OpeningFenced,
    /// The pieces of two streams are stored separately.
    SeparateStreams,
    /// No two attempts have the same stream, also after a loss of data.
    UniqueStreams,
    /// A reader drops a repeated piece of text.
    RepeatsDropped,
    /// A receiver compares the length of the previous part when a part opens.
    PreviousEndChecked,
    /// A gateway forwards deltas of the current stream only.
    OnlyCurrentStreamForwarded,
    /// `keep` returns an outcome that is already stored.
    FirstOutcomeWins,
    /// `deliver` makes the frame's outcome the stored one, also in the history.
    DeliveredOutcomeWins,
    /// A second record of a message is not published.
    DeliveredOnce,
    /// `keep` checks whether a cancel was requested.
    KeepChecksCancel,
    /// `keep` leaves the answer in flight until its delivery.
    KeepRetainsParts,
    /// A gateway reads the mailbox when the sequence numbers have a gap.
    GapTriggersRead,
    /// A gateway never sends a frame at or below the client's position.
    PositionFilter,
    /// A relay rewinds a partition that is assigned to it.
    RewindOnAssignment,
    /// A worker produces only an outcome that `keep` returned.
    OnlyStoredOutcomeProduced,
    /// The next message of a conversation waits until the log acknowledged the outcome of the
    /// previous one.
    LaneWaitsForLog,
    /// An offset is committed only when everything before it is finished.
    ContiguousCommit,
    /// The marker becomes complete only under the token of this rebuild, or if it was complete.
    MarkerToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AdmissionDecision {
    New,
    OutcomeStored,
    Delivered(Outcome, Offset),
    Forgotten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BeginResponse {
    Ended(Outcome, Option<Offset>),
    /// Another owner has the lease for this number of milliseconds.
    Busy(u16),
    Attempt {
        number: u8,
        delivery_count: u8,
    },
}

/// The response to `open_part` and `renew`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StreamResponse {
    /// Contains the number of stored pieces of the stream.
    Confirmed(u8),
    Fenced,
    Cancelled,
    DataLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum KeepResponse {
    Outcome(Outcome, Option<Offset>),
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DeliverResponse {
    Published,
    AlreadyDelivered,
    DataLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CancelResult {
    Cancelling,
    AlreadyDone,
    Unknown,
}

/// A consistent snapshot of what a new subscriber needs, as `read` returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserView {
    pub(crate) n: u8,
    pub(crate) counter_id: u8,
    pub(crate) end: Position,
    pub(crate) recovered: bool,
    pub(crate) frames: Vec<(Offset, Message, Outcome)>,
    pub(crate) rebuilt_up_to: Option<Offset>,
    pub(crate) in_flight: Vec<InFlightAnswer>,
    pub(crate) pending: Vec<Message>,
}

/// An answer in flight with the text that its stored pieces form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InFlightAnswer {
    pub(crate) message: Message,
    pub(crate) attempt: u8,
    pub(crate) stream: Stream,
    pub(crate) parts: Parts,
}

/// The last id assigned of each kind. Ids stand for random ones, so they survive a loss of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct LastIds {
    counter: u8,
    mailbox: u8,
    token: u8,
}

fn next_id(id: &mut u8) -> u8 {
    *id += 1;
    *id
}

/// Everything that Redis holds of one user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SharedState {
    /// The conversation of each message.
    conversations: Vec<u8>,
    /// Capacity of the mailbox in frames.
    mailbox_frames: usize,
    /// The rule that the calls do not enforce.
    omitted_rule: Option<Rule>,
    last_ids: LastIds,
    pub(crate) n: u8,
    pub(crate) counter_id: Option<u8>,
    pub(crate) mailbox: Option<Mailbox>,
    pub(crate) messages: Vec<MessageState>,
    /// The stored pieces of each stream.
    pub(crate) lists: Vec<PieceList>,
    pub(crate) pending: Vec<Message>,
    /// The turns of all conversations, in the order in which they were first stored.
    pub(crate) history: Vec<Turn>,
    pub(crate) marker: Marker,
    /// Frames published by the last call.
    pub(crate) published: Vec<PublishedFrame>,
}

impl SharedState {
    pub(crate) fn new(
        conversations: &[u8],
        mailbox_frames: usize,
        omitted_rule: Option<Rule>,
    ) -> Self {
        Self {
            conversations: conversations.to_vec(),
            mailbox_frames,
            omitted_rule,
            last_ids: LastIds::default(),
            n: 0,
            counter_id: None,
            mailbox: None,
            messages: vec![MessageState::default(); conversations.len()],
            lists: Vec::new(),
            pending: Vec::new(),
            history: Vec::new(),
            marker: Marker::Missing,
            published: Vec::new(),
        }
    }

    pub(crate) fn conversation(&self, message: Message) -> u8 {
        self.conversations[usize::from(message)]
    }

    pub(crate) fn enforces(&self, rule: Rule) -> bool {
        self.omitted_rule != Some(rule)
    }

    /// Deletes all data, as a Redis that loses its data.
    pub(crate) fn lose_data(&mut self) {
        let last_ids = self.last_ids;
        *self = Self::new(&self.conversations, self.mailbox_frames, self.omitted_rule);
        self.last_ids = last_ids;
    }

    /// Returns to an earlier state, as a Redis that rolls back.
    pub(crate) fn roll_back_to(&mut self, earlier: Self) {
        let last_ids = self.last_ids;
        *self = earlier;
        self.last_ids = last_ids;
    }

    /// Restarts the process of an embedded fan-out, which loses the state that was only in memory.
    pub(crate) fn restart(&mut self) {
        for message in &mut self.messages {
            message.in_flight = None;
        }
        self.lists.clear();
        self.n = 0;
        self.counter_id = None;
    }

    /// Advances the time, which shortens the leases.
    pub(crate) fn advance_time(&mut self, ms: u16) {
        for message in &mut self.messages {
            if let Some(in_flight) = &mut message.in_flight {
                in_flight.lease = in_flight.lease.saturating_sub(ms);
            }
        }
    }

    fn message(&mut self, message: Message) -> &mut MessageState {
        &mut self.messages[usize::from(message)]
    }

    /// Publishes a frame with the next sequence number.
    fn publish(&mut self, frame: Frame) {
        self.n += 1;
        let counter_id = match self.counter_id {
            Some(id) => id,
            None => next_id(&mut self.last_ids.counter),
        };
        self.counter_id = Some(counter_id);
        self.published.push(PublishedFrame {
            number: Some(SequenceNumber {
                counter_id,
                n: self.n,
            }),
            frame,
        });
    }

    fn store_turn(&mut self, message: Message, has_question: bool, outcome: Outcome) {
        let mut turns = self.history.iter_mut();
        if let Some(turn) = turns.find(|turn| turn.message == message) {
            turn.outcome = outcome;
            turn.has_question |= has_question;
        } else {
            self.history.push(Turn {
                message,
                has_question,
                outcome,
            });
        }
    }

    fn store_outcome(&mut self, message: Message, outcome: Outcome) {
        self.message(message).outcome = Some(StoredOutcome::Outcome(outcome, None));
        self.store_turn(message, true, outcome);
    }
}
