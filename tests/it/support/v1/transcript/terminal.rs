//! The terminal frames: `response`, `cancelled`, and `error` with a `message_id`.

use serde_json::Value;
use tokio::time::Instant;

use super::{ReplacedAnswer, Transcript, content_of};

impl Transcript {
    pub(super) fn apply_terminal(&mut self, frame: &Value) {
        if self.message_entry(frame).terminal.is_some() {
            self.apply_repeated_terminal(frame);
            return;
        }
        self.check_terminal_fields(frame);
        let shown_attempt = self.message_entry(frame).attempt;
        let is_same_attempt = match frame["type"].as_str() {
            Some("response") => frame["attempt"].as_u64() == Some(shown_attempt),
            // A message that is cancelled before another worker calls the model ends without text.
            Some("cancelled") => frame["content"] != "" || frame.get("parts").is_some(),
            _ => false,
        };
        let may_lose_data = self.redis_may_lose_data;
        let message = self.message_entry(frame);
        let result = message.answer.finish(frame, is_same_attempt);
        message.text = content_of(&message.answer.parts);
        check!(self, frame, result.is_ok(), "{}", result.unwrap_err());
        let message_id = frame["message_id"].as_str().unwrap_or_default().to_owned();
        if let Ok(Some(parts)) = result {
            check!(
                self,
                frame,
                may_lose_data,
                "the parts so far were {parts:?}"
            );
            self.replaced_answers.push(ReplacedAnswer {
                message_id: message_id.clone(),
                parts,
                replaced_at: Instant::now(),
            });
        }
        self.advance_position(frame);
        self.ended_message_ids.push(message_id);
        let message = self.message_entry(frame);
        message.terminal = Some(frame.clone());
        message.ended_at = Some(Instant::now());
    }

    fn check_terminal_fields(&self, frame: &Value) {
        self.check_strings(frame, &["conversation_id"]);
        let outcome_type = frame["type"].as_str().unwrap_or_default();
        if outcome_type == "error" {
            self.check_strings(frame, &["code", "message"]);
            check!(
                self,
                frame,
                frame["retryable"].is_boolean(),
                "retryable is missing"
            );
            check!(
                self,
                frame,
                frame["code"] != "cancelled",
                "a cancelled message ends with the type cancelled"
            );
            for field in ["content", "parts"] {
                check!(
                    self,
                    frame,
                    frame.get(field).is_none(),
                    "{field} in an error"
                );
            }
        } else {
            self.check_strings(frame, &["content"]);
        }
        if outcome_type == "response" {
            let strings = ["timestamp", "correlation_id", "finish_reason", "model"];
            self.check_strings(frame, &strings);
            for field in ["processing_time_ms", "attempt"] {
                check!(self, frame, frame[field].is_u64(), "{field} is missing");
            }
            // The usage is null if the model did not report it within a second of the finish
            // reason.
            let usage = &frame["usage"];
            let is_valid = usage.is_object() || usage.is_null();
            check!(self, frame, is_valid, "usage is neither an object nor null");
        }
    }

    /// Checks a terminal frame of a message that has ended: the client requested it by sending the
    /// message again, or the user has moved to another partition and Redis was emptied.
    fn apply_repeated_terminal(&mut self, frame: &Value) {
        let before = self.message_entry(frame);
        let id = before.id.clone().unwrap_or_default();
        let first = before.terminal.clone().unwrap_or_default();
        let resends = self.resends.get(&id).copied().unwrap_or_default();
        check!(
            self,
            frame,
            resends > 0 || self.may_repeat_frames(),
            "a second terminal frame; the first was {first}"
        );
        if resends > 0 {
            self.resends.insert(id, resends - 1);
        } else {
            let id = frame["message_id"].as_str().unwrap_or_default();
            self.repeated_after_move
                .push((id.to_owned(), Instant::now()));
            self.advance_position(frame);
        }
        // A worker that begins a message with a stored outcome appends its terminal record again. A
        // rebuild of Redis may reach back only to the second of these records, so a frame that the
        // client did not request may have another position.
        check!(
            self,
            frame,
            *frame == first
                || (resends == 0 && without_position(frame) == without_position(&first)),
            "the terminal frame differs from the first one: {first}"
        );
        self.message_entry(frame).repeated_outcomes += 1;
    }
}

fn without_position(frame: &Value) -> Value {
    let mut frame = frame.clone();
    if let Some(fields) = frame.as_object_mut() {
        fields.remove("position");
    }
    frame
}
