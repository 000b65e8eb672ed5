//! Records when each message was sent, accepted and ended, as its client saw it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::time::Instant;

/// Limit for a long answer, which several faults in a row may interrupt.
const LONG_ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// The times at which a message was sent, accepted and ended.
#[derive(Debug, Clone)]
pub(super) struct MessageTimeline {
    pub(super) sent_at: Instant,
    /// The answer takes seconds even without a fault, so its end does not measure a recovery.
    pub(super) has_long_answer: bool,
    pub(super) accepted_at: Option<Instant>,
    pub(super) ended_at: Option<Instant>,
    pub(super) message_id: Option<String>,
}

/// The timelines of all messages of a run, shared by its clients.
#[derive(Debug, Default)]
pub(super) struct Journal {
    timelines: Mutex<Timelines>,
}

#[derive(Debug, Default)]
struct Timelines {
    open: HashMap<String, MessageTimeline>,
    ended: Vec<MessageTimeline>,
}

impl Timelines {
    fn record_end(&mut self, id: &str) {
        if let Some(mut timeline) = self.open.remove(id) {
            timeline.ended_at = Some(Instant::now());
            self.ended.push(timeline);
        }
    }
}

impl Journal {
    fn timelines(&self) -> MutexGuard<'_, Timelines> {
        self.timelines.lock()
    }

    pub(super) fn record_sent(&self, id: &str, has_long_answer: bool) {
        let timeline = MessageTimeline {
            sent_at: Instant::now(),
            has_long_answer,
            accepted_at: None,
            ended_at: None,
            message_id: None,
        };
        self.timelines().open.insert(id.to_owned(), timeline);
    }

    /// Records a frame that the sending client received.
    pub(super) fn record_frame(&self, frame: &Value) {
        let (Some(id), Some(kind)) = (frame["id"].as_str(), frame["type"].as_str()) else {
            return;
        };
        let mut timelines = self.timelines();
        let Some(timeline) = timelines.open.get_mut(id) else {
            return;
        };
        let Some(message_id) = frame["message_id"].as_str() else {
            return;
        };
        timeline
            .message_id
            .get_or_insert_with(|| message_id.to_owned());
        match kind {
            "accepted" => drop(timeline.accepted_at.get_or_insert_with(Instant::now)),
            "response" | "cancelled" | "error" => timelines.record_end(id),
            _ => {}
        }
    }

    /// Records that the client has read the outcome from the history.
    pub(super) fn record_reloaded(&self, id: &str) {
        self.timelines().record_end(id);
    }

    /// The number of all messages, and of those that have ended.
    pub(super) fn counts(&self) -> (usize, usize) {
        let timelines = self.timelines();
        (
            timelines.open.len() + timelines.ended.len(),
            timelines.ended.len(),
        )
    }

    /// Waits until every message sent up to `until` has ended, except those with long answers.
    /// Returns how long after `since` the last one ended, or the messages that did not end in time,
    /// including long answers that exceeded their own limit.
    pub(super) async fn wait_until_ended(
        &self,
        since: Instant,
        until: Instant,
        limit: Duration,
    ) -> Result<Duration, Vec<(String, MessageTimeline)>> {
        let deadline = Instant::now() + limit;
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = Instant::now();
            if now < until {
                continue;
            }
            let timelines = self.timelines();
            let is_overdue = |timeline: &MessageTimeline| {
                let end = if timeline.has_long_answer {
                    timeline.sent_at + LONG_ANSWER_LIMIT
                } else {
                    deadline
                };
                timeline.sent_at <= until && now > end
            };
            let overdue_messages = timelines
                .open
                .iter()
                .filter(|(_, timeline)| is_overdue(timeline));
            let overdue_messages: Vec<_> = overdue_messages
                .map(|(id, timeline)| (id.clone(), timeline.clone()))
                .collect();
            if !overdue_messages.is_empty() {
                return Err(overdue_messages);
            }
            let is_awaited = |timeline: &&MessageTimeline| {
                timeline.sent_at <= until && !timeline.has_long_answer
            };
            if !timelines
                .open
                .values()
                .any(|timeline| is_awaited(&timeline))
            {
                let ended = timelines.ended.iter().filter(is_awaited);
                let last_end = ended.filter_map(|timeline| timeline.ended_at).max();
                return Ok(last_end.unwrap_or(since).saturating_duration_since(since));
            }
        }
    }
}
