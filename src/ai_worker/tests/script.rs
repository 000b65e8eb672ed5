//! A model that says what a test has written down, and whose connections are counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::ai_worker::provider::{ModelError, ModelEvent, ModelRequest, ModelStream, Provider};
use crate::protocol::error_code::ErrorCode;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Say(String),
    Wait(Duration),
    /// Nothing more, and no end.
    Hang,
    Break,
    Panic,
    Finish,
}

pub(super) fn say(text: &str) -> Step {
    Step::Say(text.to_owned())
}

pub(super) fn wait_ms(millis: u64) -> Step {
    Step::Wait(Duration::from_millis(millis))
}

#[derive(Default)]
pub(super) struct Script {
    answers: Mutex<VecDeque<Vec<Step>>>,
    pub(super) requests: Mutex<Vec<Vec<String>>>,
    closed: Mutex<Vec<Instant>>,
    /// Before [`Step::Say`]s: when each was said.
    pub(super) said: Mutex<Vec<Instant>>,
}

/// A connection; says when it was closed.
struct Connection(Arc<Script>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.closed.lock().unwrap().push(Instant::now());
    }
}

pub(super) struct Scripted(pub(super) Arc<Script>);

impl Script {
    pub(super) fn new(answers: impl IntoIterator<Item = Vec<Step>>) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.into_iter().collect()),
            ..Self::default()
        })
    }

    pub(super) fn calls(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    pub(super) fn closed(&self) -> Vec<Instant> {
        self.closed.lock().unwrap().clone()
    }
}

fn broken() -> ModelError {
    ModelError {
        code: ErrorCode::ProviderFailed,
        retryable: true,
        retry_after: None,
        detail: "broke off".into(),
        kind: "cut_off",
    }
}

#[async_trait]
impl Provider for Scripted {
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError> {
        let lines = request.messages.iter().map(|m| m.content.clone()).collect();
        self.0.requests.lock().unwrap().push(lines);
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
                    Step::Break => Err(broken()),
                    Step::Say(text) => {
                        connection.0.said.lock().unwrap().push(Instant::now());
                        Ok(ModelEvent::Text(text))
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
