//! Encoding of the arguments of scripts, which are all strings.

use std::time::Duration;

use fred::types::Value;

use crate::fanout::{MessageRef, NewOutcome};
use crate::protocol::ids::ClientMessageId;

use super::turn::status_code;

pub(super) fn text(text: &str) -> Value {
    Value::from(text)
}

pub(super) fn number(number: impl ToString) -> Value {
    Value::from(number.to_string())
}

/// A new random id. The script's caller generates it, because Redis's own random numbers repeat
/// after a restart.
pub(super) fn random_id() -> Value {
    Value::from(uuid::Uuid::new_v4().simple().to_string())
}

/// The id that the client chose for a message; empty if it chose none.
pub(super) fn client_id(message: &MessageRef) -> Value {
    text(message.id.as_ref().map_or("", ClientMessageId::as_str))
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> Value {
    number(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

/// A boolean as `1` or `0`.
pub(super) fn flag(is_set: bool) -> Value {
    text(if is_set { "1" } else { "0" })
}

/// Appends the six arguments of an outcome: frame, flag whether the turn has a question, question
/// (empty without one), answer, status code, parts (empty without any).
pub(super) fn push_outcome(args: &mut Vec<Value>, outcome: &NewOutcome) {
    let question = outcome.turn.question.as_deref();
    args.extend([
        text(outcome.frame.trim_end()),
        flag(question.is_some()),
        text(question.unwrap_or("")),
        text(&outcome.turn.answer),
        text(status_code(outcome.turn.status)),
        text(outcome.turn.parts.as_deref().unwrap_or("")),
    ]);
}
