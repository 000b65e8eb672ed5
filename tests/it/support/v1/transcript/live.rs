//! The frames about an answer in flight, and `accepted`.

use serde_json::Value;

use super::{Transcript, content_of};

impl Transcript {
    pub(super) fn apply_accepted(&mut self, frame: &Value) {
        let id = self.message_entry(frame).id.clone();
        let is_sent_here = id.is_some_and(|id| self.sent_ids.contains(&id));
        let content = frame["content"].as_str().map(str::to_owned);
        check!(
            self,
            frame,
            content.is_some() || is_sent_here,
            "content is missing, and this connection did not send the message"
        );
        self.check_strings(frame, &["conversation_id"]);
        let message = self.message_entry(frame);
        message.accepted.push(content.is_some());
        message.question = content.or(message.question.take());
    }

    /// Applies a `delta`, `snapshot` or `restarted`.
    pub(super) fn apply_live(&mut self, frame_type: &str, frame: &Value) {
        let before = self.message_entry(frame);
        let (shown_attempt, has_ended) = (before.attempt, before.terminal.is_some());
        self.check_strings(frame, &["conversation_id", "stream"]);
        let attempt = frame["attempt"].as_u64();
        check!(self, frame, attempt.is_some(), "attempt is missing");
        let attempt = attempt.unwrap_or_default();
        if has_ended {
            self.apply_stray(frame_type, frame);
            return;
        }
        let is_later_delta = frame_type == "delta" && frame.get("kind").is_none();
        let is_valid_attempt = if is_later_delta {
            attempt == shown_attempt
        } else {
            attempt >= shown_attempt || self.redis_may_lose_data
        };
        check!(
            self,
            frame,
            is_valid_attempt,
            "the parts so far are of attempt {shown_attempt}"
        );
        let may_lose_data = self.redis_may_lose_data;
        let message = self.message_entry(frame);
        message.attempt = attempt;
        let result = match frame_type {
            "delta" => {
                message.deltas += 1;
                message.answer.apply_delta(frame, may_lose_data)
            }
            "snapshot" => {
                message.snapshots += 1;
                message.repeating_snapshots += usize::from(message.answer.is_growing());
                message.answer.apply_snapshot(frame, may_lose_data)
            }
            _ => {
                message.restarts += 1;
                message.answer.apply_restarted(frame)
            }
        };
        let appended = frame["content"].as_str().unwrap_or_default();
        match message.answer.parts.last() {
            Some(last) if is_later_delta && last.is_content() => message.text.push_str(appended),
            Some(_) if is_later_delta => {}
            _ => message.text = content_of(&message.answer.parts),
        }
        check!(self, frame, result.is_ok(), "{}", result.unwrap_err());
    }

    /// Checks a frame about an answer that has ended: only after a data loss of Redis may the model
    /// be called again for it, and then the frames are those of one stream after another.
    fn apply_stray(&mut self, frame_type: &str, frame: &Value) {
        check!(
            self,
            frame,
            self.redis_may_lose_data,
            "the message has ended"
        );
        let stream = frame["stream"].as_str().unwrap_or_default().to_owned();
        let message_id = frame["message_id"].as_str().unwrap_or_default().to_owned();
        if frame_type == "delta" && frame.get("kind").is_none() {
            let current = self.stray_streams.get(&message_id);
            check!(
                self,
                frame,
                current == Some(&stream),
                "the message has ended, and the stream was not begun again"
            );
        }
        self.stray_streams.insert(message_id, stream);
        self.stray_frames += 1;
    }
}
