//! Metrics of the relay, under the names of the original relay.

use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::pipeline::Verdict;
use crate::telemetry::metrics::{declare_metrics, elapsed_since_unix_ms};

declare_metrics! {
    PROCESSED: Counter in Count = "message_relay_messages_processed_total", ["status"],
        "Terminal records that were processed, by result: success, or error for a dead letter.";
    FAILED: Counter in Count = "message_relay_messages_failed_total", ["error_type"],
        "Terminal records that could not be delivered, by reason.";
    PUBLISHED: Counter in Count = "message_relay_redis_publish_total", ["status"],
        "Deliveries to the fan-out, by result.";
    PUBLISH_ERRORS: Counter in Count = "message_relay_redis_publish_errors_total", ["error_type"],
        "Deliveries that the fan-out did not confirm. Each is retried.";
    DURATION: Histogram in Seconds = "message_relay_processing_duration_seconds", ["status"],
        "Time to process a terminal record, from the start of processing to its result.";
    LOG_WAIT: Histogram in Seconds = "message_relay_log_wait_seconds", [],
        "Time from a terminal record's append to the log until the relay begins to process it, by \
         the clocks of log and relay. Records read again by a rewind are not counted.";
    PUBLISH_DURATION: Histogram in Seconds = "message_relay_redis_publish_duration_seconds", [],
        "Time until the fan-out confirmed a delivery, retries included.";
    ZERO_SUBSCRIBERS: Counter in Count = "message_relay_zero_subscribers_total", [],
        "Deliveries for which no gateway was subscribed. Deliveries of a rewind are not counted.";
}

/// Metric handles of one relay process.
pub(crate) struct RelayMetrics {
    success: Counter,
    error: Counter,
    unreadable: Counter,
    publish_success: Counter,
    publish_failed: Counter,
    publish_errors: Counter,
    success_duration: Histogram,
    error_duration: Histogram,
    log_wait: Histogram,
    publish_duration: Histogram,
    pub(crate) zero_subscribers: Counter,
}

impl RelayMetrics {
    /// Creates the handles.
    pub(crate) fn new() -> Self {
        Self {
            success: PROCESSED.counter(&["success"]),
            error: PROCESSED.counter(&["error"]),
            unreadable: FAILED.counter(&["unreadable"]),
            publish_success: PUBLISHED.counter(&["success"]),
            publish_failed: PUBLISHED.counter(&["error"]),
            publish_errors: PUBLISH_ERRORS.counter(&["unavailable"]),
            success_duration: DURATION.histogram(&["success"]),
            error_duration: DURATION.histogram(&["error"]),
            log_wait: LOG_WAIT.histogram(&[]),
            publish_duration: PUBLISH_DURATION.histogram(&[]),
            zero_subscribers: ZERO_SUBSCRIBERS.counter(&[]),
        }
    }

    /// Records how long a record waited in the log; `appended_ms` is the log's timestamp.
    pub(crate) fn record_log_wait(&self, appended_ms: i64) {
        self.log_wait.record(elapsed_since_unix_ms(appended_ms));
    }

    /// Records a finished record. A record that is left to a later delivery is not counted.
    pub(crate) fn record_processed(&self, verdict: &Verdict, time: Duration) {
        match verdict {
            Verdict::Done => {
                self.success.increment(1);
                self.success_duration.record(time);
            }
            Verdict::DeadLetter(_) | Verdict::Failed(_) => {
                self.error.increment(1);
                self.unreadable.increment(1);
                self.error_duration.record(time);
            }
            Verdict::Rewind | Verdict::Unfinished => {}
        }
    }

    pub(crate) fn record_publish(&self, time: Duration) {
        self.publish_success.increment(1);
        self.publish_duration.record(time);
    }

    pub(crate) fn record_publish_error(&self) {
        self.publish_failed.increment(1);
        self.publish_errors.increment(1);
    }
}

impl Default for RelayMetrics {
    fn default() -> Self {
        Self::new()
    }
}
