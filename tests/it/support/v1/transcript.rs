//! What a good client of `chatmesh.v1` has on its screen, and the rules that every frame must keep.

use std::collections::{BTreeMap, BTreeSet};

use chatmesh::protocol::position::{Epoch, Position};
use serde_json::Value;
use tokio::time::Instant;

/// One message and what came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) conversation: Option<String>,
    /// What was asked, where this client was told.
    pub(crate) question: Option<String>,
    /// The text as it is shown: it grows, begins anew, and the terminal frame replaces it.
    pub(crate) text: String,
    pub(crate) attempt: u64,
    /// Index of the next delta; `None` until the text has begun on this connection.
    next: Option<u64>,
    /// How often the text was thrown away.
    pub(crate) restarts: usize,
    pub(crate) deltas: usize,
    pub(crate) snapshots: usize,
    /// `accepted` frames, and whether each had the content.
    pub(crate) accepted: Vec<bool>,
    pub(crate) terminal: Option<Value>,
    /// When it came.
    pub(crate) ended_at: Option<Instant>,
    /// Terminal frames that a resent `id` brought again.
    pub(crate) repeated: usize,
}

impl Message {
    /// `type` of the terminal frame, where it came.
    pub(crate) fn ended(&self) -> Option<&str> {
        self.terminal
            .as_ref()
            .and_then(|frame| frame["type"].as_str())
    }

    pub(crate) fn is_accepted(&self) -> bool {
        !self.accepted.is_empty()
    }

    /// Whether a text grows here now.
    pub(crate) fn is_growing(&self) -> bool {
        self.terminal.is_none() && self.next.is_some() && !self.text.is_empty()
    }
}

/// A text that the end of another call replaced: only where Redis lost its data.
#[derive(Debug, Clone)]
pub(crate) struct Replaced {
    pub(crate) message_id: String,
    pub(crate) text: String,
    pub(crate) at: Instant,
}

/// All messages of one device, over its connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transcript {
    user: String,
    messages: BTreeMap<String, Message>,
    /// `message_id`s by the clients' `id`s: a long run looks them up all the time.
    by_id: BTreeMap<String, String>,
    /// `message_id`s in the order of their terminal frames.
    pub(crate) order: Vec<String>,
    /// What to give as `since`.
    pub(crate) position: Option<String>,
    /// When the server said that it can't replay, the first time included: what had ended by then is in
    /// the history, and everything else is to be told.
    pub(crate) reloaded: Vec<Instant>,
    /// Live frames about what has ended: only where Redis lost its data.
    pub(crate) strays: usize,
    /// Redis may lose its data: then the model may be asked again for what has ended, and attempts are
    /// numbered from 1 again. The end that comes then is the first one's.
    pub(crate) redis_may_be_emptied: bool,
    /// The partitions that it was told of. Where its user has moved and Redis was emptied, frames may come
    /// once more (docs/reliability.md).
    epochs: Vec<Epoch>,
    /// The messages whose frames came so, and when.
    pub(crate) told_after_move: Vec<(String, Instant)>,
    pub(crate) replaced: Vec<Replaced>,
    /// `id`s that were ever sent, and how often again on this connection: so often their stored
    /// terminal frame may come again.
    ever_sent: BTreeSet<String>,
    resent: BTreeMap<String, usize>,
    /// `id`s sent by this connection: their `accepted` has no content.
    sent: BTreeSet<String>,
    /// The last frames, for the words of a failure.
    recent: Vec<String>,
}

macro_rules! rule {
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

    /// By the client's `id` or the `message_id`.
    pub(crate) fn get(&self, id: &str) -> Option<&Message> {
        self.messages
            .get(id)
            .or_else(|| self.messages.get(self.by_id.get(id)?))
    }

    /// How often the server said that it can't replay, the first time included.
    pub(crate) fn reloads(&self) -> usize {
        self.reloaded.len()
    }

    /// The `message_id` of a client's `id`.
    pub(crate) fn message_id(&self, id: &str) -> Option<&str> {
        self.by_id.get(id).map(String::as_str)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Message> {
        self.messages.values()
    }

    /// The clients' `id`s of a conversation in the order of the terminal frames.
    pub(crate) fn order_of(&self, conversation: &str) -> Vec<String> {
        self.order
            .iter()
            .map(|message_id| &self.messages[message_id])
            .filter(|message| message.conversation.as_deref() == Some(conversation))
            .filter_map(|message| message.id.clone())
            .collect()
    }

    /// What is to be the same whatever happened on the way: by `id`, how it ended and the text.
    pub(crate) fn ends(&self) -> BTreeMap<String, (String, String)> {
        self.messages
            .values()
            .filter_map(|message| {
                let kind = message.ended()?.to_owned();
                Some((message.id.clone()?, (kind, message.text.clone())))
            })
            .collect()
    }

    /// A new connection: no text has begun on it.
    pub(crate) fn connected(&mut self) {
        self.recent.push("(connected)".into());
        self.resent.clear();
        self.sent.clear();
        for message in self.messages.values_mut() {
            message.next = None;
        }
    }

    /// This connection sends a message.
    pub(crate) fn sending(&mut self, id: &str) {
        self.sent.insert(id.to_owned());
        if !self.ever_sent.insert(id.to_owned()) || self.get(id).is_some() {
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

    /// Takes a frame, and fails where it breaks the protocol.
    pub(crate) fn take(&mut self, frame: &Value) {
        let kind = frame["type"].as_str().unwrap_or("").to_owned();
        if kind != "pong" {
            let named = frame["userid"].as_str();
            rule!(
                self,
                frame,
                named == Some(&self.user),
                "a frame without its user, or another's"
            );
        }
        for field in ["n", "n_id", "origin"] {
            rule!(
                self,
                frame,
                frame.get(field).is_none(),
                "{field} is not for clients"
            );
        }
        match kind.as_str() {
            "welcome" => self.welcome(frame),
            "accepted" | "delta" | "snapshot" | "restarted" => self.live(&kind, frame),
            "response" | "cancelled" => self.terminal(frame),
            "error" if frame["message_id"].is_string() => self.terminal(frame),
            "error" => {
                for field in ["code", "message"] {
                    rule!(self, frame, frame[field].is_string(), "{field} is missing");
                }
                rule!(
                    self,
                    frame,
                    frame["retryable"].is_boolean(),
                    "retryable is missing"
                );
            }
            "cancel_result" => {
                let result = frame["result"].as_str().unwrap_or("");
                let known = ["cancelling", "already_done", "unknown"].contains(&result);
                rule!(self, frame, known, "an unknown result");
            }
            "closing" => {
                rule!(
                    self,
                    frame,
                    frame["reason"].is_string(),
                    "reason is missing"
                );
                rule!(
                    self,
                    frame,
                    frame["retry_after_ms"].is_u64(),
                    "retry_after_ms is missing"
                );
            }
            "pong" => {}
            _ => rule!(self, frame, false, "an unknown type"),
        }
        self.note(frame);
    }

    fn welcome(&mut self, frame: &Value) {
        rule!(
            self,
            frame,
            frame["server_id"].is_string(),
            "server_id is missing"
        );
        rule!(
            self,
            frame,
            frame["heartbeat_ms"].is_u64(),
            "heartbeat_ms is missing"
        );
        for field in ["max_content_chars", "max_frame_bytes", "max_pending"] {
            rule!(
                self,
                frame,
                frame["limits"][field].is_u64(),
                "limits.{field} is missing"
            );
        }
        let position = frame["position"].as_str();
        rule!(self, frame, position.is_some(), "position is missing");
        match frame["recovered"].as_bool() {
            Some(true) => {
                let same = position == self.position.as_deref();
                rule!(
                    self,
                    frame,
                    same,
                    "recovered, but from another position than was given"
                );
            }
            Some(false) => {
                self.reloaded.push(Instant::now());
                // Snapshots follow.
                for message in self.messages.values_mut() {
                    message.next = None;
                }
            }
            None => rule!(self, frame, false, "recovered is missing"),
        }
        self.position = position.map(str::to_owned);
        let parsed: Option<Position> = position.and_then(|position| position.parse().ok());
        self.note_epoch(parsed.as_ref());
        let pending = frame["pending"].as_array().cloned();
        rule!(self, frame, pending.is_some(), "pending is missing");
        for entry in pending.unwrap_or_default() {
            for field in ["message_id", "conversation_id", "content"] {
                rule!(
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

    /// The message of a frame, with what the frame says of it.
    fn entry(&mut self, frame: &Value) -> &mut Message {
        let message_id = frame["message_id"].as_str().map(str::to_owned);
        rule!(self, frame, message_id.is_some(), "message_id is missing");
        let message_id = message_id.unwrap_or_default();
        let id = frame["id"].as_str();
        let conversation = frame["conversation_id"].as_str();
        if let Some(known) = self.messages.get(&message_id) {
            let same = known.id.is_none() || known.id.as_deref() == id;
            rule!(self, frame, same, "the id is missing or another");
            let same = known.conversation.is_none()
                || conversation.is_none()
                || known.conversation.as_deref() == conversation;
            rule!(self, frame, same, "another conversation");
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

    fn live(&mut self, kind: &str, frame: &Value) {
        let before = self.entry(frame);
        let (next, written, ended) = (before.next, before.attempt, before.terminal.is_some());
        let id = before.id.clone();
        let sent = id.is_some_and(|id| self.sent.contains(&id));
        if kind == "accepted" {
            let content = frame["content"].as_str().map(str::to_owned);
            rule!(
                self,
                frame,
                content.is_some() || sent,
                "accepted without the content"
            );
            rule!(
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
        rule!(self, frame, attempt.is_some(), "attempt is missing");
        let attempt = attempt.unwrap_or_default();
        if ended {
            self.strays += 1;
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
        rule!(self, frame, index.is_some(), "index is missing");
        rule!(self, frame, content.is_some(), "content is missing");
        rule!(
            self,
            frame,
            frame["conversation_id"].is_string(),
            "no conversation_id"
        );
        let (index, content) = (index.unwrap_or_default(), content.unwrap_or_default());
        if kind == "delta" && index > 0 {
            rule!(self, frame, next == Some(index), "a gap: {next:?} was next");
            rule!(
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

    fn terminal(&mut self, frame: &Value) {
        let before = self.entry(frame).clone();
        if let Some(first) = &before.terminal {
            let id = before.id.clone().unwrap_or_default();
            let again = self.resent.get(&id).copied().unwrap_or_default();
            rule!(
                self,
                frame,
                again > 0 || self.may_be_told_again(),
                "a second terminal frame; the first was {first}"
            );
            if again > 0 {
                self.resent.insert(id, again - 1);
            } else {
                let id = frame["message_id"].as_str().unwrap_or_default();
                self.told_after_move.push((id.to_owned(), Instant::now()));
                self.advance(frame);
            }
            // A worker that finds its message ended produces the end again: of the two records the filling
            // of an emptied Redis may reach back to the second only.
            rule!(
                self,
                frame,
                frame == first
                    || (again == 0 && without_position(frame) == without_position(first)),
                "another terminal frame than {first}"
            );
            self.entry(frame).repeated += 1;
            return;
        }
        rule!(
            self,
            frame,
            frame["conversation_id"].is_string(),
            "no conversation_id"
        );
        let kind = frame["type"].as_str().unwrap_or_default();
        if kind == "error" {
            rule!(self, frame, frame["code"].is_string(), "code is missing");
            rule!(
                self,
                frame,
                frame["message"].is_string(),
                "message is missing"
            );
            rule!(
                self,
                frame,
                frame["retryable"].is_boolean(),
                "retryable is missing"
            );
            rule!(
                self,
                frame,
                frame["code"] != "cancelled",
                "cancelled is a type of its own"
            );
        } else {
            rule!(
                self,
                frame,
                frame["content"].is_string(),
                "content is missing"
            );
        }
        if kind == "response" {
            for field in ["timestamp", "correlation_id", "finish_reason", "model"] {
                rule!(self, frame, frame[field].is_string(), "{field} is missing");
            }
            for field in ["processing_time_ms", "attempt"] {
                rule!(self, frame, frame[field].is_u64(), "{field} is missing");
            }
            // Nothing where the model did not say it within a second of the end.
            let usage = &frame["usage"];
            let told = usage.is_object() || usage.is_null();
            rule!(self, frame, told, "usage is no object");
        }
        let content = frame["content"].as_str().unwrap_or_default().to_owned();
        let same = frame["attempt"].as_u64() == Some(before.attempt);
        if kind == "response" && before.next.is_some() && same {
            let grown = content.starts_with(&before.text);
            let may_be = grown || self.redis_may_be_emptied;
            rule!(self, frame, may_be, "the text so far was {:?}", before.text);
            if !grown {
                let id = frame["message_id"].as_str().unwrap_or_default();
                self.replaced.push(Replaced {
                    message_id: id.to_owned(),
                    text: before.text.clone(),
                    at: Instant::now(),
                });
            }
        }
        self.advance(frame);
        let message_id = frame["message_id"].as_str().unwrap_or_default().to_owned();
        self.order.push(message_id);
        let message = self.entry(frame);
        message.text = content;
        message.next = None;
        message.terminal = Some(frame.clone());
        message.ended_at = Some(Instant::now());
    }

    /// Its user has moved to another partition, and Redis may have been emptied since.
    pub(crate) fn may_be_told_again(&self) -> bool {
        self.redis_may_be_emptied && self.epochs.len() > 1
    }

    fn note_epoch(&mut self, position: Option<&Position>) {
        if let Some(Position { epoch, .. }) = position
            && epoch.empty_mailbox().is_none()
            && !self.epochs.contains(epoch)
        {
            self.epochs.push(epoch.clone());
        }
    }

    /// Positions only grow within their epoch.
    fn advance(&mut self, frame: &Value) {
        let text = frame["position"].as_str();
        rule!(self, frame, text.is_some(), "position is missing");
        let text = text.unwrap_or_default();
        let parsed: Option<Position> = text.parse().ok();
        rule!(
            self,
            frame,
            parsed.is_some(),
            "a position that nobody can give back"
        );
        self.note_epoch(parsed.as_ref());
        let had: Option<Position> = self.position.as_deref().and_then(|had| had.parse().ok());
        if let (Some(new), Some(had)) = (parsed, had)
            && new.epoch == had.epoch
            && new.offset <= had.offset
        {
            // Who asks for an old one again gets it, and has its position still.
            let id = frame["id"].as_str().unwrap_or_default();
            let asked = self.sent.contains(id);
            rule!(self, frame, asked, "at or below the position {had:?}");
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
