//! A load of classic clients that send at a fixed interval and record every frame.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::kafka_client::KafkaRecord;

/// The load of a test.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadPlan {
    pub(super) users: usize,
    pub(super) messages: usize,
    /// Interval between two messages of one user.
    pub(super) pace: Duration,
    /// Limit until every message is answered or refused.
    pub(super) limit: Duration,
    /// How long clients listen after that for a duplicate. No later message can replace this period,
    /// because a gateway's periodic mailbox check may deliver at any time.
    pub(super) quiet: Duration,
}

/// What one user received.
#[derive(Debug)]
pub(super) struct UserFrames {
    pub(super) user: String,
    pub(super) frames: Vec<Value>,
    /// Why the socket closed early, if it did.
    pub(super) closed: Option<String>,
}

/// The text of a user's message, by which its answer is recognised.
pub(super) fn message_text(user: &str, n: usize) -> String {
    format!("{user} says {n}")
}

/// A running load.
pub(super) struct Load {
    plan: LoadPlan,
    users: JoinSet<UserFrames>,
}

impl Load {
    /// Connects all users, distributed over the gateways, and starts sending.
    pub(super) async fn start(ports: &[u16], plan: LoadPlan) -> Self {
        let mut clients = Vec::new();
        for n in 0..plan.users {
            let user = format!("user{n}");
            clients.push(ClassicClient::open(ports[n % ports.len()], &user).await);
        }
        let mut users = JoinSet::new();
        for (n, client) in clients.into_iter().enumerate() {
            // Offsets keep the users from sending at the same moment.
            let offset = plan.pace * u32::try_from(n).unwrap() / u32::try_from(plan.users).unwrap();
            users.spawn(run_user(client, plan, offset));
        }
        Self { plan, users }
    }

    /// Waits for every user.
    pub(super) async fn finish(self) -> Vec<UserFrames> {
        let mut all_frames = self.users.join_all().await;
        assert_eq!(all_frames.len(), self.plan.users);
        all_frames.sort_by(|a, b| a.user.cmp(&b.user));
        for user_frames in &all_frames {
            assert_eq!(user_frames.closed, None, "{} was closed", user_frames.user);
        }
        all_frames
    }
}

async fn run_user(mut client: ClassicClient, plan: LoadPlan, offset: Duration) -> UserFrames {
    let user = client.user.clone();
    let mut frames = Vec::new();
    let mut closed = None;
    let mut sent = 0;
    let mut next = Instant::now() + offset;
    let deadline = next + plan.limit;
    // Once everything is answered, the end of the quiet period.
    let mut end = deadline;
    while Instant::now() < end {
        if sent < plan.messages && Instant::now() >= next {
            client.send_message(&message_text(&user, sent)).await;
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
    UserFrames {
        user,
        frames,
        closed,
    }
}

/// Checks that every message was answered once and in the order of sending.
pub(super) fn assert_answered_once_in_order(all_frames: &[UserFrames], messages: usize) {
    for user_frames in all_frames {
        let received: Vec<&str> = user_frames
            .frames
            .iter()
            .map(|frame| {
                frame["content"]
                    .as_str()
                    .unwrap_or_else(|| panic!("no answer: {frame}"))
            })
            .collect();
        let expected: Vec<String> = (0..messages)
            .map(|n| format!("echo: {}", message_text(&user_frames.user, n)))
            .collect();
        assert_eq!(received, expected, "{}", user_frames.user);
        for frame in &user_frames.frames {
            assert_eq!(frame["type"], "response", "{frame}");
            assert_eq!(
                frame["userid"],
                user_frames.user.as_str(),
                "a frame of another user"
            );
        }
    }
}

/// The user of each `message_id` in the log.
pub(super) fn accepted_messages(records: &[KafkaRecord]) -> BTreeMap<String, String> {
    let text = |value: &Value, name: &str| value[name].as_str().expect("a string").to_owned();
    records
        .iter()
        .map(KafkaRecord::json)
        .map(|value| (text(&value, "message_id"), text(&value, "userid")))
        .collect()
}

/// Checks that everything in the log ended in exactly one terminal frame at its user, and that every
/// sent message either ended so or was refused (an `error` without a `message_id`).
pub(super) fn assert_accepted_ended_once(
    all_frames: &[UserFrames],
    records: &[KafkaRecord],
    messages: usize,
) {
    let accepted = accepted_messages(records);
    let mut ended: BTreeMap<&str, usize> = BTreeMap::new();
    for user_frames in all_frames {
        for frame in &user_frames.frames {
            assert_eq!(
                frame["userid"],
                user_frames.user.as_str(),
                "a frame of another user"
            );
            if let Some(id) = frame["message_id"].as_str() {
                assert_eq!(
                    accepted.get(id),
                    Some(&user_frames.user),
                    "not in the log: {frame}"
                );
                *ended.entry(id).or_default() += 1;
            } else {
                assert_eq!(frame["type"], "error", "{frame}");
            }
        }
        assert!(
            user_frames.frames.len() >= messages,
            "{} sent {messages} messages and received {} replies",
            user_frames.user,
            user_frames.frames.len()
        );
    }
    let lost: Vec<_> = accepted
        .iter()
        .filter(|(id, _)| !ended.contains_key(id.as_str()))
        .collect();
    assert!(lost.is_empty(), "accepted and never ended: {lost:?}");
    let duplicates: Vec<_> = ended.iter().filter(|(_, times)| **times > 1).collect();
    assert!(
        duplicates.is_empty(),
        "ended more than once: {duplicates:?}"
    );
}
