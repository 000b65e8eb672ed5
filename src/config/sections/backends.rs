//! Composes the settings of the log and the fan-out: of Kafka and Redis, or of the embedded
//! engines.

use std::path::PathBuf;

use crate::config::bounds::{Bounds, UserLimits};
use crate::config::settings::{EmbeddedSettings, KafkaSettings, RedisSettings};
use crate::config::{Config, Role, keys};

impl Config {
    /// Settings of the Kafka client.
    pub fn kafka(&self) -> KafkaSettings {
        let properties = self.map(&keys::KAFKA_PROPERTIES).into_iter();
        KafkaSettings {
            bootstrap_servers: self.list(&keys::KAFKA_BOOTSTRAP_SERVERS).join(","),
            topic_partitions: self.int_as(&keys::KAFKA_TOPIC_PARTITIONS),
            replication_factor: self.int_as(&keys::KAFKA_REPLICATION_FACTOR),
            linger: self.duration(&keys::KAFKA_LINGER_MS),
            produce_timeout: self.duration(&keys::PRODUCE_TIMEOUT_MS),
            interop: self.interop(),
            properties: properties.map(|(k, v)| (k, v.into())).collect(),
            client_id: self.server_id(),
        }
    }

    /// Settings of the Redis client.
    pub fn redis(&self) -> RedisSettings {
        RedisSettings {
            url: self.redis_url().into(),
            command_timeout: self.duration(&keys::REDIS_COMMAND_TIMEOUT_MS),
            bounds: self.bounds(),
        }
    }

    pub(in crate::config) fn redis_url(&self) -> String {
        if let Some(url) = self.text(&keys::REDIS_URL) {
            return url.to_owned();
        }
        let host = self.text(&keys::REDIS_HOST).unwrap_or("localhost");
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let port = self.int(&keys::REDIS_PORT);
        let db = self.int(&keys::REDIS_DB);
        let without_password = format!("redis://{host}:{port}/{db}");
        let Some(password) = self.text(&keys::REDIS_PASSWORD) else {
            return without_password;
        };
        let Ok(mut url) = url::Url::parse(&without_password) else {
            return without_password;
        };
        // `set_password` encodes every special character except the percent sign.
        match url.set_password(Some(&password.replace('%', "%25"))) {
            Ok(()) => url.into(),
            Err(()) => without_password,
        }
    }

    /// Host and port of Redis as a text for logs, without the password.
    pub fn redis_address(&self) -> String {
        match url::Url::parse(&self.redis_url()) {
            Ok(url) => {
                let host = url.host_str().unwrap_or_default();
                url.port()
                    .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
            }
            Err(_) => "the address in REDIS_URL".to_owned(),
        }
    }

    /// Settings of the embedded log and fan-out.
    pub fn embedded(&self) -> EmbeddedSettings {
        let data_dir = PathBuf::from(self.text_or_empty(&keys::DATA_DIR));
        EmbeddedSettings {
            data_dir: (!self.bool(&keys::EPHEMERAL)).then_some(data_dir),
            partitions: self.int_as(&keys::EMBEDDED_PARTITIONS),
            retention: self.duration(&keys::LOG_RETENTION),
            min_free_disk: self.int(&keys::MIN_FREE_DISK),
            bounds: self.bounds(),
        }
    }

    pub(in crate::config) fn bounds(&self) -> Bounds {
        Bounds {
            dedup_ttl: self.duration(&keys::DEDUP_TTL),
            mailbox_ttl: self.duration(&keys::MAILBOX_TTL),
            mailbox_frames: self.size(&keys::MAILBOX_FRAMES),
            mailbox_bytes: self.size(&keys::MAILBOX_BYTES),
            history_turns: self.size(&keys::HISTORY_TURNS),
            history_ttl: self.duration(&keys::HISTORY_RETENTION),
            pending_ttl: self.duration(&keys::MESSAGE_MAX_AGE),
            limits: self.user_limits(),
        }
    }

    pub(in crate::config) fn user_limits(&self) -> UserLimits {
        UserLimits {
            requests: self.int_as(&keys::USER_RATE_LIMIT_MAX_REQUESTS),
            window: self.duration(&keys::USER_RATE_LIMIT_WINDOW_SECONDS),
            daily_tokens: self.int(&keys::USER_DAILY_TOKENS),
            conversations: self.int_as(&keys::USER_MAX_CONVERSATIONS),
            // Unlimited beside services of the original system: a relay of that system does not
            // remove messages from pending. They stay pending until a gateway sees their answers,
            // so the limit would reject users too early.
            max_pending: if self.interop() {
                0
            } else {
                self.int_as(&keys::USER_MAX_PENDING)
            },
        }
    }

    /// Whether a service of the original system is part of the deployment. Never in `all-in-one`.
    pub(in crate::config) fn interop(&self) -> bool {
        self.role() != Role::AllInOne && self.bool(&keys::INTEROP)
    }

    /// The topic of the users' messages. `all-in-one` ignores the setting, because its log is not
    /// shared with other services.
    pub(in crate::config) fn messages_topic(&self) -> String {
        match self.role() {
            Role::AllInOne => "incoming_messages".to_owned(),
            _ => self.text_or_empty(&keys::MESSAGES_TOPIC),
        }
    }

    /// The topic of the terminal records. `all-in-one` ignores the setting.
    pub(in crate::config) fn responses_topic(&self) -> String {
        match self.role() {
            Role::AllInOne => "responses".to_owned(),
            _ => self.text_or_empty(&keys::RESPONSES_TOPIC),
        }
    }

    /// The dead-letter topics of the worker and of the relay.
    pub fn dead_letter_topics(&self) -> [String; 2] {
        [self.messages_topic(), self.responses_topic()].map(|topic| format!("{topic}.dlq"))
    }

    /// Whether a file, variable or flag sets the address of Kafka or Redis. Then the operator
    /// intends a distributed deployment.
    pub fn has_kafka_or_redis_address(&self) -> bool {
        self.is_explicit(&keys::KAFKA_BOOTSTRAP_SERVERS) || self.has_redis_address()
    }

    /// Whether a file, variable or flag sets the address of Redis.
    pub fn has_redis_address(&self) -> bool {
        self.is_explicit(&keys::REDIS_URL) || self.is_explicit(&keys::REDIS_HOST)
    }
}
