//! What the conversations that this worker answered last have come to.
//!
//! A conversation's messages come to one worker, so it mostly knows already what the fan-out would
//! tell it. The fan-out decides: each `begin` names the state in which the worker knows the history,
//! and what it brings in place of it counts; each `keep` says from which state to which its turn led.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::fanout::{Appended, HistoryVersion, Turn, TurnStatus};
use crate::protocol::record::Question;

/// What is remembered, in bytes, of texts mostly: some ten thousand conversations.
const BYTES: usize = 32 << 20;
/// After so long it is read again: that turns become too old is no change of the state.
const TRUSTED: Duration = Duration::from_secs(600);
/// What a turn costs besides its texts, and a conversation besides its turns.
const COST: usize = 200;

/// A conversation in one of its states.
#[derive(Debug)]
pub(super) struct Known {
    /// The state.
    pub(super) mark: HistoryVersion,
    /// The newest turns that the model is told of, oldest first.
    pub(super) turns: Vec<Turn>,
    /// When they were read.
    read: Instant,
    /// Whether it may be remembered: where there are none, they may only be too old, and are told
    /// of again after another turn.
    lasts: bool,
}

impl Known {
    pub(super) fn new(mark: HistoryVersion, turns: Vec<Turn>) -> Self {
        Self {
            lasts: !turns.is_empty(),
            read: Instant::now(),
            mark,
            turns,
        }
    }

    /// No turns where the newest is older than this.
    pub(super) fn forget_where_old(&mut self, max_age: Duration, now_ms: i64) {
        let max_age = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = now_ms.saturating_sub(max_age);
        if self.turns.last().is_some_and(|turn| turn.at_ms < oldest_ms) {
            self.turns.clear();
            self.lasts = false;
        }
    }

    /// The same with one turn more, and at most `limit`; nothing where it was another state that
    /// grew.
    pub(super) fn appended(
        mut self,
        appended: Appended,
        turn: &Turn,
        limit: usize,
    ) -> Option<Self> {
        if self.mark != appended.before || !self.lasts {
            return None;
        }
        self.mark = appended.after;
        if turn.status != TurnStatus::Failed {
            let at_ms = appended.at_ms;
            self.turns.push(Turn {
                at_ms,
                ..turn.clone()
            });
        }
        let excess = self.turns.len().saturating_sub(limit);
        self.turns.drain(..excess);
        Some(self)
    }

    fn bytes(&self) -> usize {
        let texts = |turn: &Turn| turn.answer.len() + turn.question.as_ref().map_or(0, String::len);
        COST + self
            .turns
            .iter()
            .map(|turn| COST + texts(turn))
            .sum::<usize>()
    }
}

/// Conversations by user and name.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Generations>);

/// What comes is young. When the young ones are half of what may be remembered they become the old
/// ones, and those are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, Known>,
    old: HashMap<String, Known>,
    bytes: usize,
}

fn name(question: &Question) -> String {
    format!("{} {}", question.user, question.conversation)
}

impl Recent {
    /// Takes out what is known of the question's conversation: whoever works on it puts it back as
    /// it is then.
    pub(super) fn take(&self, question: &Question) -> Option<Known> {
        let name = name(question);
        let mut all = self.0.lock();
        let known = match all.young.remove(&name) {
            Some(known) => {
                all.bytes = all.bytes.saturating_sub(known.bytes());
                Some(known)
            }
            None => all.old.remove(&name),
        };
        known.filter(|known| known.read.elapsed() < TRUSTED)
    }

    pub(super) fn put(&self, question: &Question, known: Known) {
        let (name, bytes) = (name(question), known.bytes());
        if bytes > BYTES / 8 {
            return;
        }
        let mut all = self.0.lock();
        if all.bytes + bytes > BYTES / 2 {
            all.old = std::mem::take(&mut all.young);
            all.bytes = 0;
        }
        all.bytes += bytes;
        all.young.insert(name, known);
    }
}
