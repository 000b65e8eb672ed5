//! Clients that come and go at any moment while answers are written: with paused time, and a
//! moment from a seed for everything that happens. `SIM_SEED` runs one seed again, `SIM_RUNS` more.
//!
//! Real here: the embedded fan-out with its mailbox, the registry, followers, catch-up, repair and
//! the sockets' queues. Made up: the network (published frames come late, or never), workers and
//! relay, and a client that does what protocol.md tells it to.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Line, catch_up};
use crate::config::bounds::Bounds;
use crate::config::settings::{
    AuthMode, ConnectionLimits, EmbeddedSettings, GatewaySettings, TokenEndpoint,
};
use crate::fanout::embedded::EmbeddedFanout;
use crate::fanout::{
    Admissions, Answers, BeginRequest, BeginResponse, DeliverRequest, Deliveries, FeedEvent,
    History, KeepRequest, LiveRequest, MessageRef, NewOutcome, Owner, Turn, TurnStatus,
};
use crate::gateway::user::Socket;
use crate::gateway::{Gateway, counters, feed, http, limits, registry, repair, revocation};
use crate::health::Health;
use crate::log::embedded::EmbeddedLog;
use crate::protocol::close::CloseReason;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::{Epoch, Position};
use crate::store::Store;

const MESSAGES: usize = 6;
const CLIENTS: usize = 2;
const PIECES: u32 = 4;

/// Chance, shared by everything in a run.
#[derive(Clone)]
struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    fn below(&self, most: u64) -> u64 {
        self.0.lock().unwrap().random_range(0..most)
    }

    fn is(&self, probability: f64) -> bool {
        self.0.lock().unwrap().random_bool(probability)
    }

    async fn pause(&self, most_ms: u64) {
        sleep(Duration::from_millis(self.below(most_ms))).await;
    }
}

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
        open_check: Duration::from_secs(5),
        interop: false,
        head_timeout: Duration::from_secs(10),
        chat_page: false,
    };
    Arc::new(Gateway {
        verifier: None,
        dead_letters: None,
        page: None,
        counters: counters::Counters::new("s", "incoming_messages"),
        log: log(),
        fanout,
        health: Arc::new(Health::new(&[])),
        admin: Arc::new(|_, _| None),
        registry: registry::Registry::default(),
        limits: limits::ConnectionLimiter::new(settings.limits.clone()),
        http_connections: http::slots::HttpConnections::new(0, 0, settings.head_timeout),
        revocations: revocation::Revocations::default(),
        loopback: true,
        messages: AtomicU64::new(1),
        closing: AtomicU64::new(0),
        drain: CancellationToken::new(),
        force: CancellationToken::new(),
        tasks: TaskTracker::new(),
        settings,
    })
}

fn user() -> UserId {
    UserId::parse("alice").unwrap()
}

fn subject(number: usize) -> MessageRef {
    MessageRef {
        user: user(),
        message_id: MessageId::parse(&format!("m{number}")).unwrap(),
        id: None,
        conversation: ConversationId::default_conversation(),
    }
}

fn at(offset: usize) -> Position {
    Position {
        epoch: Epoch::new("c", "0", 0),
        offset: offset as i64,
    }
}

/// Published frames reach the gateway late, or never, or with a gap that it is told of.
async fn network(gateway: Arc<Gateway>, chance: Chance) {
    let (feed, mut events) = gateway.fanout.open_feed(65_536).await.unwrap();
    gateway.registry.set_feed(feed);
    while let Some(event) = events.recv().await {
        chance.pause(5).await;
        if let FeedEvent::Frame {
            user,
            channel,
            payload,
        } = event
        {
            if chance.is(0.03) {
                continue;
            }
            if chance.is(0.02) {
                gateway.registry.lost_frames();
                continue;
            }
            if let Some(entry) = gateway.registry.get(&user) {
                feed::published(&gateway.counters, &entry, channel, &payload);
            }
        }
    }
}

fn ending(number: usize, text: &str) -> NewOutcome {
    let id = subject(number).message_id;
    NewOutcome {
        frame: format!(
            r#"{{"type":"response","userid":"alice","message_id":"{id}","conversation_id":"default","correlation_id":"c","content":"{text}","position":"{}"}}"#,
            at(number)
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

/// Gateways, workers and relay: each message is answered, by a second worker where the first dies.
async fn backend(fanout: Arc<EmbeddedFanout>, chance: Chance) {
    for number in 0..MESSAGES {
        let subject = subject(number);
        fanout.admit(&subject, "?").await.unwrap();
        chance.pause(20).await;
        let accepted = format!(
            r#"{{"type":"accepted","userid":"alice","message_id":"{}","conversation_id":"default","content":"?"}}"#,
            subject.message_id
        );
        fanout.accept(&subject, accepted).await.unwrap();
        let text = loop {
            let owner = Owner::random();
            let call = BeginRequest {
                message: subject.clone(),
                owner: owner.clone(),
                last_attempt: 0,
                cancelled_outcome: ending(number, "").into(),
                history: None,
            };
            let attempt = match fanout.begin(call).await.unwrap() {
                BeginResponse::Attempt { number, .. } => number,
                BeginResponse::Busy(left) => {
                    sleep(left).await;
                    continue;
                }
                BeginResponse::Ended(_) => panic!("nobody ended it"),
            };
            let mut text = String::new();
            let dies = chance
                .is(0.2)
                .then(|| chance.below(u64::from(PIECES)) as u32);
            for index in 0..PIECES {
                chance.pause(40).await;
                if dies == Some(index) {
                    break;
                }
                let piece = format!("[{number}.{attempt}.{index}]");
                text.push_str(&piece);
                let call = LiveRequest {
                    message: subject.clone(),
                    owner: owner.clone(),
                    attempt,
                    delta: Some((index, piece)),
                };
                fanout.live(call).await.unwrap();
            }
            if dies.is_some() {
                continue;
            }
            let call = KeepRequest {
                message: subject.clone(),
                owner,
                attempt,
                outcome: ending(number, &text).into(),
                cancelled_outcome: ending(number, "").into(),
            };
            fanout.keep(call).await.unwrap();
            break text;
        };
        chance.pause(40).await;
        let call = DeliverRequest {
            user: user(),
            message_id: subject.message_id.clone(),
            conversation: Some(subject.conversation.clone()),
            position: at(number),
            known_end: (number > 0).then(|| at(number - 1)),
            logged_at_ms: None,
            is_rewind: chance.is(0.2),
            frame: ending(number, &text).frame,
            answer: text,
            status: TurnStatus::Answered,
        };
        fanout.deliver(call).await.unwrap();
    }
}

/// What a client knows, over all of its connections.
#[derive(Default)]
struct Client {
    position: Option<Position>,
    /// By message: the end, and whether it came as a frame.
    ends: HashMap<String, (String, bool)>,
    texts: HashMap<String, (u64, String, u64)>,
    welcomed: bool,
}

impl Client {
    /// True where the history is to be loaded.
    fn take(&mut self, frame: &Value) -> Result<bool, String> {
        let text = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
        let (id, kind) = (text("message_id"), text("type"));
        if !self.welcomed && kind != "welcome" {
            return Err(format!("{kind} before welcome"));
        }
        match kind.as_str() {
            "welcome" => {
                self.welcomed = true;
                self.position = text("position").parse().ok();
                return Ok(frame["recovered"] == false);
            }
            "accepted" => {}
            "restarted" => {
                self.texts.remove(&id);
            }
            "snapshot" => {
                let index = frame["index"].as_u64().unwrap();
                let attempt = frame["attempt"].as_u64().unwrap();
                let content = text("content");
                if content.matches('[').count() as u64 != index {
                    return Err(format!("a snapshot of {index} pieces: {content}"));
                }
                self.texts.insert(id.clone(), (attempt, content, index));
                self.one_voice(&id)?;
            }
            "delta" => {
                let (index, attempt) = (frame["index"].as_u64(), frame["attempt"].as_u64());
                let (index, attempt) = (index.unwrap(), attempt.unwrap());
                let known = self.texts.entry(id.clone()).or_default();
                if index == 0 {
                    *known = (attempt, String::new(), 0);
                }
                if known.0 != attempt || known.2 != index {
                    return Err(format!("{id}: piece {attempt}.{index} after {known:?}"));
                }
                known.1.push_str(&text("content"));
                known.2 += 1;
                self.one_voice(&id)?;
            }
            "response" => {
                let position: Position = text("position").parse().map_err(|_| "no position")?;
                if let Some(had) = &self.position
                    && had.epoch == position.epoch
                    && position.offset <= had.offset
                {
                    return Err(format!("{position} after {had}"));
                }
                let before =
                    (0..position.offset).find(|it| !self.ends.contains_key(&format!("m{it}")));
                if let Some(before) = before {
                    return Err(format!("{id} ended before m{before}"));
                }
                if let Some((_, true)) = self.ends.insert(id.clone(), (text("content"), true)) {
                    return Err(format!("{id} ended twice"));
                }
                self.position = Some(position);
            }
            other => return Err(format!("an unknown frame {other}")),
        }
        Ok(false)
    }

    /// Pieces of one attempt, in their order.
    fn one_voice(&self, id: &str) -> Result<(), String> {
        let (attempt, text, pieces) = &self.texts[id];
        let number = &id[1..];
        let expected: Vec<_> = (0..*pieces)
            .map(|index| format!("[{number}.{attempt}.{index}]"))
            .collect();
        let expected = expected.concat();
        if *text == expected {
            Ok(())
        } else {
            Err(format!("{id} reads {text}, not {expected}"))
        }
    }
}

async fn history(fanout: &EmbeddedFanout) -> Vec<Turn> {
    let conversation = ConversationId::default_conversation();
    let turns = fanout.history(&user(), &conversation, None, 100).await;
    turns.unwrap().unwrap_or_default()
}

/// Comes and goes until it knows every end.
async fn client(
    gateway: Arc<Gateway>,
    fanout: Arc<EmbeddedFanout>,
    chance: Chance,
) -> Result<Client, String> {
    let mut client = Client::default();
    while client.ends.len() < MESSAGES {
        chance.pause(100).await;
        let queue = gateway.settings.outbound_queue_bytes;
        let socket = Arc::new(Socket::new(queue, Some(Line::new())));
        let since = client.position.clone();
        let joined = gateway
            .registry
            .join(&user(), &socket, since.as_ref())
            .await;
        let entry = joined.map_err(|error| error.to_string())?;
        let following = tokio::spawn({
            let (gateway, entry, socket) = (gateway.clone(), entry.clone(), socket.clone());
            async move {
                let reason = catch_up::follow(&gateway, &entry, &socket, since).await;
                socket.outbound.close(reason);
            }
        });
        let (sender, mut frames) = mpsc::channel::<Message>(1);
        let writing = tokio::spawn({
            let (gateway, socket) = (gateway.clone(), socket.clone());
            async move {
                let sink = futures_util::sink::unfold(sender, |sender, message| async move {
                    let sent = sender.send(message).await;
                    sent.map(|()| sender).map_err(|_| WsError::ConnectionClosed)
                });
                let mut sink = pin!(sink);
                socket
                    .outbound
                    .write_to(&mut sink, &gateway.counters.sent)
                    .await;
            }
        });
        client.welcomed = false;
        let end = Instant::now() + Duration::from_millis(chance.below(600));
        // The last time it stays.
        let stays = chance.is(0.3);
        let slow = chance.is(0.3);
        let result = loop {
            if client.ends.len() == MESSAGES || !stays && Instant::now() >= end {
                break Ok(());
            }
            let patience = if stays {
                Duration::from_secs(30)
            } else {
                end - Instant::now()
            };
            let Ok(Some(Message::Text(frame))) = timeout(patience, frames.recv()).await else {
                break Ok(());
            };
            if slow {
                chance.pause(60).await;
            }
            let frame: Value = serde_json::from_str(&frame).unwrap();
            match client.take(&frame) {
                Ok(false) => {}
                Ok(true) => {
                    for turn in history(&fanout).await {
                        let end = (turn.answer, false);
                        client
                            .ends
                            .entry(turn.message_id.to_string())
                            .or_insert(end);
                    }
                }
                Err(wrong) => break Err(wrong),
            }
        };
        following.abort();
        socket.outbound.stop(CloseReason::Lost);
        drop(frames);
        let _ = writing.await;
        let left = gateway.registry.leave(&entry, &socket).await;
        left.map_err(|error| error.to_string())?;
        result?;
    }
    Ok(client)
}

async fn run(seed: u64) -> Result<(), String> {
    let chance = Chance(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
    let begun = Instant::now();
    let clock = move || 1_800_000_000_000 + begun.elapsed().as_millis() as i64;
    let fanout = EmbeddedFanout::open_at(Store::in_memory(), Bounds::default(), Box::new(clock));
    let fanout = Arc::new(fanout.unwrap());
    let gateways = [gateway(fanout.clone()), gateway(fanout.clone())];
    for gateway in &gateways {
        tokio::spawn(network(gateway.clone(), chance.clone()));
        tokio::spawn(repair::run(gateway.clone()));
    }
    while gateways.iter().any(|gateway| !gateway.registry.has_feed()) {
        tokio::task::yield_now().await;
    }
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let gateway = gateways[number % 2].clone();
            tokio::spawn(client(gateway, fanout.clone(), chance.clone()))
        })
        .collect();
    backend(fanout.clone(), chance).await;
    let truth = history(&fanout).await;
    for client in clients {
        let waiting = timeout(Duration::from_secs(3600), client).await;
        let client = waiting
            .map_err(|_| "a client never knew all ends")?
            .unwrap()?;
        for turn in &truth {
            let known = &client.ends[turn.message_id.as_str()].0;
            if *known != turn.answer {
                return Err(format!(
                    "{} ended as {known}, the history has {}",
                    turn.message_id, turn.answer
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn clients_that_come_and_go_know_every_end_once_and_in_order() {
    let setting = |name: &str| {
        let value = std::env::var(name).ok();
        value.map(|text| text.parse::<u64>().unwrap())
    };
    let seeds = match setting("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("SIM_RUNS").unwrap_or(300),
    };
    let (begun, count) = (std::time::Instant::now(), seeds.end - seeds.start);
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        if let Err(wrong) = runtime.block_on(run(seed)) {
            panic!("SIM_SEED={seed}: {wrong}");
        }
    }
    let time = begun.elapsed().as_secs_f64();
    #[allow(clippy::print_stderr, reason = "how fast it was")]
    {
        eprintln!("{count} runs of {CLIENTS} clients in {time:.1} s");
    }
}
