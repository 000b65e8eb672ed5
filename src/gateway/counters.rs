//! Handles of the gateway's metrics.

use metrics::{Counter, Gauge, Histogram};

use crate::telemetry::metrics::gateway as m;

/// Cached handles, and the labels for those that are used seldom.
pub(super) struct Counters {
    server_id: String,
    pub(super) active: Gauge,
    pub(super) connections: Counter,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) duration: Histogram,
    pub(super) published: Counter,
    pub(super) publish_errors: Counter,
    pub(super) redis_messages: Counter,
    pub(super) repaired: Counter,
    pub(super) gaps: Counter,
    pub(super) catch_ups: Counter,
}

impl Counters {
    pub(super) fn new(server_id: &str, topic: &str) -> Self {
        Self {
            server_id: server_id.to_owned(),
            active: m::CONNECTIONS_ACTIVE.gauge(&[server_id]),
            connections: m::CONNECTIONS_TOTAL.counter(&[server_id]),
            received: m::MESSAGES_RECEIVED_TOTAL.counter(&[server_id]),
            sent: m::MESSAGES_SENT_TOTAL.counter(&[server_id]),
            duration: m::MESSAGE_DURATION_SECONDS.histogram(&[server_id]),
            published: m::KAFKA_PUBLISH_TOTAL.counter(&[server_id, topic]),
            publish_errors: m::KAFKA_PUBLISH_ERRORS_TOTAL.counter(&[server_id, topic]),
            redis_messages: m::REDIS_MESSAGES_RECEIVED_TOTAL.counter(&[server_id]),
            repaired: m::REPAIRED_TOTAL.counter(&[server_id]),
            gaps: m::FEED_GAPS_TOTAL.counter(&[server_id]),
            catch_ups: m::CATCH_UPS_TOTAL.counter(&[server_id]),
        }
    }

    pub(super) fn disconnected(&self, reason: &str) {
        m::DISCONNECTIONS_TOTAL
            .counter(&[&self.server_id, reason])
            .increment(1);
    }

    pub(super) fn refused(&self, status: u16) {
        m::REFUSED_TOTAL
            .counter(&[&self.server_id, &status.to_string()])
            .increment(1);
    }

    pub(super) fn message_error(&self, error_type: &str) {
        m::MESSAGE_ERRORS_TOTAL
            .counter(&[&self.server_id, error_type])
            .increment(1);
    }

    pub(super) fn redis_error(&self, operation: &str) {
        m::REDIS_ERRORS_TOTAL
            .counter(&[&self.server_id, operation])
            .increment(1);
    }
}
