//! Metrics of the Kafka clients: consumer lag and errors that librdkafka reports. The relay's are
//! also exported under the names of the original relay.

use crate::telemetry::metrics::declare_metrics;

declare_metrics! {
    CONSUMER_LAG: Gauge in Count = "chatmesh_consumer_lag", ["group", "topic", "partition"],
        "Records of an assigned partition above the stored offset, so not finished yet.";
    RELAY_LAG: Gauge in Count = "message_relay_kafka_lag", ["topic", "partition"],
        "Records of a partition assigned to this relay that are not delivered yet.";
    ERRORS: Counter in Count = "chatmesh_kafka_errors_total", ["client", "error_type"],
        "Errors that the Kafka client library reported.";
    RELAY_ERRORS: Counter in Count = "message_relay_kafka_errors_total", ["error_type"],
        "Errors that the Kafka client library reported for the relay's consumer.";
}
