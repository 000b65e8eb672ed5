//! When each message was sent, accepted and ended, as its client saw it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) sent: Instant,
    pub(super) accepted: Option<Instant>,
    pub(super) ended: Option<Instant>,
    pub(super) message_id: Option<String>,
}

/// Shared by all clients of a run.
#[derive(Debug, Default)]
pub(super) struct Journal {
    lives: Mutex<HashMap<String, Life>>,
}

impl Journal {
    fn lives(&self) -> MutexGuard<'_, HashMap<String, Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sent(&self, id: &str) {
        let life = Life {
            sent: Instant::now(),
            accepted: None,
            ended: None,
            message_id: None,
        };
        self.lives().entry(id.to_owned()).or_insert(life);
    }

    /// Takes a frame that the sending client got.
    pub(super) fn take(&self, frame: &Value) {
        let (Some(id), Some(kind)) = (frame["id"].as_str(), frame["type"].as_str()) else {
            return;
        };
        let mut lives = self.lives();
        let Some(life) = lives.get_mut(id) else {
            return;
        };
        let now = Instant::now();
        let Some(message_id) = frame["message_id"].as_str() else {
            return;
        };
        life.message_id.get_or_insert_with(|| message_id.to_owned());
        match kind {
            "accepted" => drop(life.accepted.get_or_insert(now)),
            "response" | "cancelled" | "error" => drop(life.ended.get_or_insert(now)),
            _ => {}
        }
    }

    /// Its client learnt the end from the history.
    pub(super) fn reloaded(&self, id: &str) {
        if let Some(life) = self.lives().get_mut(id) {
            life.ended.get_or_insert(Instant::now());
        }
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        let lives = self.lives();
        let ended = lives.values().filter(|life| life.ended.is_some()).count();
        (lives.len(), ended)
    }

    /// Waits until everything that was sent up to `until` has ended: how long after `since` that
    /// was. `Err`: what has not ended when the time is over.
    pub(super) async fn caught_up(
        &self,
        since: Instant,
        until: Instant,
        limit: Duration,
    ) -> Result<Duration, Vec<(String, Life)>> {
        let deadline = Instant::now() + limit;
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if Instant::now() < until {
                continue;
            }
            let lives = self.lives();
            let mut of_interest = lives.iter().filter(|(_, life)| life.sent <= until);
            if of_interest.clone().all(|(_, life)| life.ended.is_some()) {
                let last = lives
                    .values()
                    .filter(|life| life.sent <= until)
                    .filter_map(|life| life.ended)
                    .max();
                let last = last.unwrap_or(since);
                return Ok(last.saturating_duration_since(since));
            }
            if Instant::now() > deadline {
                let stuck = of_interest
                    .by_ref()
                    .filter(|(_, life)| life.ended.is_none());
                return Err(stuck.map(|(id, life)| (id.clone(), life.clone())).collect());
            }
        }
    }
}
