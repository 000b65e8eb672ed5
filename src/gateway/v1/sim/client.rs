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

use super::{MESSAGES, SeededRandom, history, user};
use crate::fanout::embedded::EmbeddedFanout;
use crate::gateway::client::Client;
use crate::gateway::context::Gateway;
use crate::gateway::v1::catch_up;
use crate::gateway::v1::state::V1State;
use crate::protocol::close::CloseReason;
use crate::protocol::position::Position;

/// The text so far of an answer in flight, as the client has received it.
#[derive(Debug, Default)]
struct PartialAnswer {
    attempt: u64,
    text: String,
    /// Number of deltas in the text.
    deltas: u64,
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
    /// The answers in flight by message id.
    partial_answers: HashMap<String, PartialAnswer>,
    /// Whether the current connection has received `welcome`.
    is_welcomed: bool,
}

impl TestClient {
    /// Checks and applies a frame. Returns whether the client has to load the history, or an error
    /// that describes how the frame violates the protocol.
    fn apply(&mut self, frame: &Value) -> Result<bool, String> {
        let text = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
        let (id, kind) = (text("message_id"), text("type"));
        if !self.is_welcomed && kind != "welcome" {
            return Err(format!("{kind} before welcome"));
        }
        match kind.as_str() {
            "welcome" => {
                self.is_welcomed = true;
                self.position = text("position").parse().ok();
                return Ok(frame["recovered"] == false);
            }
            "accepted" => {}
            "restarted" => {
                self.partial_answers.remove(&id);
            }
            "snapshot" => {
                let index = frame["index"].as_u64().unwrap();
                let attempt = frame["attempt"].as_u64().unwrap();
                let content = text("content");
                if content.matches('[').count() as u64 != index {
                    return Err(format!("a snapshot of {index} deltas: {content}"));
                }
                let snapshot = PartialAnswer {
                    attempt,
                    text: content,
                    deltas: index,
                };
                self.partial_answers.insert(id.clone(), snapshot);
                self.check_single_attempt(&id)?;
            }
            "delta" => {
                let (index, attempt) = (frame["index"].as_u64(), frame["attempt"].as_u64());
                let (index, attempt) = (index.unwrap(), attempt.unwrap());
                let partial = self.partial_answers.entry(id.clone()).or_default();
                if index == 0 {
                    *partial = PartialAnswer {
                        attempt,
                        ..PartialAnswer::default()
                    };
                }
                if partial.attempt != attempt || partial.deltas != index {
                    return Err(format!("{id}: delta {attempt}.{index} after {partial:?}"));
                }
                partial.text.push_str(&text("content"));
                partial.deltas += 1;
                self.check_single_attempt(&id)?;
            }
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
                self.position = Some(position);
            }
            other => return Err(format!("an unknown frame {other}")),
        }
        Ok(false)
    }

    /// Checks that the text so far of message `id` consists of the deltas of one attempt, in their
    /// order.
    fn check_single_attempt(&self, id: &str) -> Result<(), String> {
        let PartialAnswer {
            attempt,
            text,
            deltas,
        } = &self.partial_answers[id];
        let number = &id[1..];
        let expected: Vec<_> = (0..*deltas)
            .map(|index| format!("[{number}.{attempt}.{index}]"))
            .collect();
        let expected = expected.concat();
        if *text == expected {
            Ok(())
        } else {
            Err(format!("{id} reads {text}, not {expected}"))
        }
    }
}

/// Connects and disconnects until the client has the complete answer to every message. Returns an
/// error if a frame violates the protocol.
pub(super) async fn run_client(
    gateway: Arc<Gateway>,
    fanout: Arc<EmbeddedFanout>,
    random: SeededRandom,
) -> Result<TestClient, String> {
    let mut client = TestClient::default();
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
        client.is_welcomed = false;
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
