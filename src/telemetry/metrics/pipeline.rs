//! The pipeline core, in worker and relay.

use metrics::{Counter, Gauge, Unit};

use super::{Kind, Metric};

/// Slots in use.
pub const ACTIVE: Metric = Metric {
    name: "chatmesh_pipeline_active",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Records being worked on, by consumer group",
    labels: &["group"],
};

/// Records that wait for a slot or for the one before them.
pub const WAITING: Metric = Metric {
    name: "chatmesh_pipeline_waiting",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Records that were read and wait to be worked on, by consumer group",
    labels: &["group"],
};

/// The original's name of [`ACTIVE`] in the worker.
pub const WORKER_ACTIVE: Metric = Metric {
    name: "ai_consumer_thread_pool_active",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Messages being answered",
    labels: &[],
};

/// The original's name of [`WAITING`] in the worker.
pub const WORKER_WAITING: Metric = Metric {
    name: "ai_consumer_thread_pool_queue_size",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Messages that were read and wait to be answered",
    labels: &[],
};

/// Records the worker read.
pub const WORKER_RECEIVED: Metric = Metric {
    name: "ai_consumer_messages_received_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Messages read from the log",
    labels: &["topic"],
};

/// Records the relay read.
pub const RELAY_RECEIVED: Metric = Metric {
    name: "message_relay_messages_received_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Terminal records read from the log, those read again among them",
    labels: &["topic"],
};

/// All of them.
pub const ALL: &[&Metric] = &[
    &ACTIVE,
    &WAITING,
    &WORKER_ACTIVE,
    &WORKER_WAITING,
    &WORKER_RECEIVED,
    &RELAY_RECEIVED,
];

/// Handles of one pipeline.
pub struct PipelineMetrics {
    pub(crate) active: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) received: Counter,
}

impl PipelineMetrics {
    /// The worker's, under the original's names.
    pub fn of_worker(topic: &str) -> Self {
        Self {
            active: WORKER_ACTIVE.gauge(&[]),
            waiting: WORKER_WAITING.gauge(&[]),
            received: WORKER_RECEIVED.counter(&[topic]),
        }
    }

    /// The relay's.
    pub fn of_relay(group: &str, topic: &str) -> Self {
        Self {
            active: ACTIVE.gauge(&[group]),
            waiting: WAITING.gauge(&[group]),
            received: RELAY_RECEIVED.counter(&[topic]),
        }
    }
}
