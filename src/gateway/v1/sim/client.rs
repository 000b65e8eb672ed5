//! The simulated client: it follows protocol.md, checks every frame that it receives, and connects
//! and disconnects at random times.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::{
    GeneratedAnswers, MESSAGES, REPAIR_TIME, SeededRandom, history, part_kind, piece, user,
};
use crate::fanout::embedded::EmbeddedFanout;
use crate::gateway::client::Client;
use crate::gateway::context::Gateway;
use crate::gateway::v1::catch_up;
use crate::gateway::v1::state::V1State;
use crate::protocol::close::CloseReason;
use crate::protocol::position::Position;

/// The parts so far of an answer in flight, as the client has received them.
#[derive(Debug)]
struct PartialAnswer {
    stream: String,
    /// The kind and the text of each part.
    parts: Vec<(String, String)>,
}

/// An answer that is complete for the client.
pub(super) struct CompleteAnswer {
    pub(super) text: String,
    /// Whether the client received the answer in a terminal frame. False if it loaded the answer
    /// from the history.
    is_received: bool,
}

/// What a client has received over all of its connections.
#[derive(Default)]
pub(super) struct TestClient {
    position: Option<Position>,
    /// The complete answers by message id.
    pub(super) answers: HashMap<String, CompleteAnswer>,
    /// The answers in flight by message id, as this connection received them.
    partial_answers: HashMap<String, PartialAnswer>,
    /// When the current connection has received its last `welcome`; `None` before the first one.
    welcomed_at: Option<Instant>,
    generated: GeneratedAnswers,
}

impl TestClient {
    /// Checks and applies a frame. Returns whether the client has to load the history, or an error
    /// that describes how the frame violates the protocol.
    fn apply(&mut self, frame: &Value) -> Result<bool, String> {
        let text = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
        let (id, kind) = (text("message_id"), text("type"));
        if self.welcomed_at.is_none() && kind != "welcome" {
            return Err(format!("{kind} before welcome"));
        }
        match kind.as_str() {
            "welcome" => {
                self.welcomed_at = Some(Instant::now());
                // Every welcome is followed by snapshots of all answers in flight.
                self.partial_answers.clear();
                self.position = text("position").parse().ok();
                return Ok(frame["recovered"] == false);
            }
            "accepted" => {}
            "restarted" => {
                self.replace_answer(&id, text("stream"), Vec::new())?;
            }
            "snapshot" => {
                let parts = frame["parts"]
                    .as_array()
                    .ok_or("a snapshot without parts")?;
                let field = |part: &Value, name| part[name].as_str().unwrap_or_default().to_owned();
                let parts = parts
                    .iter()
                    .map(|part| (field(part, "kind"), field(part, "content")));
                self.replace_answer(&id, text("stream"), parts.collect())?;
            }
            "delta" => self.apply_delta(&id, frame)?,
            "response" => {
                let position: Position = text("position").parse().map_err(|_| "no position")?;
                if let Some(last) = &self.position
                    && position.is_at_or_before(last)
                {
                    return Err(format!("{position} after {last}"));
                }
                let skipped = (0..position.offset)
                    .find(|number| !self.answers.contains_key(&format!("m{number}")));
                if let Some(skipped) = skipped {
                    return Err(format!("{id} ended before m{skipped}"));
                }
                let answer = CompleteAnswer {
                    text: text("content"),
                    is_received: true,
                };
                let earlier = self.answers.insert(id.clone(), answer);
                if earlier.is_some_and(|answer| answer.is_received) {
                    return Err(format!("{id} ended twice"));
                }
                self.check_complete(&id)?;
                self.partial_answers.remove(&id);
                self.position = Some(position);
            }
            other => return Err(format!("an unknown frame {other}")),
        }
        Ok(false)
    }

    /// Makes `stream` with these parts the current stream of message `id`.
    fn replace_answer(
        &mut self,
        id: &str,
        stream: String,
        parts: Vec<(String, String)>,
    ) -> Result<(), String> {
        self.check_in_flight(id)?;
        let answer = PartialAnswer { stream, parts };
        self.partial_answers.insert(id.to_owned(), answer);
        self.check_text(id)
    }

    /// Applies a `delta` by the rules of a receiver. Any delta that a receiver would ignore, or of
    /// which it would append only a part, is a violation: the gateway sends none.
    fn apply_delta(&mut self, id: &str, frame: &Value) -> Result<(), String> {
        let text = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| frame[name].as_u64().map(|number| number as usize);
        let (stream, content) = (text("stream"), text("content"));
        let part = number("part").ok_or("a delta without part")?;
        let (offset, end) = (number("offset"), number("end"));
        if end != offset.map(|offset| offset + utf16_length(&content)) {
            return Err(format!("{id}: a piece with other lengths: {frame}"));
        }
        let is_opening = !frame["kind"].is_null();
        if is_opening {
            if self
                .partial_answers
                .get(id)
                .is_none_or(|a| a.stream != stream)
                && part == 0
            {
                self.replace_answer(id, stream.clone(), Vec::new())?;
            }
            if let Some(answer) = self.partial_answers.get_mut(id) {
                let previous = answer.parts.last().map(|(_, text)| utf16_length(text));
                if answer.parts.len() != part || previous != number("previous_end") {
                    return Err(format!("{id}: opening {frame} after {answer:?}"));
                }
                answer.parts.push((text("kind"), String::new()));
            }
        }
        self.check_in_flight(id)?;
        let answer = self.partial_answers.get_mut(id);
        if let Some(answer) = &answer
            && answer.parts.len() != part + 1
        {
            return Err(format!("{id}: {frame} extends a part that is not the last"));
        }
        let answer = answer.filter(|answer| answer.stream == stream);
        let Some(answer) = answer else {
            return Err(format!("{id}: {frame} is not of the current stream"));
        };
        let known_parts = answer.parts.len();
        let Some((_, received)) = answer.parts.get_mut(part) else {
            return Err(format!("{id}: {frame} after {known_parts} parts"));
        };
        if offset != Some(utf16_length(received)) {
            return Err(format!("{id}: {frame} after {received}"));
        }
        received.push_str(&content);
        self.check_text(id)
    }

    /// Checks that message `id` has not ended for the client.
    fn check_in_flight(&self, id: &str) -> Result<(), String> {
        match self.answers.get(id) {
            Some(answer) if answer.is_received => Err(format!("{id} goes on after its end")),
            _ => Ok(()),
        }
    }

    /// Checks, at the end of message `id`, that the connection was sent all parts before, unless
    /// there was too little time to find what was lost.
    fn check_complete(&self, id: &str) -> Result<(), String> {
        let generated = self.generated.0.lock().unwrap();
        let (Some(generated), Some(answer)) = (generated.get(id), self.partial_answers.get(id))
        else {
            return Ok(());
        };
        let known_since = self.welcomed_at.max(Some(generated.generated_at));
        let had_time = known_since.is_some_and(|since| since.elapsed() >= REPAIR_TIME);
        let lengths = answer.parts.iter().map(|(_, text)| utf16_length(text));
        let expected = generated.lengths.iter().map(|length| *length as usize);
        if had_time && !lengths.eq(expected) {
            return Err(format!("{id} ended, and its text is missing: {answer:?}"));
        }
        Ok(())
    }

    /// Checks that each part of message `id` consists of the part's pieces in its stream, in their
    /// order.
    fn check_text(&self, id: &str) -> Result<(), String> {
        let PartialAnswer { stream, parts } = &self.partial_answers[id];
        for (part, (kind, text)) in parts.iter().enumerate() {
            let mut expected = String::new();
            for index in 0.. {
                if expected.len() >= text.len() {
                    break;
                }
                expected.push_str(&piece(stream, part, index));
            }
            if *text != expected || kind != part_kind(stream, part).as_str() {
                return Err(format!("{id}, part {part} of {stream} reads {kind} {text}"));
            }
        }
        Ok(())
    }
}

fn utf16_length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Connects and disconnects until the client has the complete answer to every message. Returns an
/// error if a frame violates the protocol.
pub(super) async fn run_client(
    gateway: Arc<Gateway>,
    fanout: Arc<EmbeddedFanout>,
    random: SeededRandom,
    generated: GeneratedAnswers,
) -> Result<TestClient, String> {
    let mut client = TestClient {
        generated,
        ..TestClient::default()
    };
    while client.answers.len() < MESSAGES {
        random.pause(100).await;
        let queue = gateway.settings.outbound_queue_bytes;
        let connection = Arc::new(V1State::new(queue));
        let handle = Client::V1(connection.clone());
        let resume_after = client.position.clone();
        let joined = gateway
            .registry
            .join(&user(), &handle, resume_after.as_ref())
            .await;
        let sessions = joined.map_err(|error| error.to_string())?;
        let catch_up_task = tokio::spawn({
            let (gateway, sessions) = (gateway.clone(), sessions.clone());
            let connection = connection.clone();
            async move {
                let reason = catch_up::run(&gateway, &sessions, &connection, resume_after).await;
                connection.outbound.close(reason);
            }
        });
        let (sender, mut frames) = mpsc::channel::<Message>(1);
        let writer_task = tokio::spawn({
            let (gateway, connection) = (gateway.clone(), connection.clone());
            async move {
                let sink = futures_util::sink::unfold(sender, |sender, message| async move {
                    let sent = sender.send(message).await;
                    sent.map(|()| sender).map_err(|_| WsError::ConnectionClosed)
                });
                let mut sink = pin!(sink);
                connection
                    .outbound
                    .write_to(&mut sink, &gateway.metrics.frames_sent)
                    .await;
            }
        });
        client.welcomed_at = None;
        let disconnect_at = Instant::now() + Duration::from_millis(random.number_below(600));
        let stays_connected = random.chance(0.3);
        let is_slow = random.chance(0.3);
        let result = loop {
            let is_complete = client.answers.len() == MESSAGES;
            if is_complete || !stays_connected && Instant::now() >= disconnect_at {
                break Ok(());
            }
            let max_wait = if stays_connected {
                Duration::from_secs(30)
            } else {
                disconnect_at - Instant::now()
            };
            let Ok(Some(Message::Text(frame))) = timeout(max_wait, frames.recv()).await else {
                break Ok(());
            };
            if is_slow {
                random.pause(60).await;
            }
            let frame: Value = serde_json::from_str(&frame).unwrap();
            match client.apply(&frame) {
                Ok(false) => {}
                Ok(true) => {
                    for turn in history(&fanout).await {
                        let answer = CompleteAnswer {
                            text: turn.answer,
                            is_received: false,
                        };
                        client
                            .answers
                            .entry(turn.message_id.to_string())
                            .or_insert(answer);
                    }
                }
                Err(violation) => break Err(violation),
            }
        };
        catch_up_task.abort();
        connection.outbound.disconnect(CloseReason::ConnectionLost);
        drop(frames);
        let _ = writer_task.await;
        let left = gateway.registry.leave(&sessions, &handle).await;
        left.map_err(|error| error.to_string())?;
        result?;
    }
    Ok(client)
}
