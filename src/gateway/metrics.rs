//! The gateway's metrics: their declarations, and the handles through which the gateway sets them.

use metrics::{Counter, Gauge, Histogram};

use crate::telemetry::metrics::declare_metrics;

declare_metrics! {
    CONNECTIONS_ACTIVE: Gauge in Count = "websocket_connections_active", ["server_id"],
        "WebSocket connections that are currently open.";
    CONNECTIONS_TOTAL: Counter in Count = "websocket_connections_total", ["server_id"],
        "WebSocket connections that were accepted.";
    DISCONNECTIONS_TOTAL: Counter in Count = "websocket_disconnections_total",
        ["server_id", "reason"],
        "WebSocket connections that ended, by the name of their close code.";
    REFUSED_TOTAL: Counter in Count = "websocket_refused_total", ["server_id", "status"],
        "Upgrade requests that were refused, by HTTP status; 408 counts connections that sent no \
         request in time.";
    MESSAGES_RECEIVED_TOTAL: Counter in Count = "websocket_messages_received_total", ["server_id"],
        "Text frames that were received from clients.";
    MESSAGES_SENT_TOTAL: Counter in Count = "websocket_messages_sent_total", ["server_id"],
        "Text frames that were written to clients.";
    MESSAGE_ERRORS_TOTAL: Counter in Count = "websocket_message_errors_total",
        ["server_id", "error_type"],
        "Messages that the gateway answered with an error, by code, and published frames that it \
         could not use.";
    MESSAGE_DURATION_SECONDS: Histogram in Seconds = "websocket_message_duration_seconds",
        ["server_id"],
        "Time from receiving a message to the log's acknowledgement.";
    KAFKA_PUBLISH_TOTAL: Counter in Count = "websocket_kafka_publish_total",
        ["server_id", "topic"],
        "Messages that the log acknowledged.";
    KAFKA_PUBLISH_ERRORS_TOTAL: Counter in Count = "websocket_kafka_publish_errors_total",
        ["server_id", "topic"],
        "Messages that the log refused or did not acknowledge in time.";
    REDIS_MESSAGES_RECEIVED_TOTAL: Counter in Count = "websocket_redis_messages_received_total",
        ["server_id"],
        "Published frames that were received from the fan-out.";
    REDIS_ERRORS_TOTAL: Counter in Count = "websocket_redis_errors_total",
        ["server_id", "operation"],
        "Calls to the fan-out that failed.";
    REPAIRED_TOTAL: Counter in Count = "websocket_repaired_frames_total", ["server_id"],
        "Frames that were not received live and were delivered from the user's mailbox.";
    FEED_GAPS_TOTAL: Counter in Count = "websocket_feed_gaps_total", ["server_id"],
        "Gaps in the subscription to the fan-out, after which every connected user's mailbox is \
         read because published frames may have been lost.";
    CATCH_UPS_TOTAL: Counter in Count = "websocket_catch_ups_total", ["server_id"],
        "Catch-ups of chatmesh.v1 connections: of new ones, of slow ones, and after lost frames.";
}

/// Handles of the gateway's metrics. A metric whose labels are fixed is looked up once; a metric
/// with a label that varies is looked up at each use, by the functions below.
pub(super) struct GatewayMetrics {
    server_id: String,
    pub(super) connections_active: Gauge,
    pub(super) connections_opened: Counter,
    /// Counts text frames that were received from clients.
    pub(super) frames_received: Counter,
    /// Counts text frames that were written to clients.
    pub(super) frames_sent: Counter,
    /// Records the seconds from receiving a message to the log's acknowledgement.
    pub(super) acknowledgement_seconds: Histogram,
    /// Counts messages that the log acknowledged.
    pub(super) appends: Counter,
    /// Counts messages that the log refused or did not acknowledge in time.
    pub(super) append_errors: Counter,
    /// Counts published frames that were received from the fan-out.
    pub(super) published_frames: Counter,
    /// Counts frames that were delivered from a mailbox because they were not received live.
    pub(super) repaired_frames: Counter,
    pub(super) feed_gaps: Counter,
    pub(super) catch_ups: Counter,
}

impl GatewayMetrics {
    pub(super) fn new(server_id: &str, topic: &str) -> Self {
        Self {
            server_id: server_id.to_owned(),
            connections_active: CONNECTIONS_ACTIVE.gauge(&[server_id]),
            connections_opened: CONNECTIONS_TOTAL.counter(&[server_id]),
            frames_received: MESSAGES_RECEIVED_TOTAL.counter(&[server_id]),
            frames_sent: MESSAGES_SENT_TOTAL.counter(&[server_id]),
            acknowledgement_seconds: MESSAGE_DURATION_SECONDS.histogram(&[server_id]),
            appends: KAFKA_PUBLISH_TOTAL.counter(&[server_id, topic]),
            append_errors: KAFKA_PUBLISH_ERRORS_TOTAL.counter(&[server_id, topic]),
            published_frames: REDIS_MESSAGES_RECEIVED_TOTAL.counter(&[server_id]),
            repaired_frames: REPAIRED_TOTAL.counter(&[server_id]),
            feed_gaps: FEED_GAPS_TOTAL.counter(&[server_id]),
            catch_ups: CATCH_UPS_TOTAL.counter(&[server_id]),
        }
    }

    /// Counts a connection that has ended; `reason` is the name of its close code.
    pub(super) fn count_disconnection(&self, reason: &str) {
        DISCONNECTIONS_TOTAL
            .counter(&[&self.server_id, reason])
            .increment(1);
    }

    /// Counts an upgrade request that was refused with this status.
    pub(super) fn count_refusal(&self, http_status: u16) {
        REFUSED_TOTAL
            .counter(&[&self.server_id, &http_status.to_string()])
            .increment(1);
    }

    /// Counts a message that was answered with this error code, or a published frame that could not
    /// be used for the reason `error_type`.
    pub(super) fn count_message_error(&self, error_type: &str) {
        MESSAGE_ERRORS_TOTAL
            .counter(&[&self.server_id, error_type])
            .increment(1);
    }

    /// Counts a call to the fan-out that failed; `operation` is the name of the call.
    pub(super) fn count_fanout_error(&self, operation: &str) {
        REDIS_ERRORS_TOTAL
            .counter(&[&self.server_id, operation])
            .increment(1);
    }
}
