//! Kafka: how far behind the consumers are, and what goes wrong on the way to the brokers.

use metrics::Unit;

use super::{Kind, Metric};

/// Records of an assigned partition above the stored offset, of any group.
pub const CONSUMER_LAG: Metric = Metric {
    name: "chatmesh_consumer_lag",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Records of a partition assigned to this process that are not finished yet",
    labels: &["group", "topic", "partition"],
};

/// The relay's lag, by the original's name.
pub const RELAY_LAG: Metric = Metric {
    name: "message_relay_kafka_lag",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Records of a partition assigned to this relay that are not delivered yet",
    labels: &["topic", "partition"],
};

/// Errors of any Kafka client of this process.
pub const ERRORS: Metric = Metric {
    name: "chatmesh_kafka_errors_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Errors that the Kafka client library reported",
    labels: &["client", "error_type"],
};

/// Errors of the relay's consumer, by the original's name.
pub const RELAY_ERRORS: Metric = Metric {
    name: "message_relay_kafka_errors_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Errors that the relay's Kafka consumer reported",
    labels: &["error_type"],
};

/// All of them.
pub const ALL: &[&Metric] = &[&CONSUMER_LAG, &RELAY_LAG, &ERRORS, &RELAY_ERRORS];
