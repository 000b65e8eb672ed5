//! Forwards librdkafka's log lines and errors to our logs and counters.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::metrics::{ERRORS, RELAY_ERRORS};

/// Minimum time between two warnings of one kind of error. During an outage every client reports
/// about one error per second.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// The relay's consumer group. Its errors and lag are also published under the metric names of the
/// original relay.
pub(super) const RELAY_GROUP: &str = "message-relay-group";

/// Logs the log lines of one client of librdkafka, and logs and counts its errors.
pub(super) struct Reporter {
    /// The value of the metrics' label `client`.
    client: &'static str,
    is_relay: bool,
    /// When each kind of error was last logged as a warning.
    last_warnings: Mutex<HashMap<String, Instant>>,
}

impl Reporter {
    /// `client` is the value of the metrics' label `client`. `group` is the consumer group of which
    /// the client is a member.
    pub(super) fn new(client: &'static str, group: Option<&str>) -> Self {
        Self {
            client,
            is_relay: group == Some(RELAY_GROUP),
            last_warnings: Mutex::default(),
        }
    }

    /// Forwards a line of librdkafka's log.
    pub(super) fn log_line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let client = self.client;
        match (level, facility) {
            // Connection errors are also reported through `record_error`. CONFWARN says that a
            // property has no effect on this kind of client, which is intended: KAFKA_PROPERTIES
            // applies to producers and consumers.
            (_, "FAIL" | "ERROR" | "CONFWARN") | (RDKafkaLogLevel::Debug, _) => {
                tracing::debug!(target: "librdkafka", client, facility, "{text}");
            }
            (RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info, _) => {
                tracing::info!(target: "librdkafka", client, facility, "{text}");
            }
            _ => tracing::warn!(target: "librdkafka", client, facility, "{text}"),
        }
    }

    /// Whether the error only says that brokers are unreachable. Such errors are no warnings here,
    /// because the dependency check logs the outage once for the whole process.
    fn is_unreachable(error: &KafkaError) -> bool {
        matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::OperationTimedOut
            )
        )
    }

    /// Counts and logs an error from which librdkafka recovers by itself.
    pub(super) fn record_error(&self, error: &KafkaError, reason: &str) {
        let kind = error
            .rdkafka_error_code()
            .map_or_else(|| "Other".to_owned(), |code| format!("{code:?}"));
        ERRORS.counter(&[self.client, &kind]).increment(1);
        if self.is_relay {
            RELAY_ERRORS.counter(&[&kind]).increment(1);
        }
        let client = self.client;
        if !Self::is_unreachable(error) && self.begin_warning(&kind) {
            tracing::warn!(
                client,
                error = kind,
                reason,
                "kafka: client error, librdkafka retries by itself; if it recurs, check the broker's log"
            );
        } else {
            tracing::debug!(client, error = kind, reason, "kafka: client error");
        }
    }

    /// Returns true and notes the time, unless this returned true for the same kind of error within
    /// [`WARNING_INTERVAL`]. The map stays small, because kinds are librdkafka's error codes.
    fn begin_warning(&self, kind: &str) -> bool {
        let now = Instant::now();
        let mut last_warnings = self.last_warnings.lock();
        let is_recent = last_warnings
            .get(kind)
            .is_some_and(|last| now - *last < WARNING_INTERVAL);
        if !is_recent {
            last_warnings.insert(kind.to_owned(), now);
        }
        !is_recent
    }
}

/// The librdkafka context of a client that is neither the producer nor a member of a group. It only
/// forwards log lines and errors.
pub(super) struct ReportingContext {
    reporter: Reporter,
}

impl ReportingContext {
    /// `client` is the value of the metrics' label `client`.
    pub(super) fn new(client: &'static str) -> Self {
        Self {
            reporter: Reporter::new(client, None),
        }
    }
}

impl ClientContext for ReportingContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log_line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reporter.record_error(&error, reason);
    }
}

impl ConsumerContext for ReportingContext {}
