//! Whole workers over a log in memory, the embedded fan-out and a scripted model, with paused
//! time. A crash is the abortion of all that a worker does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::config::settings::{ModelApiSettings, PipelineSettings, PromptSettings, WorkerSettings};
use crate::protocol::ids::{MessageId, UserId};

mod cancel;
mod double;
mod ends;
mod frames;
mod script;
mod takeover;
mod topic;

use double::Double;
use script::{Script, Scripted, Step, say, wait_ms};
use topic::{TestLog, Topics};

/// What happened, in order: outcomes kept, records appended, offsets stored.
type Journal = Arc<Mutex<Vec<String>>>;

const QUESTIONS: &str = "incoming_messages";
const ENDS: &str = "responses";
const DEAD: &str = "incoming_messages.dlq";

struct Rig {
    journal: Journal,
    topics: Arc<Topics>,
    fanout: Arc<Double>,
    script: Arc<Script>,
    settings: WorkerSettings,
}

fn settings() -> WorkerSettings {
    WorkerSettings {
        pipeline: PipelineSettings {
            topic: QUESTIONS.into(),
            dead_letter_topic: DEAD.into(),
            group: "group".into(),
            max_workers: 8,
            max_deliveries: 3,
            read_ahead_bytes: 1 << 20,
            drain_timeout: Duration::from_secs(5),
        },
        responses_topic: ENDS.into(),
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
            context_tokens: 16_385,
            keep_history: true,
            history_max_messages: 20,
            history_ttl: Duration::from_secs(3600),
        },
        message_max_age: Duration::from_secs(12 * 3600),
        message_deadline: Duration::from_secs(300),
        max_answer_bytes: 256 << 10,
        stream_flush: Duration::from_millis(30),
        stream_flush_bytes: 1024,
        admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

impl Rig {
    fn new(answers: impl IntoIterator<Item = Vec<Step>>) -> Self {
        let journal = Journal::default();
        Self {
            topics: Topics::new(Arc::clone(&journal)),
            fanout: Double::new(Arc::clone(&journal)),
            script: Script::new(answers),
            settings: settings(),
            journal,
        }
    }

    /// Another process on the same log and fan-out, with a model of its own.
    fn beside(&self, answers: impl IntoIterator<Item = Vec<Step>>) -> Self {
        Self {
            journal: Arc::clone(&self.journal),
            topics: Arc::clone(&self.topics),
            fanout: self.fanout.beside(),
            script: Script::new(answers),
            settings: self.settings.clone(),
        }
    }

    fn start(&self) -> Worker {
        let parts = Parts {
            log: Arc::new(TestLog(Arc::clone(&self.topics))),
            fanout: Arc::clone(&self.fanout) as _,
            provider: Arc::new(Scripted(Arc::clone(&self.script))),
            settings: self.settings.clone(),
        };
        let drain = CancellationToken::new();
        let running = tokio::spawn(super::run(parts, drain.clone()));
        Worker {
            running,
            _drain: drain,
        }
    }

    /// Asks in the user's default conversation.
    fn ask(&self, user: &str, content: &str) -> MessageId {
        let id = MessageId::random();
        self.topics.put(
            QUESTIONS,
            Topics::value(&format!(
                r#"{{"v":1,"type":"message","content":"{content}","userid":"{user}","correlation_id":"c","message_id":"{id}","stream":true}}"#
            )),
        );
        id
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let waiting = async {
            // Paused time: this only lets the others run.
            let mut looks = 0;
            while !done() {
                looks += 1;
                let pause = if looks < 2000 { 1 } else { 50 };
                pass(Duration::from_millis(pause)).await;
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(3600), waiting).await;
        assert!(result.is_ok(), "never came: {what}");
    }

    async fn until_committed(&self, offset: i64) {
        let topics = Arc::clone(&self.topics);
        self.until("the offset", || topics.committed() == offset)
            .await;
    }

    fn ends(&self) -> Vec<serde_json::Value> {
        self.topics.values(ENDS)
    }

    fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }
}

struct Worker {
    running: JoinHandle<Result<(), crate::log::LogError>>,
    _drain: CancellationToken,
}

impl Worker {
    async fn crash(self) {
        self.running.abort();
        assert!(self.running.await.unwrap_err().is_cancelled());
        // What it had spawned is aborted with it, and gone when it was polled once more.
        pass(Duration::from_millis(1)).await;
    }
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn answer(text: &str) -> Vec<Step> {
    vec![say(text), wait_ms(1), Step::Finish]
}

fn since(begun: Instant) -> u128 {
    begun.elapsed().as_millis()
}
