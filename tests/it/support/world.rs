//! The same scenarios on every backend: everything embedded, Kafka with one Redis, Kafka with a
//! Redis cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::SOON;
use super::http::try_call;
use super::kafka::PlainKafka;
use super::model::ScriptedModel;
use super::process::{Chatmesh, Spec};
use super::stack::Stack;

/// What is underneath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Embedded,
    Redis,
    Cluster,
}

enum Ground {
    Alone(ScriptedModel),
    Stack(Box<Stack>),
}

/// A running system: two gateways, two workers, two relays; or one process that is it all.
pub(crate) struct World {
    pub(crate) backend: Backend,
    pub(crate) gateways: Vec<Chatmesh>,
    pub(crate) workers: Vec<Chatmesh>,
    pub(crate) relays: Vec<Chatmesh>,
    env: Vec<(String, String)>,
    // Last, so that it goes after the roles.
    ground: Ground,
}

impl World {
    /// With these variables for every role, over the defaults.
    pub(crate) async fn start(backend: Backend, env: &[(&str, &str)]) -> Self {
        let model = ScriptedModel::start().await;
        let ground = match backend {
            Backend::Embedded => Ground::Alone(model),
            Backend::Redis => Ground::Stack(Box::new(Stack::start_with(model).await)),
            Backend::Cluster => Ground::Stack(Box::new(Stack::start_clustered(model).await)),
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut world = Self {
            backend,
            gateways: Vec::new(),
            workers: Vec::new(),
            relays: Vec::new(),
            env: env.iter().map(owned).collect(),
            ground,
        };
        match backend {
            Backend::Embedded => {
                world.gateways.push(world.all_in_one().spawn());
            }
            Backend::Redis | Backend::Cluster => {
                for n in 1..=2 {
                    world
                        .gateways
                        .push(world.gateway(&format!("server_{n}")).spawn());
                    world
                        .workers
                        .push(world.worker(&format!("worker_{n}")).spawn());
                    world
                        .relays
                        .push(world.relay(&format!("relay_{n}")).spawn());
                }
            }
        }
        world.ready().await;
        world
    }

    pub(crate) async fn ready(&mut self) {
        let roles = self
            .gateways
            .iter_mut()
            .chain(&mut self.workers)
            .chain(&mut self.relays);
        for role in roles {
            role.ready(SOON).await;
        }
    }

    pub(crate) fn model(&self) -> &ScriptedModel {
        match &self.ground {
            Ground::Alone(model) => model,
            Ground::Stack(stack) => &stack.model,
        }
    }

    /// Kafka and Redis; fails on embedded.
    pub(crate) fn stack(&self) -> &Stack {
        match &self.ground {
            Ground::Alone(_) => panic!("there is no Kafka here"),
            Ground::Stack(stack) => stack,
        }
    }

    pub(crate) fn stack_mut(&mut self) -> &mut Stack {
        match &mut self.ground {
            Ground::Alone(_) => panic!("there is no Kafka here"),
            Ground::Stack(stack) => stack,
        }
    }

    pub(crate) fn plain(&self) -> PlainKafka {
        self.stack().plain()
    }

    fn with_env(&self, spec: Spec) -> Spec {
        self.env
            .iter()
            .fold(spec, |spec, (name, value)| spec.env(name, value))
    }

    /// On a durable folder: it can be started again.
    pub(crate) fn all_in_one(&self) -> Spec {
        let spec = Spec::durable()
            .env("OPENAI_BASE_URL", &self.model().base_url())
            .env("OPENAI_TIMEOUT_MS", "10000");
        self.with_env(spec)
    }

    pub(crate) fn gateway(&self, name: &str) -> Spec {
        self.with_env(self.stack().gateway(name))
    }

    /// The model knows it by its key, which is its name.
    pub(crate) fn worker(&self, name: &str) -> Spec {
        let spec = self.stack().worker(name).env("OPENAI_API_KEY", name);
        self.with_env(spec)
    }

    pub(crate) fn relay(&self, name: &str) -> Spec {
        self.with_env(self.stack().relay(name))
    }

    /// The index of the worker that asked the model for this prompt last.
    pub(crate) fn worker_of(&self, prompt: &str) -> usize {
        let asked = self.model().asked_for(prompt);
        let key = asked.last().and_then(|asked| asked.authorization.clone());
        match key.as_deref() {
            Some("Bearer worker_1") => 0,
            Some("Bearer worker_2") => 1,
            other => panic!("{prompt} was asked by {other:?}"),
        }
    }

    /// Of a gateway; on embedded there is but one.
    pub(crate) fn port(&self, n: usize) -> u16 {
        self.gateways[n % self.gateways.len()].port()
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.gateways.iter().map(Chatmesh::port).collect()
    }

    /// Keeps what the roles have printed, for who wants to understand a failure. Returns the folder.
    fn keep_logs(&self) -> PathBuf {
        let name = format!("world-{:?}-{}", self.backend, std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (role, members) in [
            ("gateway", &self.gateways),
            ("worker", &self.workers),
            ("relay", &self.relays),
        ] {
            for (n, member) in members.iter().enumerate() {
                let file = folder.join(format!("{role}_{}.log", n + 1));
                std::fs::write(file, member.log()).expect("write a file");
            }
        }
        folder
    }

    /// Removes every key of Redis.
    pub(crate) fn flush_redis(&self) {
        match &self.stack().cluster {
            Some(cluster) => cluster.flush_all(),
            None => self.stack().redis.flush_all(),
        }
    }

    /// Redis crashes and comes back with what it had written.
    pub(crate) async fn restart_redis(&mut self) {
        let stack = self.stack_mut();
        match &mut stack.cluster {
            Some(cluster) => cluster.restart().await,
            None => stack.redis.restart().await,
        }
    }

    pub(crate) fn freeze_redis(&self) {
        match &self.stack().cluster {
            Some(cluster) => cluster.freeze(),
            None => self.stack().redis.freeze(),
        }
    }

    pub(crate) fn thaw_redis(&self) {
        match &self.stack().cluster {
            Some(cluster) => cluster.thaw(),
            None => self.stack().redis.thaw(),
        }
    }
}

/// A turn of the history as it comes over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) message_id: String,
    pub(crate) question: Option<String>,
    pub(crate) answer: String,
    pub(crate) status: String,
}

impl Turn {
    fn of(turn: &Value) -> Self {
        let text = |field: &str| turn[field].as_str().unwrap_or("").to_owned();
        Self {
            message_id: text("message_id"),
            question: turn["question"].as_str().map(str::to_owned),
            answer: text("answer"),
            status: text("status"),
        }
    }
}

/// A user's own history over HTTP.
pub(crate) struct History {
    port: u16,
    user: String,
}

impl History {
    pub(crate) fn new(port: u16, user: &str) -> Self {
        Self {
            port,
            user: user.to_owned(),
        }
    }

    async fn call(&self, method: Method, path: &str) -> super::http::Reply {
        let sign = if path.contains('?') { '&' } else { '?' };
        let url = format!(
            "http://127.0.0.1:{}{path}{sign}userid={}",
            self.port, self.user
        );
        let headers = [("authorization", "Bearer any-token")];
        try_call(method.clone(), &url, &headers)
            .await
            .unwrap_or_else(|e| panic!("{method} {url}: {e:?}"))
    }

    async fn list(&self, path: &str, field: &str) -> Vec<Value> {
        let reply = self.call(Method::GET, path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let body = reply.json();
        let list = body[field].as_array();
        list.unwrap_or_else(|| panic!("{path} has no {field}: {body}"))
            .clone()
    }

    /// The names of the conversations, as they are listed.
    pub(crate) async fn conversations(&self) -> Vec<String> {
        let listed = self.list("/conversations", "conversations").await;
        let name = |entry: &Value| entry["conversation_id"].as_str().map(str::to_owned);
        listed
            .iter()
            .map(|entry| name(entry).unwrap_or_else(|| panic!("no conversation_id: {entry}")))
            .collect()
    }

    /// One page.
    pub(crate) async fn page(
        &self,
        conversation: &str,
        before: Option<&str>,
        limit: usize,
    ) -> Vec<Turn> {
        let mut path = format!("/conversations/{conversation}/messages?limit={limit}");
        if let Some(before) = before {
            path.push_str("&before=");
            path.push_str(before);
        }
        let listed = self.list(&path, "messages").await;
        listed.iter().map(Turn::of).collect()
    }

    /// All that a page of 100 has.
    pub(crate) async fn turns(&self, conversation: &str) -> Vec<Turn> {
        self.page(conversation, None, 100).await
    }

    /// All turns that are kept, newest first. Waits out a gateway or a backend that is away.
    pub(crate) async fn all_turns(&self, conversation: &str) -> Vec<Turn> {
        let deadline = Instant::now() + SOON;
        let mut all: Vec<Turn> = Vec::new();
        let mut before: Option<String> = None;
        loop {
            let mut path = format!(
                "/conversations/{conversation}/messages?limit=200&userid={}",
                self.user
            );
            if let Some(before) = &before {
                path.push_str("&before=");
                path.push_str(before);
            }
            let url = format!("http://127.0.0.1:{}{path}", self.port);
            let headers = [("authorization", "Bearer any-token")];
            let reply = try_call(Method::GET, &url, &headers).await;
            let Some(reply) = reply.ok().filter(|reply| reply.status == 200) else {
                assert!(Instant::now() < deadline, "no history of {}", self.user);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let body = reply.json();
            let page = body["messages"].as_array().cloned().unwrap_or_default();
            all.extend(page.iter().map(Turn::of));
            match body["next"].as_str() {
                Some(next) => before = Some(next.to_owned()),
                None => return all,
            }
        }
    }

    /// The turn of one message, if it is there.
    pub(crate) async fn turn(&self, conversation: &str, message_id: &str) -> Option<Turn> {
        let turns = self.turns(conversation).await;
        turns.into_iter().find(|turn| turn.message_id == message_id)
    }

    pub(crate) async fn delete(&self, conversation: &str) -> u16 {
        let path = format!("/conversations/{conversation}");
        self.call(Method::DELETE, &path).await.status
    }

    pub(crate) async fn delete_all(&self) -> u16 {
        self.call(Method::DELETE, "/conversations").await.status
    }
}

/// One scenario on a running world.
pub(crate) type Scenario = fn(Arc<World>) -> BoxFuture<'static, ()>;

/// Functions as named [`Scenario`]s.
#[macro_export]
macro_rules! scenarios {
    ($($scenario:path),* $(,)?) => {
        vec![$((
            stringify!($scenario),
            (|world| Box::pin($scenario(world))) as $crate::support::world::Scenario,
        )),*]
    };
}

/// Runs them at the same time, each with users of its own; the names of those that failed, and why.
pub(crate) async fn side_by_side(
    world: &Arc<World>,
    scenarios: Vec<(&'static str, Scenario)>,
) -> Vec<String> {
    let mut running = Vec::new();
    for (name, scenario) in scenarios.into_iter().filter(|(name, _)| wanted(name)) {
        let at = std::time::Instant::now();
        let scenario = scenario(world.clone());
        let timed = async move {
            scenario.await;
            at.elapsed()
        };
        running.push((name, tokio::spawn(timed)));
    }
    let mut failed = Vec::new();
    for (name, task) in running {
        match task.await {
            Ok(took) => eprintln!("{:?}: {name}: ok, {took:.1?}", world.backend),
            Err(error) => failed.push(format!("{name}: {}", words_of(error))),
        }
    }
    if !failed.is_empty() {
        eprintln!("the roles' logs: {}", world.keep_logs().display());
    }
    failed
}

/// One scenario that breaks something; it leaves the world whole.
pub(crate) type Fault = for<'a> fn(&'a mut World) -> BoxFuture<'a, ()>;

/// Functions as named [`Fault`]s.
#[macro_export]
macro_rules! faults {
    ($($fault:path),* $(,)?) => {
        vec![$((
            stringify!($fault),
            (|world| Box::pin($fault(world))) as $crate::support::world::Fault,
        )),*]
    };
}

/// Runs them one after another; the names of those that failed, and why.
pub(crate) async fn one_after_another(
    world: World,
    faults: Vec<(&'static str, Fault)>,
) -> Vec<String> {
    let backend = world.backend;
    let world = Arc::new(tokio::sync::Mutex::new(world));
    let mut failed = Vec::new();
    for (name, fault) in faults.into_iter().filter(|(name, _)| wanted(name)) {
        let at = std::time::Instant::now();
        let world = world.clone();
        let task = tokio::spawn(async move {
            let mut world = world.lock().await;
            world.ready().await;
            fault(&mut world).await;
        });
        match task.await {
            Ok(()) => eprintln!("{backend:?}: {name}: ok, {:.1?}", at.elapsed()),
            Err(error) => failed.push(format!("{name}: {}", words_of(error))),
        }
    }
    failed
}

fn words_of(error: tokio::task::JoinError) -> String {
    let panic = error.try_into_panic().ok();
    let text = panic.and_then(|panic| match panic.downcast::<String>() {
        Ok(text) => Some(*text),
        Err(panic) => panic.downcast::<&str>().ok().map(|text| (*text).to_owned()),
    });
    text.unwrap_or_default()
}

/// Fails by the names of all that failed.
pub(crate) fn none_failed(failed: &[String]) {
    assert!(
        failed.is_empty(),
        "{} scenarios failed:\n{}",
        failed.len(),
        failed.join("\n---\n")
    );
}

/// Whether a scenario is to run: `SCENARIO` in the environment picks those whose names hold it.
fn wanted(name: &str) -> bool {
    std::env::var("SCENARIO").map_or(true, |part| name.contains(&part))
}

/// Enough for a message to come that should not.
pub(crate) const A_WHILE: Duration = Duration::from_millis(1500);
