//! The gateway's metrics.

use metrics::Unit;

use super::{Kind, Metric};

macro_rules! metric {
    ($(#[$doc:meta])* $const:ident, $name:literal, $kind:ident, $unit:ident, $help:literal, $labels:expr) => {
        $(#[$doc])*
        #[doc = $help]
        pub const $const: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            unit: Unit::$unit,
            help: $help,
            labels: &$labels,
        };
    };
}

metric!(
    CONNECTIONS_ACTIVE,
    "websocket_connections_active",
    Gauge,
    Count,
    "WebSocket connections that are open now.",
    ["server_id"]
);
metric!(
    CONNECTIONS_TOTAL,
    "websocket_connections_total",
    Counter,
    Count,
    "WebSocket connections that were accepted.",
    ["server_id"]
);
metric!(
    DISCONNECTIONS_TOTAL,
    "websocket_disconnections_total",
    Counter,
    Count,
    "WebSocket connections that ended, by the name of their close code.",
    ["server_id", "reason"]
);
metric!(
    REFUSED_TOTAL,
    "websocket_refused_total",
    Counter,
    Count,
    "Upgrade requests that were refused, by HTTP status; 408: no request came in time.",
    ["server_id", "status"]
);
metric!(
    MESSAGES_RECEIVED_TOTAL,
    "websocket_messages_received_total",
    Counter,
    Count,
    "Text frames that clients sent.",
    ["server_id"]
);
metric!(
    MESSAGES_SENT_TOTAL,
    "websocket_messages_sent_total",
    Counter,
    Count,
    "Text frames that were written to clients.",
    ["server_id"]
);
metric!(
    MESSAGE_ERRORS_TOTAL,
    "websocket_message_errors_total",
    Counter,
    Count,
    "Messages answered by an error of the gateway, by code, and published frames it could not use.",
    ["server_id", "error_type"]
);
metric!(
    MESSAGE_DURATION_SECONDS,
    "websocket_message_duration_seconds",
    Histogram,
    Seconds,
    "From reading a message to the log's acknowledgement.",
    ["server_id"]
);
metric!(
    KAFKA_PUBLISH_TOTAL,
    "websocket_kafka_publish_total",
    Counter,
    Count,
    "Messages that the log acknowledged.",
    ["server_id", "topic"]
);
metric!(
    KAFKA_PUBLISH_ERRORS_TOTAL,
    "websocket_kafka_publish_errors_total",
    Counter,
    Count,
    "Messages that the log refused or did not acknowledge in time.",
    ["server_id", "topic"]
);
metric!(
    REDIS_MESSAGES_RECEIVED_TOTAL,
    "websocket_redis_messages_received_total",
    Counter,
    Count,
    "Published frames that came from the fan-out.",
    ["server_id"]
);
metric!(
    REDIS_ERRORS_TOTAL,
    "websocket_redis_errors_total",
    Counter,
    Count,
    "Failed calls to the fan-out.",
    ["server_id", "operation"]
);
metric!(
    REPAIRED_TOTAL,
    "websocket_repaired_frames_total",
    Counter,
    Count,
    "Frames that did not come live and were found by reading the user's mailbox.",
    ["server_id"]
);
metric!(
    FEED_GAPS_TOTAL,
    "websocket_feed_gaps_total",
    Counter,
    Count,
    "Times that published frames may have been lost, so that all users here were read.",
    ["server_id"]
);

metric!(
    CATCH_UPS_TOTAL,
    "websocket_catch_ups_total",
    Counter,
    Count,
    "Times that a chatmesh.v1 socket was told everything anew: at its start, after it fell behind, after a loss.",
    ["server_id"]
);

/// All of them.
pub const ALL: &[&Metric] = &[
    &CONNECTIONS_ACTIVE,
    &CONNECTIONS_TOTAL,
    &DISCONNECTIONS_TOTAL,
    &REFUSED_TOTAL,
    &MESSAGES_RECEIVED_TOTAL,
    &MESSAGES_SENT_TOTAL,
    &MESSAGE_ERRORS_TOTAL,
    &MESSAGE_DURATION_SECONDS,
    &KAFKA_PUBLISH_TOTAL,
    &KAFKA_PUBLISH_ERRORS_TOTAL,
    &REDIS_MESSAGES_RECEIVED_TOTAL,
    &REDIS_ERRORS_TOTAL,
    &REPAIRED_TOTAL,
    &FEED_GAPS_TOTAL,
    &CATCH_UPS_TOTAL,
];
