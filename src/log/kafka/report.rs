//! What librdkafka has to say, in our logs and counters.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::metrics::{ERRORS, RELAY_ERRORS};

/// An outage brings an error a second and client: one warning of each kind in this time is enough.
const QUIET: Duration = Duration::from_secs(30);

/// The relay's group, whose errors and lag have the original's names too.
pub(super) const RELAY_GROUP: &str = "message-relay-group";

/// Logs and counts for one client.
pub(super) struct Reporter {
    client: &'static str,
    relay: bool,
    warned: Mutex<HashMap<String, Instant>>,
}

impl Reporter {
    /// `client` is the metric's label.
    pub(super) fn new(client: &'static str, group: Option<&str>) -> Self {
        Self {
            client,
            relay: group == Some(RELAY_GROUP),
            warned: Mutex::default(),
        }
    }

    /// A line of librdkafka's log.
    pub(super) fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let client = self.client;
        match (level, facility) {
            // Connection errors come as errors too, and are reported there; CONFWARN says that a
            // producer's property means nothing to a consumer, which is so on purpose.
            (_, "FAIL" | "ERROR" | "CONFWARN") | (RDKafkaLogLevel::Debug, _) => {
                tracing::debug!(target: "librdkafka", client, facility, "{text}");
            }
            (RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info, _) => {
                tracing::info!(target: "librdkafka", client, facility, "{text}");
            }
            _ => tracing::warn!(target: "librdkafka", client, facility, "{text}"),
        }
    }

    /// Whether it only says that brokers are out of reach: who watches the dependencies says that
    /// once for the whole process.
    fn is_absence(error: &KafkaError) -> bool {
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

    /// An error that librdkafka deals with by itself.
    pub(super) fn error(&self, error: &KafkaError, reason: &str) {
        let kind = error
            .rdkafka_error_code()
            .map_or_else(|| "Other".to_owned(), |code| format!("{code:?}"));
        ERRORS.counter(&[self.client, &kind]).increment(1);
        if self.relay {
            RELAY_ERRORS.counter(&[&kind]).increment(1);
        }
        let now = Instant::now();
        let news = !Self::is_absence(error) && {
            // A handful of kinds: the codes of librdkafka.
            let mut warned = self.warned.lock();
            let known = warned.get(&kind).is_some_and(|at| now - *at < QUIET);
            if !known {
                warned.insert(kind.clone(), now);
            }
            !known
        };
        let client = self.client;
        if news {
            tracing::warn!(client, error = kind, "kafka: {reason}");
        } else {
            tracing::debug!(client, error = kind, "kafka: {reason}");
        }
    }
}
