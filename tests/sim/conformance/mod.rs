//! Compares the real fan-outs with the reference implementation: both run the same random calls,
//! and their responses, published frames and state must agree after each.
//!
//! A failure prints the seed and the shortest trace found. `SIM_SEED` repeats one seed,
//! `SIM_TRACES` sets the number of seeds.

mod backends;
mod calls;
mod runner;

use std::sync::Arc;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::Deliveries as _;
use chatmesh::fanout::redis::RedisFanout;
use chatmesh::protocol::ids::UserId;
use chatmesh::protocol::position::Epoch;
use fred::interfaces::ClientLike;
use fred::types::Builder;
use fred::types::config::Config;

use crate::reference::{Message, Offset, Outcome, Owner, Piece, Position};
use crate::seeds::Seeds;
use crate::settings::redis_settings;
use backends::{EmbeddedUnderTest, RedisUnderTest};
use calls::random_calls;
use runner::Runner;

/// The conversation of each message.
const CONVERSATIONS: &[u8] = &[0, 0, 1, 0];
/// Capacity of the mailbox in frames; small, so that it is trimmed.
const MAILBOX_FRAMES: usize = 3;
const CALLS_PER_TRACE: usize = 80;

/// A call or an event of a trace.
#[derive(Debug, Clone, Copy)]
enum Call {
    Admit(Message),
    Accept(Message),
    Begin(Message, Owner, u8),
    OpenPart(Message, Owner, u8, Piece),
    Append(Message, Owner, u8, Piece),
    /// Contains the number of parts that the caller knows to be stored, and the length of the last.
    Renew(Message, Owner, u8, u8, u8),
    Keep(Message, Owner, u8, Outcome),
    Deliver(Message, Offset, Option<Offset>, Outcome, bool),
    Cancel(Message),
    Read(Option<Position>),
    History(u8),
    Forget(Option<u8>),
    ClearPending(Message),
    /// This number of milliseconds passes.
    AdvanceTime(u16),
    /// All data is lost.
    LoseData,
    /// The process restarts and loses the state that was only in memory.
    Restart,
}

fn bounds() -> Bounds {
    Bounds {
        mailbox_frames: MAILBOX_FRAMES,
        ..Bounds::default()
    }
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

/// Shortens a failing trace: removes each range of calls without which the trace still fails.
async fn shrink<F, Fut>(mut calls: Vec<Call>, fails: F) -> Vec<Call>
where
    F: Fn(Vec<Call>) -> Fut,
    Fut: Future<Output = bool>,
{
    let mut size = calls.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < calls.len() {
            let mut shorter = calls.clone();
            shorter.drain(start..(start + size).min(shorter.len()));
            if fails(shorter.clone()).await {
                calls = shorter;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
    calls
}

/// Runs one random trace per seed.
async fn check_traces<F, Fut>(name: &'static str, default_count: u64, run: F)
where
    F: Fn(Vec<Call>) -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let seeds = Seeds::new(name, "SIM_TRACES", default_count);
    let run = &run;
    seeds
        .run(async |seed| {
            let calls = random_calls(seed);
            if run(calls.clone()).await.is_ok() {
                return Ok(());
            }
            let calls = shrink(calls, |calls| async move { run(calls).await.is_err() }).await;
            let violation = run(calls.clone()).await.unwrap_err();
            let trace: Vec<_> = calls.iter().map(|call| format!("    {call:?}\n")).collect();
            Err(format!("{violation}\n{}", trace.concat()))
        })
        .await;
}

#[tokio::test]
async fn embedded_fanout_agrees_with_the_reference() {
    check_traces("embedded", 1000, |calls| async move {
        let mut fanout = EmbeddedUnderTest::new().await;
        Runner::new(&mut fanout, user("alice")).run(&calls).await
    })
    .await;
}

fn redis_url(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run the tests by tests/run"))
}

fn connect(variable: &str) -> RedisFanout {
    let settings = redis_settings(&redis_url(variable), bounds());
    RedisFanout::connect(&settings).unwrap()
}

async fn check_redis_traces(variable: &'static str, default_count: u64) {
    let admin = Builder::from_config(Config::from_url(&redis_url(variable)).unwrap())
        .build()
        .unwrap();
    admin.init().await.unwrap();
    let fanout: Arc<RedisFanout> = Arc::new(connect(variable));
    check_traces(variable, default_count, |calls| {
        let (fanout, admin) = (fanout.clone(), admin.clone());
        async move {
            let user_id = user(&format!("sim-{}", uuid::Uuid::new_v4().simple()));
            let mut fanout = RedisUnderTest {
                fanout,
                admin,
                user: user_id.clone(),
            };
            let result = Runner::new(&mut fanout, user_id).run(&calls).await;
            fanout.delete_keys().await;
            result
        }
    })
    .await;
}

#[tokio::test]
async fn redis_scripts_agree_with_the_reference() {
    check_redis_traces("TEST_REDIS_URL", 40).await;
}

#[tokio::test]
async fn redis_cluster_scripts_agree_with_the_reference() {
    check_redis_traces("TEST_REDIS_CLUSTER_URL", 10).await;
}

#[tokio::test]
async fn marker_becomes_complete_only_under_the_current_token() {
    for variable in ["TEST_REDIS_URL", "TEST_REDIS_CLUSTER_URL"] {
        let fanout = connect(variable);
        let unique_epoch = || Epoch::new(&uuid::Uuid::new_v4().simple().to_string(), "0", 0);
        // The server lost its data after a relay had stored its token: no token is valid.
        let epoch = unique_epoch();
        assert!(!fanout.complete_rebuild(&epoch, "token").await.unwrap());
        assert!(!fanout.has_marker(&epoch).await.unwrap());
        // Two relays begin a rebuild one after the other. Only the second one's token is valid.
        assert!(!fanout.begin_rebuild(&epoch, "one").await.unwrap());
        assert!(!fanout.has_marker(&epoch).await.unwrap());
        assert!(!fanout.begin_rebuild(&epoch, "two").await.unwrap());
        assert!(!fanout.complete_rebuild(&epoch, "one").await.unwrap());
        assert!(fanout.complete_rebuild(&epoch, "two").await.unwrap());
        assert!(fanout.has_marker(&epoch).await.unwrap());
        // A later relay finds the marker complete, and a repeated call changes nothing.
        assert!(fanout.begin_rebuild(&epoch, "three").await.unwrap());
        assert!(fanout.complete_rebuild(&epoch, "three").await.unwrap());
        let other_epoch = unique_epoch();
        fanout.set_marker(&other_epoch).await.unwrap();
        assert!(fanout.has_marker(&other_epoch).await.unwrap());
    }
}
