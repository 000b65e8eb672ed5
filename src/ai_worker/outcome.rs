//! Builds the outcomes of a message for the handler: the terminal frame and the turn for the
//! history.

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
    /// The tokens that the call used; `None` where the API reported no usage.
    pub(super) usage: Option<Usage>,
}

/// Builds the outcomes of one message.
#[derive(Clone)]
pub(super) struct OutcomeBuilder {
    question: Arc<Question>,
    /// When the processing of the message started, from which `processing_time_ms` counts.
    started: Instant,
}

impl OutcomeBuilder {
    /// Creates a builder. The processing time in its outcomes counts from now.
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

    /// Like [`OutcomeBuilder::cancelled_outcome`], but the outcome is built only if the message was
    /// in fact cancelled.
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

    /// Builds an outcome from a terminal record, and from answer text and status of the turn.
    fn outcome(&self, terminal: &TerminalRecord, answer: String, status: TurnStatus) -> NewOutcome {
        let question = Some(self.question.content.to_string()).filter(|text| !text.is_empty());
        NewOutcome {
            frame: terminal.to_json(),
            turn: Turn {
                message_id: self.question.message_id.clone(),
                question,
                answer,
                status,
                // The fan-out sets the time when it stores the turn.
                at_ms: 0,
            },
        }
    }
}

/// Returns `cancelled_outcome` with `text` in place of its own text.
pub(super) fn cancelled_outcome_with_text(
    cancelled_outcome: &LazyOutcome,
    text: String,
) -> LazyOutcome {
    let cancelled_outcome = cancelled_outcome.clone();
    LazyOutcome::new(move || {
        let mut outcome = cancelled_outcome.build();
        if let Ok(mut terminal) = TerminalRecord::parse(outcome.frame.as_bytes()) {
            terminal.content = Some(text.clone());
            outcome.frame = terminal.to_json();
            outcome.turn.answer.clone_from(&text);
        }
        outcome
    })
}

/// The number of bytes that `text` occupies inside a JSON string, without the quotation marks.
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

/// The longest prefix of `text` that occupies at most `max_bytes` inside a JSON string.
pub(super) fn prefix_of_json_len(text: &str, max_bytes: usize) -> &str {
    let mut used_bytes = 0;
    for (index, c) in text.char_indices() {
        used_bytes += json_len_of_char(c);
        if used_bytes > max_bytes {
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
