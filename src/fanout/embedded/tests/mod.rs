//! Tests on a clock that only they move.

use std::sync::atomic::AtomicU64;

use super::sweep::Sweep;
use super::*;
use crate::fanout::{AdmissionDecision, NewOutcome, Owner, TurnStatus};
use crate::protocol::position::Position;

mod feed;
mod kept;
mod scenarios;

const DAY_MS: i64 = 24 * 3600 * 1000;

struct Bench {
    fanout: EmbeddedFanout,
    store: Store,
    /// Where the store is, unless it is in memory.
    dir: Option<tempfile::TempDir>,
    clock: Arc<AtomicI64>,
    random: Arc<AtomicU64>,
    bounds: Bounds,
}

impl Bench {
    fn new(bounds: Bounds) -> Self {
        Self::on(Store::in_memory(), None, bounds)
    }

    /// One in memory and one on disk.
    fn both(bounds: &Bounds) -> [Self; 2] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        [
            Self::new(bounds.clone()),
            Self::on(store, Some(dir), bounds.clone()),
        ]
    }

    fn on(store: Store, dir: Option<tempfile::TempDir>, bounds: Bounds) -> Self {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000));
        let random = Arc::new(AtomicU64::new(1));
        Self {
            fanout: open(&store, &bounds, &clock, &random),
            store,
            dir,
            clock,
            random,
            bounds,
        }
    }

    fn pass(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    /// As after the process's death: what was in memory only is gone.
    fn restart(&mut self) {
        if let Some(dir) = &self.dir {
            // Only one may hold the directory.
            self.store = Store::in_memory();
            self.fanout = open(&self.store, &self.bounds, &self.clock, &self.random);
            self.store = Store::open(dir.path(), 0).unwrap();
        }
        self.fanout = open(&self.store, &self.bounds, &self.clock, &self.random);
    }

    /// As a fan-out that lost everything.
    fn empty(&mut self) {
        self.store = Store::in_memory();
        self.dir = None;
        self.restart();
    }

    fn sweep(&self) {
        let mut sweep = Sweep::new(Arc::clone(&self.fanout.users));
        while !sweep.step().unwrap() {}
    }

    fn entries(&self) -> usize {
        [Table::Users, Table::History]
            .into_iter()
            .map(|table| {
                let all = self.store.scan(table, b"\x01", b"\xff", usize::MAX, false);
                all.unwrap().len()
            })
            .sum()
    }

    async fn admit(&self, message: &str) -> AdmissionDecision {
        self.fanout
            .admit(&subject(message), "hi?")
            .await
            .unwrap()
            .decision
    }

    async fn begin(&self, message: &str, owner: &Owner, last_attempt: u32) -> Begun {
        let call = Begin {
            message: subject(message),
            owner: owner.clone(),
            last_attempt,
            cancelled_outcome: ending(message, "stopped", TurnStatus::Cancelled).into(),
            history: None,
        };
        self.fanout.begin(call).await.unwrap()
    }

    async fn attempt(&self, message: &str, owner: &Owner, last_attempt: u32) -> u32 {
        match self.begin(message, owner, last_attempt).await {
            Begun::Attempt { number, .. } => number,
            other => panic!("no attempt: {other:?}"),
        }
    }

    async fn live(&self, message: &str, owner: &Owner, attempt: u32, delta: u32) -> LiveReply {
        let call = Live {
            message: subject(message),
            owner: owner.clone(),
            attempt,
            delta: Some((delta, format!("[{attempt}.{delta}]"))),
        };
        self.fanout.live(call).await.unwrap()
    }

    async fn keep(&self, message: &str, owner: &Owner, attempt: u32, answer: &str) -> Kept {
        let call = Keep {
            message: subject(message),
            owner: owner.clone(),
            attempt,
            outcome: ending(message, answer, TurnStatus::Answered).into(),
            cancelled_outcome: ending(message, "stopped", TurnStatus::Cancelled).into(),
        };
        self.fanout.keep(call).await.unwrap()
    }

    async fn deliver(&self, message: &str, offset: i64, known: Option<i64>) -> Delivered {
        self.fanout
            .deliver(delivery(message, at(offset), known.map(at)))
            .await
            .unwrap()
    }

    async fn read(&self, after: Option<Position>) -> Look {
        let call = Read {
            user: user(),
            after,
            from_start: false,
            max_bytes: usize::MAX,
        };
        self.fanout.read(call).await.unwrap()
    }

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

fn message(name: &str) -> MessageId {
    MessageId::parse(name).unwrap()
}

fn subject(name: &str) -> Subject {
    Subject {
        user: user(),
        message_id: message(name),
        id: None,
        conversation: ConversationId::default_conversation(),
    }
}

fn frame(name: &str, answer: &str) -> String {
    format!(r#"{{"type":"response","message_id":"{name}","content":"{answer}"}}"#)
}

fn ending(name: &str, answer: &str, status: TurnStatus) -> NewOutcome {
    NewOutcome {
        frame: frame(name, answer),
        turn: Turn {
            message_id: message(name),
            question: Some("hi?".into()),
            answer: answer.into(),
            status,
            at_ms: 0,
        },
    }
}

fn at(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("cluster", "0", 0),
        offset,
    }
}

fn delivery(name: &str, position: Position, known: Option<Position>) -> Deliver {
    Deliver {
        user: user(),
        message_id: message(name),
        conversation: Some(ConversationId::default_conversation()),
        frame: frame(name, "delivered"),
        position,
        known,
        ended_ms: None,
        rewind: false,
        answer: "delivered".into(),
        status: TurnStatus::Answered,
    }
}

fn offsets(look: &Look) -> Vec<i64> {
    look.frames.iter().map(|(at, _)| at.offset).collect()
}

fn outcome_frame(kept: Kept) -> String {
    match kept {
        Kept::Outcome(outcome) | Kept::Grown(outcome, _) => outcome.frame,
        Kept::Fenced => panic!("fenced"),
    }
}
