//! The distributed system of one test: its own Kafka, Redis and model, and roles on them.
//!
//! The names of the consumer groups are part of the contract, so two tests on one broker would
//! share their groups and rebalance each other; a killed member would still be counted for seconds
//! in the next test. So every such test has a broker of its own, where the topics have their
//! default names too, and two run at a time: they mostly wait, for sessions to end and leases to
//! run out.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::kafka::PlainKafka;
use super::kafka_broker::KafkaBroker;
use super::model::ScriptedModel;
use super::process::Spec;
use super::redis::PrivateRedis;
use super::redis_cluster::RedisCluster;

/// The gateways produce here, the workers consume it.
pub(crate) const MESSAGES: &str = "incoming_messages";
/// The workers produce here, the relays consume it.
pub(crate) const RESPONSES: &str = "responses";
/// The workers' consumer group.
pub(crate) const WORKERS: &str = "ai-consumer-group";
/// The relays' consumer group.
pub(crate) const RELAYS: &str = "message-relay-group";

/// How many such tests run at a time.
const PLACES: u32 = 2;

static TURN: Semaphore = Semaphore::const_new(PLACES as usize);

/// A test's turn on the machine, for those that start many processes.
pub(crate) type Turn = SemaphorePermit<'static>;

/// Beside others.
pub(crate) async fn turn() -> Turn {
    TURN.acquire().await.expect("never closed")
}

/// Alone: for those that measure times, or take the whole machine.
pub(crate) async fn turn_alone() -> Turn {
    TURN.acquire_many(PLACES).await.expect("never closed")
}

/// The backends of one test. Drop the roles before it.
pub(crate) struct Stack {
    pub(crate) kafka: KafkaBroker,
    pub(crate) redis: PrivateRedis,
    /// In place of `redis`, where the roles are to use a cluster.
    pub(crate) cluster: Option<RedisCluster>,
    pub(crate) model: ScriptedModel,
    _turn: Turn,
}

impl Stack {
    /// Everything is up, and the model answers by `echo: ` and the prompt.
    pub(crate) async fn start() -> Self {
        Self::start_with(ScriptedModel::start().await).await
    }

    pub(crate) async fn start_with(model: ScriptedModel) -> Self {
        let mut stack = Self::not_started(model).await;
        stack.kafka.run().await;
        stack.redis.restart().await;
        stack
    }

    /// With a Redis cluster of three in place of one Redis.
    pub(crate) async fn start_clustered(model: ScriptedModel) -> Self {
        let mut stack = Self::not_started(model).await;
        stack.kafka.spawn();
        stack.cluster = Some(RedisCluster::start().await);
        stack.kafka.ready().await;
        stack
    }

    /// Addresses are known, and neither Kafka nor Redis is there yet.
    pub(crate) async fn not_started(model: ScriptedModel) -> Self {
        let turn = turn().await;
        Self {
            kafka: KafkaBroker::prepare(""),
            redis: PrivateRedis::not_started(),
            cluster: None,
            model,
            _turn: turn,
        }
    }

    pub(crate) fn plain(&self) -> PlainKafka {
        self.kafka.plain()
    }

    /// The environment as the original's services have it.
    fn on(&self, spec: Spec) -> Spec {
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

    pub(crate) fn gateway(&self, name: &str) -> Spec {
        self.on(Spec::gateway()).env("SERVER_ID", name).named(name)
    }

    pub(crate) fn worker(&self, name: &str) -> Spec {
        self.on(Spec::ai_worker())
            .env("OPENAI_BASE_URL", &self.model.base_url())
            .env("OPENAI_API_KEY", "sk-test")
            // A busy test machine is slower than any model.
            .env("OPENAI_TIMEOUT_MS", "10000")
            .env("SERVER_ID", name)
            .named(name)
    }

    pub(crate) fn relay(&self, name: &str) -> Spec {
        self.on(Spec::relay()).env("SERVER_ID", name).named(name)
    }
}
