//! When each message was sent, accepted and ended, as its client saw it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::time::Instant;

/// A long answer may meet several faults, one after the other.
const MOST: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) sent: Instant,
    /// Its answer takes seconds by itself, so that it says nothing of how long a recovery took.
    pub(super) long: bool,
    pub(super) accepted: Option<Instant>,
    pub(super) ended: Option<Instant>,
    pub(super) message_id: Option<String>,
}

/// Shared by all clients of a run.
#[derive(Debug, Default)]
pub(super) struct Journal {
    lives: Mutex<Lives>,
}

#[derive(Debug, Default)]
struct Lives {
    open: HashMap<String, Life>,
    ended: Vec<Life>,
}

impl Lives {
    fn end(&mut self, id: &str) {
        if let Some(mut life) = self.open.remove(id) {
            life.ended = Some(Instant::now());
            self.ended.push(life);
        }
    }
}

impl Journal {
    fn lives(&self) -> MutexGuard<'_, Lives> {
        self.lives.lock()
    }

    /// A new message.
    pub(super) fn sent(&self, id: &str, long: bool) {
        let life = Life {
            sent: Instant::now(),
            long,
            accepted: None,
            ended: None,
            message_id: None,
        };
        self.lives().open.insert(id.to_owned(), life);
    }

    /// Takes a frame that the sending client got.
    pub(super) fn take(&self, frame: &Value) {
        let (Some(id), Some(kind)) = (frame["id"].as_str(), frame["type"].as_str()) else {
            return;
        };
        let mut lives = self.lives();
        let Some(life) = lives.open.get_mut(id) else {
            return;
        };
        let Some(message_id) = frame["message_id"].as_str() else {
            return;
        };
        life.message_id.get_or_insert_with(|| message_id.to_owned());
        match kind {
            "accepted" => drop(life.accepted.get_or_insert_with(Instant::now)),
            "response" | "cancelled" | "error" => lives.end(id),
            _ => {}
        }
    }

    /// Its client learnt the end from the history.
    pub(super) fn reloaded(&self, id: &str) {
        self.lives().end(id);
    }

    /// All messages, and those that have ended.
    pub(super) fn counts(&self) -> (usize, usize) {
        let lives = self.lives();
        (lives.open.len() + lives.ended.len(), lives.ended.len())
    }

    /// Waits until everything that was sent up to `until` has ended, but for long answers: how long
    /// after `since` that was. `Err`: what has not ended in time, long answers among it.
    pub(super) async fn caught_up(
        &self,
        since: Instant,
        until: Instant,
        limit: Duration,
    ) -> Result<Duration, Vec<(String, Life)>> {
        let deadline = Instant::now() + limit;
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = Instant::now();
            if now < until {
                continue;
            }
            let lives = self.lives();
            let overdue = |life: &Life| {
                let patient = life.long && now <= life.sent + MOST;
                life.sent <= until && !patient && (life.long || now > deadline)
            };
            let stuck = lives.open.iter().filter(|(_, life)| overdue(life));
            let stuck: Vec<_> = stuck.map(|(id, life)| (id.clone(), life.clone())).collect();
            if !stuck.is_empty() {
                return Err(stuck);
            }
            let of_interest = |life: &&Life| life.sent <= until && !life.long;
            if !lives.open.values().any(|life| of_interest(&life)) {
                let ends = lives.ended.iter().filter(of_interest);
                let last = ends.filter_map(|life| life.ended).max();
                return Ok(last.unwrap_or(since).saturating_duration_since(since));
            }
        }
    }
}
