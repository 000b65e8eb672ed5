//! The transcript of a `chatmesh.v1` client: the messages that it shows. Every frame is checked
//! against the protocol before it is applied.

use std::collections::{BTreeMap, BTreeSet};

use chatmesh::protocol::position::{Epoch, Position};
use serde_json::Value;
use tokio::time::Instant;

use super::received_answer::ReceivedAnswer;
use crate::support::parts::{Part, content_of};

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

mod live;
mod terminal;

/// A message and its state as the client knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) conversation: Option<String>,
    /// The content of the question, if a frame to this client had it.
    pub(crate) question: Option<String>,
    /// The text as it is shown, that of the text and refusal parts: deltas extend it, a restart
    /// clears it, and the terminal frame replaces it.
    pub(crate) text: String,
    pub(crate) attempt: u64,
    answer: ReceivedAnswer,
    /// Number of `restarted` frames.
    pub(crate) restarts: usize,
    /// Number of `delta` frames.
    pub(crate) deltas: usize,
    /// Number of `snapshot` frames.
    pub(crate) snapshots: usize,
    /// Number of `snapshot` frames on a connection that had been sent some text of the stream.
    pub(crate) repeating_snapshots: usize,
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

    /// Whether this connection has received a part of the answer, but no terminal frame yet.
    pub(crate) fn is_streaming(&self) -> bool {
        self.terminal.is_none() && self.answer.is_growing()
    }

    /// The parts of the answer as they are shown.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.answer.parts
    }

    /// The kinds of the parts, in order.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        let parts = self.parts().iter();
        parts.map(|part| part.kind.as_str()).collect()
    }

    /// Whether the last part so far is of this kind and contains `text`.
    pub(crate) fn ends_with_part(&self, kind: &str, text: &str) -> bool {
        let last = self.parts().last();
        last.is_some_and(|part| part.kind == kind && part.text.contains(text))
    }
}

/// The parts that the outcome of another model call replaced. Allowed only after Redis has lost
/// data.
#[derive(Debug, Clone)]
pub(crate) struct ReplacedAnswer {
    pub(crate) message_id: String,
    pub(crate) parts: Vec<Part>,
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
    /// The stream of the last such frame, by `message_id`.
    stray_streams: BTreeMap<String, String>,
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
    pub(crate) replaced_answers: Vec<ReplacedAnswer>,
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
            message.answer.desynchronize();
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
        // Gateways forward a delta as the worker has published it, without the user.
        let names_user = !matches!(frame_type.as_str(), "pong" | "delta");
        let user = names_user.then_some(self.user.as_str());
        check!(
            self,
            frame,
            frame["userid"].as_str() == user,
            "expected the userid {user:?}"
        );
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
            "accepted" => self.apply_accepted(frame),
            "delta" | "snapshot" | "restarted" => self.apply_live(&frame_type, frame),
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
                    message.answer.desynchronize();
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
