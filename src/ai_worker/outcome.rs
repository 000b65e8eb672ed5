//! Builds the outcomes of a message for the handler: the terminal frame and the turn for the
//! history.

use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;

use super::answer_parts::Part;
use super::provider::ModelError;
use crate::config::settings::Reasoning;
use crate::fanout::{LazyOutcome, NewOutcome, Turn, TurnStatus};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::parts::{FinishedPart, PartKind};
use crate::protocol::record::{Question, TerminalKind, TerminalRecord, Usage};

/// A complete answer of the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct GeneratedAnswer {
    pub(super) parts: Arc<[Part]>,
    pub(super) finish_reason: String,
    pub(super) model: String,
    /// The tokens that the call used; `None` where the API reported no usage.
    pub(super) usage: Option<Usage>,
}

/// Builds the outcomes of one message.
#[derive(Clone)]
pub(super) struct OutcomeBuilder {
    question: Arc<Question>,
    /// What outcomes contain of reasoning: its length, or (`Keep`) its text too.
    reasoning: Reasoning,
    /// When the processing of the message started, from which `processing_time_ms` counts.
    started: Instant,
}

impl OutcomeBuilder {
    /// Creates a builder. The processing time in its outcomes counts from now.
    pub(super) fn new(question: Arc<Question>, reasoning: Reasoning) -> Self {
        Self {
            question,
            reasoning,
            started: Instant::now(),
        }
    }

    pub(super) fn answer_outcome(&self, answer: &GeneratedAnswer, attempt: u32) -> NewOutcome {
        let terminal = TerminalRecord {
            finish_reason: Some(answer.finish_reason.clone()),
            model: Some(answer.model.clone()),
            usage: answer.usage,
            attempt: Some(attempt),
            ..self.response_record()
        };
        self.outcome_with_parts(terminal, &answer.parts, TurnStatus::Answered)
    }

    pub(super) fn error_outcome(&self, code: ErrorCode) -> NewOutcome {
        self.failed_outcome(&self.error_record(code), code)
    }

    pub(super) fn provider_error_outcome(&self, error: &ModelError, attempt: u32) -> NewOutcome {
        let mut terminal = self.error_record(error.code);
        terminal.retryable = Some(error.retryable);
        terminal.retry_after_ms = error.retry_after.map(|time| time.as_millis() as u64);
        terminal.attempt = Some(attempt);
        self.failed_outcome(&terminal, error.code)
    }

    /// The outcome of a cancelled message, with the parts so far.
    pub(super) fn cancelled_outcome(&self, parts: &[Part]) -> NewOutcome {
        let terminal = self.error_record(ErrorCode::Cancelled);
        self.outcome_with_parts(terminal, parts, TurnStatus::Cancelled)
    }

    /// Like [`OutcomeBuilder::cancelled_outcome`], but the outcome is built only if the message was
    /// in fact cancelled.
    pub(super) fn lazy_cancelled_outcome(&self, parts: &Arc<[Part]>) -> LazyOutcome {
        let (builder, parts) = (self.clone(), Arc::clone(parts));
        LazyOutcome::new(move || builder.cancelled_outcome(&parts))
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

    /// Builds an outcome whose terminal record is `terminal` with these parts.
    fn outcome_with_parts(
        &self,
        mut terminal: TerminalRecord,
        parts: &[Part],
        status: TurnStatus,
    ) -> NewOutcome {
        let content = joined_content(parts);
        let parts = parts_json(parts, self.reasoning);
        terminal.content = Some(content.clone());
        terminal.parts.clone_from(&parts);
        let frame = terminal.to_json();
        self.outcome(frame, content, parts.map(|json| json.get().into()), status)
    }

    fn failed_outcome(&self, terminal: &TerminalRecord, code: ErrorCode) -> NewOutcome {
        let answer = code.text().to_owned();
        self.outcome(terminal.to_json(), answer, None, TurnStatus::Failed)
    }

    /// Builds an outcome from the terminal record's JSON, and from the turn's answer text, parts
    /// and status.
    fn outcome(
        &self,
        frame: String,
        answer: String,
        parts: Option<Arc<str>>,
        status: TurnStatus,
    ) -> NewOutcome {
        let question = Some(self.question.content.to_string()).filter(|text| !text.is_empty());
        NewOutcome {
            frame,
            turn: Turn {
                message_id: self.question.message_id.clone(),
                question,
                answer,
                parts,
                status,
                // The fan-out sets the time when it stores the turn.
                at_ms: 0,
            },
        }
    }
}

/// The text of the answer: its text and refusal parts.
fn joined_content(parts: &[Part]) -> String {
    let content = parts.iter().filter(|part| part.kind.is_content());
    content.map(|part| part.text.as_str()).collect()
}

/// The parts as a JSON array of [`FinishedPart`]. `None` for an answer that is one part of text, or
/// has no parts.
fn parts_json(parts: &[Part], reasoning: Reasoning) -> Option<Box<RawValue>> {
    if matches!(
        parts,
        [] | [Part {
            kind: PartKind::Text,
            ..
        }]
    ) {
        return None;
    }
    let finished: Vec<FinishedPart> = parts
        .iter()
        .map(|part| finished_part(part, reasoning))
        .collect();
    // Serialization fails only for maps whose keys are not strings, and parts have no such maps.
    serde_json::value::to_raw_value(&finished).ok()
}

fn finished_part(part: &Part, reasoning: Reasoning) -> FinishedPart {
    let (has_length, has_content) = match part.kind {
        PartKind::Text | PartKind::Refusal => (true, false),
        PartKind::Reasoning => (true, reasoning == Reasoning::Keep),
        PartKind::ToolCall | PartKind::Source | PartKind::Data => (false, true),
    };
    FinishedPart {
        kind: part.kind.as_str().to_owned(),
        meta: part.meta.as_ref().map(|meta| meta.fields.clone()),
        length: has_length.then_some(part.length),
        content: has_content.then(|| part.text.clone()),
    }
}
