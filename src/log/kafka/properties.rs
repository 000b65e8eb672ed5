//! The configuration of the Kafka clients: chatmesh's defaults, overridden by `KAFKA_PROPERTIES`,
//! overridden by the few properties on which the guarantees of [`crate::log`] depend.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use secrecy::ExposeSecret;

use super::broker_watchdog::STATISTICS_INTERVAL_MS;
use crate::config::settings::KafkaSettings;
use crate::log::LogError;

/// Properties of consumers that the log sets itself, so `KAFKA_PROPERTIES` must not contain them;
/// each with the reason. The configuration refuses further properties before.
const CONSUMER_PROPERTIES: &[(&str, &str)] = &[
    ("group.id", "each role has its own consumer group"),
    (
        "enable.auto.commit",
        "stored offsets have to be committed in the background",
    ),
    (
        "enable.auto.offset.store",
        "an offset is stored only when its record is finished",
    ),
    ("group.protocol", "only the classic protocol is supported"),
];

/// Alternative names of properties, each with the canonical name. librdkafka uses the value that is
/// set last under either name, and properties are set in an undefined order. Therefore only
/// canonical names are set.
const PROPERTY_ALIASES: &[(&str, &str)] = &[
    ("metadata.broker.list", "bootstrap.servers"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("request.required.acks", "acks"),
    ("compression.codec", "compression.type"),
];

/// Builds the configurations of librdkafka's clients from checked settings.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    settings: KafkaSettings,
}

impl Properties {
    /// Checks each entry of `KAFKA_PROPERTIES` by itself. Contradictions between entries are found
    /// only when a client is created.
    pub(super) fn new(settings: &KafkaSettings) -> Result<Self, LogError> {
        for (name, value) in &settings.properties {
            if let Some((_, reason)) = CONSUMER_PROPERTIES
                .iter()
                .find(|(reserved, _)| reserved == name)
            {
                return Err(LogError::Configuration(format!(
                    "KAFKA_PROPERTIES: {name} cannot be set: {reason}; remove it"
                )));
            }
            let mut single = ClientConfig::new();
            single.set(name, value.expose_secret());
            if let Err(error) = single.create_native_config() {
                let reason = match error {
                    KafkaError::ClientConfig(_, description, _, _) => description,
                    other => other.to_string(),
                };
                let remedy = if reason.contains("not available at build time") {
                    "this executable was built without TLS to Kafka, build it with \
                     `--features kafka-tls`"
                } else {
                    "see librdkafka's list of properties"
                };
                return Err(LogError::Configuration(format!(
                    "KAFKA_PROPERTIES: {name}: {}; {remedy}",
                    hide_value(&reason, value.expose_secret())
                )));
            }
        }
        Ok(Self {
            settings: settings.clone(),
        })
    }

    /// Time limit of an append (`PRODUCE_TIMEOUT_MS`).
    pub(super) fn produce_timeout(&self) -> std::time::Duration {
        self.settings.produce_timeout
    }

    /// The configuration of a client that is neither a producer nor a member of a group.
    pub(super) fn client(&self) -> ClientConfig {
        self.merge(&[])
    }

    /// The configuration of the producer.
    pub(super) fn producer(&self) -> ClientConfig {
        let timeout = self.settings.produce_timeout.as_millis().max(1);
        // Shorter than the time limit of an append, so that a missing topic is reported in time.
        let propagation = (timeout / 2).max(1);
        self.merge(&[
            ("acks", "all"),
            ("enable.idempotence", "true"),
            // The same partitioner as `log::partitioner`.
            ("partitioner", "murmur2_random"),
            ("compression.type", "lz4"),
            ("batch.size", "16384"),
            ("linger.ms", &self.settings.linger.as_millis().to_string()),
            ("message.timeout.ms", &timeout.to_string()),
            (
                "topic.metadata.propagation.max.ms",
                &propagation.to_string(),
            ),
            ("queue.buffering.max.kbytes", "65536"),
            ("statistics.interval.ms", STATISTICS_INTERVAL_MS),
        ])
    }

    /// The configuration of a member of this consumer group.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let assignor = if self.settings.interop {
            "range"
        } else {
            "cooperative-sticky"
        };
        let mut config = self.merge(&[
            ("auto.commit.interval.ms", "1000"),
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", assignor),
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "1500"),
            ("statistics.interval.ms", STATISTICS_INTERVAL_MS),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.error.backoff.ms", "100"),
            ("fetch.queue.backoff.ms", "100"),
            // The maximum delay until a topic that is created or gets more partitions is noticed.
            ("topic.metadata.refresh.interval.ms", "5000"),
        ]);
        config.set("group.id", group);
        config.set("enable.auto.commit", "true");
        config.set("enable.auto.offset.store", "false");
        config
    }

    /// The configuration with these defaults and the defaults of every client, overridden by
    /// `KAFKA_PROPERTIES`.
    fn merge(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut merged: BTreeMap<&str, &str> = BTreeMap::from([
            (
                "bootstrap.servers",
                self.settings.bootstrap_servers.as_str(),
            ),
            ("client.id", self.settings.client_id.as_str()),
            ("reconnect.backoff.ms", "100"),
            ("reconnect.backoff.max.ms", "1000"),
            ("socket.connection.setup.timeout.ms", "10000"),
            ("socket.nagle.disable", "true"),
            ("socket.keepalive.enable", "true"),
        ]);
        merged.extend(defaults.iter().copied());
        for (name, value) in &self.settings.properties {
            let name = PROPERTY_ALIASES
                .iter()
                .find(|(alias, _)| alias == name)
                .map_or(name.as_str(), |(_, canonical)| canonical);
            merged.insert(name, value.expose_secret());
        }
        let mut config = ClientConfig::new();
        for (name, value) in merged {
            config.set(name, value);
        }
        config
    }

    /// The error for a client that librdkafka refused to create, mostly because properties
    /// contradict each other. `client` names the client in the error's text.
    pub(super) fn creation_error(&self, client: &str, error: &KafkaError) -> LogError {
        LogError::Configuration(format!(
            "the kafka {client} cannot be created: {}; check KAFKA_PROPERTIES",
            self.redact(&error.to_string())
        ))
    }

    /// Hides the values of `KAFKA_PROPERTIES` in a text of librdkafka.
    fn redact(&self, text: &str) -> String {
        self.settings
            .properties
            .values()
            .fold(text.to_owned(), |text, value| {
                hide_value(&text, value.expose_secret())
            })
    }
}

/// Replaces a property's value in the text, because the value may be a secret. A value of up to 3
/// bytes, such as `1` or `all`, is no secret, and replacing it would make the text unreadable.
fn hide_value(text: &str, value: &str) -> String {
    if value.len() < 4 {
        text.to_owned()
    } else {
        text.replace(value, "[hidden]")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(properties: &[(&str, &str)]) -> KafkaSettings {
        KafkaSettings {
            bootstrap_servers: "127.0.0.1:1".to_owned(),
            topic_partitions: 12,
            replication_factor: 1,
            linger: Duration::from_millis(1),
            produce_timeout: Duration::from_secs(10),
            interop: false,
            properties: properties
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned().into()))
                .collect(),
            client_id: "test".to_owned(),
        }
    }

    fn refusal(name: &str, value: &str) -> String {
        match Properties::new(&settings(&[(name, value)])) {
            Err(LogError::Configuration(reason)) => reason,
            other => panic!("{name}={value} should be refused, got {other:?}"),
        }
    }

    #[test]
    fn invalid_property_is_named_without_its_value() {
        assert!(refusal("no.such.property", "x").contains("no.such.property"));
        let reason = refusal("session.timeout.ms", "hunter2secret");
        assert!(reason.contains("session.timeout.ms"), "{reason}");
        assert!(!reason.contains("hunter2secret"), "{reason}");
        assert!(refusal("enable.auto.offset.store", "true").contains("cannot be set"));
    }

    #[test]
    fn properties_override_defaults_also_under_an_alias() {
        let properties =
            Properties::new(&settings(&[("delivery.timeout.ms", "777"), ("acks", "1")])).unwrap();
        let producer = properties.producer();
        assert_eq!(producer.get("message.timeout.ms"), Some("777"));
        assert_eq!(producer.get("delivery.timeout.ms"), None);
        assert_eq!(producer.get("acks"), Some("1"));
    }

    #[test]
    fn interop_group_uses_range_assignment() {
        let mut settings = settings(&[]);
        let strategy = |settings: &KafkaSettings| {
            let config = Properties::new(settings).unwrap().consumer("g");
            config
                .get("partition.assignment.strategy")
                .map(str::to_owned)
        };
        assert_eq!(strategy(&settings).as_deref(), Some("cooperative-sticky"));
        settings.interop = true;
        assert_eq!(strategy(&settings).as_deref(), Some("range"));
    }
}
