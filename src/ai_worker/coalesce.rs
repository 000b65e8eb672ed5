//! Gathers the model's tokens into `live` calls: the first at once, later ones by time or size.

use std::time::Duration;

use tokio::time::Instant;

/// Text for one `live` call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Counts from 0 without gaps within an attempt.
    pub index: u32,
    /// What was gathered, whole characters; not empty.
    pub text: String,
}

/// The text of one attempt: what was handed out and what waits. Does nothing by itself: the
/// caller brings the time, so that it can wait for [`Coalescer::due`] beside everything else.
#[derive(Debug)]
pub struct Coalescer {
    interval: Duration,
    max_bytes: usize,
    text: String,
    handed_out: usize,
    next_index: u32,
    last_flush: Option<Instant>,
}

impl Coalescer {
    /// Hands text out `interval` after what was handed out before it, or as soon as `max_bytes`
    /// wait.
    pub fn new(interval: Duration, max_bytes: usize) -> Self {
        Self {
            interval,
            max_bytes: max_bytes.max(1),
            text: String::new(),
            handed_out: 0,
            next_index: 0,
            last_flush: None,
        }
    }

    /// Adds what the model said.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The whole text of this attempt so far, whether handed out or not.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Gives the whole text away, at the attempt's end.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Whether something waits to be handed out.
    pub fn is_pending(&self) -> bool {
        self.handed_out < self.text.len()
    }

    /// When to call [`Coalescer::take`], `now` where that is at once; `None` while nothing waits.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let waiting = self.text.len() - self.handed_out;
        match self.last_flush {
            _ if waiting == 0 => None,
            Some(last) if waiting < self.max_bytes => Some((last + self.interval).max(now)),
            _ => Some(now),
        }
    }

    /// What is due, all that waits in one piece; `None` where nothing is.
    pub fn take(&mut self, now: Instant) -> Option<Piece> {
        if self.due(now)? > now {
            return None;
        }
        self.flush(now)
    }

    /// All that waits, due or not: for the attempt's end.
    pub fn flush(&mut self, now: Instant) -> Option<Piece> {
        if !self.is_pending() {
            return None;
        }
        let piece = Piece {
            index: self.next_index,
            text: self.text[self.handed_out..].to_owned(),
        };
        self.handed_out = self.text.len();
        self.next_index += 1;
        self.last_flush = Some(now);
        Some(piece)
    }

    /// Begins anew with the same text: the next piece is the whole of it, at index 0, at once.
    pub fn restart(&mut self) {
        self.handed_out = 0;
        self.next_index = 0;
        self.last_flush = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(30);

    fn piece(index: u32, text: &str) -> Piece {
        let text = text.to_owned();
        Piece { index, text }
    }

    #[test]
    fn the_first_token_goes_at_once_and_the_next_waits() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 1024);
        assert_eq!(coalescer.due(start), None);
        assert_eq!(coalescer.take(start), None);
        coalescer.push("Hel");
        assert_eq!(coalescer.due(start), Some(start));
        assert_eq!(coalescer.take(start), Some(piece(0, "Hel")));
        coalescer.push("lo");
        coalescer.push(" you");
        let due = start + INTERVAL;
        assert_eq!(coalescer.due(start), Some(due));
        assert_eq!(coalescer.take(start), None);
        assert_eq!(coalescer.take(due), Some(piece(1, "lo you")));
        assert_eq!(coalescer.due(due), None);
    }

    #[test]
    fn text_after_a_pause_goes_at_once() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 1024);
        coalescer.push("a");
        coalescer.take(start);
        let later = start + INTERVAL * 10;
        coalescer.push("b");
        assert_eq!(coalescer.due(later), Some(later));
        assert_eq!(coalescer.take(later), Some(piece(1, "b")));
    }

    #[test]
    fn much_text_does_not_wait() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 4);
        coalescer.push("a");
        coalescer.take(start);
        coalescer.push("bcd");
        assert_eq!(coalescer.take(start), None);
        coalescer.push("ö");
        assert_eq!(coalescer.take(start), Some(piece(1, "bcdö")));
    }

    #[test]
    fn restart_sends_the_whole_text_again_from_index_0() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(INTERVAL, 1024);
        coalescer.push("a");
        coalescer.take(start);
        coalescer.push("b");
        coalescer.flush(start);
        coalescer.push("c");
        coalescer.restart();
        assert_eq!(coalescer.due(start), Some(start));
        assert_eq!(coalescer.take(start), Some(piece(0, "abc")));
        coalescer.push("d");
        assert_eq!(coalescer.flush(start), Some(piece(1, "d")));
        assert_eq!(coalescer.flush(start), None);
        assert_eq!(coalescer.text(), "abcd");
    }

    proptest! {
        #[test]
        fn pieces_are_the_text_without_gaps(
            tokens in prop::collection::vec(("\\PC{0,12}", 0_u64..50, any::<bool>()), 0..40),
            max_bytes in 0_usize..40,
        ) {
            let mut now = Instant::now();
            let mut coalescer = Coalescer::new(INTERVAL, max_bytes);
            let mut whole = String::new();
            let mut pieces: Vec<Piece> = Vec::new();
            let mut last = None;
            for (token, pause, restart) in tokens {
                now += Duration::from_millis(pause);
                if restart && pause == 0 {
                    coalescer.restart();
                    pieces.clear();
                    last = None;
                }
                coalescer.push(&token);
                whole.push_str(&token);
                if let Some(piece) = coalescer.take(now) {
                    let early = last.is_some_and(|last| now < last + INTERVAL);
                    prop_assert!(!early || piece.text.len() >= max_bytes.max(1));
                    last = Some(now);
                    pieces.push(piece);
                }
            }
            pieces.extend(coalescer.flush(now));
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(piece.index as usize, index);
                prop_assert!(!piece.text.is_empty());
            }
            let joined: String = pieces.into_iter().map(|piece| piece.text).collect();
            prop_assert_eq!(&joined, &whole);
        }
    }
}
