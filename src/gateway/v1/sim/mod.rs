//! A seeded simulation of `chatmesh.v1` clients that connect and disconnect at any time while
//! answers are written. Tokio's time is paused, and the time of every event depends on the seed
//! only. `SIM_SEED` repeats one seed, `SIM_RUNS` sets the number of seeds.
//!
//! Real: the embedded fan-out with its mailbox, the registry, the subscribers, the catch-up, the
//! mailbox sync, and the outbound queues. Simulated: the network, which delays, loses and repeats
//! published frames; the workers and the relay; and a client that follows protocol.md.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
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
    Admissions, Answers, AppendRequest, BeginRequest, BeginResponse, Channel, DeliverRequest,
    Deliveries, FeedEvent, GatewayFanout, History, KeepRequest, MessageRef, NewOutcome,
    OpenPartRequest, Owner, Piece, StreamResponse, Turn, TurnStatus,
};
use crate::gateway::context::Gateway;
use crate::gateway::{delivery, http, limits, mailbox_sync, metrics, revocation, sessions};
use crate::health::Health;
use crate::log::embedded::EmbeddedLog;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::parts::{PartKind, TextRange, utf16_len};
use crate::protocol::position::{Epoch, Position};
use crate::protocol::v1::DeltaHead;
use crate::seeds::Seeds;
use crate::store::Store;

mod client;

use client::run_client;

/// Number of messages that the user sends in a run.
const MESSAGES: usize = 6;

/// Number of clients of the user.
const CLIENTS: usize = 2;

/// Maximum number of parts of an answer.
const MAX_PARTS: u64 = 4;

/// Maximum number of pieces that follow the opening of a part.
const MAX_PIECES: u64 = 4;

/// Time after which the check of open messages has found lost text, and the connection was sent it.
const REPAIR_TIME: Duration = Duration::from_secs(8);

/// What part `part` of a stream contains. It differs between streams.
fn part_kind(stream: &str, part: usize) -> PartKind {
    const KINDS: [PartKind; 5] = [
        PartKind::Text,
        PartKind::Reasoning,
        PartKind::ToolCall,
        PartKind::Refusal,
        PartKind::Source,
    ];
    let sum: usize = stream.bytes().map(usize::from).sum();
    KINDS[(sum + part) % KINDS.len()]
}

/// The piece with this index, from 0, of part `part` of a stream. It is different for every stream,
/// part and index, and counts differently in bytes, characters and UTF-16 code units.
fn piece(stream: &str, part: usize, index: usize) -> String {
    format!("[{stream}.{part}.{index}𝄞e\u{301}]")
}

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

/// A gateway that accepts no connections: tests add their connections to its registry.
pub(super) fn gateway(fanout: Arc<dyn GatewayFanout>) -> Arc<Gateway> {
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

pub(super) fn user() -> UserId {
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
/// them not at all. Only some of the losses are reported as a gap. Deltas without a number may
/// arrive again at any later time, as after a repeat by the worker's Redis client.
async fn receive_published(gateway: Arc<Gateway>, random: SeededRandom) {
    let (feed, mut events) = gateway.fanout.open_feed(65_536).await.unwrap();
    gateway.registry.set_feed(feed);
    let mut deltas: Vec<Bytes> = Vec::new();
    while let Some(event) = events.recv().await {
        random.pause(5).await;
        let FeedEvent::Frame {
            user,
            channel,
            payload,
        } = event
        else {
            continue;
        };
        if std::str::from_utf8(&payload).is_ok_and(|text| DeltaHead::parse(text).is_some()) {
            deltas.push(payload.clone());
        }
        let receive = |channel, payload: &Bytes| {
            if let Some(sessions) = gateway.registry.get(&user) {
                delivery::deliver_published(&gateway.metrics, &sessions, channel, payload);
            }
        };
        if !deltas.is_empty() && random.chance(0.1) {
            let repeated = random.number_below(deltas.len() as u64) as usize;
            receive(Channel::Live, &deltas[repeated]);
        }
        if random.chance(0.03) {
            continue;
        }
        if random.chance(0.02) {
            gateway.registry.record_gap();
            continue;
        }
        receive(channel, &payload);
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
            parts: None,
            status: TurnStatus::Answered,
            at_ms: 0,
        },
    }
}

/// The length of each part of an answer that a worker has generated, and when it had.
struct GeneratedAnswer {
    generated_at: Instant,
    lengths: Vec<u32>,
}

/// The generated answers by message id.
#[derive(Clone, Default)]
struct GeneratedAnswers(Arc<Mutex<HashMap<String, GeneratedAnswer>>>);

/// Admits and answers every message with the calls that gateway, worker and relay make. A worker
/// stops at random in the middle of an answer; the next worker then answers the message.
async fn answer_messages(
    fanout: Arc<EmbeddedFanout>,
    random: SeededRandom,
    generated: GeneratedAnswers,
) {
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
            let streamed = stream_answer(&fanout, &random, &message, &owner, attempt).await;
            let Some((text, lengths)) = streamed else {
                continue;
            };
            let answer = GeneratedAnswer {
                generated_at: Instant::now(),
                lengths,
            };
            let id = message.message_id.to_string();
            generated.0.lock().unwrap().insert(id, answer);
            if random.chance(0.1) {
                sleep(2 * REPAIR_TIME).await;
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
            parts: None,
            status: TurnStatus::Answered,
        };
        fanout.deliver(call).await.unwrap();
    }
}

/// Generates an answer with several parts, as a worker does. Returns its content and the length of
/// each part, or `None` where the worker has stopped in the middle.
async fn stream_answer(
    fanout: &EmbeddedFanout,
    random: &SeededRandom,
    message: &MessageRef,
    owner: &Owner,
    attempt: u32,
) -> Option<(String, Vec<u32>)> {
    let stream = owner.stream(attempt);
    let stream = stream.as_str();
    let mut content = String::new();
    let mut lengths: Vec<u32> = Vec::new();
    for part in 0..=random.number_below(MAX_PARTS) as usize {
        let kind = part_kind(stream, part);
        let mut length = 0;
        let last_piece = random.number_below(MAX_PIECES) as usize;
        for index in 0..=last_piece {
            random.pause(40).await;
            if random.chance(0.03) {
                return None;
            }
            let is_empty = kind == PartKind::Source || (index == 0 && random.chance(0.2));
            if is_empty && index > 0 {
                break;
            }
            // An opening without text is followed by the part's first piece.
            let texts = if index == 0 && is_empty {
                vec![String::new()]
            } else if index == 1 && length == 0 {
                vec![piece(stream, part, 0), piece(stream, part, 1)]
            } else {
                vec![piece(stream, part, index)]
            };
            for text in texts {
                let end = length + utf16_len(&text);
                let range = TextRange {
                    part: part as u32,
                    offset: length,
                    end,
                };
                if kind.is_content() {
                    content.push_str(&text);
                }
                let piece = Piece { range, text };
                if index == 0 {
                    let call = OpenPartRequest {
                        message: message.clone(),
                        owner: owner.clone(),
                        attempt,
                        kind,
                        meta: None,
                        previous_end: lengths.last().copied(),
                        piece,
                    };
                    let response = fanout.open_part(call).await.unwrap();
                    // The worker was slower than its lease.
                    if !matches!(response, StreamResponse::Confirmed(_)) {
                        return None;
                    }
                } else {
                    let call = AppendRequest {
                        message: message.clone(),
                        owner: owner.clone(),
                        attempt,
                        piece,
                    };
                    fanout.append(call).await.unwrap();
                }
                length = end;
            }
        }
        lengths.push(length);
    }
    Some((content, lengths))
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
    let generated = GeneratedAnswers::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let gateway = gateways[number % 2].clone();
            let client = run_client(gateway, fanout.clone(), random.clone(), generated.clone());
            tokio::spawn(client)
        })
        .collect();
    answer_messages(fanout.clone(), random, generated).await;
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
