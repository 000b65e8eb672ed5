//! The people: some with one device, some with two, some with a client of the original's.

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

use super::fleet::LONG;
use super::journal::Journal;
use crate::support::TEST_TIMEOUT;
use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::history::{HistoryClient, HistoryTurn};
use crate::support::scenario::panic_message;
use crate::support::v1::{Transcript, V1Client};

/// A message as its client sent it.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) conversation: String,
    pub(super) content: String,
    pub(super) at: Instant,
    /// Which of its device's connections it was said on first.
    pub(super) connection: usize,
    long: bool,
}

/// What a user of `chatmesh.v1` sent and had on the screens at the end.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) user: String,
    pub(super) sent: Vec<Sent>,
    /// `id`s that it asked to cancel.
    pub(super) cancelled: HashSet<String>,
    /// `id`s that it sent more than once.
    pub(super) repeated: HashSet<String>,
    pub(super) devices: Vec<Transcript>,
    /// Of each conversation its turns, newest first.
    pub(super) history: Vec<Vec<HistoryTurn>>,
}

/// What a classic client sent and got, connection by connection.
#[derive(Debug)]
pub(super) struct ClassicSeen {
    pub(super) user: String,
    pub(super) connections: Vec<Connection>,
    pub(super) history: Vec<Vec<HistoryTurn>>,
}

/// One connection of a classic client. All times are in ms since 1970.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// What was said, and when.
    pub(super) sent: Vec<(i64, String)>,
    /// Each frame, and when it came.
    pub(super) frames: Vec<(i64, Value)>,
    /// When it ended.
    pub(super) until: i64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) users: usize,
    pub(super) classic: usize,
    /// Between two messages of a user, on average.
    pub(super) pace: Duration,
}

/// Everybody, at work.
pub(super) struct Crowd {
    stop: watch::Sender<bool>,
    users: JoinSet<Seen>,
    classic: JoinSet<ClassicSeen>,
}

/// Conversations of a user: in the last one each answer takes seconds, and holds up only that one.
const CONVERSATIONS: [&str; 3] = ["default", "second", "long"];
/// How many of the messages get a long answer.
const LONG_SHARE: f64 = 1.0 / 16.0;
/// A client does not send more before something has ended.
const MOST_OPEN: usize = 6;
/// How long a client that was told to stop waits for what has not ended.
const LAST: Duration = Duration::from_secs(90);
/// And for what may be in the history already.
const UNDER_WAY: Duration = Duration::from_secs(5);

impl Crowd {
    pub(super) fn start(size: Size, doors: &[u16], journal: &Arc<Journal>, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut crowd = Self {
            stop,
            users: JoinSet::new(),
            classic: JoinSet::new(),
        };
        for n in 0..size.users {
            let user = User {
                name: format!("user{n}"),
                doors: doors.to_vec(),
                journal: journal.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(n as u64)),
                stopped: stopped.clone(),
                pace: size.pace,
                reloaded: HashSet::new(),
                cancelled: HashSet::new(),
                repeated: HashSet::new(),
                connection: 0,
            };
            crowd
                .users
                .spawn(user.with_devices(1 + usize::from(n % 3 == 0)));
        }
        for n in 0..size.classic {
            let rng = StdRng::seed_from_u64(seed.wrapping_mul(37).wrapping_add(n as u64));
            let name = format!("classic{n}");
            let doors = doors.to_vec();
            crowd
                .classic
                .spawn(classic(name, doors, rng, stopped.clone(), size.pace));
        }
        crowd
    }

    /// Whether anybody has failed: a frame broke a rule.
    pub(super) fn failed(&mut self) -> Option<String> {
        if let Some(Err(error)) = self.users.try_join_next() {
            return Some(panic_message(error));
        }
        if let Some(Err(error)) = self.classic.try_join_next() {
            return Some(panic_message(error));
        }
        None
    }

    /// Tells all to finish, and collects what they saw.
    pub(super) async fn finish(mut self) -> Result<(Vec<Seen>, Vec<ClassicSeen>), Vec<String>> {
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

struct User {
    name: String,
    doors: Vec<u16>,
    journal: Arc<Journal>,
    rng: StdRng,
    stopped: watch::Receiver<bool>,
    pace: Duration,
    /// `id`s whose end was found in the history, when the server could not replay it.
    reloaded: HashSet<String>,
    cancelled: HashSet<String>,
    repeated: HashSet<String>,
    connection: usize,
}

impl User {
    async fn with_devices(mut self, devices: usize) -> Seen {
        // What has been sent so far, for those who only look on; and whether that is all.
        let (tell, told) = watch::channel((Vec::new(), false));
        let mut others = JoinSet::new();
        for _ in 1..devices {
            let rng = StdRng::seed_from_u64(self.rng.random());
            let looking = look_on(self.name.clone(), self.doors.clone(), rng, told.clone());
            others.spawn(looking);
        }
        let writer = self.write(&tell).await;
        let sent = tell.borrow().0.clone();
        let mut transcripts = vec![writer];
        while let Some(other) = others.join_next().await {
            match other {
                Ok(transcript) => transcripts.push(transcript),
                Err(error) => panic!("{}", panic_message(error)),
            }
        }
        let ended = transcripts.iter().flat_map(|device| &device.order);
        let ended = ended.map(String::as_str).collect();
        let history = whole_history(&self.doors, &self.name, &ended).await;
        Seen {
            user: self.name,
            sent,
            cancelled: self.cancelled,
            repeated: self.repeated,
            devices: transcripts,
            history,
        }
    }

    /// Writes messages until it is told to stop and all have ended.
    async fn write(&mut self, tell: &watch::Sender<(Vec<Sent>, bool)>) -> Transcript {
        let mut device = V1Client::new(&self.name);
        device.transcript.redis_may_be_emptied = true;
        let mut next = Instant::now() + self.pace.mul_f64(self.rng.random_range(0.0..1.0));
        let mut last = None;
        let mut sent: Vec<Sent> = Vec::new();
        let mut reloads = 0;
        loop {
            let stopping = *self.stopped.borrow();
            let open = self.open(&device.transcript, &sent);
            if stopping {
                let last = *last.get_or_insert_with(|| Instant::now() + LAST);
                if open.is_empty() {
                    break;
                }
                assert!(
                    Instant::now() < last,
                    "{}: not ended within {LAST:?}: {:?}",
                    self.name,
                    open.iter().map(|message| &message.id).collect::<Vec<_>>()
                );
            }
            let few = open.len() < MOST_OPEN;
            if !device.is_connected() {
                if !come_in(&mut device, &self.doors, &mut self.rng).await {
                    continue;
                }
                self.connection += 1;
                self.after_coming_in(&mut device, &sent, &mut reloads).await;
                continue;
            }
            if !stopping && few && Instant::now() >= next {
                let message = self.another(sent.len());
                self.journal.sent(&message.id, message.long);
                sent.push(message.clone());
                tell.send_modify(|told| told.0.push(message.clone()));
                send(&mut device, &message).await;
                next = Instant::now() + self.pace.mul_f64(self.rng.random_range(0.5..1.5));
            }
            if device.transcript.reloads() > reloads {
                // Told in mid-connection that something can't be replayed: the history has it.
                self.after_coming_in(&mut device, &sent, &mut reloads).await;
                continue;
            }
            let wait = next
                .saturating_duration_since(Instant::now())
                .clamp(Duration::from_millis(10), Duration::from_millis(250));
            if let ClientEvent::Frame(frame) = device.next_event(wait).await {
                self.journal.take(&frame);
                if frame["type"] == "accepted" && self.rng.random_bool(0.04) {
                    let id = frame["id"].as_str().unwrap_or_default().to_owned();
                    device.cancel(&id).await;
                    self.cancelled.insert(id);
                }
                if is_refusal(&frame) {
                    // Not known to be in the log: it is sent again by the same id.
                    tokio::time::sleep(Duration::from_millis(self.rng.random_range(50..300))).await;
                    self.again(&mut device, &sent).await;
                }
                forget_frames(&mut device);
            }
            if self.rng.random_bool(0.003) {
                device.drop_connection();
            }
        }
        tell.send_modify(|told| told.1 = true);
        // Once more from where it is: nothing is new.
        device.drop_connection();
        while !come_in(&mut device, &self.doors, &mut self.rng).await {}
        device.transcript
    }

    fn open(&self, transcript: &Transcript, sent: &[Sent]) -> Vec<Sent> {
        let mut open = open(transcript, sent);
        open.retain(|message| !self.reloaded.contains(&message.id));
        open
    }

    fn another(&mut self, n: usize) -> Sent {
        let id = format!("{}-{n}", self.name);
        let long = self.rng.random_bool(LONG_SHARE);
        let conversation = if long { 2 } else { self.rng.random_range(0..2) };
        let mark = if long { LONG } else { "" };
        Sent {
            content: format!("{id} {:08x}{mark}", self.rng.random::<u32>()),
            conversation: CONVERSATIONS[conversation].to_owned(),
            at: Instant::now(),
            connection: self.connection,
            long,
            id,
        }
    }

    /// `reloads` is how often it has been told to before.
    async fn after_coming_in(&mut self, device: &mut V1Client, sent: &[Sent], reloads: &mut usize) {
        let before = std::mem::replace(reloads, device.transcript.reloads());
        let open = self.open(&device.transcript, sent);
        if *reloads > before && !open.is_empty() {
            // As a client reloads the history when it is told to, and only then.
            let turns = history(&self.doors, &self.name).await;
            for message in open {
                let id = device.transcript.message_id(&message.id);
                if id.is_some_and(|id| turns.iter().flatten().any(|turn| turn.message_id == id)) {
                    self.journal.reloaded(&message.id);
                    self.reloaded.insert(message.id);
                }
            }
        }
        self.again(device, sent).await;
    }

    /// Sends again, in order, what is not known to be accepted.
    async fn again(&mut self, device: &mut V1Client, sent: &[Sent]) {
        for message in self.open(&device.transcript, sent) {
            let known = device.transcript.get(&message.id);
            if !known.is_some_and(|m| m.is_accepted() || m.is_growing()) {
                send(device, &message).await;
                self.repeated.insert(message.id);
            }
        }
    }
}

fn is_refusal(frame: &Value) -> bool {
    frame["type"] == "error" && !frame["message_id"].is_string()
}

async fn send(device: &mut V1Client, message: &Sent) {
    if device.is_connected() {
        device
            .send_message_in(&message.conversation, &message.id, &message.content)
            .await;
    }
}

/// A device keeps all frames of its connection: too many here.
fn forget_frames(device: &mut V1Client) {
    if device.frames.len() > 64 {
        device.frames.drain(..63);
    }
}

fn open(transcript: &Transcript, sent: &[Sent]) -> Vec<Sent> {
    // The newest few are what can be open.
    let from = sent.len().saturating_sub(4 * MOST_OPEN);
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

/// Through one of the doors; false: not this time.
async fn come_in(device: &mut V1Client, doors: &[u16], rng: &mut StdRng) -> bool {
    let door = *doors.choose(rng).expect("a door");
    let patience = Duration::from_secs(8);
    if let Ok(Ok(_)) = timeout(patience, device.try_connect(door)).await {
        return true;
    }
    device.drop_connection();
    tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
    false
}

/// A second device: it only looks on, and comes and goes.
async fn look_on(
    name: String,
    doors: Vec<u16>,
    mut rng: StdRng,
    told: watch::Receiver<(Vec<Sent>, bool)>,
) -> Transcript {
    let mut device = V1Client::new(&name);
    device.transcript.redis_may_be_emptied = true;
    let mut last = None;
    loop {
        if told.borrow().1 {
            let begun = *last.get_or_insert_with(Instant::now);
            let missing = open(&device.transcript, &told.borrow().0);
            let reloaded = device.transcript.reloaded.last().copied();
            // What was under way when it reloaded may come, or be in the history.
            let surely = |message: &Sent| reloaded.is_none_or(|at| at < message.at);
            let sure = missing.iter().any(surely);
            let patience = if sure { LAST } else { UNDER_WAY };
            if missing.is_empty() || begun.elapsed() > patience {
                break;
            }
        }
        if !device.is_connected() {
            come_in(&mut device, &doors, &mut rng).await;
            continue;
        }
        device.next_event(Duration::from_millis(200)).await;
        forget_frames(&mut device);
        if rng.random_bool(0.005) {
            device.drop_connection();
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..2000))).await;
        }
    }
    device.drop_connection();
    while !come_in(&mut device, &doors, &mut rng).await {}
    device.transcript
}

/// All turns of a user, conversation by conversation, from whichever gateway has them.
async fn history(doors: &[u16], user: &str) -> Vec<Vec<HistoryTurn>> {
    let mut all = Vec::new();
    for conversation in CONVERSATIONS {
        all.push(
            HistoryClient::new(doors[0], user)
                .all_turns(conversation)
                .await,
        );
    }
    all
}

/// The history, as soon as it has all that has ended, or what there is of it after a while: a Redis
/// that lost its data is being filled, or had lost what is older than that.
async fn whole_history(doors: &[u16], user: &str, ended: &HashSet<&str>) -> Vec<Vec<HistoryTurn>> {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let turns = history(doors, user).await;
        let known = turns.iter().flatten();
        let known: HashSet<&str> = known.map(|turn| turn.message_id.as_str()).collect();
        if ended.is_subset(&known) || Instant::now() > deadline {
            return turns;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A client that knows nothing of positions: what it was owed when its socket died, it never gets.
async fn classic(
    name: String,
    doors: Vec<u16>,
    mut rng: StdRng,
    stopped: watch::Receiver<bool>,
    pace: Duration,
) -> ClassicSeen {
    let mut seen = ClassicSeen {
        user: name.clone(),
        connections: Vec::new(),
        history: Vec::new(),
    };
    let patience = Duration::from_secs(8);
    let mut said = 0;
    while !*stopped.borrow() {
        let door = *doors.choose(&mut rng).expect("a door");
        let Ok(Ok(mut client)) =
            timeout(patience, ClassicClient::connect(door, "any-token", &name)).await
        else {
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
            continue;
        };
        let mut connection = Connection::default();
        let mut next = Instant::now() + pace.mul_f64(rng.random_range(0.0..1.0));
        let mut last = None;
        loop {
            let stopping = *stopped.borrow();
            if stopping {
                let last = *last.get_or_insert_with(|| Instant::now() + LAST);
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
    seen.history = whole_history(&doors, &name, &answered).await;
    seen
}
