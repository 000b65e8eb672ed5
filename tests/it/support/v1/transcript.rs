//! The transcript of a `chatmesh.v1` client: the messages that it shows. Every frame is checked
//! against the protocol before it is applied.

use std::collections::{BTreeMap, BTreeSet};

use chatmesh::protocol::position::{Epoch, Position};
use serde_json::Value;
use tokio::time::Instant;

/// A message and its state as the client knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) conversation: Option<String>,
    /// The content of the question, if a frame to this client had it.
    pub(crate) question: Option<String>,
    /// The text as it is shown: deltas extend it, a restart clears it, and the terminal frame
    /// replaces it.
    pub(crate) text: String,
    pub(crate) attempt: u64,
    /// Index that the next delta must have. `None` until this connection receives the beginning of
    /// the text or a snapshot.
    next_index: Option<u64>,
    /// Number of `restarted` frames.
    pub(crate) restarts: usize,
    /// Number of `delta` frames.
    pub(crate) deltas: usize,
    /// Number of `snapshot` frames.
    pub(crate) snapshots: usize,
    /// For each `accepted` frame, whether it had the content of the question.
    pub(crate) accepted: Vec<bool>,
    pub(crate) terminal: Option<Value>,
    /// Time at which the terminal frame arrived.
    pub(crate) ended_at: Option<Instant>,
    /// Number of terminal frames after the first one.
    pub(crate) repeated_outcomes: usize,
}

impl Message {
    /// The `type` of the terminal frame.
    pub(crate) fn outcome_type(&self) -> Option<&str> {
        self.terminal
            .as_ref()
            .and_then(|frame| frame["type"].as_str())
    }

    pub(crate) fn is_accepted(&self) -> bool {
        !self.accepted.is_empty()
    }

    /// Whether this connection has received a part of the text, but no terminal frame yet.
    pub(crate) fn is_streaming(&self) -> bool {
        self.terminal.is_none() && self.next_index.is_some() && !self.text.is_empty()
    }
}

/// A text that was replaced by the outcome of another model call. Allowed only after Redis has lost
/// data.
#[derive(Debug, Clone)]
pub(crate) struct ReplacedText {
    pub(crate) message_id: String,
    pub(crate) text: String,
    pub(crate) replaced_at: Instant,
}

/// All messages of one client, from all of its connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transcript {
    user: String,
    messages: BTreeMap<String, Message>,
    /// The `message_id` by the client's `id`.
    message_ids: BTreeMap<String, String>,
    /// The `message_id`s in the order of their terminal frames.
    pub(crate) ended_message_ids: Vec<String>,
    /// The position to connect with.
    pub(crate) position: Option<String>,
    /// Times of the `welcome` frames with `recovered: false`, including that of the first
    /// connection. Earlier outcomes are in the history; every later one must be sent.
    pub(crate) reloaded_at: Vec<Instant>,
    /// Number of live frames that arrived after the terminal frame of their message. Allowed only
    /// after Redis has lost data.
    pub(crate) stray_frames: usize,
    /// Whether Redis may lose its data in this test. Then the model may be called again for a
    /// message that has ended, and attempts begin at 1 again. The outcome must still be the first
    /// one.
    pub(crate) redis_may_lose_data: bool,
    /// The epochs of all positions received. A second epoch shows that the user has moved to
    /// another partition. If Redis was emptied as well, frames may be sent twice
    /// (docs/reliability.md).
    epochs: Vec<Epoch>,
    /// The `message_id` and time of each terminal frame that arrived again after such a move.
    pub(crate) repeated_after_move: Vec<(String, Instant)>,
    pub(crate) replaced_texts: Vec<ReplacedText>,
    /// The `id`s sent on any connection.
    all_sent_ids: BTreeSet<String>,
    /// How often each `id` was sent again on this connection. The stored terminal frame may arrive
    /// as often.
    resends: BTreeMap<String, usize>,
    /// The `id`s sent on this connection. Their `accepted` frames need not have the content.
    sent_ids: BTreeSet<String>,
    /// The last frames, which a failed check prints.
    recent_frames: Vec<String>,
}

/// Asserts a condition. A failure prints the user, the message, the frame and the recent frames.
macro_rules! check {
    ($self:expr, $frame:expr, $holds:expr, $($message:tt)+) => {
        assert!(
            $holds,
            "{}: {}\n  at {}\n  after {:#?}",
            $self.user, format!($($message)+), $frame, $self.recent_frames
        )
    };
}

impl Transcript {
    pub(crate) fn new(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            ..Self::default()
        }
    }

    /// Finds a message by the client's `id` or the `message_id`.
    pub(crate) fn get(&self, id: &str) -> Option<&Message> {
        self.messages
            .get(id)
            .or_else(|| self.messages.get(self.message_ids.get(id)?))
    }

    /// Number of `welcome` frames with `recovered: false`, including that of the first connection.
    pub(crate) fn reloads(&self) -> usize {
        self.reloaded_at.len()
    }

    /// The `message_id` of a client's `id`.
    pub(crate) fn message_id(&self, id: &str) -> Option<&str> {
        self.message_ids.get(id).map(String::as_str)
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.values()
    }

    /// The `id`s of a conversation's messages in the order of the terminal frames.
    pub(crate) fn outcome_order(&self, conversation: &str) -> Vec<String> {
        self.ended_message_ids
            .iter()
            .map(|message_id| &self.messages[message_id])
            .filter(|message| message.conversation.as_deref() == Some(conversation))
            .filter_map(|message| message.id.clone())
            .collect()
    }

    /// The type of the outcome and the text, by `id`. Reconnecting must not change them.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, (String, String)> {
        self.messages
            .values()
            .filter_map(|message| {
                let outcome_type = message.outcome_type()?.to_owned();
                Some((message.id.clone()?, (outcome_type, message.text.clone())))
            })
            .collect()
    }

    /// Resets the state of the previous connection when a new one begins.
    pub(crate) fn start_connection(&mut self) {
        self.recent_frames.push("(connected)".into());
        self.resends.clear();
        self.sent_ids.clear();
        for message in self.messages.values_mut() {
            message.next_index = None;
        }
    }

    /// Records that the client sends a message on this connection.
    pub(crate) fn record_sent(&mut self, id: &str) {
        self.sent_ids.insert(id.to_owned());
        if !self.all_sent_ids.insert(id.to_owned()) || self.get(id).is_some() {
            *self.resends.entry(id.to_owned()).or_default() += 1;
        }
    }

    fn remember_frame(&mut self, frame: &Value) {
        let text: String = frame.to_string().chars().take(300).collect();
        self.recent_frames.push(text);
        if self.recent_frames.len() > 16 {
            self.recent_frames.remove(0);
        }
    }

    /// Checks that a frame has these fields, as strings.
    fn check_strings(&self, frame: &Value, fields: &[&str]) {
        for field in fields {
            check!(self, frame, frame[*field].is_string(), "{field} is missing");
        }
    }

    /// Checks a frame and applies it to the transcript. Panics if the frame breaks the protocol.
    pub(crate) fn apply(&mut self, frame: &Value) {
        let frame_type = frame["type"].as_str().unwrap_or("").to_owned();
        if frame_type != "pong" {
            let userid = frame["userid"].as_str();
            check!(
                self,
                frame,
                userid == Some(&self.user),
                "the frame does not name this user"
            );
        }
        for field in ["n", "n_id", "origin"] {
            check!(
                self,
                frame,
                frame.get(field).is_none(),
                "{field} must not be sent to clients"
            );
        }
        match frame_type.as_str() {
            "welcome" => self.apply_welcome(frame),
            "accepted" | "delta" | "snapshot" | "restarted" => self.apply_live(&frame_type, frame),
            "response" | "cancelled" => self.apply_terminal(frame),
            "error" if frame["message_id"].is_string() => self.apply_terminal(frame),
            "error" => {
                self.check_strings(frame, &["code", "message"]);
                check!(
                    self,
                    frame,
                    frame["retryable"].is_boolean(),
                    "retryable is missing"
                );
            }
            "cancel_result" => {
                let result = frame["result"].as_str().unwrap_or("");
                let is_documented = ["cancelling", "already_done", "unknown"].contains(&result);
                check!(self, frame, is_documented, "the result is not documented");
            }
            "closing" => {
                self.check_strings(frame, &["reason"]);
                check!(
                    self,
                    frame,
                    frame["retry_after_ms"].is_u64(),
                    "retry_after_ms is missing"
                );
            }
            "pong" => {}
            _ => check!(self, frame, false, "the type is not documented"),
        }
        self.remember_frame(frame);
    }

    fn apply_welcome(&mut self, frame: &Value) {
        self.check_strings(frame, &["server_id"]);
        check!(
            self,
            frame,
            frame["heartbeat_ms"].is_u64(),
            "heartbeat_ms is missing"
        );
        for field in ["max_content_chars", "max_frame_bytes", "max_pending"] {
            check!(
                self,
                frame,
                frame["limits"][field].is_u64(),
                "limits.{field} is missing"
            );
        }
        let position = frame["position"].as_str();
        check!(self, frame, position.is_some(), "position is missing");
        match frame["recovered"].as_bool() {
            Some(true) => {
                let is_same_position = position == self.position.as_deref();
                check!(
                    self,
                    frame,
                    is_same_position,
                    "recovered from another position than the client sent"
                );
            }
            Some(false) => {
                self.reloaded_at.push(Instant::now());
                // The server sends snapshots next, so no delta may continue an earlier text.
                for message in self.messages.values_mut() {
                    message.next_index = None;
                }
            }
            None => check!(self, frame, false, "recovered is missing"),
        }
        self.position = position.map(str::to_owned);
        let parsed: Option<Position> = position.and_then(|position| position.parse().ok());
        self.record_epoch(parsed.as_ref());
        let pending = frame["pending"].as_array().cloned();
        check!(self, frame, pending.is_some(), "pending is missing");
        for entry in pending.unwrap_or_default() {
            for field in ["message_id", "conversation_id", "content"] {
                check!(
                    self,
                    frame,
                    entry[field].is_string(),
                    "{field} of a pending message is missing"
                );
            }
            let message = self.message_entry(&entry);
            message.question = entry["content"].as_str().map(str::to_owned);
        }
    }

    /// Returns the message of a frame, and creates it or adds the frame's ids to it.
    fn message_entry(&mut self, frame: &Value) -> &mut Message {
        let message_id = frame["message_id"].as_str().map(str::to_owned);
        check!(self, frame, message_id.is_some(), "message_id is missing");
        let message_id = message_id.unwrap_or_default();
        let id = frame["id"].as_str();
        let conversation = frame["conversation_id"].as_str();
        if let Some(message) = self.messages.get(&message_id) {
            let is_same_id = message.id.is_none() || message.id.as_deref() == id;
            check!(
                self,
                frame,
                is_same_id,
                "the message has the id {:?}",
                message.id
            );
            let is_same_conversation = message.conversation.is_none()
                || conversation.is_none()
                || message.conversation.as_deref() == conversation;
            check!(
                self,
                frame,
                is_same_conversation,
                "the message is in the conversation {:?}",
                message.conversation
            );
        }
        if let Some(id) = id {
            let entry = self.message_ids.entry(id.to_owned());
            entry.or_insert_with(|| message_id.clone());
        }
        let message = self.messages.entry(message_id).or_default();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        message.id = message.id.take().or_else(|| owned(id));
        message.conversation = message.conversation.take().or_else(|| owned(conversation));
        message
    }

    fn apply_live(&mut self, frame_type: &str, frame: &Value) {
        let before = self.message_entry(frame);
        let (next_index, current_attempt) = (before.next_index, before.attempt);
        let has_ended = before.terminal.is_some();
        let id = before.id.clone();
        let is_sent_here = id.is_some_and(|id| self.sent_ids.contains(&id));
        if frame_type == "accepted" {
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
            return;
        }
        let attempt = frame["attempt"].as_u64();
        check!(self, frame, attempt.is_some(), "attempt is missing");
        let attempt = attempt.unwrap_or_default();
        if has_ended {
            self.stray_frames += 1;
            return;
        }
        if frame_type == "restarted" {
            let message = self.message_entry(frame);
            message.restarts += 1;
            message.attempt = attempt;
            message.text.clear();
            message.next_index = None;
            return;
        }
        let index = frame["index"].as_u64();
        let content = frame["content"].as_str().map(str::to_owned);
        check!(self, frame, index.is_some(), "index is missing");
        check!(self, frame, content.is_some(), "content is missing");
        self.check_strings(frame, &["conversation_id"]);
        let (index, content) = (index.unwrap_or_default(), content.unwrap_or_default());
        if frame_type == "delta" && index > 0 {
            check!(
                self,
                frame,
                next_index == Some(index),
                "expected the index {next_index:?}"
            );
            check!(
                self,
                frame,
                current_attempt == attempt,
                "the text so far is of attempt {current_attempt}"
            );
        }
        let message = self.message_entry(frame);
        message.attempt = attempt;
        if frame_type == "snapshot" {
            message.snapshots += 1;
            message.text = content;
            message.next_index = Some(index);
        } else {
            message.deltas += 1;
            if index == 0 {
                message.text.clear();
            }
            message.text.push_str(&content);
            message.next_index = Some(index + 1);
        }
    }

    fn apply_terminal(&mut self, frame: &Value) {
        let before = self.message_entry(frame).clone();
        if let Some(first) = &before.terminal {
            let id = before.id.clone().unwrap_or_default();
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
            // A worker that begins a message with a stored outcome appends its terminal record
            // again. A rebuild of Redis may reach back only to the second of these records, so a
            // frame that the client did not request may have another position.
            check!(
                self,
                frame,
                frame == first
                    || (resends == 0 && without_position(frame) == without_position(first)),
                "the terminal frame differs from the first one: {first}"
            );
            self.message_entry(frame).repeated_outcomes += 1;
            return;
        }
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
        let content = frame["content"].as_str().unwrap_or_default().to_owned();
        let is_same_attempt = frame["attempt"].as_u64() == Some(before.attempt);
        if outcome_type == "response" && before.next_index.is_some() && is_same_attempt {
            let extends_text = content.starts_with(&before.text);
            check!(
                self,
                frame,
                extends_text || self.redis_may_lose_data,
                "the text so far was {:?}",
                before.text
            );
            if !extends_text {
                let id = frame["message_id"].as_str().unwrap_or_default();
                self.replaced_texts.push(ReplacedText {
                    message_id: id.to_owned(),
                    text: before.text.clone(),
                    replaced_at: Instant::now(),
                });
            }
        }
        self.advance_position(frame);
        let message_id = frame["message_id"].as_str().unwrap_or_default().to_owned();
        self.ended_message_ids.push(message_id);
        let message = self.message_entry(frame);
        message.text = content;
        message.next_index = None;
        message.terminal = Some(frame.clone());
        message.ended_at = Some(Instant::now());
    }

    /// Whether frames may be sent twice: the user has moved to another partition, and Redis may
    /// have been emptied since.
    pub(crate) fn may_repeat_frames(&self) -> bool {
        self.redis_may_lose_data && self.epochs.len() > 1
    }

    fn record_epoch(&mut self, position: Option<&Position>) {
        if let Some(Position { epoch, .. }) = position
            && epoch.empty_mailbox_id().is_none()
            && !self.epochs.contains(epoch)
        {
            self.epochs.push(epoch.clone());
        }
    }

    /// Checks that positions only grow within their epoch, and stores the frame's position. A frame
    /// with an earlier position is allowed, and its position ignored, if this connection sent its
    /// message.
    fn advance_position(&mut self, frame: &Value) {
        let text = frame["position"].as_str();
        check!(self, frame, text.is_some(), "position is missing");
        let text = text.unwrap_or_default();
        let parsed: Option<Position> = text.parse().ok();
        check!(
            self,
            frame,
            parsed.is_some(),
            "the position cannot be parsed"
        );
        self.record_epoch(parsed.as_ref());
        let current: Option<Position> = self
            .position
            .as_deref()
            .and_then(|position| position.parse().ok());
        if let (Some(new), Some(current)) = (parsed, current)
            && new.epoch == current.epoch
            && new.offset <= current.offset
        {
            // The client sent the id again, so the server returned the stored outcome. The client
            // keeps its position.
            let id = frame["id"].as_str().unwrap_or_default();
            let is_sent_here = self.sent_ids.contains(id);
            check!(
                self,
                frame,
                is_sent_here,
                "the position is not above the current one, {current:?}"
            );
            return;
        }
        self.position = Some(text.to_owned());
    }
}

fn without_position(frame: &Value) -> Value {
    let mut frame = frame.clone();
    if let Some(fields) = frame.as_object_mut() {
        fields.remove("position");
    }
    frame
}
