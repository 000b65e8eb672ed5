//! A model that plays the scripts of a test and records its calls.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::ai_worker::provider::{
    ModelError, ModelEvent, ModelRequest, ModelStream, PartDelta, PartKey, Provider,
};
use crate::protocol::error_code::ErrorCode;

/// A step of a model's answer.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// The next piece of a part.
    Send(PartDelta),
    Wait(Duration),
    /// The stream neither continues nor ends.
    Hang,
    /// The stream fails with a retryable error.
    Break,
    Panic,
    Finish,
}

pub(super) fn send_text(text: &str) -> Step {
    send(PartKey::Text, text)
}

pub(super) fn send_reasoning(text: &str) -> Step {
    send(PartKey::Reasoning, text)
}

/// A piece without properties.
pub(super) fn send(key: PartKey, text: &str) -> Step {
    Step::Send(PartDelta::new(key, text))
}

pub(super) fn wait_ms(millis: u64) -> Step {
    Step::Wait(Duration::from_millis(millis))
}

/// The answers of a scripted model, and a record of the calls that were made to it.
#[derive(Default)]
pub(super) struct ModelScript {
    /// The answers to the next calls, one per call.
    answers: Mutex<VecDeque<Vec<Step>>>,
    /// The message texts of each call.
    pub(super) requests: Mutex<Vec<Vec<String>>>,
    /// When each connection was closed.
    closed_at: Mutex<Vec<Instant>>,
    /// When each [`Step::Send`] was sent.
    pub(super) sent_at: Mutex<Vec<Instant>>,
}

/// The connection of one call. Records the time at which it is dropped, that is, closed.
struct Connection(Arc<ModelScript>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.closed_at.lock().unwrap().push(Instant::now());
    }
}

pub(super) struct ScriptedModel(pub(super) Arc<ModelScript>);

impl ModelScript {
    pub(super) fn new(answers: impl IntoIterator<Item = Vec<Step>>) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.into_iter().collect()),
            ..Self::default()
        })
    }

    /// The number of calls that were made.
    pub(super) fn calls(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// When each connection was closed.
    pub(super) fn closed_at(&self) -> Vec<Instant> {
        self.closed_at.lock().unwrap().clone()
    }
}

fn broken_stream_error() -> ModelError {
    ModelError {
        code: ErrorCode::ProviderFailed,
        retryable: true,
        retry_after: None,
        detail: "broke off".into(),
        kind: "cut_off",
    }
}

#[async_trait]
impl Provider for ScriptedModel {
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError> {
        let texts = request.messages.iter().map(|m| m.content.clone()).collect();
        self.0.requests.lock().unwrap().push(texts);
        let steps = self.0.answers.lock().unwrap().pop_front();
        let steps = VecDeque::from(steps.expect("one call more than the script has answers"));
        let connection = Connection(Arc::clone(&self.0));
        let events = stream::unfold((steps, connection), |(mut steps, connection)| async {
            loop {
                let event = match steps.pop_front()? {
                    Step::Wait(time) => {
                        tokio::time::sleep(time).await;
                        continue;
                    }
                    Step::Hang => std::future::pending().await,
                    Step::Panic => panic!("the model panics"),
                    Step::Break => Err(broken_stream_error()),
                    Step::Send(delta) => {
                        connection.0.sent_at.lock().unwrap().push(Instant::now());
                        Ok(ModelEvent::Delta(delta))
                    }
                    Step::Finish => Ok(ModelEvent::Finished {
                        reason: "stop".into(),
                        model: None,
                    }),
                };
                return Some((event, (steps, connection)));
            }
        });
        Ok(events.boxed())
    }
}
