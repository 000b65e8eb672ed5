//! The log and the fan-out that the roles of this process run on.

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
use crate::telemetry::traces::Systems;

/// The name under which readiness speaks of topics that are not there yet.
const TOPICS: &str = "topics";
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Engines {
    pub(super) log: Arc<dyn Log>,
    pub(super) fanout: Arc<dyn Fanout>,
    /// The log once more, where no other process can look into it.
    pub(super) own: Option<Arc<dyn LogBrowser>>,
    embedded: bool,
}

/// Settings that only who uses them can judge, and refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub(super) String);

/// Checks what only the clients of Kafka and Redis can judge; nothing is connected to.
pub(super) fn validate(config: &Config) -> Result<(), Unusable> {
    if config.role() == Role::AllInOne {
        return Ok(());
    }
    let unusable = |error: &dyn std::fmt::Display| Unusable(error.to_string());
    KafkaLog::validate(&config.kafka()).map_err(|error| unusable(&error))?;
    RedisFanout::validate(&config.redis()).map_err(|error| unusable(&error))
}

impl Engines {
    /// What they are called in traces.
    pub(super) fn systems(role: Role) -> Systems {
        let (log, fanout) = match role {
            Role::AllInOne => ("chatmesh", "chatmesh"),
            Role::Gateway | Role::AiWorker | Role::Relay => ("kafka", "redis"),
        };
        Systems { log, fanout }
    }

    /// Kafka and Redis. Neither need be there yet.
    pub(super) fn distributed(config: &Config) -> anyhow::Result<Self> {
        let log = KafkaLog::connect(&config.kafka()).context("Kafka's client can't be made")?;
        let fanout =
            RedisFanout::connect(&config.redis()).context("Redis's client can't be made")?;
        Ok(Self {
            log: Arc::new(log),
            fanout: Arc::new(fanout),
            own: None,
            embedded: false,
        })
    }

    /// One local store for both.
    pub(super) async fn embedded(config: &Config) -> anyhow::Result<Self> {
        let settings = config.embedded();
        let produce_timeout = config.gateway().produce_timeout;
        // Opening reads the disk, for as long as it takes.
        tokio::task::spawn_blocking(move || {
            let store = match &settings.data_dir {
                Some(folder) => Store::open(folder, settings.min_free_disk)?,
                None => Store::in_memory(),
            };
            let log = EmbeddedLog::open(store.clone(), &settings, produce_timeout)?;
            let fanout = EmbeddedFanout::open(store, settings.bounds.clone())?;
            let log = Arc::new(log);
            Ok(Self {
                own: Some(log.clone()),
                log,
                fanout: Arc::new(fanout),
                embedded: true,
            })
        })
        .await?
    }

    /// The dependencies' names, as readiness says them.
    pub(super) fn names(&self) -> &'static [&'static str] {
        if self.embedded {
            &["store", TOPICS]
        } else {
            &["kafka", "redis", TOPICS]
        }
    }

    pub(super) fn dependencies(&self, config: &Config) -> Vec<Dependency> {
        let log = Arc::clone(&self.log);
        if self.embedded {
            let place = config
                .embedded()
                .data_dir
                .unwrap_or_else(|| "memory".into());
            return vec![Dependency::log("store", place.display().to_string(), log)];
        }
        let fanout = Arc::clone(&self.fanout);
        vec![
            Dependency::log("kafka", config.kafka().bootstrap_servers, log),
            Dependency::fanout("redis", config.redis_place(), fanout),
        ]
    }

    /// Sees to it that the topics are there, however long the log is away, and warns about
    /// settings of log and fan-out that endanger what is promised.
    pub(super) async fn prepare(&self, config: &Config, topics: &[String], health: &Health) {
        let (partitions, replication) = if self.embedded {
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
        let mut said = String::new();
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
                    if error != said {
                        tracing::warn!("waiting for the topics {}: {error}", topics.join(", "));
                        said.clone_from(&error);
                    }
                    health.set(TOPICS, Err(error));
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        loop {
            match self.fanout.warnings().await {
                Ok(warnings) => {
                    for warning in warnings {
                        tracing::warn!("{warning}");
                    }
                    return;
                }
                // The watcher of dependencies says what it waits for.
                Err(error) => tracing::debug!(%error, "the fan-out's settings are not known yet"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}
