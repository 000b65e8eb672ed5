//! A complete running system on one of three backends: everything embedded, Kafka with one Redis,
//! or Kafka with a Redis cluster.

use std::path::{Path, PathBuf};

use super::TEST_TIMEOUT;
use super::kafka_client::KafkaClient;
use super::model::ScriptedModel;
use super::process::{ChatmeshProcess, ProcessSpec};
use super::stack::Stack;

/// The implementation of log and fan-out that the system uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Embedded,
    /// Kafka and one Redis.
    Redis,
    /// Kafka and a Redis cluster.
    Cluster,
}

/// The servers that the roles use.
enum Services {
    /// The process embeds its log and fan-out. Only the model API is a separate server.
    Embedded(ScriptedModel),
    Distributed(Box<Stack>),
}

/// Two gateways, two workers and two relays. On the embedded backend, one process with all roles,
/// which is listed as a gateway.
pub(crate) struct TestSystem {
    pub(crate) backend: Backend,
    pub(crate) gateways: Vec<ChatmeshProcess>,
    pub(crate) workers: Vec<ChatmeshProcess>,
    pub(crate) relays: Vec<ChatmeshProcess>,
    env: Vec<(String, String)>,
    // Dropped last, because the roles must stop before their servers.
    services: Services,
}

impl TestSystem {
    /// Starts the system. The variables apply to every role and override the defaults.
    pub(crate) async fn start(backend: Backend, env: &[(&str, &str)]) -> Self {
        let model = ScriptedModel::start().await;
        let services = match backend {
            Backend::Embedded => Services::Embedded(model),
            Backend::Redis => Services::Distributed(Box::new(Stack::start_with(model).await)),
            Backend::Cluster => {
                Services::Distributed(Box::new(Stack::start_clustered(model).await))
            }
        };
        let to_owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut system = Self {
            backend,
            gateways: Vec::new(),
            workers: Vec::new(),
            relays: Vec::new(),
            env: env.iter().map(to_owned).collect(),
            services,
        };
        match backend {
            Backend::Embedded => system.gateways.push(system.all_in_one().spawn()),
            Backend::Redis | Backend::Cluster => {
                for n in 1..=2 {
                    let gateway = system.gateway(&format!("server_{n}"));
                    system.gateways.push(gateway.spawn());
                    let worker = system.worker(&format!("worker_{n}"));
                    system.workers.push(worker.spawn());
                    let relay = system.relay(&format!("relay_{n}"));
                    system.relays.push(relay.spawn());
                }
            }
        }
        system.wait_ready().await;
        system
    }

    /// Waits until every role is ready.
    pub(crate) async fn wait_ready(&mut self) {
        let roles = self
            .gateways
            .iter_mut()
            .chain(&mut self.workers)
            .chain(&mut self.relays);
        for role in roles {
            role.wait_ready(TEST_TIMEOUT).await;
        }
    }

    pub(crate) fn model(&self) -> &ScriptedModel {
        match &self.services {
            Services::Embedded(model) => model,
            Services::Distributed(stack) => &stack.model,
        }
    }

    /// The Kafka and Redis servers. Panics on the embedded backend.
    pub(crate) fn stack(&self) -> &Stack {
        match &self.services {
            Services::Embedded(_) => panic!("the embedded backend has no Kafka and no Redis"),
            Services::Distributed(stack) => stack,
        }
    }

    pub(crate) fn stack_mut(&mut self) -> &mut Stack {
        match &mut self.services {
            Services::Embedded(_) => panic!("the embedded backend has no Kafka and no Redis"),
            Services::Distributed(stack) => stack,
        }
    }

    pub(crate) fn kafka_client(&self) -> KafkaClient {
        self.stack().kafka_client()
    }

    fn with_env(&self, spec: ProcessSpec) -> ProcessSpec {
        self.env
            .iter()
            .fold(spec, |spec, (name, value)| spec.env(name, value))
    }

    /// A process with all roles and a data directory, so that it can be restarted with its data.
    pub(crate) fn all_in_one(&self) -> ProcessSpec {
        let spec = ProcessSpec::durable()
            .env("OPENAI_BASE_URL", &self.model().base_url())
            .env("OPENAI_TIMEOUT_MS", "10000");
        self.with_env(spec)
    }

    pub(crate) fn gateway(&self, name: &str) -> ProcessSpec {
        self.with_env(self.stack().gateway(name))
    }

    /// A worker whose API key is its name, so that a request to the model shows which worker sent
    /// it.
    pub(crate) fn worker(&self, name: &str) -> ProcessSpec {
        let spec = self.stack().worker(name).env("OPENAI_API_KEY", name);
        self.with_env(spec)
    }

    pub(crate) fn relay(&self, name: &str) -> ProcessSpec {
        self.with_env(self.stack().relay(name))
    }

    /// The index of the worker that sent the last request with this prompt to the model.
    pub(crate) fn worker_index_for(&self, prompt: &str) -> usize {
        let requests = self.model().requests_for(prompt);
        let key = requests
            .last()
            .and_then(|request| request.authorization.clone());
        match key.as_deref() {
            Some("Bearer worker_1") => 0,
            Some("Bearer worker_2") => 1,
            other => panic!("{prompt} was requested with the key {other:?}"),
        }
    }

    /// The port of gateway `n` modulo the number of gateways: the embedded backend has only one.
    pub(crate) fn port(&self, n: usize) -> u16 {
        self.gateways[n % self.gateways.len()].port()
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.gateways.iter().map(ChatmeshProcess::port).collect()
    }

    /// Writes the logs of all roles to a folder below the target folder, and returns that folder.
    pub(super) fn save_logs(&self) -> PathBuf {
        let name = format!("system-{:?}-{}", self.backend, std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (role, processes) in [
            ("gateway", &self.gateways),
            ("worker", &self.workers),
            ("relay", &self.relays),
        ] {
            for (n, process) in processes.iter().enumerate() {
                let file = folder.join(format!("{role}_{}.log", n + 1));
                std::fs::write(file, process.log()).expect("write a file");
            }
        }
        folder
    }

    /// Deletes every key of Redis.
    pub(crate) fn flush_redis(&self) {
        match &self.stack().cluster {
            Some(cluster) => cluster.flush_all(),
            None => self.stack().redis.flush_all(),
        }
    }

    /// Kills Redis and restarts it with the data of its append-only file.
    pub(crate) async fn restart_redis(&mut self) {
        let stack = self.stack_mut();
        match &mut stack.cluster {
            Some(cluster) => cluster.restart().await,
            None => stack.redis.restart().await,
        }
    }
}
