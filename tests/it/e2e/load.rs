//! A load of classic clients, which send messages at a fixed interval and record every frame.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::kafka_client::KafkaRecord;

/// The parameters of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadPlan {
    /// Number of users, each with one client.
    pub(super) users: usize,
    pub(super) messages_per_user: usize,
    /// Interval between two messages of one user.
    pub(super) send_interval: Duration,
    /// Time within which every message must be answered or refused.
    pub(super) limit: Duration,
    /// Time for which clients then listen for duplicates. A gateway's periodic mailbox check may
    /// deliver a duplicate at any time, so no later message can prove its absence.
    pub(super) quiet_period: Duration,
}

/// The frames that one user received.
#[derive(Debug)]
pub(super) struct UserFrames {
    pub(super) user: String,
    pub(super) frames: Vec<Value>,
    /// The reason, if the connection was closed before the end of the load.
    pub(super) early_close: Option<String>,
}

/// The text of message `n` of a user. The answer repeats it, so the answer identifies the message.
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
            // Each user starts at another time, so that they do not send at the same moment.
            let start_delay =
                plan.send_interval * u32::try_from(n).unwrap() / u32::try_from(plan.users).unwrap();
            users.spawn(run_user(client, plan, start_delay));
        }
        Self { plan, users }
    }

    /// Waits until the load has ended. Panics if a connection was closed early.
    pub(super) async fn finish(self) -> Vec<UserFrames> {
        let mut all_frames = self.users.join_all().await;
        assert_eq!(all_frames.len(), self.plan.users);
        all_frames.sort_by(|a, b| a.user.cmp(&b.user));
        for user_frames in &all_frames {
            assert_eq!(
                user_frames.early_close, None,
                "{} was closed",
                user_frames.user
            );
        }
        all_frames
    }
}

async fn run_user(mut client: ClassicClient, plan: LoadPlan, start_delay: Duration) -> UserFrames {
    let user = client.user.clone();
    let mut frames = Vec::new();
    let mut early_close = None;
    let mut sent = 0;
    let mut next_send = Instant::now() + start_delay;
    let deadline = next_send + plan.limit;
    // The end of the quiet period, once every message has a reply; until then the deadline.
    let mut end = deadline;
    while Instant::now() < end {
        if sent < plan.messages_per_user && Instant::now() >= next_send {
            client.send_message(&message_text(&user, sent)).await;
            sent += 1;
            next_send += plan.send_interval;
        }
        let read_until = if sent < plan.messages_per_user {
            next_send
        } else {
            end
        };
        match client
            .next_event(read_until.saturating_duration_since(Instant::now()))
            .await
        {
            ClientEvent::Frame(frame) => {
                frames.push(frame);
                if sent == plan.messages_per_user && frames.len() >= sent {
                    end = (Instant::now() + plan.quiet_period).min(deadline);
                }
            }
            ClientEvent::TimedOut => {}
            ClientEvent::Closed(code) => {
                early_close = Some(format!("close code {code:?} after {sent} messages"));
                break;
            }
        }
    }
    client.close().await;
    UserFrames {
        user,
        frames,
        early_close,
    }
}

/// Checks that every message was answered once and in the order of sending.
pub(super) fn assert_answered_once_in_order(all_frames: &[UserFrames], messages_per_user: usize) {
    for user_frames in all_frames {
        let received: Vec<&str> = user_frames
            .frames
            .iter()
            .map(|frame| {
                frame["content"]
                    .as_str()
                    .unwrap_or_else(|| panic!("the frame is no answer: {frame}"))
            })
            .collect();
        let expected: Vec<String> = (0..messages_per_user)
            .map(|n| format!("echo: {}", message_text(&user_frames.user, n)))
            .collect();
        assert_eq!(received, expected, "{}", user_frames.user);
        for frame in &user_frames.frames {
            assert_eq!(frame["type"], "response", "{frame}");
            assert_eq!(
                frame["userid"],
                user_frames.user.as_str(),
                "the frame names another user"
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

/// Checks that every message in the log ended with exactly one terminal frame to its user, and that
/// every other sent message was refused with an `error` without a `message_id`.
pub(super) fn assert_accepted_ended_once(
    all_frames: &[UserFrames],
    records: &[KafkaRecord],
    messages_per_user: usize,
) {
    let accepted = accepted_messages(records);
    let mut terminal_frames: BTreeMap<&str, usize> = BTreeMap::new();
    for user_frames in all_frames {
        for frame in &user_frames.frames {
            assert_eq!(
                frame["userid"],
                user_frames.user.as_str(),
                "the frame names another user"
            );
            if let Some(id) = frame["message_id"].as_str() {
                assert_eq!(
                    accepted.get(id),
                    Some(&user_frames.user),
                    "the message is not in the log under this user: {frame}"
                );
                *terminal_frames.entry(id).or_default() += 1;
            } else {
                assert_eq!(frame["type"], "error", "{frame}");
            }
        }
        assert!(
            user_frames.frames.len() >= messages_per_user,
            "{} sent {messages_per_user} messages and received {} replies",
            user_frames.user,
            user_frames.frames.len()
        );
    }
    let lost: Vec<_> = accepted
        .iter()
        .filter(|(id, _)| !terminal_frames.contains_key(id.as_str()))
        .collect();
    assert!(lost.is_empty(), "accepted, but never ended: {lost:?}");
    let duplicates: Vec<_> = terminal_frames
        .iter()
        .filter(|(_, count)| **count > 1)
        .collect();
    assert!(
        duplicates.is_empty(),
        "ended more than once: {duplicates:?}"
    );
}
