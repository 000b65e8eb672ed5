//! Many classic clients that send at a pace and keep everything that they get.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::kafka_client::KafkaRecord;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) users: usize,
    pub(super) messages: usize,
    /// Between two messages of one user.
    pub(super) pace: Duration,
    /// Until every message has an answer or a refusal.
    pub(super) limit: Duration,
    /// How long clients listen after that for what must not come.
    pub(super) quiet: Duration,
}

/// What one user saw.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) user: String,
    pub(super) frames: Vec<Value>,
    /// Why the socket ended early, if it did.
    pub(super) closed: Option<String>,
}

/// Text of a user's message; the scripted model's echo of it tells which one was answered.
pub(super) fn text(user: &str, n: usize) -> String {
    format!("{user} says {n}")
}

/// A load under way.
pub(super) struct Load {
    plan: Plan,
    users: JoinSet<Outcome>,
}

impl Load {
    /// Connects all users, spread over the gateways, and begins.
    pub(super) async fn start(ports: &[u16], plan: Plan) -> Self {
        let mut clients = Vec::new();
        for n in 0..plan.users {
            let user = format!("user{n}");
            clients.push(ClassicClient::open(ports[n % ports.len()], &user).await);
        }
        let mut users = JoinSet::new();
        for (n, client) in clients.into_iter().enumerate() {
            // Spread over the pace, so that they don't all send at the same moment.
            let offset = plan.pace * u32::try_from(n).unwrap() / u32::try_from(plan.users).unwrap();
            users.spawn(one_user(client, plan, offset));
        }
        Self { plan, users }
    }

    /// Waits for every user.
    pub(super) async fn finish(self) -> Vec<Outcome> {
        let mut outcomes = self.users.join_all().await;
        assert_eq!(outcomes.len(), self.plan.users);
        outcomes.sort_by(|a, b| a.user.cmp(&b.user));
        for outcome in &outcomes {
            assert_eq!(outcome.closed, None, "{} was closed", outcome.user);
        }
        outcomes
    }
}

async fn one_user(mut client: ClassicClient, plan: Plan, offset: Duration) -> Outcome {
    let user = client.user.clone();
    let mut frames = Vec::new();
    let mut closed = None;
    let mut sent = 0;
    let mut next = Instant::now() + offset;
    let deadline = next + plan.limit;
    // Once there is an answer for everything: until nothing has come for a while.
    let mut end = deadline;
    while Instant::now() < end {
        if sent < plan.messages && Instant::now() >= next {
            client.send_message(&text(&user, sent)).await;
            sent += 1;
            next += plan.pace;
        }
        let until = if sent < plan.messages { next } else { end };
        match client
            .next_event(until.saturating_duration_since(Instant::now()))
            .await
        {
            ClientEvent::Frame(frame) => {
                frames.push(frame);
                if sent == plan.messages && frames.len() >= sent {
                    end = (Instant::now() + plan.quiet).min(deadline);
                }
            }
            ClientEvent::TimedOut => {}
            ClientEvent::Closed(code) => {
                closed = Some(format!("close code {code:?} after {sent} messages"));
                break;
            }
        }
    }
    client.close().await;
    Outcome {
        user,
        frames,
        closed,
    }
}

/// Every message was answered, once, in the order in which it was sent.
pub(super) fn assert_answered_once_in_order(outcomes: &[Outcome], messages: usize) {
    for outcome in outcomes {
        let got: Vec<&str> = outcome
            .frames
            .iter()
            .map(|frame| {
                frame["content"]
                    .as_str()
                    .unwrap_or_else(|| panic!("no answer: {frame}"))
            })
            .collect();
        let want: Vec<String> = (0..messages)
            .map(|n| format!("echo: {}", text(&outcome.user, n)))
            .collect();
        assert_eq!(got, want, "{}", outcome.user);
        for frame in &outcome.frames {
            assert_eq!(frame["type"], "response", "{frame}");
            assert_eq!(
                frame["userid"],
                outcome.user.as_str(),
                "a frame of another user"
            );
        }
    }
}

/// The `message_id`s in the log, with their user: what was accepted.
pub(super) fn accepted(records: &[KafkaRecord]) -> BTreeMap<String, String> {
    let text = |value: &Value, name: &str| value[name].as_str().expect("a string").to_owned();
    records
        .iter()
        .map(KafkaRecord::json)
        .map(|value| (text(&value, "message_id"), text(&value, "userid")))
        .collect()
}

/// Everything in the log ended in exactly one terminal frame at its user, and everything that was
/// sent either ended so or was refused (an `error` without a `message_id`).
pub(super) fn assert_accepted_ended_once(
    outcomes: &[Outcome],
    records: &[KafkaRecord],
    messages: usize,
) {
    let accepted = accepted(records);
    let mut ended: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes {
        for frame in &outcome.frames {
            assert_eq!(
                frame["userid"],
                outcome.user.as_str(),
                "a frame of another user"
            );
            if let Some(id) = frame["message_id"].as_str() {
                assert_eq!(
                    accepted.get(id),
                    Some(&outcome.user),
                    "not in the log: {frame}"
                );
                *ended.entry(id).or_default() += 1;
            } else {
                assert_eq!(frame["type"], "error", "{frame}");
            }
        }
        assert!(
            outcome.frames.len() >= messages,
            "{} sent {messages} messages and heard of {}",
            outcome.user,
            outcome.frames.len()
        );
    }
    let lost: Vec<_> = accepted
        .iter()
        .filter(|(id, _)| !ended.contains_key(id.as_str()))
        .collect();
    assert!(lost.is_empty(), "accepted and never ended: {lost:?}");
    let doubles: Vec<_> = ended.iter().filter(|(_, times)| **times > 1).collect();
    assert!(doubles.is_empty(), "ended more than once: {doubles:?}");
}
