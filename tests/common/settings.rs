//! Settings for tests. A test sets the fields that matter to it and uses the values of these
//! functions for the others (`..gateway_settings()`). Both integration test binaries include
//! this file.
#![allow(dead_code, reason = "no crate uses all of the helpers")]

use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::config::settings::{
    AuthMode, ConnectionLimits, EmbeddedSettings, GatewaySettings, KafkaSettings, RedisSettings,
    TokenEndpoint,
};

/// Settings of an embedded log and fan-out without a data directory.
pub(crate) fn embedded_settings(partitions: i32) -> EmbeddedSettings {
    EmbeddedSettings {
        data_dir: None,
        partitions,
        retention: Duration::from_secs(3600),
        min_free_disk: 0,
        bounds: Bounds::default(),
    }
}

/// Settings of a Redis fan-out.
pub(crate) fn redis_settings(url: &str, bounds: Bounds) -> RedisSettings {
    RedisSettings {
        url: url.into(),
        command_timeout: Duration::from_secs(10),
        bounds,
    }
}

/// Settings of a Kafka client with these librdkafka properties.
pub(crate) fn kafka_settings(address: &str, properties: &[(&str, &str)]) -> KafkaSettings {
    KafkaSettings {
        bootstrap_servers: address.to_owned(),
        topic_partitions: 4,
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

/// Settings of a gateway on a free loopback port, which accepts any token and has no limits per
/// user.
pub(crate) fn gateway_settings() -> GatewaySettings {
    GatewaySettings {
        listen: ([127, 0, 0, 1], 0).into(),
        server_id: "server_1".into(),
        messages_topic: "incoming_messages".into(),
        auth: AuthMode::Open,
        jwt: None,
        token_endpoint: TokenEndpoint::Off,
        admin_key: None,
        limits: ConnectionLimits::default(),
        rate_window: Duration::from_secs(60),
        rate_fail_open: false,
        max_pending: 0,
        token_ttl: Duration::from_secs(3600),
        chat_page: true,
        allow_origins: vec!["https://chat.example".into()],
        allow_credentials: false,
        max_content_chars: 8000,
        max_frame_bytes: 65_536,
        outbound_queue_bytes: 1 << 20,
        produce_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(10),
        head_timeout: Duration::from_secs(10),
        ping_interval: Duration::from_secs(25),
        ping_timeout: Duration::from_secs(10),
        open_check_interval: Duration::from_secs(5),
        interop: false,
    }
}
