//! Builds the outcomes of a message: its terminal frame and its turn in the history.

use std::sync::Arc;
use std::time::Instant;

use super::provider::ModelError;
use crate::fanout::{LazyOutcome, NewOutcome, Turn, TurnStatus};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::{Question, TerminalKind, TerminalRecord, Usage};

/// A complete answer of the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct GeneratedAnswer {
    pub(super) text: String,
    pub(super) finish_reason: String,
    pub(super) model: String,
    /// `None` where the API reported none.
    pub(super) usage: Option<Usage>,
}

/// Builds the outcomes of one message.
#[derive(Clone)]
pub(super) struct OutcomeBuilder {
    question: Arc<Question>,
    /// Start of `processing_time_ms`.
    started: Instant,
}

impl OutcomeBuilder {
    /// The processing time of the outcomes starts now.
    pub(super) fn new(question: Arc<Question>) -> Self {
        Self {
            question,
            started: Instant::now(),
        }
    }

    pub(super) fn answer_outcome(&self, answer: &GeneratedAnswer, attempt: u32) -> NewOutcome {
        let terminal = TerminalRecord {
            content: Some(answer.text.clone()),
            finish_reason: Some(answer.finish_reason.clone()),
            model: Some(answer.model.clone()),
            usage: answer.usage,
            attempt: Some(attempt),
            ..self.response_record()
        };
        self.outcome(&terminal, answer.text.clone(), TurnStatus::Answered)
    }

    pub(super) fn error_outcome(&self, code: ErrorCode) -> NewOutcome {
        let terminal = self.error_record(code);
        self.outcome(&terminal, code.text().to_owned(), TurnStatus::Failed)
    }

    pub(super) fn provider_error_outcome(&self, error: &ModelError, attempt: u32) -> NewOutcome {
        let mut terminal = self.error_record(error.code);
        terminal.retryable = Some(error.retryable);
        terminal.retry_after_ms = error.retry_after.map(|time| time.as_millis() as u64);
        terminal.attempt = Some(attempt);
        self.outcome(&terminal, error.code.text().to_owned(), TurnStatus::Failed)
    }

    /// The outcome of a cancelled message, with the text so far.
    pub(super) fn cancelled_outcome(&self, text: &str) -> NewOutcome {
        let mut terminal = self.error_record(ErrorCode::Cancelled);
        terminal.content = Some(text.to_owned());
        self.outcome(&terminal, text.to_owned(), TurnStatus::Cancelled)
    }

    /// Like [`OutcomeBuilder::cancelled_outcome`], but built only if the message was in fact
    /// cancelled.
    pub(super) fn lazy_cancelled_outcome(&self, text: &str) -> LazyOutcome {
        let (builder, text) = (self.clone(), text.to_owned());
        LazyOutcome::new(move || builder.cancelled_outcome(&text))
    }

    fn error_record(&self, code: ErrorCode) -> TerminalRecord {
        TerminalRecord {
            processing_time_ms: Some(self.elapsed_ms()),
            ..TerminalRecord::failure(&self.question, code)
        }
    }

    fn response_record(&self) -> TerminalRecord {
        TerminalRecord {
            processing_time_ms: Some(self.elapsed_ms()),
            ..TerminalRecord::new(&self.question, TerminalKind::Response)
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn outcome(&self, terminal: &TerminalRecord, answer: String, status: TurnStatus) -> NewOutcome {
        let question = Some(self.question.content.to_string()).filter(|text| !text.is_empty());
        NewOutcome {
            frame: terminal.to_json(),
            turn: Turn {
                message_id: self.question.message_id.clone(),
                question,
                answer,
                status,
                at_ms: 0,
            },
        }
    }
}

/// The outcome of a cancelled message with another text than `cancelled` was built with.
pub(super) fn cancelled_outcome_with_text(cancelled: &LazyOutcome, text: String) -> LazyOutcome {
    let cancelled = cancelled.clone();
    LazyOutcome::new(move || {
        let mut outcome = cancelled.build();
        if let Ok(mut terminal) = TerminalRecord::parse(outcome.frame.as_bytes()) {
            terminal.content = Some(text.clone());
            outcome.frame = terminal.to_json();
            outcome.turn.answer.clone_from(&text);
        }
        outcome
    })
}

/// The number of bytes that `text` occupies inside a JSON string.
pub(super) fn json_len(text: &str) -> usize {
    text.chars().map(json_len_of_char).sum()
}

fn json_len_of_char(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    }
}

/// The longest prefix of `text` that occupies at most `max` bytes inside a JSON string.
pub(super) fn prefix_of_json_len(text: &str, max: usize) -> &str {
    let mut used = 0;
    for (index, c) in text.char_indices() {
        used += json_len_of_char(c);
        if used > max {
            return &text[..index];
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
        fn json_len_equals_the_serialised_length(text in any::<String>()) {
            prop_assert_eq!(json_len(&text) + 2, serde_json::to_string(&text).unwrap().len());
        }

        #[test]
        fn the_prefix_is_as_long_as_possible(text in any::<String>(), max in 0_usize..100) {
            let prefix = prefix_of_json_len(&text, max);
            prop_assert!(json_len(prefix) <= max);
            if let Some(next) = text[prefix.len()..].chars().next() {
                prop_assert!(json_len(prefix) + json_len_of_char(next) > max);
            }
        }
    }
}
