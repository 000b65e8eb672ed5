//! What a `chatmesh.v1` client shows, and the checks that every frame must pass.

use std::collections::{BTreeMap, BTreeSet};

use chatmesh::protocol::position::{Epoch, Position};
use serde_json::Value;
use tokio::time::Instant;

/// A message and its state as the client knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) conversation: Option<String>,
    /// The question, if this client has received it.
    pub(crate) question: Option<String>,
    /// The text as it is shown: deltas extend it, a restart clears it, and the terminal frame
    /// replaces it.
    pub(crate) text: String,
    pub(crate) attempt: u64,
    /// Index of the next delta; `None` before the text has begun on this connection.
    next: Option<u64>,
    /// How often the text was discarded.
    pub(crate) restarts: usize,
    pub(crate) deltas: usize,
    pub(crate) snapshots: usize,
    /// For each `accepted` frame, whether it had the content.
    pub(crate) accepted: Vec<bool>,
    pub(crate) terminal: Option<Value>,
    /// When the terminal frame arrived.
    pub(crate) ended_at: Option<Instant>,
    /// Terminal frames that arrived again because the `id` was sent again.
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

    /// Whether the text of this message is being streamed now.
    pub(crate) fn is_streaming(&self) -> bool {
        self.terminal.is_none() && self.next.is_some() && !self.text.is_empty()
    }
}

/// A text that the outcome of another model call replaced, which only a data loss of Redis allows.
#[derive(Debug, Clone)]
pub(crate) struct ReplacedText {
    pub(crate) message_id: String,
    pub(crate) text: String,
    pub(crate) replaced_at: Instant,
}

/// All messages of one client, over its connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transcript {
    user: String,
    messages: BTreeMap<String, Message>,
    /// The `message_id` of each `id`.
    by_id: BTreeMap<String, String>,
    /// The `message_id`s in the order of their terminal frames.
    pub(crate) ended_message_ids: Vec<String>,
    /// The position to connect with.
    pub(crate) position: Option<String>,
    /// When the server said that it can't replay, including the first connection. Outcomes from
    /// before are in the history; every later one must be sent.
    pub(crate) reloaded_at: Vec<Instant>,
    /// Number of live frames about messages that had ended, which only a data loss of Redis allows.
    pub(crate) stray_frames: usize,
    /// Redis may lose its data in this test. Then the model may be called again for a message that
    /// has ended, and attempts begin at 1 again; the outcome must still be the first one.
    pub(crate) redis_may_lose_data: bool,
    /// The partitions of all positions received. If the user has moved and Redis was emptied,
    /// frames may be sent a second time (docs/reliability.md).
    epochs: Vec<Epoch>,
    /// The messages whose frames arrived a second time for that reason, and when.
    pub(crate) repeated_after_move: Vec<(String, Instant)>,
    pub(crate) replaced_texts: Vec<ReplacedText>,
    /// The `id`s sent so far, and how often each was sent again on this connection: the stored
    /// terminal frame may arrive that often.
    all_sent: BTreeSet<String>,
    resent: BTreeMap<String, usize>,
    /// The `id`s sent on this connection, whose `accepted` has no content.
    sent: BTreeSet<String>,
    /// The last frames, for the message of a failed check.
    recent: Vec<String>,
}

macro_rules! check {
    ($self:expr, $frame:expr, $holds:expr, $($text:tt)+) => {
        assert!(
            $holds,
            "{}: {}\n  at {}\n  after {:#?}",
            $self.user, format!($($text)+), $frame, $self.recent
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
            .or_else(|| self.messages.get(self.by_id.get(id)?))
    }

    /// How often the server said that it can't replay, including the first connection.
    pub(crate) fn reloads(&self) -> usize {
        self.reloaded_at.len()
    }

    /// The `message_id` of a client's `id`.
    pub(crate) fn message_id(&self, id: &str) -> Option<&str> {
        self.by_id.get(id).map(String::as_str)
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

    /// What must be the same whatever happened in between: by `id`, the type of the outcome and the
    /// text.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, (String, String)> {
        self.messages
            .values()
            .filter_map(|message| {
                let kind = message.outcome_type()?.to_owned();
                Some((message.id.clone()?, (kind, message.text.clone())))
            })
            .collect()
    }

    /// Starts a new connection, on which no text has begun.
    pub(crate) fn start_connection(&mut self) {
        self.recent.push("(connected)".into());
        self.resent.clear();
        self.sent.clear();
        for message in self.messages.values_mut() {
            message.next = None;
        }
    }

    /// Records that this connection sends a message.
    pub(crate) fn record_sent(&mut self, id: &str) {
        self.sent.insert(id.to_owned());
        if !self.all_sent.insert(id.to_owned()) || self.get(id).is_some() {
            *self.resent.entry(id.to_owned()).or_default() += 1;
        }
    }

    fn note(&mut self, frame: &Value) {
        let text: String = frame.to_string().chars().take(300).collect();
        self.recent.push(text);
        if self.recent.len() > 16 {
            self.recent.remove(0);
        }
    }

    /// Checks a frame and applies it to the transcript. Panics if the frame breaks the protocol.
    pub(crate) fn apply(&mut self, frame: &Value) {
        let kind = frame["type"].as_str().unwrap_or("").to_owned();
        if kind != "pong" {
            let named = frame["userid"].as_str();
            check!(
                self,
                frame,
                named == Some(&self.user),
                "a frame without its user, or another's"
            );
        }
        for field in ["n", "n_id", "origin"] {
            check!(
                self,
                frame,
                frame.get(field).is_none(),
                "{field} is not for clients"
            );
        }
        match kind.as_str() {
            "welcome" => self.apply_welcome(frame),
            "accepted" | "delta" | "snapshot" | "restarted" => self.apply_live(&kind, frame),
            "response" | "cancelled" => self.apply_terminal(frame),
            "error" if frame["message_id"].is_string() => self.apply_terminal(frame),
            "error" => {
                for field in ["code", "message"] {
                    check!(self, frame, frame[field].is_string(), "{field} is missing");
                }
                check!(
                    self,
                    frame,
                    frame["retryable"].is_boolean(),
                    "retryable is missing"
                );
            }
            "cancel_result" => {
                let result = frame["result"].as_str().unwrap_or("");
                let known = ["cancelling", "already_done", "unknown"].contains(&result);
                check!(self, frame, known, "an unknown result");
            }
            "closing" => {
                check!(
                    self,
                    frame,
                    frame["reason"].is_string(),
                    "reason is missing"
                );
                check!(
                    self,
                    frame,
                    frame["retry_after_ms"].is_u64(),
                    "retry_after_ms is missing"
                );
            }
            "pong" => {}
            _ => check!(self, frame, false, "an unknown type"),
        }
        self.note(frame);
    }

    fn apply_welcome(&mut self, frame: &Value) {
        check!(
            self,
            frame,
            frame["server_id"].is_string(),
            "server_id is missing"
        );
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
                let same = position == self.position.as_deref();
                check!(
                    self,
                    frame,
                    same,
                    "recovered, but from another position than was given"
                );
            }
            Some(false) => {
                self.reloaded_at.push(Instant::now());
                // Snapshots follow.
                for message in self.messages.values_mut() {
                    message.next = None;
                }
            }
            None => check!(self, frame, false, "recovered is missing"),
        }
        self.position = position.map(str::to_owned);
        let parsed: Option<Position> = position.and_then(|position| position.parse().ok());
        self.note_epoch(parsed.as_ref());
        let pending = frame["pending"].as_array().cloned();
        check!(self, frame, pending.is_some(), "pending is missing");
        for entry in pending.unwrap_or_default() {
            for field in ["message_id", "conversation_id", "content"] {
                check!(
                    self,
                    frame,
                    entry[field].is_string(),
                    "pending without {field}"
                );
            }
            let message = self.entry(&entry);
            message.question = entry["content"].as_str().map(str::to_owned);
        }
    }

    /// The message of a frame, created or updated with the frame's ids.
    fn entry(&mut self, frame: &Value) -> &mut Message {
        let message_id = frame["message_id"].as_str().map(str::to_owned);
        check!(self, frame, message_id.is_some(), "message_id is missing");
        let message_id = message_id.unwrap_or_default();
        let id = frame["id"].as_str();
        let conversation = frame["conversation_id"].as_str();
        if let Some(known) = self.messages.get(&message_id) {
            let same = known.id.is_none() || known.id.as_deref() == id;
            check!(self, frame, same, "the id is missing or another");
            let same = known.conversation.is_none()
                || conversation.is_none()
                || known.conversation.as_deref() == conversation;
            check!(self, frame, same, "another conversation");
        }
        if let Some(id) = id {
            let known = self.by_id.entry(id.to_owned());
            known.or_insert_with(|| message_id.clone());
        }
        let message = self.messages.entry(message_id).or_default();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        message.id = message.id.take().or_else(|| owned(id));
        message.conversation = message.conversation.take().or_else(|| owned(conversation));
        message
    }

    fn apply_live(&mut self, kind: &str, frame: &Value) {
        let before = self.entry(frame);
        let (next, written, ended) = (before.next, before.attempt, before.terminal.is_some());
        let id = before.id.clone();
        let sent = id.is_some_and(|id| self.sent.contains(&id));
        if kind == "accepted" {
            let content = frame["content"].as_str().map(str::to_owned);
            check!(
                self,
                frame,
                content.is_some() || sent,
                "accepted without the content"
            );
            check!(
                self,
                frame,
                frame["conversation_id"].is_string(),
                "no conversation_id"
            );
            let message = self.entry(frame);
            message.accepted.push(content.is_some());
            message.question = content.or(message.question.take());
            return;
        }
        let attempt = frame["attempt"].as_u64();
        check!(self, frame, attempt.is_some(), "attempt is missing");
        let attempt = attempt.unwrap_or_default();
        if ended {
            self.stray_frames += 1;
            return;
        }
        if kind == "restarted" {
            let message = self.entry(frame);
            message.restarts += 1;
            message.attempt = attempt;
            message.text.clear();
            message.next = None;
            return;
        }
        let index = frame["index"].as_u64();
        let content = frame["content"].as_str().map(str::to_owned);
        check!(self, frame, index.is_some(), "index is missing");
        check!(self, frame, content.is_some(), "content is missing");
        check!(
            self,
            frame,
            frame["conversation_id"].is_string(),
            "no conversation_id"
        );
        let (index, content) = (index.unwrap_or_default(), content.unwrap_or_default());
        if kind == "delta" && index > 0 {
            check!(self, frame, next == Some(index), "a gap: {next:?} was next");
            check!(
                self,
                frame,
                written == attempt,
                "a splice: attempt {written} was written"
            );
        }
        let message = self.entry(frame);
        message.attempt = attempt;
        if kind == "snapshot" {
            message.snapshots += 1;
            message.text = content;
            message.next = Some(index);
        } else {
            message.deltas += 1;
            if index == 0 {
                message.text.clear();
            }
            message.text.push_str(&content);
            message.next = Some(index + 1);
        }
    }

    fn apply_terminal(&mut self, frame: &Value) {
        let before = self.entry(frame).clone();
        if let Some(first) = &before.terminal {
            let id = before.id.clone().unwrap_or_default();
            let again = self.resent.get(&id).copied().unwrap_or_default();
            check!(
                self,
                frame,
                again > 0 || self.may_repeat_frames(),
                "a second terminal frame; the first was {first}"
            );
            if again > 0 {
                self.resent.insert(id, again - 1);
            } else {
                let id = frame["message_id"].as_str().unwrap_or_default();
                self.repeated_after_move
                    .push((id.to_owned(), Instant::now()));
                self.advance_position(frame);
            }
            // A worker that finds its message ended produces the outcome again. A rebuild of Redis
            // may reach back only to the second of these records.
            check!(
                self,
                frame,
                frame == first
                    || (again == 0 && without_position(frame) == without_position(first)),
                "another terminal frame than {first}"
            );
            self.entry(frame).repeated_outcomes += 1;
            return;
        }
        check!(
            self,
            frame,
            frame["conversation_id"].is_string(),
            "no conversation_id"
        );
        let kind = frame["type"].as_str().unwrap_or_default();
        if kind == "error" {
            check!(self, frame, frame["code"].is_string(), "code is missing");
            check!(
                self,
                frame,
                frame["message"].is_string(),
                "message is missing"
            );
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
                "cancelled is a type of its own"
            );
        } else {
            check!(
                self,
                frame,
                frame["content"].is_string(),
                "content is missing"
            );
        }
        if kind == "response" {
            for field in ["timestamp", "correlation_id", "finish_reason", "model"] {
                check!(self, frame, frame[field].is_string(), "{field} is missing");
            }
            for field in ["processing_time_ms", "attempt"] {
                check!(self, frame, frame[field].is_u64(), "{field} is missing");
            }
            // The model may not have reported it within a second of the end.
            let usage = &frame["usage"];
            let is_valid = usage.is_object() || usage.is_null();
            check!(self, frame, is_valid, "usage is no object");
        }
        let content = frame["content"].as_str().unwrap_or_default().to_owned();
        let same = frame["attempt"].as_u64() == Some(before.attempt);
        if kind == "response" && before.next.is_some() && same {
            let grown = content.starts_with(&before.text);
            let may_be = grown || self.redis_may_lose_data;
            check!(self, frame, may_be, "the text so far was {:?}", before.text);
            if !grown {
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
        let message = self.entry(frame);
        message.text = content;
        message.next = None;
        message.terminal = Some(frame.clone());
        message.ended_at = Some(Instant::now());
    }

    /// Whether frames may be sent a second time: the user has moved to another partition, and Redis
    /// may have been emptied since.
    pub(crate) fn may_repeat_frames(&self) -> bool {
        self.redis_may_lose_data && self.epochs.len() > 1
    }

    fn note_epoch(&mut self, position: Option<&Position>) {
        if let Some(Position { epoch, .. }) = position
            && epoch.empty_mailbox_id().is_none()
            && !self.epochs.contains(epoch)
        {
            self.epochs.push(epoch.clone());
        }
    }

    /// Checks that positions only grow within their epoch, and keeps the new one.
    fn advance_position(&mut self, frame: &Value) {
        let text = frame["position"].as_str();
        check!(self, frame, text.is_some(), "position is missing");
        let text = text.unwrap_or_default();
        let parsed: Option<Position> = text.parse().ok();
        check!(
            self,
            frame,
            parsed.is_some(),
            "a position that a client can not send back"
        );
        self.note_epoch(parsed.as_ref());
        let current: Option<Position> = self
            .position
            .as_deref()
            .and_then(|position| position.parse().ok());
        if let (Some(new), Some(current)) = (parsed, current)
            && new.epoch == current.epoch
            && new.offset <= current.offset
        {
            // A client that requests an old outcome again receives it and keeps its position.
            let id = frame["id"].as_str().unwrap_or_default();
            let was_requested = self.sent.contains(id);
            check!(
                self,
                frame,
                was_requested,
                "at or below the position {current:?}"
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
