//! The simulated users: most with one `chatmesh.v1` client, some with two, some with a classic
//! client.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chatmesh::protocol::timestamp::now_ms;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::fleet::LONG_SUFFIX;
use super::journal::Journal;
use crate::support::TEST_TIMEOUT;
use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::history::{HistoryClient, HistoryTurn};
use crate::support::scenario::panic_message;
use crate::support::v1::{Transcript, V1Client};

/// A message as its client sent it.
#[derive(Debug, Clone)]
pub(super) struct SentMessage {
    pub(super) id: String,
    pub(super) conversation: String,
    pub(super) content: String,
    pub(super) at: Instant,
    /// The number of the connection on which it was sent first.
    pub(super) connection: usize,
    long: bool,
}

/// What a `chatmesh.v1` user sent, and what its clients showed at the end.
#[derive(Debug)]
pub(super) struct UserObservation {
    pub(super) user: String,
    pub(super) sent: Vec<SentMessage>,
    /// The `id`s that it asked to cancel.
    pub(super) cancelled: HashSet<String>,
    /// The `id`s that it sent more than once.
    pub(super) repeated: HashSet<String>,
    pub(super) devices: Vec<Transcript>,
    /// For each conversation its turns, newest first.
    pub(super) history: Vec<Vec<HistoryTurn>>,
}

/// What a classic client sent and received, by connection.
#[derive(Debug)]
pub(super) struct ClassicObservation {
    pub(super) user: String,
    pub(super) connections: Vec<ClassicConnection>,
    pub(super) history: Vec<Vec<HistoryTurn>>,
}

/// One connection of a classic client. All times are in ms since 1970.
#[derive(Debug, Default)]
pub(super) struct ClassicConnection {
    /// Each message and when it was sent.
    pub(super) sent: Vec<(i64, String)>,
    /// Each frame and when it was received.
    pub(super) frames: Vec<(i64, Value)>,
    /// When the connection ended.
    pub(super) until: i64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LoadSize {
    pub(super) users: usize,
    pub(super) classic: usize,
    /// Average interval between two messages of a user.
    pub(super) pace: Duration,
}

/// What the writing client of a user has sent, for the user's other clients.
#[derive(Debug, Default)]
struct Progress {
    sent: Vec<SentMessage>,
    is_complete: bool,
}

/// All simulated users of a run.
pub(super) struct SimulatedUsers {
    stop: watch::Sender<bool>,
    users: JoinSet<UserObservation>,
    classic: JoinSet<ClassicObservation>,
}

/// The conversations of a user. Answers in the last one take seconds, which must not delay the
/// others.
const CONVERSATIONS: [&str; 3] = ["default", "second", "long"];
/// The share of messages with a long answer.
const LONG_SHARE: f64 = 1.0 / 16.0;
/// A client sends nothing more while so many of its messages have not ended.
const MAX_OPEN: usize = 6;
/// How long a client that stops waits for messages that have not ended.
const END_TIMEOUT: Duration = Duration::from_secs(90);
/// The same for messages that the history may already have.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

impl SimulatedUsers {
    pub(super) fn start(size: LoadSize, ports: &[u16], journal: &Arc<Journal>, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut simulated_users = Self {
            stop,
            users: JoinSet::new(),
            classic: JoinSet::new(),
        };
        for n in 0..size.users {
            let user = SimulatedUser {
                name: format!("user{n}"),
                ports: ports.to_vec(),
                journal: journal.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(n as u64)),
                stopped: stopped.clone(),
                pace: size.pace,
                reloaded: HashSet::new(),
                cancelled: HashSet::new(),
                repeated: HashSet::new(),
                connection: 0,
            };
            simulated_users
                .users
                .spawn(user.run(1 + usize::from(n % 3 == 0)));
        }
        for n in 0..size.classic {
            let rng = StdRng::seed_from_u64(seed.wrapping_mul(37).wrapping_add(n as u64));
            let name = format!("classic{n}");
            let ports = ports.to_vec();
            simulated_users
                .classic
                .spawn(classic(name, ports, rng, stopped.clone(), size.pace));
        }
        simulated_users
    }

    /// The message of a client that panicked because a frame broke a rule.
    pub(super) fn failed(&mut self) -> Option<String> {
        if let Some(Err(error)) = self.users.try_join_next() {
            return Some(panic_message(error));
        }
        if let Some(Err(error)) = self.classic.try_join_next() {
            return Some(panic_message(error));
        }
        None
    }

    /// Stops all users and collects their observations, or the messages of those that failed.
    pub(super) async fn finish(
        mut self,
    ) -> Result<(Vec<UserObservation>, Vec<ClassicObservation>), Vec<String>> {
        self.stop.send_replace(true);
        let (mut users, mut classic, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(ended) = self.users.join_next().await {
            match ended {
                Ok(seen) => users.push(seen),
                Err(error) => failures.push(panic_message(error)),
            }
        }
        while let Some(ended) = self.classic.join_next().await {
            match ended {
                Ok(seen) => classic.push(seen),
                Err(error) => failures.push(panic_message(error)),
            }
        }
        if failures.is_empty() {
            Ok((users, classic))
        } else {
            Err(failures)
        }
    }
}

struct SimulatedUser {
    name: String,
    ports: Vec<u16>,
    journal: Arc<Journal>,
    rng: StdRng,
    stopped: watch::Receiver<bool>,
    pace: Duration,
    /// The `id`s whose outcome was found in the history because the server could not replay it.
    reloaded: HashSet<String>,
    cancelled: HashSet<String>,
    repeated: HashSet<String>,
    connection: usize,
}

impl SimulatedUser {
    async fn run(mut self, devices: usize) -> UserObservation {
        let (progress, progress_seen) = watch::channel(Progress::default());
        let mut others = JoinSet::new();
        for _ in 1..devices {
            let rng = StdRng::seed_from_u64(self.rng.random());
            let reader = run_reader(
                self.name.clone(),
                self.ports.clone(),
                rng,
                progress_seen.clone(),
            );
            others.spawn(reader);
        }
        let writer = self.run_writer(&progress).await;
        let sent = progress.borrow().sent.clone();
        let mut transcripts = vec![writer];
        while let Some(other) = others.join_next().await {
            match other {
                Ok(transcript) => transcripts.push(transcript),
                Err(error) => panic!("{}", panic_message(error)),
            }
        }
        let ended = transcripts
            .iter()
            .flat_map(|device| &device.ended_message_ids);
        let ended = ended.map(String::as_str).collect();
        let history = whole_history(&self.ports, &self.name, &ended).await;
        UserObservation {
            user: self.name,
            sent,
            cancelled: self.cancelled,
            repeated: self.repeated,
            devices: transcripts,
            history,
        }
    }

    /// Sends messages until the run stops and all have ended.
    async fn run_writer(&mut self, progress: &watch::Sender<Progress>) -> Transcript {
        let mut device = V1Client::new(&self.name);
        device.transcript.redis_may_lose_data = true;
        let mut next = Instant::now() + self.pace.mul_f64(self.rng.random_range(0.0..1.0));
        let mut last = None;
        let mut sent: Vec<SentMessage> = Vec::new();
        let mut reloads = 0;
        loop {
            let stopping = *self.stopped.borrow();
            let open = self.open(&device.transcript, &sent);
            if stopping {
                let last = *last.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
                if open.is_empty() {
                    break;
                }
                assert!(
                    Instant::now() < last,
                    "{}: not ended within {END_TIMEOUT:?}: {:?}",
                    self.name,
                    open.iter().map(|message| &message.id).collect::<Vec<_>>()
                );
            }
            let few = open.len() < MAX_OPEN;
            if !device.is_connected() {
                if !try_reconnect(&mut device, &self.ports, &mut self.rng).await {
                    continue;
                }
                self.connection += 1;
                self.after_connect(&mut device, &sent, &mut reloads).await;
                continue;
            }
            if !stopping && few && Instant::now() >= next {
                let message = self.next_message(sent.len());
                self.journal.record_sent(&message.id, message.long);
                sent.push(message.clone());
                progress.send_modify(|progress| progress.sent.push(message.clone()));
                send(&mut device, &message).await;
                next = Instant::now() + self.pace.mul_f64(self.rng.random_range(0.5..1.5));
            }
            if device.transcript.reloads() > reloads {
                // During a connection the server said that it can't replay something; the history
                // has it.
                self.after_connect(&mut device, &sent, &mut reloads).await;
                continue;
            }
            let wait = next
                .saturating_duration_since(Instant::now())
                .clamp(Duration::from_millis(10), Duration::from_millis(250));
            if let ClientEvent::Frame(frame) = device.next_event(wait).await {
                self.journal.record_frame(&frame);
                if frame["type"] == "accepted" && self.rng.random_bool(0.04) {
                    let id = frame["id"].as_str().unwrap_or_default().to_owned();
                    device.cancel(&id).await;
                    self.cancelled.insert(id);
                }
                if is_refusal(&frame) {
                    // The message is not known to be in the log, so it is sent again under the same
                    // id.
                    tokio::time::sleep(Duration::from_millis(self.rng.random_range(50..300))).await;
                    self.resend_unaccepted(&mut device, &sent).await;
                }
                trim_frames(&mut device);
            }
            if self.rng.random_bool(0.003) {
                device.drop_connection();
            }
        }
        progress.send_modify(|progress| progress.is_complete = true);
        // A reconnect from the last position must bring nothing new.
        device.drop_connection();
        while !try_reconnect(&mut device, &self.ports, &mut self.rng).await {}
        device.transcript
    }

    fn open(&self, transcript: &Transcript, sent: &[SentMessage]) -> Vec<SentMessage> {
        let mut open = open(transcript, sent);
        open.retain(|message| !self.reloaded.contains(&message.id));
        open
    }

    fn next_message(&mut self, n: usize) -> SentMessage {
        let id = format!("{}-{n}", self.name);
        let long = self.rng.random_bool(LONG_SHARE);
        let conversation = if long { 2 } else { self.rng.random_range(0..2) };
        let mark = if long { LONG_SUFFIX } else { "" };
        SentMessage {
            content: format!("{id} {:08x}{mark}", self.rng.random::<u32>()),
            conversation: CONVERSATIONS[conversation].to_owned(),
            at: Instant::now(),
            connection: self.connection,
            long,
            id,
        }
    }

    /// `reloads` is the number of reloads handled so far.
    async fn after_connect(
        &mut self,
        device: &mut V1Client,
        sent: &[SentMessage],
        reloads: &mut usize,
    ) {
        let before = std::mem::replace(reloads, device.transcript.reloads());
        let open = self.open(&device.transcript, sent);
        if *reloads > before && !open.is_empty() {
            // A client reloads the history only when the server says so.
            let turns = history(&self.ports, &self.name).await;
            for message in open {
                let id = device.transcript.message_id(&message.id);
                if id.is_some_and(|id| turns.iter().flatten().any(|turn| turn.message_id == id)) {
                    self.journal.record_reloaded(&message.id);
                    self.reloaded.insert(message.id);
                }
            }
        }
        self.resend_unaccepted(device, sent).await;
    }

    /// Sends again, in order, the messages that are not known to be accepted.
    async fn resend_unaccepted(&mut self, device: &mut V1Client, sent: &[SentMessage]) {
        for message in self.open(&device.transcript, sent) {
            let known = device.transcript.get(&message.id);
            if !known.is_some_and(|m| m.is_accepted() || m.is_streaming()) {
                send(device, &message).await;
                self.repeated.insert(message.id);
            }
        }
    }
}

fn is_refusal(frame: &Value) -> bool {
    frame["type"] == "error" && !frame["message_id"].is_string()
}

async fn send(device: &mut V1Client, message: &SentMessage) {
    if device.is_connected() {
        device
            .send_message_in(&message.conversation, &message.id, &message.content)
            .await;
    }
}

/// Limits the frames that the client keeps of its connection.
fn trim_frames(device: &mut V1Client) {
    if device.frames.len() > 64 {
        device.frames.drain(..63);
    }
}

fn open(transcript: &Transcript, sent: &[SentMessage]) -> Vec<SentMessage> {
    // Only the newest messages can still be open.
    let from = sent.len().saturating_sub(4 * MAX_OPEN);
    sent[from..]
        .iter()
        .filter(|message| {
            transcript
                .get(&message.id)
                .is_none_or(|m| m.terminal.is_none())
        })
        .cloned()
        .collect()
}

/// Connects through one of the ports. Returns false if that failed.
async fn try_reconnect(device: &mut V1Client, ports: &[u16], rng: &mut StdRng) -> bool {
    let port = *ports.choose(rng).expect("a port");
    let patience = Duration::from_secs(8);
    if let Ok(Ok(_)) = timeout(patience, device.try_connect(port)).await {
        return true;
    }
    device.drop_connection();
    tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
    false
}

/// A second client of a user, which only reads, and reconnects at random moments.
async fn run_reader(
    name: String,
    ports: Vec<u16>,
    mut rng: StdRng,
    progress: watch::Receiver<Progress>,
) -> Transcript {
    let mut device = V1Client::new(&name);
    device.transcript.redis_may_lose_data = true;
    let mut last = None;
    loop {
        if progress.borrow().is_complete {
            let begun = *last.get_or_insert_with(Instant::now);
            let missing = open(&device.transcript, &progress.borrow().sent);
            let reloaded = device.transcript.reloaded_at.last().copied();
            // A message that was in flight during a reload may still arrive, or be in the history.
            let surely = |message: &SentMessage| reloaded.is_none_or(|at| at < message.at);
            let sure = missing.iter().any(surely);
            let patience = if sure { END_TIMEOUT } else { HISTORY_TIMEOUT };
            if missing.is_empty() || begun.elapsed() > patience {
                break;
            }
        }
        if !device.is_connected() {
            try_reconnect(&mut device, &ports, &mut rng).await;
            continue;
        }
        device.next_event(Duration::from_millis(200)).await;
        trim_frames(&mut device);
        if rng.random_bool(0.005) {
            device.drop_connection();
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..2000))).await;
        }
    }
    device.drop_connection();
    while !try_reconnect(&mut device, &ports, &mut rng).await {}
    device.transcript
}

/// All turns of a user by conversation.
async fn history(ports: &[u16], user: &str) -> Vec<Vec<HistoryTurn>> {
    let mut all = Vec::new();
    for conversation in CONVERSATIONS {
        all.push(
            HistoryClient::new(ports[0], user)
                .all_turns(conversation)
                .await,
        );
    }
    all
}

/// Reads the history until it has every message in `ended`, or returns what it has after a time
/// limit: a Redis that lost its data is being rebuilt, or older turns are lost.
async fn whole_history(ports: &[u16], user: &str, ended: &HashSet<&str>) -> Vec<Vec<HistoryTurn>> {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let turns = history(ports, user).await;
        let known = turns.iter().flatten();
        let known: HashSet<&str> = known.map(|turn| turn.message_id.as_str()).collect();
        if ended.is_subset(&known) || Instant::now() > deadline {
            return turns;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A classic client. It has no position, so it never receives the answers that arrive after its
/// connection ended.
async fn classic(
    name: String,
    ports: Vec<u16>,
    mut rng: StdRng,
    stopped: watch::Receiver<bool>,
    pace: Duration,
) -> ClassicObservation {
    let mut seen = ClassicObservation {
        user: name.clone(),
        connections: Vec::new(),
        history: Vec::new(),
    };
    let patience = Duration::from_secs(8);
    let mut said = 0;
    while !*stopped.borrow() {
        let port = *ports.choose(&mut rng).expect("a port");
        let Ok(Ok(mut client)) =
            timeout(patience, ClassicClient::connect(port, "any-token", &name)).await
        else {
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
            continue;
        };
        let mut connection = ClassicConnection::default();
        let mut next = Instant::now() + pace.mul_f64(rng.random_range(0.0..1.0));
        let mut last = None;
        loop {
            let stopping = *stopped.borrow();
            if stopping {
                let last = *last.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
                if connection.frames.len() >= connection.sent.len() || Instant::now() > last {
                    break;
                }
            } else if Instant::now() >= next {
                let content = format!("{name} {said}");
                said += 1;
                connection.sent.push((now_ms(), content.clone()));
                client.send_message(&content).await;
                next = Instant::now() + pace.mul_f64(rng.random_range(0.5..1.5));
            }
            match client.next_event(Duration::from_millis(100)).await {
                ClientEvent::Frame(frame) => connection.frames.push((now_ms(), frame)),
                ClientEvent::Closed(_) => break,
                ClientEvent::TimedOut => {}
            }
        }
        connection.until = now_ms();
        seen.connections.push(connection);
    }
    let frames = seen.connections.iter().flat_map(|one| &one.frames);
    let answers = frames.filter(|(_, frame)| frame["type"] == "response");
    let answered = answers.filter_map(|(_, frame)| frame["message_id"].as_str());
    let answered = answered.collect();
    seen.history = whole_history(&ports, &name, &answered).await;
    seen
}
