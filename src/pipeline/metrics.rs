//! Metrics of one pipeline. The worker keeps the names of the original consumer, so that existing
//! dashboards continue to work; the relay uses the generic names with its consumer group.

use metrics::{Counter, Gauge};

use crate::telemetry::metrics::declare_metrics;

declare_metrics! {
    ACTIVE: Gauge in Count = "chatmesh_pipeline_active", ["group"],
        "Records that are being processed, by consumer group.";
    WAITING: Gauge in Count = "chatmesh_pipeline_waiting", ["group"],
        "Records that were read and wait for a slot or for an earlier record of their lane, by \
         consumer group.";
    WORKER_ACTIVE: Gauge in Count = "ai_consumer_thread_pool_active", [],
        "Messages that the worker is answering.";
    WORKER_WAITING: Gauge in Count = "ai_consumer_thread_pool_queue_size", [],
        "Messages that the worker has read and not begun to answer.";
    WORKER_RECEIVED: Counter in Count = "ai_consumer_messages_received_total", ["topic"],
        "Messages that the worker read from the log, redelivered ones included.";
    RELAY_RECEIVED: Counter in Count = "message_relay_messages_received_total", ["topic"],
        "Terminal records that the relay read from the log, those read again by a rewind included.";
}

/// Metric handles of one pipeline.
pub struct PipelineMetrics {
    pub(crate) active: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) received: Counter,
}

impl PipelineMetrics {
    /// Creates the handles of a worker that reads `topic`.
    pub fn for_worker(topic: &str) -> Self {
        Self {
            active: WORKER_ACTIVE.gauge(&[]),
            waiting: WORKER_WAITING.gauge(&[]),
            received: WORKER_RECEIVED.counter(&[topic]),
        }
    }

    /// Creates the handles of a relay that reads `topic` as a member of `group`.
    pub fn for_relay(group: &str, topic: &str) -> Self {
        Self {
            active: ACTIVE.gauge(&[group]),
            waiting: WAITING.gauge(&[group]),
            received: RELAY_RECEIVED.counter(&[topic]),
        }
    }
}
