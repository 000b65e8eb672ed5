//! The worker, under the original's names; its model calls are in `provider`.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit};

use super::{Kind, Metric, since};
use crate::pipeline::Verdict;
use crate::protocol::error_code::ErrorCode;

/// By how they ended.
pub const PROCESSED: Metric = Metric {
    name: "ai_consumer_messages_processed_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Messages brought to their end",
    labels: &["status"],
};

/// By why.
pub const FAILED: Metric = Metric {
    name: "ai_consumer_messages_failed_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Messages that ended without an answer",
    labels: &["error_type"],
};

/// From taking to end.
pub const DURATION: Metric = Metric {
    name: "ai_consumer_processing_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    help: "Time from taking a message to its acknowledged terminal record",
    labels: &["status"],
};

/// The log's part of a message's way here; a message that is taken again counts again.
pub const LOG_WAIT: Metric = Metric {
    name: "ai_consumer_log_wait_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    help: "Time from the log's taking of a message to the worker's, by the clocks of both",
    labels: &[],
};

/// All but the way to the client's socket.
pub const END_TO_END: Metric = Metric {
    name: "ai_consumer_end_to_end_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    help: "Time from the log's taking of a message to its acknowledged terminal record",
    labels: &[],
};

/// Terminal records.
pub const PUBLISHED: Metric = Metric {
    name: "ai_consumer_kafka_publish_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Terminal records given to the log",
    labels: &["topic", "status"],
};

/// Each is repeated.
pub const PUBLISH_ERRORS: Metric = Metric {
    name: "ai_consumer_kafka_publish_errors_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Terminal records that the log did not acknowledge; each is repeated",
    labels: &["topic"],
};

/// All of them.
pub const ALL: &[&Metric] = &[
    &PROCESSED,
    &FAILED,
    &DURATION,
    &LOG_WAIT,
    &END_TO_END,
    &PUBLISHED,
    &PUBLISH_ERRORS,
];

/// Handles of one worker.
pub struct WorkerMetrics {
    success: (Counter, Histogram),
    error: (Counter, Histogram),
    log_wait: Histogram,
    end_to_end: Histogram,
    published: Counter,
    publish_failed: Counter,
    publish_errors: Counter,
}

impl WorkerMetrics {
    /// Takes the handles; `topic` is where terminal records go.
    pub fn new(topic: &str) -> Self {
        // So that a rate over them begins at zero, and not with the first failure.
        for code in ErrorCode::OF_ENDINGS {
            FAILED.counter(&[code.as_str()]).increment(0);
        }
        let of = |status| (PROCESSED.counter(&[status]), DURATION.histogram(&[status]));
        Self {
            success: of("success"),
            error: of("error"),
            log_wait: LOG_WAIT.histogram(&[]),
            end_to_end: END_TO_END.histogram(&[]),
            published: PUBLISHED.counter(&[topic, "success"]),
            publish_failed: PUBLISHED.counter(&[topic, "error"]),
            publish_errors: PUBLISH_ERRORS.counter(&[topic]),
        }
    }

    /// A message was taken; `appended_ms` is the log's time.
    pub(crate) fn taken(&self, appended_ms: i64) {
        self.log_wait.record(since(appended_ms));
    }

    pub(crate) fn processed(&self, verdict: &Verdict, time: Duration, appended_ms: i64) {
        let (count, duration) = match verdict {
            Verdict::Done => &self.success,
            Verdict::Dead(_) | Verdict::Failed(_) => &self.error,
            Verdict::GoBack | Verdict::Left => return,
        };
        count.increment(1);
        duration.record(time);
        self.end_to_end.record(since(appended_ms));
    }

    pub(crate) fn failed(code: ErrorCode) {
        FAILED.counter(&[code.as_str()]).increment(1);
    }

    pub(crate) fn published(&self) {
        self.published.increment(1);
    }

    pub(crate) fn publish_failed(&self) {
        self.publish_failed.increment(1);
        self.publish_errors.increment(1);
    }
}
