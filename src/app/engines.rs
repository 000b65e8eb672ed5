//! The engines of a process: the implementations of the log and the fan-out that its roles run on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::dependencies::Dependency;
use crate::config::{Config, Role};
use crate::fanout::Fanout;
use crate::fanout::embedded::EmbeddedFanout;
use crate::fanout::redis::RedisFanout;
use crate::health::Health;
use crate::log::embedded::EmbeddedLog;
use crate::log::kafka::KafkaLog;
use crate::log::{Log, LogBrowser, TopicSpec};
use crate::store::Store;
use crate::telemetry::traces::MessagingSystems;

/// The name under which `/health/ready` reports that the topics are missing.
const TOPICS: &str = "topics";

/// Delay before another attempt to create the topics, or to read the settings of the fan-out.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The log and the fan-out of this process.
pub(super) struct Engines {
    pub(super) log: Arc<dyn Log>,
    pub(super) fanout: Arc<dyn Fanout>,
    /// The log, for reading without joining a consumer group. `None` with Kafka, because other
    /// processes can read Kafka themselves.
    pub(super) exclusive_log: Option<Arc<dyn LogBrowser>>,
    is_embedded: bool,
}

/// A setting is well-formed, but the library that uses the setting refuses its value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UnusableSetting(pub(super) String);

/// Validates the settings that only the clients of Kafka and Redis understand. Connects to nothing.
pub(super) fn validate(config: &Config) -> Result<(), UnusableSetting> {
    if config.role() == Role::AllInOne {
        return Ok(());
    }
    let unusable = |error: &dyn std::fmt::Display| UnusableSetting(error.to_string());
    KafkaLog::validate(&config.kafka()).map_err(|error| unusable(&error))?;
    RedisFanout::validate(&config.redis()).map_err(|error| unusable(&error))
}

impl Engines {
    /// The names of the engines in traces.
    pub(super) fn messaging_systems(role: Role) -> MessagingSystems {
        let (log, fanout) = match role {
            Role::AllInOne => ("chatmesh", "chatmesh"),
            Role::Gateway | Role::AiWorker | Role::Relay => ("kafka", "redis"),
        };
        MessagingSystems { log, fanout }
    }

    /// Creates clients of Kafka and Redis. Neither has to be reachable yet.
    pub(super) fn distributed(config: &Config) -> anyhow::Result<Self> {
        let log =
            KafkaLog::connect(&config.kafka()).context("the client of Kafka can't be created")?;
        let fanout = RedisFanout::connect(&config.redis())
            .context("the client of Redis can't be created")?;
        Ok(Self {
            log: Arc::new(log),
            fanout: Arc::new(fanout),
            exclusive_log: None,
            is_embedded: false,
        })
    }

    /// Opens the embedded engines on one local store.
    pub(super) async fn embedded(config: &Config) -> anyhow::Result<Self> {
        let settings = config.embedded();
        let produce_timeout = config.gateway().produce_timeout;
        // Opening recovers the store from disk, which may block for long, so it needs a thread for
        // blocking work.
        tokio::task::spawn_blocking(move || {
            let store = match &settings.data_dir {
                Some(folder) => Store::open(folder, settings.min_free_disk)?,
                None => Store::in_memory(),
            };
            let log = EmbeddedLog::open(store.clone(), &settings, produce_timeout)?;
            let fanout = EmbeddedFanout::open(store, settings.bounds.clone())?;
            let log = Arc::new(log);
            Ok(Self {
                exclusive_log: Some(log.clone()),
                log,
                fanout: Arc::new(fanout),
                is_embedded: true,
            })
        })
        .await?
    }

    /// The names of the dependencies in `/health/ready`.
    pub(super) fn dependency_names(&self) -> &'static [&'static str] {
        if self.is_embedded {
            &["store", TOPICS]
        } else {
            &["kafka", "redis", TOPICS]
        }
    }

    pub(super) fn dependencies(&self, config: &Config) -> Vec<Dependency> {
        let log = Arc::clone(&self.log);
        if self.is_embedded {
            let location = config
                .embedded()
                .data_dir
                .unwrap_or_else(|| "memory".into());
            return vec![Dependency::log(
                "store",
                location.display().to_string(),
                log,
            )];
        }
        let fanout = Arc::clone(&self.fanout);
        vec![
            Dependency::log("kafka", config.kafka().bootstrap_servers, log),
            Dependency::fanout("redis", config.redis_address(), fanout),
        ]
    }

    /// Creates missing topics, waiting for the log as long as necessary, and logs warnings about
    /// settings of the log and the fan-out that weaken the guarantees.
    pub(super) async fn prepare(&self, config: &Config, topics: &[String], health: &Health) {
        let (partitions, replication) = if self.is_embedded {
            (config.embedded().partitions, 1)
        } else {
            let kafka = config.kafka();
            (kafka.topic_partitions, kafka.replication_factor)
        };
        let specs: Vec<TopicSpec> = topics
            .iter()
            .map(|name| TopicSpec {
                name: name.clone(),
                partitions,
                replication,
            })
            .collect();
        let mut last_logged = String::new();
        loop {
            match self.log.ensure_topics(&specs).await {
                Ok(warnings) => {
                    for warning in warnings {
                        tracing::warn!("{warning}");
                    }
                    health.set(TOPICS, Ok(()));
                    break;
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != last_logged {
                        tracing::warn!("waiting for the topics {}: {error}", topics.join(", "));
                        last_logged.clone_from(&error);
                    }
                    health.set(TOPICS, Err(error));
                }
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        loop {
            match self.fanout.warnings().await {
                Ok(warnings) => {
                    for warning in warnings {
                        tracing::warn!("{warning}");
                    }
                    return;
                }
                // The debug level suffices, because `dependencies` warns if the fan-out is
                // unavailable.
                Err(error) => {
                    tracing::debug!(%error, "reading the settings of the fan-out failed, retrying");
                }
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}
