//! Tests of complete workers over a fake log, the embedded fan-out and a scripted model, with
//! paused time. A crash of a worker is simulated by aborting all its tasks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Dependencies;
use crate::config::settings::{
    ModelApiSettings, PipelineSettings, PromptSettings, Reasoning, WorkerSettings,
};
use crate::protocol::ids::{MessageId, UserId};

mod cancel;
mod fake_fanout;
mod fake_log;
mod live_text;
mod outcomes;
mod parts;
mod scripted_model;
mod stream;
mod takeover;

use fake_fanout::FakeFanout;
use fake_log::{FakeLog, FakeTopics};
use scripted_model::{ModelScript, ScriptedModel, Step, send, send_reasoning, send_text, wait_ms};

/// The events of a test in their order: `kept` for each stored outcome, the topic for each appended
/// record, `offset` for each stored offset.
type Journal = Arc<Mutex<Vec<String>>>;

const MESSAGES: &str = "incoming_messages";
const RESPONSES: &str = "responses";
const DEAD_LETTERS: &str = "incoming_messages.dlq";

/// The dependencies and settings of one worker process.
struct TestSystem {
    journal: Journal,
    topics: Arc<FakeTopics>,
    fanout: Arc<FakeFanout>,
    script: Arc<ModelScript>,
    settings: WorkerSettings,
}

fn settings() -> WorkerSettings {
    WorkerSettings {
        pipeline: PipelineSettings {
            topic: MESSAGES.into(),
            dead_letter_topic: DEAD_LETTERS.into(),
            group: "group".into(),
            max_workers: 8,
            max_deliveries: 3,
            read_ahead_bytes: 1 << 20,
            drain_timeout: Duration::from_secs(5),
        },
        responses_topic: RESPONSES.into(),
        model: Some(ModelApiSettings {
            base_url: "http://127.0.0.1:1/v1".parse().unwrap(),
            api_key: None,
            first_token_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            max_attempts: 3,
        }),
        prompt: PromptSettings {
            model: "test-model".into(),
            system_prompt: String::new(),
            max_tokens: 500,
            temperature: 0.7,
            context_window_tokens: 16_385,
            keep_history: true,
            history_max_messages: 20,
            max_newest_turn_age: Duration::from_secs(3600),
        },
        message_max_age: Duration::from_secs(12 * 3600),
        message_deadline: Duration::from_secs(300),
        max_answer_bytes: 256 << 10,
        reasoning: Reasoning::Show,
        stream_flush: Duration::from_millis(30),
        stream_flush_bytes: 1024,
        admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

impl TestSystem {
    fn new(answers: impl IntoIterator<Item = Vec<Step>>) -> Self {
        let journal = Journal::default();
        Self {
            topics: FakeTopics::new(Arc::clone(&journal)),
            fanout: FakeFanout::new(Arc::clone(&journal)),
            script: ModelScript::new(answers),
            settings: settings(),
            journal,
        }
    }

    /// Another process with the same log and the same data in the fan-out, and its own model.
    fn second_process(&self, answers: impl IntoIterator<Item = Vec<Step>>) -> Self {
        Self {
            journal: Arc::clone(&self.journal),
            topics: Arc::clone(&self.topics),
            fanout: self.fanout.second_process(),
            script: ModelScript::new(answers),
            settings: self.settings.clone(),
        }
    }

    fn start(&self) -> Worker {
        let dependencies = Dependencies {
            log: Arc::new(FakeLog(Arc::clone(&self.topics))),
            fanout: Arc::clone(&self.fanout) as _,
            provider: Arc::new(ScriptedModel(Arc::clone(&self.script))),
            settings: self.settings.clone(),
        };
        let drain = CancellationToken::new();
        let running = tokio::spawn(super::run(dependencies, drain.clone()));
        Worker {
            running,
            _drain: drain,
        }
    }

    /// Appends a message in the user's default conversation.
    fn ask(&self, user: &str, content: &str) -> MessageId {
        let id = MessageId::random();
        self.topics.append(
            MESSAGES,
            FakeTopics::record(&format!(
                r#"{{"v":1,"type":"message","content":"{content}","userid":"{user}","correlation_id":"c","message_id":"{id}","stream":true}}"#
            )),
        );
        id
    }

    /// Waits until `is_met` returns true, and fails after an hour of paused time.
    async fn wait_until(&self, condition: &str, mut is_met: impl FnMut() -> bool) {
        let waiting = async {
            // Time is paused, so a sleep takes no real time and only lets the other tasks run.
            let mut checks = 0;
            while !is_met() {
                checks += 1;
                let pause = if checks < 2000 { 1 } else { 50 };
                sleep(Duration::from_millis(pause)).await;
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(3600), waiting).await;
        assert!(result.is_ok(), "timed out waiting for {condition}");
    }

    /// Waits until the worker's group has committed this offset.
    async fn wait_until_committed(&self, offset: i64) {
        let topics = Arc::clone(&self.topics);
        self.wait_until("the commit", || topics.committed() == offset)
            .await;
    }

    /// The terminal records in the log.
    fn terminals(&self) -> Vec<serde_json::Value> {
        self.topics.values(RESPONSES)
    }

    fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }
}

/// A running worker.
struct Worker {
    running: JoinHandle<Result<(), crate::log::LogError>>,
    _drain: CancellationToken,
}

impl Worker {
    async fn crash(self) {
        self.running.abort();
        assert!(self.running.await.unwrap_err().is_cancelled());
        // The tasks that the worker has spawned are aborted with it. They end at their next poll,
        // for which the sleep leaves time.
        sleep(Duration::from_millis(1)).await;
    }
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

/// A script that answers with `text`.
fn answer(text: &str) -> Vec<Step> {
    vec![send_text(text), wait_ms(1), Step::Finish]
}

fn elapsed_ms(started: Instant) -> u128 {
    started.elapsed().as_millis()
}
