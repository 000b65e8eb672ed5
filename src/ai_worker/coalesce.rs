//! Combines the model's tokens into deltas for `live` calls: the first token becomes a delta at
//! once, later tokens are combined until a time or a size is reached.

use std::time::Duration;

use tokio::time::Instant;

/// The text of one `live` call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Number of the delta within the attempt, from 0 without gaps.
    pub index: u32,
    /// The delta's text: whole characters, never empty.
    pub text: String,
}

/// Accumulates the text of one attempt and cuts it into deltas. Text that no delta contains yet is
/// pending. A coalescer has no timer: the caller passes the time, and waits until
/// [`Coalescer::due_at`].
#[derive(Debug)]
pub struct Coalescer {
    interval: Duration,
    max_bytes: usize,
    text: String,
    /// Number of bytes of `text` that were returned in deltas.
    flushed_bytes: usize,
    next_index: u32,
    /// When the last delta was returned; `None` before the first.
    last_flush: Option<Instant>,
}

impl Coalescer {
    /// Creates a coalescer without text. The first delta is due at once. Each later delta is due
    /// `interval` after the previous delta, or as soon as `max_bytes` are pending.
    pub fn new(interval: Duration, max_bytes: usize) -> Self {
        Self {
            interval,
            max_bytes: max_bytes.max(1),
            text: String::new(),
            flushed_bytes: 0,
            next_index: 0,
            last_flush: None,
        }
    }

    /// Appends text of the model.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The whole text of this attempt, pending text included.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether text is pending.
    pub fn has_pending_text(&self) -> bool {
        self.flushed_bytes < self.text.len()
    }

    /// The time at which the pending text is due, at the earliest `now`. `None` while no text is
    /// pending.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        let pending_bytes = self.text.len() - self.flushed_bytes;
        match self.last_flush {
            _ if pending_bytes == 0 => None,
            Some(last) if pending_bytes < self.max_bytes => Some((last + self.interval).max(now)),
            _ => Some(now),
        }
    }

    /// Returns the pending text as one delta if it is due; otherwise `None`.
    pub fn flush_if_due(&mut self, now: Instant) -> Option<Delta> {
        if self.due_at(now)? > now {
            return None;
        }
        self.flush(now)
    }

    /// Returns the pending text as one delta, due or not; `None` while no text is pending.
    pub fn flush(&mut self, now: Instant) -> Option<Delta> {
        if !self.has_pending_text() {
            return None;
        }
        let delta = Delta {
            index: self.next_index,
            text: self.text[self.flushed_bytes..].to_owned(),
        };
        self.flushed_bytes = self.text.len();
        self.next_index += 1;
        self.last_flush = Some(now);
        Some(delta)
    }

    /// Restarts with the same text: the next delta is the whole text with index 0, due at once.
    pub fn restart(&mut self) {
        self.flushed_bytes = 0;
        self.next_index = 0;
        self.last_flush = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(30);

    fn delta(index: u32, text: &str) -> Delta {
        let text = text.to_owned();
        Delta { index, text }
    }

    #[test]
    fn the_first_token_is_due_at_once_and_later_ones_after_the_interval() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 1024);
        assert_eq!(coalescer.due_at(start), None);
        assert_eq!(coalescer.flush_if_due(start), None);
        coalescer.push("Hel");
        assert_eq!(coalescer.due_at(start), Some(start));
        assert_eq!(coalescer.flush_if_due(start), Some(delta(0, "Hel")));
        coalescer.push("lo");
        coalescer.push(" you");
        let due = start + INTERVAL;
        assert_eq!(coalescer.due_at(start), Some(due));
        assert_eq!(coalescer.flush_if_due(start), None);
        assert_eq!(coalescer.flush_if_due(due), Some(delta(1, "lo you")));
        assert_eq!(coalescer.due_at(due), None);
    }

    #[test]
    fn text_after_a_pause_is_due_at_once() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 1024);
        coalescer.push("a");
        coalescer.flush_if_due(start);
        let later = start + INTERVAL * 10;
        coalescer.push("b");
        assert_eq!(coalescer.due_at(later), Some(later));
        assert_eq!(coalescer.flush_if_due(later), Some(delta(1, "b")));
    }

    #[test]
    fn text_of_the_maximum_size_is_due_at_once() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 4);
        coalescer.push("a");
        coalescer.flush_if_due(start);
        coalescer.push("bcd");
        assert_eq!(coalescer.flush_if_due(start), None);
        coalescer.push("ö");
        assert_eq!(coalescer.flush_if_due(start), Some(delta(1, "bcdö")));
    }

    #[test]
    fn restart_sends_the_whole_text_again_from_index_0() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 1024);
        coalescer.push("a");
        coalescer.flush_if_due(start);
        coalescer.push("b");
        coalescer.flush(start);
        coalescer.push("c");
        coalescer.restart();
        assert_eq!(coalescer.due_at(start), Some(start));
        assert_eq!(coalescer.flush_if_due(start), Some(delta(0, "abc")));
        coalescer.push("d");
        assert_eq!(coalescer.flush(start), Some(delta(1, "d")));
        assert_eq!(coalescer.flush(start), None);
        assert_eq!(coalescer.text(), "abcd");
    }

    proptest! {
        #[test]
        fn deltas_are_the_text_without_gaps(
            tokens in prop::collection::vec(("\\PC{0,12}", 0_u64..50, any::<bool>()), 0..40),
            max_bytes in 0_usize..40,
        ) {
            let mut now = Instant::now();
            let mut coalescer = Coalescer::new(INTERVAL, max_bytes);
            let mut whole = String::new();
            let mut deltas: Vec<Delta> = Vec::new();
            let mut last_flush = None;
            for (token, pause_ms, restarts) in tokens {
                now += Duration::from_millis(pause_ms);
                if restarts && pause_ms == 0 {
                    coalescer.restart();
                    deltas.clear();
                    last_flush = None;
                }
                coalescer.push(&token);
                whole.push_str(&token);
                if let Some(delta) = coalescer.flush_if_due(now) {
                    let is_early = last_flush.is_some_and(|last| now < last + INTERVAL);
                    prop_assert!(!is_early || delta.text.len() >= max_bytes.max(1));
                    last_flush = Some(now);
                    deltas.push(delta);
                }
            }
            deltas.extend(coalescer.flush(now));
            for (index, delta) in deltas.iter().enumerate() {
                prop_assert_eq!(delta.index as usize, index);
                prop_assert!(!delta.text.is_empty());
            }
            let joined: String = deltas.into_iter().map(|delta| delta.text).collect();
            prop_assert_eq!(&joined, &whole);
        }
    }
}
