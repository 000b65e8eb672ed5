//! What the Kafka clients are told: our defaults, `KAFKA_PROPERTIES` over them, and over those the
//! few that the contract of the log hangs on.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use secrecy::ExposeSecret;

use super::orphan::INTERVAL_MS;
use crate::config::settings::KafkaSettings;
use crate::log::LogError;

/// What nobody may set, and why.
const RESERVED: &[(&str, &str)] = &[
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

/// Two names of one property: librdkafka takes whichever it is told last, and we tell it in no
/// particular order.
const ALIASES: &[(&str, &str)] = &[
    ("metadata.broker.list", "bootstrap.servers"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("request.required.acks", "acks"),
    ("compression.codec", "compression.type"),
];

/// Settings, checked, as configurations of librdkafka.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    settings: KafkaSettings,
}

impl Properties {
    /// Checks every entry of `KAFKA_PROPERTIES` alone. Contradictions between them show when a
    /// client is made.
    pub(super) fn new(settings: &KafkaSettings) -> Result<Self, LogError> {
        for (name, value) in &settings.properties {
            if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
                return Err(LogError::Configuration(format!(
                    "KAFKA_PROPERTIES: {name} cannot be set: {why}; remove it"
                )));
            }
            let mut alone = ClientConfig::new();
            alone.set(name, value.expose_secret());
            if let Err(error) = alone.create_native_config() {
                let reason = match error {
                    KafkaError::ClientConfig(_, description, _, _) => description,
                    other => other.to_string(),
                };
                let what_to_do = if reason.contains("not available at build time") {
                    "this executable was built without TLS to Kafka, build it with \
                     `--features kafka-tls`"
                } else {
                    "see librdkafka's list of properties"
                };
                return Err(LogError::Configuration(format!(
                    "KAFKA_PROPERTIES: {name}: {}; {what_to_do}",
                    without(&reason, value.expose_secret())
                )));
            }
        }
        Ok(Self {
            settings: settings.clone(),
        })
    }

    /// How long an append may take.
    pub(super) fn produce_timeout(&self) -> std::time::Duration {
        self.settings.produce_timeout
    }

    /// A client that only asks.
    pub(super) fn client(&self) -> ClientConfig {
        self.with(&[])
    }

    /// The producer.
    pub(super) fn producer(&self) -> ClientConfig {
        let timeout = self.settings.produce_timeout.as_millis().max(1);
        // That a topic is missing shows within the time that an append has.
        let propagation = (timeout / 2).max(1);
        self.with(&[
            ("acks", "all"),
            ("enable.idempotence", "true"),
            // Java's placement, which the original's producers had too.
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
            ("statistics.interval.ms", INTERVAL_MS),
        ])
    }

    /// A member of a group.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let assignor = if self.settings.interop {
            "range"
        } else {
            "cooperative-sticky"
        };
        let mut config = self.with(&[
            ("auto.commit.interval.ms", "1000"),
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", assignor),
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "1500"),
            ("statistics.interval.ms", INTERVAL_MS),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.error.backoff.ms", "100"),
            ("fetch.queue.backoff.ms", "100"),
            // How soon a topic that is made later, or grows, is seen.
            ("topic.metadata.refresh.interval.ms", "5000"),
        ]);
        config.set("group.id", group);
        config.set("enable.auto.commit", "true");
        config.set("enable.auto.offset.store", "false");
        config
    }

    fn with(&self, defaults: &[(&str, &str)]) -> ClientConfig {
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
            let name = ALIASES
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

    /// A text of librdkafka about these settings, without the values of `KAFKA_PROPERTIES`.
    pub(super) fn redact(&self, text: &str) -> String {
        self.settings
            .properties
            .values()
            .fold(text.to_owned(), |text, value| {
                without(&text, value.expose_secret())
            })
    }
}

/// Values may be secrets. Short ones are words such as `1` or `all`, and hiding them would only
/// spoil the sentence.
fn without(text: &str, value: &str) -> String {
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
    fn a_bad_property_is_named_and_its_value_is_not_shown() {
        assert!(refusal("no.such.property", "x").contains("no.such.property"));
        let reason = refusal("session.timeout.ms", "hunter2secret");
        assert!(reason.contains("session.timeout.ms"), "{reason}");
        assert!(!reason.contains("hunter2secret"), "{reason}");
        assert!(refusal("enable.auto.offset.store", "true").contains("cannot be set"));
    }

    #[test]
    fn properties_win_over_defaults_also_under_their_other_name() {
        let properties =
            Properties::new(&settings(&[("delivery.timeout.ms", "777"), ("acks", "1")])).unwrap();
        let producer = properties.producer();
        assert_eq!(producer.get("message.timeout.ms"), Some("777"));
        assert_eq!(producer.get("delivery.timeout.ms"), None);
        assert_eq!(producer.get("acks"), Some("1"));
    }

    #[test]
    fn a_group_shared_with_an_original_service_uses_range() {
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
