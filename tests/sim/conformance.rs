//! The real fan-outs against the reference: the same random calls, answers and state compared step
//! by step. A failure prints the seed and the shortest trace found; `SIM_SEED` runs one seed
//! again, `SIM_TRACES` runs more of them.

mod calls;
mod subjects;

use calls::{answer, frame, random_calls, status, words};
use subjects::{Embedded, Redis, bounds, user};

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chatmesh::config::settings::RedisSettings;
use chatmesh::fanout::embedded::EmbeddedFanout;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::fanout::{
    self as real, Channel, Deliveries as _, Fanout, Feed, FeedEvent, Feeds as _, LiveResponse,
    MessageRef, TurnStatus,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::position::{self, Epoch};
use chatmesh::store::Store;
use fred::clients::Client;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::Builder;
use fred::types::config::Config;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use crate::reference::{
    Admitted, Begun, Cancelled, Delivered, End, Frame, How, Keeping, Lived, Message, Offset, Owner,
    PARTITION, Position, Published, Shared,
};

const CONVERSATIONS: &[u8] = &[0, 0, 1, 0];
/// Frames that a mailbox holds: few, so that it is trimmed.
const FRAMES: usize = 3;
const CALLS: usize = 80;

#[derive(Debug, Clone, Copy)]
enum Op {
    Admit(Message),
    Accept(Message),
    Begin(Message, Owner, u8),
    Live(Message, Owner, u8, Option<(u8, u8)>),
    Keep(Message, Owner, u8, End),
    Deliver(Message, Offset, Option<Offset>, End, bool),
    Cancel(Message),
    Read(Option<Position>),
    History(u8),
    Forget(Option<u8>),
    Clear(Message),
    Pass(u16),
    Empty,
    /// The process dies: what it had in memory is gone.
    Restart,
}

const STOPPED: End = End {
    call: 0,
    pieces: 0,
    how: How::Cancelled,
};

/// A fan-out under test, with one user of its own.
#[async_trait]
trait Subjected {
    fn fanout(&self) -> Arc<dyn Fanout>;
    async fn pass(&mut self, ms: u16);
    async fn empty(&mut self);
    /// False where there is no such thing.
    async fn restart(&mut self) -> bool;
    /// What was published since the last call, where it can be told.
    fn published(&mut self) -> Option<Vec<(Channel, serde_json::Value)>>;
}

/// The names of the reference and those of the fan-out at hand.
#[derive(Default)]
struct Names {
    counters: HashMap<u8, String>,
    mailboxes: HashMap<u8, position::Position>,
}

fn same<T: PartialEq + Clone + std::fmt::Debug>(
    names: &mut HashMap<u8, T>,
    ours: u8,
    theirs: &T,
) -> Result<(), String> {
    let known = names.entry(ours).or_insert_with(|| theirs.clone());
    if known != theirs {
        return Err(format!("{theirs:?} was {known:?} before"));
    }
    let others = names.iter().filter(|(other, _)| **other != ours);
    match others.map(|(_, name)| name).find(|name| *name == theirs) {
        Some(name) => Err(format!("{name:?} is used twice")),
        None => Ok(()),
    }
}

/// Carries the reference's calls over.
struct Runner<'a> {
    real: &'a mut dyn Subjected,
    user: UserId,
    names: Names,
}

fn conversation(number: u8) -> ConversationId {
    ConversationId::parse(if number == 0 { "default" } else { "other" }).unwrap()
}

fn at(offset: Offset) -> position::Position {
    position::Position {
        epoch: Epoch::new("c", "0", i32::from(offset / PARTITION)),
        offset: i64::from(offset % PARTITION),
    }
}

/// The reference's name of a position.
fn place(position: &position::Position) -> Offset {
    let mut places = 0..=Offset::MAX;
    places.find(|offset| at(*offset) == *position).unwrap()
}

impl Runner<'_> {
    fn subject(&self, message: Message) -> MessageRef {
        MessageRef {
            user: self.user.clone(),
            message_id: id(message),
            id: None,
            conversation: conversation(CONVERSATIONS[usize::from(message)]),
        }
    }

    fn ending(message: Message, end: End) -> real::NewOutcome {
        real::NewOutcome {
            frame: frame(message, end),
            turn: real::Turn {
                message_id: id(message),
                question: Some(format!("question {message}")),
                answer: words(end),
                status: status(end.how),
                at_ms: 0,
            },
        }
    }

    /// What the fan-out says, as text.
    async fn call(&mut self, op: Op) -> Result<String, real::FanoutError> {
        let fanout = self.real.fanout();
        let outcome = |outcome: real::StoredOutcome| {
            format!(
                "{} {:?}",
                outcome.frame,
                outcome.delivered_at.map(|at| place(&at))
            )
        };
        let owned = |owner: Owner| owners()[usize::from(owner)].clone();
        Ok(match op {
            Op::Admit(message) => match fanout.admit(&self.subject(message), "?").await?.decision {
                real::AdmissionDecision::New => "new".into(),
                real::AdmissionDecision::OutcomeStored => "kept".into(),
                real::AdmissionDecision::Delivered(frame, at) => {
                    format!("{frame} at {}", place(&at))
                }
                real::AdmissionDecision::Forgotten => "forgotten".into(),
                real::AdmissionDecision::Refused(limit) => format!("{limit:?}"),
            },
            Op::Accept(message) => {
                let frame = format!(r#"{{"type":"accepted","message_id":"m{message}"}}"#);
                fanout.accept(&self.subject(message), frame).await?;
                String::new()
            }
            Op::Begin(message, owner, had) => {
                let call = real::BeginRequest {
                    message: self.subject(message),
                    owner: owned(owner),
                    last_attempt: u32::from(had),
                    cancelled_outcome: Self::ending(message, STOPPED).into(),
                    history: None,
                };
                match fanout.begin(call).await? {
                    real::BeginResponse::Ended(end) => outcome(end),
                    real::BeginResponse::Busy(_) => "busy".into(),
                    real::BeginResponse::Attempt {
                        number,
                        delivery_count,
                        ..
                    } => {
                        format!("attempt {number}, taking {taking}")
                    }
                }
            }
            Op::Live(message, owner, attempt, piece) => {
                let call = real::LiveRequest {
                    message: self.subject(message),
                    owner: owned(owner),
                    attempt: u32::from(attempt),
                    delta: piece.map(|(index, call)| (u32::from(index), format!("[{call}]"))),
                };
                match fanout.live(call).await? {
                    LiveResponse::Expected(next) => format!("expected {next}"),
                    other => format!("{other:?}").to_lowercase(),
                }
            }
            Op::Keep(message, owner, attempt, end) => {
                let call = real::KeepRequest {
                    message: self.subject(message),
                    owner: owned(owner),
                    attempt: u32::from(attempt),
                    outcome: Self::ending(message, end).into(),
                    cancelled_outcome: Self::ending(message, STOPPED).into(),
                };
                match fanout.keep(call).await? {
                    real::KeepResponse::Outcome(end) | real::KeepResponse::Appended(end, _) => {
                        outcome(end)
                    }
                    real::KeepResponse::Fenced => "fenced".into(),
                }
            }
            Op::Deliver(message, offset, known, end, rewind) => {
                let call = real::DeliverRequest {
                    user: self.user.clone(),
                    message_id: id(message),
                    conversation: Some(self.subject(message).conversation),
                    position: at(offset),
                    known_end: known.map(at),
                    logged_at_ms: None,
                    is_rewind: rewind,
                    frame: frame(message, end),
                    answer: words(end),
                    status: status(end.how),
                };
                match fanout.deliver(call).await? {
                    real::DeliverResponse::Published(_) => "published".into(),
                    other => format!("{other:?}").to_lowercase(),
                }
            }
            Op::Cancel(message) => match fanout.cancel(&self.user, &id(message)).await? {
                real::CancelResult::Cancelling => "cancelling".into(),
                real::CancelResult::AlreadyDone => "already done".into(),
                real::CancelResult::Unknown => "unknown".into(),
            },
            Op::Read(_) | Op::Restart => String::new(),
            Op::History(number) => {
                let (of, no) = (conversation(number), None);
                let turns = fanout.history(&self.user, &of, no, 100).await?;
                turns
                    .unwrap_or_default()
                    .iter()
                    .fold(String::new(), |mut text, turn| {
                        let question = turn.question.is_some();
                        let (message, answer) = (&turn.message_id, &turn.answer);
                        let _ = write!(text, "{message} {question} {answer} {:?}; ", turn.status);
                        text
                    })
            }
            Op::Forget(only) => {
                let only = only.map(conversation);
                fanout.forget(&self.user, only.as_ref()).await?.to_string()
            }
            Op::Clear(message) => {
                fanout.clear_pending(&self.user, &id(message)).await?;
                String::new()
            }
            Op::Pass(ms) => {
                self.real.pass(ms).await;
                String::new()
            }
            Op::Empty => {
                self.real.empty().await;
                String::new()
            }
        })
    }

    /// Compares a look.
    async fn looks(&mut self, shared: &mut Shared, after: Option<Position>) -> Result<(), String> {
        let theirs_after = match after {
            Some(Position::At(offset)) => Some(at(offset)),
            Some(Position::Empty(id)) => self.names.mailboxes.get(&id).cloned(),
            None => None,
        };
        let call = real::ReadRequest {
            user: self.user.clone(),
            after: theirs_after.clone(),
            from_start: false,
            max_bytes: 1 << 20,
        };
        let look = self
            .real
            .fanout()
            .read(call)
            .await
            .map_err(|e| e.to_string())?;
        // A position that this fan-out never named is none.
        let ours = shared.read(after.filter(|_| theirs_after.is_some()));
        same(&mut self.names.counters, ours.id, &look.n_id)?;
        match ours.end {
            Position::At(offset) if look.end == at(offset) => {}
            Position::Empty(id) => same(&mut self.names.mailboxes, id, &look.end)?,
            Position::At(_) => {
                return Err(format!("it ends at {:?}, not {:?}", look.end, ours.end));
            }
        }
        let frames = ours.frames.iter();
        let frames = frames.map(|(offset, message, end)| (at(*offset), frame(*message, *end)));
        let flights = ours.in_flight.iter().map(|(message, attempt, text)| {
            let words: Vec<_> = text.iter().map(|call| format!("[{call}]")).collect();
            let words = words.concat();
            format!("m{message} {attempt} {} {words}", text.len())
        });
        let pending = ours.pending.iter().map(|message| format!("m{message}"));
        let ours = (
            u64::from(ours.n),
            ours.recovered,
            ours.rebuilt_up_to.map(at),
            frames.collect::<Vec<_>>(),
            flights.collect::<Vec<_>>(),
            pending.collect::<Vec<_>>(),
        );
        let flights = look.in_flight.iter().map(|one| {
            format!(
                "{} {} {} {}",
                one.message_id, one.attempt, one.index, one.text
            )
        });
        let pending = look.pending.iter().map(|one| one.message_id.to_string());
        let theirs = (
            look.n,
            look.recovered,
            look.rebuilt,
            look.frames,
            flights.collect::<Vec<_>>(),
            pending.collect::<Vec<_>>(),
        );
        if ours == theirs {
            Ok(())
        } else {
            Err(format!("the look is\n    {theirs:?}, not\n    {ours:?}"))
        }
    }

    fn frames(&mut self, out: &[Published], rewind: bool) -> Result<(), String> {
        let Some(theirs) = self.real.published() else {
            return Ok(());
        };
        let theirs = theirs.iter().map(|(channel, frame)| {
            let text = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
            let number = |name: &str| frame[name].as_u64();
            let kind = if frame["content"].is_string() && number("index").is_none() {
                "terminal".to_owned()
            } else {
                text("type")
            };
            let (n, attempt, index) = (number("n"), number("attempt"), number("index"));
            format!(
                "{channel:?} {kind} {} {n:?} {attempt:?} {index:?}",
                text("message_id")
            )
        });
        let ours = out.iter().map(|one| {
            let (channel, kind, message, attempt, index) = match one.frame {
                Frame::Accepted(message) => ("Live", "accepted", message, None, None),
                Frame::Restarted(message, attempt) => {
                    ("Live", "restarted", message, Some(attempt), None)
                }
                Frame::Delta {
                    message,
                    attempt,
                    index,
                    ..
                } => ("Live", "delta", message, Some(attempt), Some(index)),
                Frame::Terminal(message, ..) => {
                    let channel = if rewind { "Live" } else { "Terminal" };
                    (channel, "terminal", message, None, None)
                }
            };
            format!(
                "{channel} {kind} m{message} {:?} {attempt:?} {index:?}",
                Some(one.n)
            )
        });
        let (ours, theirs) = (ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>());
        if ours == theirs {
            Ok(())
        } else {
            Err(format!("published was {theirs:?}, not {ours:?}"))
        }
    }

    async fn run(&mut self, calls: &[Op]) -> Result<(), String> {
        let mut shared = Shared::new(CONVERSATIONS, FRAMES, None);
        for (number, op) in calls.iter().enumerate() {
            let wrong = |what: String| format!("call {number}, {op:?}: {what}");
            if matches!(op, Op::Restart) && !self.real.restart().await {
                continue;
            }
            shared.out.clear();
            let theirs = self.call(*op).await.map_err(|e| wrong(e.to_string()))?;
            let ours = answer(&mut shared, *op);
            if ours != theirs {
                return Err(wrong(format!("it answers {theirs:?}, not {ours:?}")));
            }
            let rewind = matches!(op, Op::Deliver(.., true));
            self.frames(&shared.out.clone(), rewind).map_err(wrong)?;
            let after = match op {
                Op::Read(after) => *after,
                _ => None,
            };
            self.looks(&mut shared, after).await.map_err(wrong)?;
        }
        for number in 0..2 {
            let op = Op::History(number);
            let theirs = self.call(op).await.map_err(|e| e.to_string())?;
            let ours = answer(&mut shared, op);
            if ours != theirs {
                return Err(format!(
                    "at the end the history is {theirs:?}, not {ours:?}"
                ));
            }
        }
        Ok(())
    }
}

fn id(message: Message) -> MessageId {
    MessageId::parse(&format!("m{message}")).unwrap()
}

fn owners() -> &'static [real::Owner; 5] {
    static OWNERS: std::sync::OnceLock<[real::Owner; 5]> = std::sync::OnceLock::new();
    OWNERS.get_or_init(|| std::array::from_fn(|_| real::Owner::random()))
}

/// Leaves calls out as long as it still fails.
async fn shrunk<F, Fut>(mut calls: Vec<Op>, fails: F) -> Vec<Op>
where
    F: Fn(Vec<Op>) -> Fut,
    Fut: Future<Output = bool>,
{
    let mut size = calls.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < calls.len() {
            let mut fewer = calls.clone();
            fewer.drain(from..(from + size).min(fewer.len()));
            if fails(fewer.clone()).await {
                calls = fewer;
            } else {
                from += size;
            }
        }
        size /= 2;
    }
    calls
}

async fn check<F, Fut>(name: &str, traces: u64, run: F)
where
    F: Fn(Vec<Op>) -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let setting = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let seeds = match setting("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("SIM_TRACES").unwrap_or(traces),
    };
    let (begun, count) = (Instant::now(), seeds.end - seeds.start);
    for seed in seeds {
        let calls = random_calls(seed);
        if run(calls.clone()).await.is_ok() {
            continue;
        }
        let run = &run;
        let calls = shrunk(calls, |calls| async move { run(calls).await.is_err() }).await;
        let wrong = run(calls.clone()).await.unwrap_err();
        let trace: Vec<_> = calls.iter().map(|call| format!("    {call:?}\n")).collect();
        let trace = trace.concat();
        panic!("{name}, SIM_SEED={seed}: {wrong}\n{trace}");
    }
    let time = begun.elapsed();
    eprintln!(
        "{name}: {count} traces of {CALLS} calls in {:.1} s",
        time.as_secs_f64()
    );
}

#[tokio::test]
async fn the_embedded_fan_out_agrees_with_the_reference() {
    check("embedded", 1000, |calls| async move {
        let mut real = Embedded::new().await;
        let mut runner = Runner {
            real: &mut real,
            user: user("alice"),
            names: Names::default(),
        };
        runner.run(&calls).await
    })
    .await;
}

async fn redis(variable: &str, traces: u64) {
    let url = std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run the tests by tests/run"));
    let admin = Builder::from_config(Config::from_url(&url).unwrap())
        .build()
        .unwrap();
    admin.init().await.unwrap();
    let settings = RedisSettings {
        url: url.as_str().into(),
        command_timeout: Duration::from_secs(10),
        bounds: bounds(),
    };
    let fanout = Arc::new(RedisFanout::connect(&settings).unwrap());
    check(variable, traces, |calls| {
        let (fanout, admin) = (fanout.clone(), admin.clone());
        async move {
            let name = user(&format!("sim-{}", uuid::Uuid::new_v4().simple()));
            let mut real = Redis {
                fanout,
                admin,
                user: name.clone(),
            };
            let mut runner = Runner {
                real: &mut real,
                user: name,
                names: Names::default(),
            };
            let result = runner.run(&calls).await;
            real.empty().await;
            result
        }
    })
    .await;
}

#[tokio::test]
async fn a_marker_that_is_written_again_does_not_call_an_emptied_redis_complete() {
    for variable in ["TEST_REDIS_URL", "TEST_REDIS_CLUSTER_URL"] {
        let url = std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set: run the tests by tests/run"));
        let settings = RedisSettings {
            url: url.as_str().into(),
            command_timeout: Duration::from_secs(10),
            bounds: bounds(),
        };
        let fanout = RedisFanout::connect(&settings).unwrap();
        let unique = || Epoch::new(&uuid::Uuid::new_v4().simple().to_string(), "0", 0);
        // As on a server that was emptied after a relay had left its token.
        let epoch = unique();
        assert!(!fanout.complete_marker(&epoch, "token").await.unwrap());
        assert!(!fanout.has_marker(&epoch).await.unwrap());
        // Two relays, one after the other: the first one's word counts no more.
        assert!(!fanout.begin_marker(&epoch, "one").await.unwrap());
        assert!(!fanout.has_marker(&epoch).await.unwrap());
        assert!(!fanout.begin_marker(&epoch, "two").await.unwrap());
        assert!(!fanout.complete_marker(&epoch, "one").await.unwrap());
        assert!(fanout.complete_marker(&epoch, "two").await.unwrap());
        assert!(fanout.has_marker(&epoch).await.unwrap());
        // Whoever comes now finds it, and a repeat changes nothing.
        assert!(fanout.begin_marker(&epoch, "three").await.unwrap());
        assert!(fanout.complete_marker(&epoch, "three").await.unwrap());
        let other = unique();
        fanout.set_marker(&other).await.unwrap();
        assert!(fanout.has_marker(&other).await.unwrap());
    }
}

#[tokio::test]
async fn the_scripts_of_redis_agree_with_the_reference() {
    redis("TEST_REDIS_URL", 40).await;
}

#[tokio::test]
async fn the_scripts_of_a_redis_cluster_agree_with_the_reference() {
    redis("TEST_REDIS_CLUSTER_URL", 10).await;
}
