//! How messages end: terminal records and their turns in the history.

use std::sync::Arc;
use std::time::Instant;

use super::provider::ModelError;
use crate::fanout::{DeferredOutcome, NewOutcome, Turn, TurnStatus};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::{Question, Terminal, TerminalKind, Usage};

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) finish_reason: String,
    pub(super) model: String,
    pub(super) usage: Option<Usage>,
}

/// Makes the endings of one message.
#[derive(Clone)]
pub(super) struct Endings {
    question: Arc<Question>,
    taken: Instant,
}

impl Endings {
    pub(super) fn new(question: Arc<Question>, taken: Instant) -> Self {
        Self { question, taken }
    }

    pub(super) fn answered(&self, answer: &Answer, attempt: u32) -> NewOutcome {
        let terminal = Terminal {
            content: Some(answer.text.clone()),
            finish_reason: Some(answer.finish_reason.clone()),
            model: Some(answer.model.clone()),
            usage: answer.usage,
            attempt: Some(attempt),
            ..self.terminal(TerminalKind::Response)
        };
        self.ending(&terminal, answer.text.clone(), TurnStatus::Answered)
    }

    pub(super) fn failed(&self, code: ErrorCode) -> NewOutcome {
        let terminal = self.failure(code);
        self.ending(&terminal, code.text().to_owned(), TurnStatus::Failed)
    }

    pub(super) fn failed_by_provider(&self, error: &ModelError, attempt: u32) -> NewOutcome {
        let mut terminal = self.failure(error.code);
        terminal.retryable = Some(error.retryable);
        terminal.retry_after_ms = error.retry_after.map(|time| time.as_millis() as u64);
        terminal.attempt = Some(attempt);
        self.ending(&terminal, error.code.text().to_owned(), TurnStatus::Failed)
    }

    /// Stopped by its user, with what was said until then.
    pub(super) fn cancelled(&self, text: &str) -> NewOutcome {
        let mut terminal = self.failure(ErrorCode::Cancelled);
        terminal.content = Some(text.to_owned());
        self.ending(&terminal, text.to_owned(), TurnStatus::Cancelled)
    }

    /// The same, where it comes to that.
    pub(super) fn cancelled_later(&self, text: &str) -> DeferredOutcome {
        let (endings, text) = (self.clone(), text.to_owned());
        DeferredOutcome::new(move || endings.cancelled(&text))
    }

    /// The same for who has only the ending without a text.
    pub(super) fn cancelled_at(cancelled: &DeferredOutcome, text: String) -> DeferredOutcome {
        let cancelled = cancelled.clone();
        DeferredOutcome::new(move || {
            let mut ending = cancelled.make();
            if let Ok(mut terminal) = Terminal::parse(ending.frame.as_bytes()) {
                terminal.content = Some(text.clone());
                ending.frame = terminal.to_json();
                ending.turn.answer.clone_from(&text);
            }
            ending
        })
    }

    fn failure(&self, code: ErrorCode) -> Terminal {
        Terminal {
            processing_time_ms: Some(self.elapsed_ms()),
            ..Terminal::failure(&self.question, code)
        }
    }

    fn terminal(&self, kind: TerminalKind) -> Terminal {
        Terminal {
            processing_time_ms: Some(self.elapsed_ms()),
            ..Terminal::of(&self.question, kind)
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.taken.elapsed().as_millis() as u64
    }

    fn ending(&self, terminal: &Terminal, answer: String, status: TurnStatus) -> NewOutcome {
        let question = Some(self.question.content.to_string()).filter(|text| !text.is_empty());
        let turn = Turn {
            message_id: self.question.message_id.clone(),
            question,
            answer,
            status,
            at_ms: 0,
        };
        NewOutcome {
            frame: terminal.to_json(),
            turn,
        }
    }
}

/// How many bytes `text` takes inside a JSON string.
pub(super) fn json_len(text: &str) -> usize {
    text.chars().map(json_len_of).sum()
}

fn json_len_of(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    }
}

/// The longest beginning of `text` that takes at most `max` bytes inside a JSON string.
pub(super) fn fitting(text: &str, max: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += json_len_of(c);
        if used > max {
            return &text[..at];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_counted_length_is_what_json_takes(text in any::<String>()) {
            prop_assert_eq!(json_len(&text) + 2, serde_json::to_string(&text).unwrap().len());
        }

        #[test]
        fn what_fits_is_as_long_as_it_can_be(text in any::<String>(), max in 0_usize..100) {
            let fit = fitting(&text, max);
            prop_assert!(json_len(fit) <= max);
            if let Some(next) = text[fit.len()..].chars().next() {
                prop_assert!(json_len(fit) + json_len_of(next) > max);
            }
        }
    }
}
