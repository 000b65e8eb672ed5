//! Tests of the embedded fan-out with a clock that only the tests advance, and their common
//! helpers.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::sweep::Sweep;
use super::*;
use crate::fanout::{
    AdmissionDecision, Admissions, Answers, AppendRequest, BeginRequest, BeginResponse,
    DeliverRequest, DeliverResponse, Deliveries, FeedEvent, Feeds, History, KeepRequest,
    KeepResponse, MessageRef, NewOutcome, OpenPartRequest, Owner, Piece, ReadRequest, Reads,
    RenewRequest, StreamResponse, Tokens, Turn, TurnStatus, UserView,
};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::parts::{PartKind, TextRange, utf16_len};
use crate::protocol::position::{Epoch, Position};

mod feed;
mod retention;
mod scenarios;
mod streams;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// An embedded fan-out with everything that is needed to open it again.
struct TestFanout {
    fanout: EmbeddedFanout,
    store: Store,
    /// The store's directory; `None` for a store in memory.
    store_dir: Option<tempfile::TempDir>,
    clock: Arc<AtomicI64>,
    random: Arc<AtomicU64>,
    bounds: Bounds,
}

impl TestFanout {
    fn new(bounds: Bounds) -> Self {
        Self::with_store(Store::in_memory(), None, bounds)
    }

    fn in_memory_and_on_disk(bounds: &Bounds) -> [Self; 2] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        [
            Self::new(bounds.clone()),
            Self::with_store(store, Some(dir), bounds.clone()),
        ]
    }

    fn with_store(store: Store, store_dir: Option<tempfile::TempDir>, bounds: Bounds) -> Self {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000));
        let random = Arc::new(AtomicU64::new(1));
        Self {
            fanout: open(&store, &bounds, &clock, &random),
            store,
            store_dir,
            clock,
            random,
            bounds,
        }
    }

    fn advance_clock(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    /// Simulates a restart of the process: everything that was only in memory is lost.
    fn restart(&mut self) {
        if let Some(dir) = &self.store_dir {
            // Replace the store, which closes it. A directory can't be opened while a store has it
            // open.
            self.store = Store::in_memory();
            self.fanout = open(&self.store, &self.bounds, &self.clock, &self.random);
            self.store = Store::open(dir.path(), 0).unwrap();
        }
        self.fanout = open(&self.store, &self.bounds, &self.clock, &self.random);
    }

    /// Simulates a fan-out that lost all of its data.
    fn lose_data(&mut self) {
        self.store = Store::in_memory();
        self.store_dir = None;
        self.restart();
    }

    /// Runs one whole pass of the sweep.
    fn sweep(&self) {
        let mut sweep = Sweep::new(Arc::clone(&self.fanout.users));
        while !sweep.step().unwrap() {}
    }

    /// Number of entries of users in the store.
    fn entry_count(&self) -> usize {
        [Table::Users, Table::History]
            .into_iter()
            .map(|table| {
                let entries = self.store.scan(table, b"\x01", b"\xff", usize::MAX, false);
                entries.unwrap().len()
            })
            .sum()
    }

    async fn admit(&self, message: &str) -> AdmissionDecision {
        self.fanout
            .admit(&message_ref(message), "hi?")
            .await
            .unwrap()
            .decision
    }

    async fn begin(&self, message: &str, owner: &Owner, last_attempt: u32) -> BeginResponse {
        let call = BeginRequest {
            message: message_ref(message),
            owner: owner.clone(),
            last_attempt,
            cancelled_outcome: new_outcome(message, "stopped", TurnStatus::Cancelled).into(),
            history: None,
        };
        self.fanout.begin(call).await.unwrap()
    }

    /// Calls `begin` and returns the number of the attempt.
    async fn attempt(&self, message: &str, owner: &Owner, last_attempt: u32) -> u32 {
        match self.begin(message, owner, last_attempt).await {
            BeginResponse::Attempt { number, .. } => number,
            other => panic!("no attempt: {other:?}"),
        }
    }

    /// Opens part 0 of the answer with this text.
    async fn open(&self, message: &str, owner: &Owner, attempt: u32, text: &str) -> StreamResponse {
        let call = opening(message, owner, attempt, 0, text);
        self.fanout.open_part(call).await.unwrap()
    }

    /// Appends a text to part 0 of the answer, at this offset.
    async fn append(
        &self,
        message: &str,
        owner: &Owner,
        attempt: u32,
        offset: u32,
        text: &str,
    ) -> u64 {
        let call = AppendRequest {
            message: message_ref(message),
            owner: owner.clone(),
            attempt,
            piece: piece(0, offset, text),
        };
        self.fanout.append(call).await.unwrap()
    }

    /// Renews the lease of an attempt of which `length` code units of part 0 are confirmed.
    async fn renew(
        &self,
        message: &str,
        owner: &Owner,
        attempt: u32,
        length: u32,
    ) -> StreamResponse {
        let call = RenewRequest {
            message: message_ref(message),
            owner: owner.clone(),
            attempt,
            parts: u32::from(length > 0),
            last_length: length,
            pieces: u64::MAX,
        };
        self.fanout.renew(call).await.unwrap()
    }

    async fn keep(&self, message: &str, owner: &Owner, attempt: u32, answer: &str) -> KeepResponse {
        let call = KeepRequest {
            message: message_ref(message),
            owner: owner.clone(),
            attempt,
            outcome: new_outcome(message, answer, TurnStatus::Answered).into(),
            cancelled_outcome: new_outcome(message, "stopped", TurnStatus::Cancelled).into(),
        };
        self.fanout.keep(call).await.unwrap()
    }

    async fn deliver(&self, message: &str, offset: i64, known_end: Option<i64>) -> DeliverResponse {
        self.fanout
            .deliver(delivery(
                message,
                position_at(offset),
                known_end.map(position_at),
            ))
            .await
            .unwrap()
    }

    async fn read(&self, after: Option<Position>) -> UserView {
        let call = ReadRequest {
            user: user(),
            after,
            from_start: false,
            max_bytes: usize::MAX,
        };
        self.fanout.read(call).await.unwrap()
    }

    /// Returns question and answer of each turn in the model's context.
    async fn context(&self) -> Vec<(Option<String>, String)> {
        self.fanout
            .context(
                &user(),
                &ConversationId::default_conversation(),
                50,
                Duration::from_secs(3600),
            )
            .await
            .unwrap()
            .into_iter()
            .map(|turn| (turn.question, turn.answer))
            .collect()
    }
}

fn open(
    store: &Store,
    bounds: &Bounds,
    clock: &Arc<AtomicI64>,
    random: &Arc<AtomicU64>,
) -> EmbeddedFanout {
    let (clock, random) = (Arc::clone(clock), Arc::clone(random));
    let environment = Environment {
        clock: Box::new(move || clock.load(Ordering::Relaxed)),
        random: Box::new(move || random.fetch_add(1, Ordering::Relaxed)),
    };
    EmbeddedFanout::with_environment(store.clone(), bounds.clone(), environment).unwrap()
}

fn user() -> UserId {
    UserId::parse("alice").unwrap()
}

fn message_id(name: &str) -> MessageId {
    MessageId::parse(name).unwrap()
}

fn message_ref(name: &str) -> MessageRef {
    MessageRef {
        user: user(),
        message_id: message_id(name),
        id: None,
        conversation: ConversationId::default_conversation(),
    }
}

/// A piece of a part's text at this offset.
fn piece(part: u32, offset: u32, text: &str) -> Piece {
    let end = offset + utf16_len(text);
    Piece {
        range: TextRange { part, offset, end },
        text: text.into(),
    }
}

/// A request to open a part of text, after an empty part if it is not the first.
fn opening(message: &str, owner: &Owner, attempt: u32, part: u32, text: &str) -> OpenPartRequest {
    OpenPartRequest {
        message: message_ref(message),
        owner: owner.clone(),
        attempt,
        kind: PartKind::Text,
        meta: None,
        previous_end: (part > 0).then_some(0),
        piece: piece(part, 0, text),
    }
}

/// The texts of the parts of the only answer in flight.
fn in_flight_texts(view: &UserView) -> Vec<&str> {
    let [answer] = &*view.in_flight else {
        panic!("not one answer in flight: {:?}", view.in_flight);
    };
    answer.parts.iter().map(|part| &*part.text).collect()
}

/// JSON of the terminal frame of a message.
fn frame(name: &str, answer: &str) -> String {
    format!(r#"{{"type":"response","message_id":"{name}","content":"{answer}"}}"#)
}

fn new_outcome(name: &str, answer: &str, status: TurnStatus) -> NewOutcome {
    NewOutcome {
        frame: frame(name, answer),
        turn: Turn {
            message_id: message_id(name),
            question: Some("hi?".into()),
            answer: answer.into(),
            parts: None,
            status,
            at_ms: 0,
        },
    }
}

/// The position at this offset in the epoch that most tests use.
fn position_at(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("cluster", "0", 0),
        offset,
    }
}

/// A request to deliver the answer `delivered` to a message.
fn delivery(name: &str, position: Position, known_end: Option<Position>) -> DeliverRequest {
    DeliverRequest {
        user: user(),
        message_id: message_id(name),
        conversation: Some(ConversationId::default_conversation()),
        frame: frame(name, "delivered"),
        position,
        known_end,
        logged_at_ms: None,
        is_rewind: false,
        answer: "delivered".into(),
        parts: None,
        status: TurnStatus::Answered,
    }
}

/// Offsets of the frames in a user view.
fn offsets(view: &UserView) -> Vec<i64> {
    let positions = view.frames.iter().map(|(position, _)| position.offset);
    positions.collect()
}

/// JSON of the terminal frame that `keep` returned.
fn outcome_frame(response: KeepResponse) -> String {
    match response {
        KeepResponse::Outcome(outcome) | KeepResponse::Appended(outcome, _) => outcome.frame,
        KeepResponse::Fenced => panic!("fenced"),
    }
}
