//! A seeded simulation of `chatmesh.v1` clients that connect and disconnect at any time while
//! answers are written. Tokio's time is paused, and the time of every event depends on the seed
//! only. `SIM_SEED` repeats one seed, `SIM_RUNS` sets the number of seeds.
//!
//! Real: the embedded fan-out with its mailbox, the registry, the subscribers, the catch-up, the
//! mailbox sync, and the outbound queues. Simulated: the network, which delays and loses published
//! frames; the workers and the relay; and a client that follows protocol.md.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::bounds::Bounds;
use crate::config::settings::{
    AuthMode, ConnectionLimits, EmbeddedSettings, GatewaySettings, TokenEndpoint,
};
use crate::fanout::embedded::EmbeddedFanout;
use crate::fanout::{
    Admissions, Answers, BeginRequest, BeginResponse, DeliverRequest, Deliveries, FeedEvent,
    History, KeepRequest, LiveRequest, MessageRef, NewOutcome, Owner, Turn, TurnStatus,
};
use crate::gateway::context::Gateway;
use crate::gateway::{delivery, http, limits, mailbox_sync, metrics, revocation, sessions};
use crate::health::Health;
use crate::log::embedded::EmbeddedLog;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::{Epoch, Position};
use crate::seeds::Seeds;
use crate::store::Store;

mod client;

use client::run_client;

/// Number of messages that the user sends in a run.
const MESSAGES: usize = 6;

/// Number of clients of the user.
const CLIENTS: usize = 2;

/// Number of deltas of each answer.
const DELTAS: u32 = 4;

/// The source of random numbers of one run, shared by all tasks of the run.
#[derive(Clone)]
struct SeededRandom(Arc<Mutex<StdRng>>);

impl SeededRandom {
    fn number_below(&self, bound: u64) -> u64 {
        self.0.lock().unwrap().random_range(0..bound)
    }

    fn chance(&self, probability: f64) -> bool {
        self.0.lock().unwrap().random_bool(probability)
    }

    /// Sleeps for a random time below `max_ms` milliseconds.
    async fn pause(&self, max_ms: u64) {
        sleep(Duration::from_millis(self.number_below(max_ms))).await;
    }
}

/// An embedded log in memory, which a gateway needs and no run uses.
fn log() -> Arc<EmbeddedLog> {
    static LOG: OnceLock<Arc<EmbeddedLog>> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let settings = EmbeddedSettings {
            data_dir: None,
            partitions: 1,
            retention: Duration::from_secs(60),
            min_free_disk: 0,
            bounds: Bounds::default(),
        };
        let open = EmbeddedLog::open(Store::in_memory(), &settings, Duration::from_secs(1));
        Arc::new(open.unwrap())
    });
    Arc::clone(log)
}

fn gateway(fanout: Arc<EmbeddedFanout>) -> Arc<Gateway> {
    let settings = GatewaySettings {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        server_id: "s".into(),
        messages_topic: "incoming_messages".into(),
        auth: AuthMode::Open,
        jwt: None,
        token_endpoint: TokenEndpoint::Off,
        admin_key: None,
        limits: ConnectionLimits::default(),
        rate_window: Duration::from_secs(60),
        rate_fail_open: false,
        max_pending: 0,
        token_ttl: Duration::from_secs(60),
        allow_origins: vec![],
        allow_credentials: false,
        max_content_chars: 1000,
        max_frame_bytes: 65_536,
        outbound_queue_bytes: 2048,
        produce_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(5),
        ping_interval: Duration::from_secs(20),
        ping_timeout: Duration::from_secs(20),
        open_check_interval: Duration::from_secs(5),
        interop: false,
        head_timeout: Duration::from_secs(10),
        chat_page: false,
    };
    Arc::new(Gateway {
        verifier: None,
        dead_letters: None,
        page: None,
        metrics: metrics::GatewayMetrics::new("s", "incoming_messages"),
        log: log(),
        fanout,
        health: Arc::new(Health::new(&[])),
        admin: Arc::new(|_, _| None),
        registry: sessions::SessionRegistry::default(),
        limits: limits::ConnectionLimiter::new(settings.limits.clone()),
        http_connections: http::slots::HttpConnections::new(0, 0, settings.head_timeout),
        revocations: revocation::Revocations::new(settings.auth),
        is_loopback: true,
        next_message_number: AtomicU64::new(1),
        drain_closes: AtomicU64::new(0),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
        tasks: TaskTracker::new(),
        settings,
    })
}

fn user() -> UserId {
    UserId::parse("alice").unwrap()
}

fn message_ref(number: usize) -> MessageRef {
    MessageRef {
        user: user(),
        message_id: MessageId::parse(&format!("m{number}")).unwrap(),
        id: None,
        conversation: ConversationId::default_conversation(),
    }
}

fn position(offset: usize) -> Position {
    Position {
        epoch: Epoch::new("c", "0", 0),
        offset: offset as i64,
    }
}

/// Passes published frames to the gateway as an unreliable network does: after a delay, and some of
/// them not at all. Only some of the losses are reported as a gap.
async fn receive_published(gateway: Arc<Gateway>, random: SeededRandom) {
    let (feed, mut events) = gateway.fanout.open_feed(65_536).await.unwrap();
    gateway.registry.set_feed(feed);
    while let Some(event) = events.recv().await {
        random.pause(5).await;
        if let FeedEvent::Frame {
            user,
            channel,
            payload,
        } = event
        {
            if random.chance(0.03) {
                continue;
            }
            if random.chance(0.02) {
                gateway.registry.record_gap();
                continue;
            }
            if let Some(sessions) = gateway.registry.get(&user) {
                delivery::deliver_published(&gateway.metrics, &sessions, channel, &payload);
            }
        }
    }
}

/// The outcome of message `number` with the answer `text`.
fn outcome(number: usize, text: &str) -> NewOutcome {
    let id = message_ref(number).message_id;
    NewOutcome {
        frame: format!(
            r#"{{"type":"response","userid":"alice","message_id":"{id}","conversation_id":"default","correlation_id":"c","content":"{text}","position":"{}"}}"#,
            position(number)
        ),
        turn: Turn {
            message_id: id,
            question: Some("?".into()),
            answer: text.to_owned(),
            status: TurnStatus::Answered,
            at_ms: 0,
        },
    }
}

/// Admits and answers every message with the calls that gateway, worker and relay make. A worker
/// stops at random in the middle of an answer; the next worker then answers the message.
async fn answer_messages(fanout: Arc<EmbeddedFanout>, random: SeededRandom) {
    for number in 0..MESSAGES {
        let message = message_ref(number);
        fanout.admit(&message, "?").await.unwrap();
        random.pause(20).await;
        let accepted = format!(
            r#"{{"type":"accepted","userid":"alice","message_id":"{}","conversation_id":"default","content":"?"}}"#,
            message.message_id
        );
        fanout.accept(&message, accepted).await.unwrap();
        let text = loop {
            let owner = Owner::random();
            let call = BeginRequest {
                message: message.clone(),
                owner: owner.clone(),
                last_attempt: 0,
                cancelled_outcome: outcome(number, "").into(),
                history: None,
            };
            let attempt = match fanout.begin(call).await.unwrap() {
                BeginResponse::Attempt { number, .. } => number,
                BeginResponse::Busy(left) => {
                    sleep(left).await;
                    continue;
                }
                BeginResponse::Ended(_) => panic!("the message has an outcome already"),
            };
            let mut text = String::new();
            let worker_stops_at = random
                .chance(0.2)
                .then(|| random.number_below(u64::from(DELTAS)) as u32);
            for index in 0..DELTAS {
                random.pause(40).await;
                if worker_stops_at == Some(index) {
                    break;
                }
                let piece = format!("[{number}.{attempt}.{index}]");
                text.push_str(&piece);
                let call = LiveRequest {
                    message: message.clone(),
                    owner: owner.clone(),
                    attempt,
                    delta: Some((index, piece)),
                };
                fanout.live(call).await.unwrap();
            }
            if worker_stops_at.is_some() {
                continue;
            }
            let call = KeepRequest {
                message: message.clone(),
                owner,
                attempt,
                outcome: outcome(number, &text).into(),
                cancelled_outcome: outcome(number, "").into(),
            };
            fanout.keep(call).await.unwrap();
            break text;
        };
        random.pause(40).await;
        let call = DeliverRequest {
            user: user(),
            message_id: message.message_id.clone(),
            conversation: Some(message.conversation.clone()),
            position: position(number),
            known_end: (number > 0).then(|| position(number - 1)),
            logged_at_ms: None,
            is_rewind: random.chance(0.2),
            frame: outcome(number, &text).frame,
            answer: text,
            status: TurnStatus::Answered,
        };
        fanout.deliver(call).await.unwrap();
    }
}

async fn history(fanout: &EmbeddedFanout) -> Vec<Turn> {
    let conversation = ConversationId::default_conversation();
    let turns = fanout.history(&user(), &conversation, None, 100).await;
    turns.unwrap().unwrap_or_default()
}

/// Runs the simulation with one seed. Returns an error if a client received a frame that violates
/// the protocol, or other answers than the history has.
async fn run(seed: u64) -> Result<(), String> {
    let random = SeededRandom(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
    let started_at = Instant::now();
    let clock = move || 1_800_000_000_000 + started_at.elapsed().as_millis() as i64;
    let fanout =
        EmbeddedFanout::open_with_clock(Store::in_memory(), Bounds::default(), Box::new(clock));
    let fanout = Arc::new(fanout.unwrap());
    let gateways = [gateway(fanout.clone()), gateway(fanout.clone())];
    for gateway in &gateways {
        tokio::spawn(receive_published(gateway.clone(), random.clone()));
        tokio::spawn(mailbox_sync::run(gateway.clone()));
    }
    while gateways.iter().any(|gateway| !gateway.registry.has_feed()) {
        tokio::task::yield_now().await;
    }
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let gateway = gateways[number % 2].clone();
            tokio::spawn(run_client(gateway, fanout.clone(), random.clone()))
        })
        .collect();
    answer_messages(fanout.clone(), random).await;
    let expected = history(&fanout).await;
    for client in clients {
        let finished = timeout(Duration::from_secs(3600), client).await;
        let client = finished
            .map_err(|_| "a client did not receive every answer")?
            .unwrap()?;
        for turn in &expected {
            let received = &client.answers[turn.message_id.as_str()].text;
            if *received != turn.answer {
                return Err(format!(
                    "{} was answered with {received}, the history has {}",
                    turn.message_id, turn.answer
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn reconnecting_clients_receive_every_answer_once_and_in_order() {
    Seeds::new("reconnecting clients", "SIM_RUNS", 300).run_with_paused_time(run);
}
