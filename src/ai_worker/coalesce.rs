//! Combines the model's pieces into calls to the fan-out: the opening of a part is due at once,
//! later text of the part is combined until a time or a size is reached.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer_parts::Part;
use crate::fanout::Piece;
use crate::protocol::parts::{PartKind, TextRange};

/// The content of one call that publishes text. Never changed once it was returned: a call that
/// fails is repeated with the same content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flush {
    pub(super) piece: Piece,
    /// Describes the part that the piece opens; `None` if the piece continues a part.
    pub(super) opening: Option<Opening>,
}

/// The description of a part that is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) kind: PartKind,
    /// The part's properties as JSON; `None` if it has none.
    pub(super) meta: Option<Arc<str>>,
    /// Length of the previous part; `None` for the first part.
    pub(super) previous_end: Option<u32>,
}

/// Cuts the parts of one attempt into flushes. It stores up to where the parts were returned in
/// flushes; what follows is pending. A coalescer has no timer: the caller passes the parts and the
/// time, and waits until [`Coalescer::due_at`].
#[derive(Debug)]
pub(super) struct Coalescer {
    interval: Duration,
    max_bytes: usize,
    /// Number of parts of which a flush has returned the opening.
    opened_parts: usize,
    /// Number of bytes of the last opened part's text that were returned in flushes.
    flushed_bytes: usize,
    /// The same in UTF-16 code units.
    flushed_length: u32,
    /// When the last flush was returned; `None` before the first.
    last_flush: Option<Instant>,
}

impl Coalescer {
    /// Creates a coalescer. The opening of a part and the part's first text are due at once. Each
    /// later text is due `interval` after the previous flush, or as soon as `max_bytes` are
    /// pending.
    pub(super) fn new(interval: Duration, max_bytes: usize) -> Self {
        Self {
            interval,
            max_bytes: max_bytes.max(1),
            opened_parts: 0,
            flushed_bytes: 0,
            flushed_length: 0,
            last_flush: None,
        }
    }

    /// The time at which the next flush is due, at the earliest `now`. `None` while nothing is
    /// pending.
    pub(super) fn due_at(&self, parts: &[Part], now: Instant) -> Option<Instant> {
        if parts.len() > self.opened_parts {
            return Some(now);
        }
        let text_bytes = self.last_opened(parts).map_or(0, |part| part.text.len());
        let pending_bytes = text_bytes - self.flushed_bytes;
        match self.last_flush {
            _ if pending_bytes == 0 => None,
            Some(last) if pending_bytes < self.max_bytes && self.flushed_bytes > 0 => {
                Some((last + self.interval).max(now))
            }
            _ => Some(now),
        }
    }

    /// Returns the next flush, due or not; `None` while nothing is pending.
    pub(super) fn flush(&mut self, parts: &[Part], now: Instant) -> Option<Flush> {
        let has_pending_text = self
            .last_opened(parts)
            .is_some_and(|part| part.text.len() > self.flushed_bytes);
        let opening = if has_pending_text {
            None
        } else {
            let part = parts.get(self.opened_parts)?;
            let previous_end = (self.opened_parts > 0).then_some(self.flushed_length);
            self.opened_parts += 1;
            (self.flushed_bytes, self.flushed_length) = (0, 0);
            Some(Opening {
                kind: part.kind,
                meta: part.meta.as_ref().map(|meta| Arc::clone(&meta.json)),
                previous_end,
            })
        };
        let part = self.last_opened(parts)?;
        let flush = Flush {
            piece: Piece {
                range: TextRange {
                    // There are at most MAX_PARTS parts.
                    part: self.opened_parts as u32 - 1,
                    offset: self.flushed_length,
                    end: part.length,
                },
                text: part.text[self.flushed_bytes..].to_owned(),
            },
            opening,
        };
        (self.flushed_bytes, self.flushed_length) = (part.text.len(), part.length);
        self.last_flush = Some(now);
        Some(flush)
    }

    /// Restarts with the same parts: all are opened again, each with its whole text.
    pub(super) fn restart(&mut self) {
        *self = Self::new(self.interval, self.max_bytes);
    }

    /// The last part of which a flush has returned the opening.
    fn last_opened<'a>(&self, parts: &'a [Part]) -> Option<&'a Part> {
        parts.get(self.opened_parts.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::answer_parts::AnswerParts;
    use super::super::provider::{PartDelta, PartKey};
    use super::*;
    use crate::config::settings::Reasoning;
    use crate::protocol::parts::utf16_len;

    const INTERVAL: Duration = Duration::from_millis(30);

    /// An answer and its coalescer.
    struct Setup {
        answer: AnswerParts,
        coalescer: Coalescer,
    }

    impl Setup {
        fn new(max_bytes: usize) -> Self {
            Self {
                answer: AnswerParts::new(1 << 20, Reasoning::Show),
                coalescer: Coalescer::new(INTERVAL, max_bytes),
            }
        }

        fn push(&mut self, key: PartKey, text: &str) {
            self.answer.push(PartDelta::new(key, text)).unwrap();
        }

        fn due_at(&self, now: Instant) -> Option<Instant> {
            self.coalescer.due_at(self.answer.parts(), now)
        }

        fn flush_if_due(&mut self, now: Instant) -> Option<Flush> {
            if self.due_at(now)? > now {
                return None;
            }
            self.flush(now)
        }

        fn flush(&mut self, now: Instant) -> Option<Flush> {
            self.coalescer.flush(self.answer.parts(), now)
        }
    }

    fn piece(part: u32, offset: u32, text: &str) -> Piece {
        let end = offset + utf16_len(text);
        Piece {
            range: TextRange { part, offset, end },
            text: text.to_owned(),
        }
    }

    fn opening(kind: PartKind, previous_end: Option<u32>, piece: Piece) -> Flush {
        let opening = Opening {
            kind,
            meta: None,
            previous_end,
        };
        Flush {
            piece,
            opening: Some(opening),
        }
    }

    fn continuation(piece: Piece) -> Flush {
        Flush {
            piece,
            opening: None,
        }
    }

    #[test]
    fn the_first_text_is_due_at_once_and_later_text_after_the_interval() {
        let start = Instant::now();
        let mut setup = Setup::new(1024);
        assert_eq!(setup.due_at(start), None);
        assert_eq!(setup.flush_if_due(start), None);
        setup.push(PartKey::Text, "Hel");
        assert_eq!(setup.due_at(start), Some(start));
        let first = Some(opening(PartKind::Text, None, piece(0, 0, "Hel")));
        assert_eq!(setup.flush_if_due(start), first);
        setup.push(PartKey::Text, "lo");
        setup.push(PartKey::Text, " 👋");
        let due = start + INTERVAL;
        assert_eq!(setup.due_at(start), Some(due));
        assert_eq!(setup.flush_if_due(start), None);
        let second = Some(continuation(piece(0, 3, "lo 👋")));
        assert_eq!(setup.flush_if_due(due), second);
        setup.push(PartKey::Text, "!");
        let third = Some(continuation(piece(0, 8, "!")));
        assert_eq!(setup.flush(due), third);
        assert_eq!(setup.due_at(due), None);
    }

    #[test]
    fn text_after_a_pause_is_due_at_once() {
        let start = Instant::now();
        let mut setup = Setup::new(1024);
        setup.push(PartKey::Text, "a");
        setup.flush_if_due(start);
        let later = start + INTERVAL * 10;
        setup.push(PartKey::Text, "b");
        assert_eq!(setup.due_at(later), Some(later));
        assert_eq!(
            setup.flush_if_due(later),
            Some(continuation(piece(0, 1, "b")))
        );
    }

    #[test]
    fn text_of_the_maximum_size_is_due_at_once() {
        let start = Instant::now();
        let mut setup = Setup::new(4);
        setup.push(PartKey::Text, "a");
        setup.flush_if_due(start);
        setup.push(PartKey::Text, "bcd");
        assert_eq!(setup.flush_if_due(start), None);
        setup.push(PartKey::Text, "ö");
        assert_eq!(
            setup.flush_if_due(start),
            Some(continuation(piece(0, 1, "bcdö")))
        );
    }

    #[test]
    fn a_new_part_is_due_at_once_after_the_rest_of_the_part_before() {
        let start = Instant::now();
        let mut setup = Setup::new(1024);
        setup.push(PartKey::Reasoning, "a");
        setup.flush_if_due(start);
        setup.push(PartKey::Reasoning, "b");
        assert_eq!(setup.flush_if_due(start), None);
        setup.push(PartKey::Source, "");
        setup.push(PartKey::Text, "c");
        assert_eq!(
            setup.flush_if_due(start),
            Some(continuation(piece(0, 1, "b")))
        );
        let source = Some(opening(PartKind::Source, Some(2), piece(1, 0, "")));
        assert_eq!(setup.flush_if_due(start), source);
        let text = Some(opening(PartKind::Text, Some(0), piece(2, 0, "c")));
        assert_eq!(setup.flush_if_due(start), text);
        assert_eq!(setup.flush_if_due(start + INTERVAL), None);
    }

    #[test]
    fn the_first_text_of_a_part_that_was_opened_empty_is_due_at_once() {
        let start = Instant::now();
        let mut setup = Setup::new(1024);
        let mut call = PartDelta::new(PartKey::ToolCall(0), "");
        call.meta = Some(crate::protocol::parts::PartMeta {
            name: Some("f".to_owned()),
            ..Default::default()
        });
        setup.answer.push(call).unwrap();
        let flush = setup.flush_if_due(start).unwrap();
        let opening = flush.opening.unwrap();
        assert_eq!(opening.meta.as_deref(), Some(r#"{"name":"f"}"#));
        assert_eq!(flush.piece, piece(0, 0, ""));
        assert_eq!(setup.due_at(start), None);
        setup.push(PartKey::ToolCall(0), "{");
        assert_eq!(
            setup.flush_if_due(start),
            Some(continuation(piece(0, 0, "{")))
        );
        setup.push(PartKey::ToolCall(0), "}");
        assert_eq!(setup.flush_if_due(start), None);
    }

    #[test]
    fn restart_opens_all_parts_again_with_their_whole_texts() {
        let start = Instant::now();
        let mut setup = Setup::new(1024);
        setup.push(PartKey::Reasoning, "a");
        setup.flush_if_due(start);
        setup.push(PartKey::Reasoning, "b");
        setup.flush(start);
        setup.push(PartKey::Text, "c");
        setup.flush(start);
        setup.push(PartKey::Text, "d");
        setup.coalescer.restart();
        assert_eq!(setup.due_at(start), Some(start));
        let first = Some(opening(PartKind::Reasoning, None, piece(0, 0, "ab")));
        assert_eq!(setup.flush_if_due(start), first);
        let second = Some(opening(PartKind::Text, Some(2), piece(1, 0, "cd")));
        assert_eq!(setup.flush_if_due(start), second);
        setup.push(PartKey::Text, "e");
        assert_eq!(setup.flush(start), Some(continuation(piece(1, 2, "e"))));
        assert_eq!(setup.flush(start), None);
    }

    fn key() -> impl Strategy<Value = PartKey> {
        prop_oneof![
            4 => Just(PartKey::Text),
            2 => Just(PartKey::Reasoning),
            1 => Just(PartKey::Refusal),
            2 => (0_u32..3).prop_map(PartKey::ToolCall),
            1 => Just(PartKey::Source),
            1 => Just(PartKey::Data),
        ]
    }

    /// Appends a flush to the parts that a receiver has. Checks that it continues them.
    fn receive(received: &mut Vec<(PartKind, String)>, flush: Flush) {
        let Piece { range, text } = flush.piece;
        let last_length = received.last().map(|(_, text)| utf16_len(text));
        if let Some(opening) = flush.opening {
            assert_eq!(range.part as usize, received.len());
            assert_eq!((range.offset, opening.previous_end), (0, last_length));
            received.push((opening.kind, String::new()));
        } else {
            assert!(!text.is_empty());
            assert_eq!(range.part as usize + 1, received.len());
            assert_eq!(Some(range.offset), last_length);
        }
        assert_eq!(range.end, range.offset + utf16_len(&text));
        received.last_mut().unwrap().1.push_str(&text);
    }

    proptest! {
        #[test]
        fn flushes_join_to_the_parts_without_gaps(
            tokens in prop::collection::vec(
                (key(), "\\PC{0,8}|[{}]{1,2}|👋", 0_u64..50, any::<bool>()),
                0..60,
            ),
            max_bytes in 0_usize..40,
        ) {
            let mut now = Instant::now();
            let mut setup = Setup::new(max_bytes);
            let mut received = Vec::new();
            for (key, token, pause_ms, restarts) in tokens {
                now += Duration::from_millis(pause_ms);
                if restarts && pause_ms == 0 {
                    setup.coalescer.restart();
                    received.clear();
                }
                setup.push(key, &token);
                if restarts && let Some(flush) = setup.flush_if_due(now) {
                    receive(&mut received, flush);
                }
            }
            setup.answer.finish();
            while let Some(flush) = setup.flush(now) {
                receive(&mut received, flush);
            }
            let expected: Vec<_> = setup
                .answer
                .parts()
                .iter()
                .map(|part| (part.kind, part.text.clone()))
                .collect();
            prop_assert_eq!(received, expected);
        }

        #[test]
        fn text_is_flushed_early_only_from_the_maximum_size_on(
            tokens in prop::collection::vec(("\\PC{0,12}", 0_u64..50), 0..40),
            max_bytes in 0_usize..40,
        ) {
            let mut now = Instant::now();
            let mut setup = Setup::new(max_bytes);
            let mut last_flush = None;
            for (token, pause_ms) in tokens {
                now += Duration::from_millis(pause_ms);
                setup.push(PartKey::Text, &token);
                if let Some(flush) = setup.flush_if_due(now) {
                    let is_early = last_flush.is_some_and(|last| now < last + INTERVAL);
                    prop_assert!(!is_early || flush.piece.text.len() >= max_bytes.max(1));
                    last_flush = Some(now);
                }
            }
        }
    }
}
