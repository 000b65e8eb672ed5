//! The relay, under the original's names.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit};

use super::{Kind, Metric, since};
use crate::pipeline::Verdict;

macro_rules! metric {
    ($(#[$doc:meta])* $name:ident, $text:literal, $kind:ident, $unit:ident, $help:literal, $labels:expr) => {
        $(#[$doc])*
        pub const $name: Metric = Metric {
            name: $text,
            kind: Kind::$kind,
            unit: Unit::$unit,
            help: $help,
            labels: $labels,
        };
    };
}

metric!(
    /// By how they ended.
    PROCESSED, "message_relay_messages_processed_total", Counter, Count,
    "Terminal records worked on", &["status"]
);
metric!(
    /// By why.
    FAILED, "message_relay_messages_failed_total", Counter, Count,
    "Terminal records that could not be delivered", &["error_type"]
);
metric!(
    /// By how they ended.
    PUBLISHED, "message_relay_redis_publish_total", Counter, Count,
    "Deliveries to the fan-out", &["status"]
);
metric!(
    /// Each is repeated.
    PUBLISH_ERRORS, "message_relay_redis_publish_errors_total", Counter, Count,
    "Deliveries that the fan-out did not take; each is repeated", &["error_type"]
);
metric!(
    /// From taking to end.
    DURATION, "message_relay_processing_duration_seconds", Histogram, Seconds,
    "Time to work on a terminal record", &["status"]
);
metric!(
    /// The log's part of an answer's way; records read back don't count.
    LOG_WAIT, "message_relay_log_wait_seconds", Histogram, Seconds,
    "Time from the log's taking of a terminal record to the relay's, by the clocks of both", &[]
);
metric!(
    /// One delivery with its repetitions.
    PUBLISH_DURATION, "message_relay_redis_publish_duration_seconds", Histogram, Seconds,
    "Time until the fan-out took a delivery, its repetitions with it", &[]
);
metric!(
    /// Nobody listened.
    ZERO_SUBSCRIBERS, "message_relay_zero_subscribers_total", Counter, Count,
    "Deliveries for which no gateway was subscribed", &[]
);

/// All of them.
pub const ALL: &[&Metric] = &[
    &PROCESSED,
    &FAILED,
    &PUBLISHED,
    &PUBLISH_ERRORS,
    &DURATION,
    &LOG_WAIT,
    &PUBLISH_DURATION,
    &ZERO_SUBSCRIBERS,
];

/// Handles of one relay.
pub struct RelayMetrics {
    success: Counter,
    dead: Counter,
    unreadable: Counter,
    publish_success: Counter,
    publish_error: Counter,
    publish_errors: Counter,
    success_duration: Histogram,
    error_duration: Histogram,
    log_wait: Histogram,
    publish_duration: Histogram,
    pub(crate) zero_subscribers: Counter,
}

impl RelayMetrics {
    /// Takes the handles.
    pub fn new() -> Self {
        Self {
            success: PROCESSED.counter(&["success"]),
            dead: PROCESSED.counter(&["error"]),
            unreadable: FAILED.counter(&["unreadable"]),
            publish_success: PUBLISHED.counter(&["success"]),
            publish_error: PUBLISHED.counter(&["error"]),
            publish_errors: PUBLISH_ERRORS.counter(&["unavailable"]),
            success_duration: DURATION.histogram(&["success"]),
            error_duration: DURATION.histogram(&["error"]),
            log_wait: LOG_WAIT.histogram(&[]),
            publish_duration: PUBLISH_DURATION.histogram(&[]),
            zero_subscribers: ZERO_SUBSCRIBERS.counter(&[]),
        }
    }

    /// A record was taken for the first time; `appended_ms` is the log's time.
    pub(crate) fn taken(&self, appended_ms: i64) {
        self.log_wait.record(since(appended_ms));
    }

    pub(crate) fn processed(&self, verdict: &Verdict, time: Duration) {
        match verdict {
            Verdict::Done => {
                self.success.increment(1);
                self.success_duration.record(time);
            }
            Verdict::Dead(_) | Verdict::Failed(_) => {
                self.dead.increment(1);
                self.unreadable.increment(1);
                self.error_duration.record(time);
            }
            Verdict::GoBack | Verdict::Left => {}
        }
    }

    pub(crate) fn published(&self, time: Duration) {
        self.publish_success.increment(1);
        self.publish_duration.record(time);
    }

    pub(crate) fn publish_failed(&self) {
        self.publish_error.increment(1);
        self.publish_errors.increment(1);
    }
}

impl Default for RelayMetrics {
    fn default() -> Self {
        Self::new()
    }
}
