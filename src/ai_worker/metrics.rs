//! Metrics of the worker, under the names of the original system's worker (`ai-consumer`). The
//! metrics of its calls to the model's API are declared in `provider::metrics`.

use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::pipeline::Verdict;
use crate::protocol::error_code::ErrorCode;
use crate::telemetry::metrics::{declare_metrics, elapsed_since_unix_ms};

declare_metrics! {
    PROCESSED: Counter in Count = "ai_consumer_messages_processed_total", ["status"],
        "Messages that were processed, by result: success, or error for a dead letter.";
    FAILED: Counter in Count = "ai_consumer_messages_failed_total", ["error_type"],
        "Messages that expired, were delivered too often, or whose model calls failed, by error \
         code.";
    DURATION: Histogram in Seconds = "ai_consumer_processing_duration_seconds", ["status"],
        "Time from the start of processing a message to its acknowledged terminal record.";
    LOG_WAIT: Histogram in Seconds = "ai_consumer_log_wait_seconds", [],
        "Time from a message's append to the log until the worker begins to process it, by the \
         clocks of log and worker. A redelivered message counts again.";
    END_TO_END: Histogram in Seconds = "ai_consumer_end_to_end_seconds", [],
        "Time from a message's append to the log until its acknowledged terminal record. The \
         delivery to the client is not included.";
    PUBLISHED: Counter in Count = "ai_consumer_kafka_publish_total", ["topic", "status"],
        "Appends of terminal records to the log, by result.";
    PUBLISH_ERRORS: Counter in Count = "ai_consumer_kafka_publish_errors_total", ["topic"],
        "Appends of terminal records that the log did not acknowledge. Each is retried.";
}

/// Metric handles of one worker.
pub(crate) struct WorkerMetrics {
    /// Count and duration of messages that became no dead letter.
    success: (Counter, Histogram),
    /// Count and duration of messages that became a dead letter or failed.
    error: (Counter, Histogram),
    log_wait: Histogram,
    end_to_end: Histogram,
    published: Counter,
    publish_failed: Counter,
    publish_errors: Counter,
}

impl WorkerMetrics {
    /// Creates the handles. `topic` is the topic that terminal records are appended to.
    pub(crate) fn new(topic: &str) -> Self {
        // The counters exist from the start, so that a rate over them includes the first failure.
        for code in ErrorCode::TERMINAL {
            FAILED.counter(&[code.as_str()]).increment(0);
        }
        let with_status = |status| (PROCESSED.counter(&[status]), DURATION.histogram(&[status]));
        Self {
            success: with_status("success"),
            error: with_status("error"),
            log_wait: LOG_WAIT.histogram(&[]),
            end_to_end: END_TO_END.histogram(&[]),
            published: PUBLISHED.counter(&[topic, "success"]),
            publish_failed: PUBLISHED.counter(&[topic, "error"]),
            publish_errors: PUBLISH_ERRORS.counter(&[topic]),
        }
    }

    /// Records how long a message waited in the log; `appended_ms` is the log's timestamp.
    pub(crate) fn record_log_wait(&self, appended_ms: i64) {
        self.log_wait.record(elapsed_since_unix_ms(appended_ms));
    }

    /// Records a finished message. A message that is left to a later delivery is not counted.
    pub(crate) fn record_processed(&self, verdict: &Verdict, time: Duration, appended_ms: i64) {
        let (count, duration) = match verdict {
            Verdict::Done => &self.success,
            Verdict::DeadLetter(_) | Verdict::Failed(_) => &self.error,
            Verdict::Rewind | Verdict::Unfinished => return,
        };
        count.increment(1);
        duration.record(time);
        self.end_to_end.record(elapsed_since_unix_ms(appended_ms));
    }

    pub(crate) fn record_failure(code: ErrorCode) {
        FAILED.counter(&[code.as_str()]).increment(1);
    }

    pub(crate) fn record_publish(&self) {
        self.published.increment(1);
    }

    pub(crate) fn record_publish_error(&self) {
        self.publish_failed.increment(1);
        self.publish_errors.increment(1);
    }
}
