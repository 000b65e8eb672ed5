//! The backends of one distributed system: its own Kafka broker, Redis and model API.
//!
//! The names of the consumer groups are fixed, so two tests on one broker would be members of the
//! same groups and would rebalance each other. A killed member would remain in its group for
//! seconds, into the next test. Therefore each such test has a broker of its own, with the default
//! names of the topics.

use super::kafka_broker::KafkaBroker;
use super::kafka_client::KafkaClient;
use super::machine::{MachinePermit, share_machine};
use super::model::ScriptedModel;
use super::process::ProcessSpec;
use super::redis::PrivateRedis;
use super::redis_cluster::RedisCluster;

/// Topic that gateways produce to and workers consume.
pub(crate) const MESSAGES: &str = "incoming_messages";
/// Topic that workers produce to and relays consume.
pub(crate) const RESPONSES: &str = "responses";
/// The workers' consumer group.
pub(crate) const WORKERS: &str = "ai-consumer-group";
/// The relays' consumer group.
pub(crate) const RELAYS: &str = "message-relay-group";

/// The backends of one test. The roles that use them must be dropped first.
pub(crate) struct Stack {
    pub(crate) kafka: KafkaBroker,
    pub(crate) redis: PrivateRedis,
    /// If present, the roles use the cluster instead of `redis`.
    pub(crate) cluster: Option<RedisCluster>,
    pub(crate) model: ScriptedModel,
    _permit: MachinePermit,
}

impl Stack {
    /// Starts all backends with a model that answers `echo: ` followed by the prompt.
    pub(crate) async fn start() -> Self {
        Self::start_with(ScriptedModel::start().await).await
    }

    /// Starts all backends with this model.
    pub(crate) async fn start_with(model: ScriptedModel) -> Self {
        let mut stack = Self::prepare(model).await;
        stack.kafka.spawn_and_wait().await;
        stack.redis.restart().await;
        stack
    }

    /// Starts all backends, with a Redis cluster of three nodes instead of one Redis.
    pub(crate) async fn start_clustered(model: ScriptedModel) -> Self {
        let mut stack = Self::prepare(model).await;
        stack.kafka.spawn();
        stack.cluster = Some(RedisCluster::start().await);
        stack.kafka.wait_ready().await;
        stack
    }

    /// Chooses the addresses of Kafka and Redis, and starts neither.
    pub(crate) async fn prepare(model: ScriptedModel) -> Self {
        let permit = share_machine().await;
        Self {
            kafka: KafkaBroker::prepare(""),
            redis: PrivateRedis::prepare(),
            cluster: None,
            model,
            _permit: permit,
        }
    }

    pub(crate) fn kafka_client(&self) -> KafkaClient {
        self.kafka.kafka_client()
    }

    /// Adds the addresses of the backends. The address of a single Redis is set as host and port,
    /// with the variables of the original system.
    fn with_backends(&self, spec: ProcessSpec) -> ProcessSpec {
        let spec = match &self.cluster {
            Some(cluster) => spec.env("REDIS_URL", &cluster.url()),
            None => spec
                .env("REDIS_HOST", "127.0.0.1")
                .env("REDIS_PORT", &self.redis.port().to_string()),
        };
        spec.env("KAFKA_BOOTSTRAP_SERVERS", &self.kafka.address())
            .env("KAFKA_TOPIC_PARTITIONS", "6")
            .env("LOG_LEVEL", "info")
    }

    pub(crate) fn gateway(&self, name: &str) -> ProcessSpec {
        self.with_backends(ProcessSpec::gateway())
            .env("SERVER_ID", name)
            .with_name(name)
    }

    pub(crate) fn worker(&self, name: &str) -> ProcessSpec {
        self.with_backends(ProcessSpec::ai_worker())
            .env("OPENAI_BASE_URL", &self.model.base_url())
            .env("OPENAI_API_KEY", "sk-test")
            // The limit is generous, because the test machine may be busy.
            .env("OPENAI_TIMEOUT_MS", "10000")
            .env("SERVER_ID", name)
            .with_name(name)
    }

    pub(crate) fn relay(&self, name: &str) -> ProcessSpec {
        self.with_backends(ProcessSpec::relay())
            .env("SERVER_ID", name)
            .with_name(name)
    }
}
