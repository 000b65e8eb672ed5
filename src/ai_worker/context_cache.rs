//! Caches, for the handler, the model context of the conversations that this worker answered last.
//!
//! One worker usually consumes all messages of a conversation, so it already has the history that a
//! read would return. The fan-out stays authoritative: the worker names the version of the cached
//! history to `begin`, which returns the turns where the stored version differs. `keep` returns the
//! versions before and after it appends its turn.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::fanout::{HistoryVersion, Turn, TurnAppend, TurnStatus};
use crate::protocol::record::Question;

/// Maximum estimated size of the cache in bytes, enough for some ten thousand conversations.
const MAX_BYTES: usize = 32 << 20;
/// Time after which a context is discarded, counted from its read from the fan-out. The expiry of
/// turns does not change the version, so only another read removes expired turns.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Estimated size in bytes of a turn without its texts, and of a context without its turns.
const OVERHEAD_BYTES: usize = 200;

/// The context of one conversation in one version of its history.
#[derive(Debug)]
pub(super) struct CachedContext {
    pub(super) version: HistoryVersion,
    /// The newest turns that the model may see, oldest first.
    pub(super) turns: Vec<Turn>,
    /// When the turns were read from the fan-out. Appending a turn does not change this time.
    read_at: Instant,
    /// Whether the context may be cached. A context without turns may not: the fan-out omits all
    /// turns if the newest turn is too old, and returns them again after the next turn.
    is_cacheable: bool,
}

impl CachedContext {
    pub(super) fn new(version: HistoryVersion, mut turns: Vec<Turn>) -> Self {
        // Prompts contain only the answers' texts.
        for turn in &mut turns {
            turn.parts = None;
        }
        Self {
            is_cacheable: !turns.is_empty(),
            read_at: Instant::now(),
            version,
            turns,
        }
    }

    /// Removes all turns if the newest turn is older than `max_newest_turn_age`.
    pub(super) fn clear_if_older_than(&mut self, max_newest_turn_age: Duration, now_ms: i64) {
        let max_age_ms = i64::try_from(max_newest_turn_age.as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = now_ms.saturating_sub(max_age_ms);
        if self.turns.last().is_some_and(|turn| turn.at_ms < oldest_ms) {
            self.turns.clear();
            self.is_cacheable = false;
        }
    }

    /// The context after `turn` was appended, with at most `limit` turns. Returns `None` if the
    /// stored history was not at `self.version` before the append, or the context is not cacheable.
    pub(super) fn append(
        mut self,
        appended: TurnAppend,
        turn: &Turn,
        limit: usize,
    ) -> Option<Self> {
        if self.version != appended.version_before || !self.is_cacheable {
            return None;
        }
        self.version = appended.version_after;
        if turn.status != TurnStatus::Failed {
            self.turns.push(Turn {
                message_id: turn.message_id.clone(),
                question: turn.question.clone(),
                answer: turn.answer.clone(),
                parts: None,
                status: turn.status,
                at_ms: appended.at_ms,
            });
        }
        let excess = self.turns.len().saturating_sub(limit);
        self.turns.drain(..excess);
        Some(self)
    }

    /// The estimated size of the context in memory.
    fn size_bytes(&self) -> usize {
        let turn_bytes = self.turns.iter().map(|turn| {
            let question_bytes = turn.question.as_ref().map_or(0, String::len);
            OVERHEAD_BYTES + turn.answer.len() + question_bytes
        });
        OVERHEAD_BYTES + turn_bytes.sum::<usize>()
    }
}

/// The cached contexts by user and conversation, at most [`MAX_BYTES`] in total.
#[derive(Debug, Default)]
pub(super) struct ContextCache(Mutex<Generations>);

/// The cached contexts in two generations. A context enters the young generation. When the young
/// generation would exceed half of [`MAX_BYTES`], it becomes the old generation, and the previous
/// old generation is discarded.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, CachedContext>,
    old: HashMap<String, CachedContext>,
    /// Estimated size of the young generation in bytes.
    young_bytes: usize,
}

fn cache_key(question: &Question) -> String {
    format!("{} {}", question.user, question.conversation)
}

impl ContextCache {
    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock()
    }

    /// Removes and returns the cached context of the question's conversation. `None` where no
    /// context is cached, or the context is older than [`MAX_AGE`]. The caller inserts the context
    /// again, with the new turn, once `keep` has stored the turn.
    pub(super) fn remove(&self, question: &Question) -> Option<CachedContext> {
        let key = cache_key(question);
        let mut generations = self.generations();
        let context = match generations.young.remove(&key) {
            Some(context) => {
                let bytes = context.size_bytes();
                generations.young_bytes = generations.young_bytes.saturating_sub(bytes);
                Some(context)
            }
            None => generations.old.remove(&key),
        };
        context.filter(|context| context.read_at.elapsed() < MAX_AGE)
    }

    /// Inserts a context, unless its size is more than an eighth of [`MAX_BYTES`].
    pub(super) fn insert(&self, question: &Question, context: CachedContext) {
        let (key, bytes) = (cache_key(question), context.size_bytes());
        if bytes > MAX_BYTES / 8 {
            return;
        }
        let mut generations = self.generations();
        if generations.young_bytes + bytes > MAX_BYTES / 2 {
            generations.old = std::mem::take(&mut generations.young);
            generations.young_bytes = 0;
        }
        generations.young_bytes += bytes;
        generations.young.insert(key, context);
    }
}
