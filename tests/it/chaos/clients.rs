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
    pub(super) sent_at: Instant,
    /// The number of the connection on which it was sent first.
    pub(super) connection: usize,
    has_long_answer: bool,
}

/// The messages that a `chatmesh.v1` user sent, and the transcripts and history at the end.
#[derive(Debug)]
pub(super) struct UserObservation {
    pub(super) user: String,
    pub(super) sent: Vec<SentMessage>,
    /// The `id`s of the messages that the user asked to cancel.
    pub(super) cancel_requested: HashSet<String>,
    /// The `id`s of the messages that the user sent more than once.
    pub(super) resent: HashSet<String>,
    pub(super) devices: Vec<Transcript>,
    /// For each conversation its turns, newest first.
    pub(super) history: Vec<Vec<HistoryTurn>>,
}

/// The messages that a classic client sent and the frames that it received, by connection.
#[derive(Debug)]
pub(super) struct ClassicObservation {
    pub(super) user: String,
    pub(super) connections: Vec<ClassicConnection>,
    pub(super) history: Vec<Vec<HistoryTurn>>,
}

/// One connection of a classic client. All times are in ms since 1970.
#[derive(Debug, Default)]
pub(super) struct ClassicConnection {
    /// The time and content of each message that was sent.
    pub(super) sent: Vec<(i64, String)>,
    /// The time and content of each frame that was received.
    pub(super) frames: Vec<(i64, Value)>,
    pub(super) ended_ms: i64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LoadSize {
    /// Number of users with `chatmesh.v1` clients.
    pub(super) users: usize,
    /// Number of users with a classic client.
    pub(super) classic_users: usize,
    /// Average interval between two messages of a user.
    pub(super) pace: Duration,
}

/// The messages that a user's writing client has sent, for the user's reading clients.
#[derive(Debug, Default)]
struct Progress {
    sent: Vec<SentMessage>,
    is_complete: bool,
}

/// All simulated users of a run.
pub(super) struct SimulatedUsers {
    stop: watch::Sender<bool>,
    users: JoinSet<UserObservation>,
    classic_users: JoinSet<ClassicObservation>,
}

/// The conversations of a user. Answers in the last one take seconds, which must not delay the
/// others.
const CONVERSATIONS: [&str; 3] = ["default", "second", "long"];
/// The share of messages with a long answer.
const LONG_SHARE: f64 = 1.0 / 16.0;
/// A client sends no further message while it has this many open messages.
const MAX_OPEN_MESSAGES: usize = 6;
/// Time for which a client that stops waits until its open messages have ended.
const END_TIMEOUT: Duration = Duration::from_secs(90);
/// Time for which a reading client waits for the outcomes of messages that it may find only in the
/// history, because the server requested a reload after they were sent.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

impl SimulatedUsers {
    pub(super) fn start(size: LoadSize, ports: &[u16], journal: &Arc<Journal>, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut simulated_users = Self {
            stop,
            users: JoinSet::new(),
            classic_users: JoinSet::new(),
        };
        for n in 0..size.users {
            let user = SimulatedUser {
                name: format!("user{n}"),
                ports: ports.to_vec(),
                journal: journal.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(n as u64)),
                stopped: stopped.clone(),
                pace: size.pace,
                found_in_history: HashSet::new(),
                cancel_requested: HashSet::new(),
                resent: HashSet::new(),
                connection: 0,
            };
            simulated_users
                .users
                .spawn(user.run(1 + usize::from(n % 3 == 0)));
        }
        for n in 0..size.classic_users {
            let rng = StdRng::seed_from_u64(seed.wrapping_mul(37).wrapping_add(n as u64));
            let name = format!("classic{n}");
            let ports = ports.to_vec();
            simulated_users.classic_users.spawn(run_classic_client(
                name,
                ports,
                rng,
                stopped.clone(),
                size.pace,
            ));
        }
        simulated_users
    }

    /// The message of a client that panicked because a frame broke a rule.
    pub(super) fn failure(&mut self) -> Option<String> {
        if let Some(Err(error)) = self.users.try_join_next() {
            return Some(panic_message(error));
        }
        if let Some(Err(error)) = self.classic_users.try_join_next() {
            return Some(panic_message(error));
        }
        None
    }

    /// Stops all users and collects their observations, or the messages of those that failed.
    pub(super) async fn finish(
        mut self,
    ) -> Result<(Vec<UserObservation>, Vec<ClassicObservation>), Vec<String>> {
        self.stop.send_replace(true);
        let (mut users, mut classic_users, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(result) = self.users.join_next().await {
            match result {
                Ok(observation) => users.push(observation),
                Err(error) => failures.push(panic_message(error)),
            }
        }
        while let Some(result) = self.classic_users.join_next().await {
            match result {
                Ok(observation) => classic_users.push(observation),
                Err(error) => failures.push(panic_message(error)),
            }
        }
        if failures.is_empty() {
            Ok((users, classic_users))
        } else {
            Err(failures)
        }
    }
}

/// A user with one writing client, and possibly one that only reads.
struct SimulatedUser {
    name: String,
    ports: Vec<u16>,
    journal: Arc<Journal>,
    rng: StdRng,
    stopped: watch::Receiver<bool>,
    pace: Duration,
    /// The `id`s whose outcome was found in the history because the server could not replay it.
    found_in_history: HashSet<String>,
    cancel_requested: HashSet<String>,
    resent: HashSet<String>,
    /// The number of connections that the writing client has opened.
    connection: usize,
}

impl SimulatedUser {
    async fn run(mut self, devices: usize) -> UserObservation {
        let (progress, progress_receiver) = watch::channel(Progress::default());
        let mut readers = JoinSet::new();
        for _ in 1..devices {
            let rng = StdRng::seed_from_u64(self.rng.random());
            let reader = run_reader(
                self.name.clone(),
                self.ports.clone(),
                rng,
                progress_receiver.clone(),
            );
            readers.spawn(reader);
        }
        let writer = self.run_writer(&progress).await;
        let sent = progress.borrow().sent.clone();
        let mut transcripts = vec![writer];
        while let Some(result) = readers.join_next().await {
            match result {
                Ok(transcript) => transcripts.push(transcript),
                Err(error) => panic!("{}", panic_message(error)),
            }
        }
        let ended_ids = transcripts
            .iter()
            .flat_map(|device| &device.ended_message_ids);
        let ended_ids = ended_ids.map(String::as_str).collect();
        let history = read_complete_history(&self.ports, &self.name, &ended_ids).await;
        UserObservation {
            user: self.name,
            sent,
            cancel_requested: self.cancel_requested,
            resent: self.resent,
            devices: transcripts,
            history,
        }
    }

    /// Sends messages until the run stops and all have ended.
    async fn run_writer(&mut self, progress: &watch::Sender<Progress>) -> Transcript {
        let mut device = V1Client::new(&self.name);
        device.transcript.redis_may_lose_data = true;
        let mut next_send = Instant::now() + self.pace.mul_f64(self.rng.random_range(0.0..1.0));
        let mut end_deadline = None;
        let mut sent: Vec<SentMessage> = Vec::new();
        let mut handled_reloads = 0;
        loop {
            let stopping = *self.stopped.borrow();
            let open_messages = self.open_messages(&device.transcript, &sent);
            if stopping {
                let deadline = *end_deadline.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
                if open_messages.is_empty() {
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "{}: not ended within {END_TIMEOUT:?}: {:?}",
                    self.name,
                    open_messages
                        .iter()
                        .map(|message| &message.id)
                        .collect::<Vec<_>>()
                );
            }
            let may_send = open_messages.len() < MAX_OPEN_MESSAGES;
            if !device.is_connected() {
                if !try_reconnect(&mut device, &self.ports, &mut self.rng).await {
                    continue;
                }
                self.connection += 1;
                self.reload_and_resend(&mut device, &sent, &mut handled_reloads)
                    .await;
                continue;
            }
            if !stopping && may_send && Instant::now() >= next_send {
                let message = self.next_message(sent.len());
                self.journal
                    .record_sent(&message.id, message.has_long_answer);
                sent.push(message.clone());
                progress.send_modify(|progress| progress.sent.push(message.clone()));
                send(&mut device, &message).await;
                next_send = Instant::now() + self.pace.mul_f64(self.rng.random_range(0.5..1.5));
            }
            if device.transcript.reloads() > handled_reloads {
                // The server has sent another `welcome` on this connection, because it cannot
                // replay every frame.
                self.reload_and_resend(&mut device, &sent, &mut handled_reloads)
                    .await;
                continue;
            }
            let wait = next_send
                .saturating_duration_since(Instant::now())
                .clamp(Duration::from_millis(10), Duration::from_millis(250));
            if let ClientEvent::Frame(frame) = device.next_event(wait).await {
                self.journal.record_frame(&frame);
                if frame["type"] == "accepted" && self.rng.random_bool(0.04) {
                    let id = frame["id"].as_str().unwrap_or_default().to_owned();
                    device.cancel(&id).await;
                    self.cancel_requested.insert(id);
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
        // The transcript checks that a reconnect from the last position delivers no frame twice.
        device.drop_connection();
        while !try_reconnect(&mut device, &self.ports, &mut self.rng).await {}
        device.transcript
    }

    fn open_messages(&self, transcript: &Transcript, sent: &[SentMessage]) -> Vec<SentMessage> {
        let mut messages = open_messages(transcript, sent);
        messages.retain(|message| !self.found_in_history.contains(&message.id));
        messages
    }

    fn next_message(&mut self, n: usize) -> SentMessage {
        let id = format!("{}-{n}", self.name);
        let has_long_answer = self.rng.random_bool(LONG_SHARE);
        let conversation = if has_long_answer {
            2
        } else {
            self.rng.random_range(0..2)
        };
        let suffix = if has_long_answer { LONG_SUFFIX } else { "" };
        SentMessage {
            content: format!("{id} {:08x}{suffix}", self.rng.random::<u32>()),
            conversation: CONVERSATIONS[conversation].to_owned(),
            sent_at: Instant::now(),
            connection: self.connection,
            has_long_answer,
            id,
        }
    }

    /// Reads the history if the server has requested more reloads than `handled_reloads`, and
    /// resends the messages that are not known to be accepted.
    async fn reload_and_resend(
        &mut self,
        device: &mut V1Client,
        sent: &[SentMessage],
        handled_reloads: &mut usize,
    ) {
        let reloads_before = std::mem::replace(handled_reloads, device.transcript.reloads());
        let open_messages = self.open_messages(&device.transcript, sent);
        if *handled_reloads > reloads_before && !open_messages.is_empty() {
            // The history is read only on the server's request, so that other losses are noticed.
            let turns = read_history(&self.ports, &self.name).await;
            for message in open_messages {
                let id = device.transcript.message_id(&message.id);
                if id.is_some_and(|id| turns.iter().flatten().any(|turn| turn.message_id == id)) {
                    self.journal.record_reloaded(&message.id);
                    self.found_in_history.insert(message.id);
                }
            }
        }
        self.resend_unaccepted(device, sent).await;
    }

    /// Sends again, in order, the messages that are not known to be accepted.
    async fn resend_unaccepted(&mut self, device: &mut V1Client, sent: &[SentMessage]) {
        for message in self.open_messages(&device.transcript, sent) {
            let shown = device.transcript.get(&message.id);
            if !shown.is_some_and(|m| m.is_accepted() || m.is_streaming()) {
                send(device, &message).await;
                self.resent.insert(message.id);
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

/// Limits the frames that the client stores of its connection. The checks do not need them.
fn trim_frames(device: &mut V1Client) {
    if device.frames.len() > 64 {
        device.frames.drain(..63);
    }
}

fn open_messages(transcript: &Transcript, sent: &[SentMessage]) -> Vec<SentMessage> {
    // Only the newest messages can still be open.
    let first = sent.len().saturating_sub(4 * MAX_OPEN_MESSAGES);
    sent[first..]
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
    let limit = Duration::from_secs(8);
    if let Ok(Ok(_)) = timeout(limit, device.try_connect(port)).await {
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
    let mut wait_start = None;
    loop {
        if progress.borrow().is_complete {
            let start = *wait_start.get_or_insert_with(Instant::now);
            let missing = open_messages(&device.transcript, &progress.borrow().sent);
            let reloaded_at = device.transcript.reloaded_at.last().copied();
            // The outcome of a message that was sent before a reload may be in the history only.
            let must_arrive = |message: &SentMessage| {
                reloaded_at.is_none_or(|reloaded_at| reloaded_at < message.sent_at)
            };
            let any_must_arrive = missing.iter().any(must_arrive);
            let limit = if any_must_arrive {
                END_TIMEOUT
            } else {
                HISTORY_TIMEOUT
            };
            if missing.is_empty() || start.elapsed() > limit {
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
async fn read_history(ports: &[u16], user: &str) -> Vec<Vec<HistoryTurn>> {
    let mut conversations = Vec::new();
    for conversation in CONVERSATIONS {
        conversations.push(
            HistoryClient::new(ports[0], user)
                .all_turns(conversation)
                .await,
        );
    }
    conversations
}

/// Reads the history until it has every message in `ended_ids`. Returns an incomplete history after
/// a time limit: the rebuild of an emptied Redis may take longer, or older turns may be lost.
async fn read_complete_history(
    ports: &[u16],
    user: &str,
    ended_ids: &HashSet<&str>,
) -> Vec<Vec<HistoryTurn>> {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let turns = read_history(ports, user).await;
        let all_turns = turns.iter().flatten();
        let turn_ids: HashSet<&str> = all_turns.map(|turn| turn.message_id.as_str()).collect();
        if ended_ids.is_subset(&turn_ids) || Instant::now() > deadline {
            return turns;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Runs a classic client. It has no position, so it never receives the answers that arrive after
/// its connection ended.
async fn run_classic_client(
    name: String,
    ports: Vec<u16>,
    mut rng: StdRng,
    stopped: watch::Receiver<bool>,
    pace: Duration,
) -> ClassicObservation {
    let mut observation = ClassicObservation {
        user: name.clone(),
        connections: Vec::new(),
        history: Vec::new(),
    };
    let limit = Duration::from_secs(8);
    let mut sent_count = 0;
    while !*stopped.borrow() {
        let port = *ports.choose(&mut rng).expect("a port");
        let Ok(Ok(mut client)) =
            timeout(limit, ClassicClient::connect(port, "any-token", &name)).await
        else {
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
            continue;
        };
        let mut connection = ClassicConnection::default();
        let mut next_send = Instant::now() + pace.mul_f64(rng.random_range(0.0..1.0));
        let mut end_deadline = None;
        loop {
            let stopping = *stopped.borrow();
            if stopping {
                let deadline = *end_deadline.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
                if connection.frames.len() >= connection.sent.len() || Instant::now() > deadline {
                    break;
                }
            } else if Instant::now() >= next_send {
                let content = format!("{name} {sent_count}");
                sent_count += 1;
                connection.sent.push((now_ms(), content.clone()));
                client.send_message(&content).await;
                next_send = Instant::now() + pace.mul_f64(rng.random_range(0.5..1.5));
            }
            match client.next_event(Duration::from_millis(100)).await {
                ClientEvent::Frame(frame) => connection.frames.push((now_ms(), frame)),
                ClientEvent::Closed(_) => break,
                ClientEvent::TimedOut => {}
            }
        }
        connection.ended_ms = now_ms();
        observation.connections.push(connection);
    }
    let frames = observation
        .connections
        .iter()
        .flat_map(|connection| &connection.frames);
    let answers = frames.filter(|(_, frame)| frame["type"] == "response");
    let answered_ids = answers.filter_map(|(_, frame)| frame["message_id"].as_str());
    let answered_ids = answered_ids.collect();
    observation.history = read_complete_history(&ports, &name, &answered_ids).await;
    observation
}
