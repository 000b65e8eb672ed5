//! The result of an append: evaluates librdkafka's delivery report and sends the result to the
//! caller of the append.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::{ClientContext, Message, Statistics};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::broker_watchdog::BrokerWatchdog;
use super::report::Reporter;
use crate::log::{AppendError, LogOffset};

/// Counts the appends that have no result yet.
#[derive(Default)]
pub(super) struct PendingAppends {
    pub(super) count: AtomicUsize,
    /// Notified when the count decreases, because an append has its result.
    pub(super) decreased: Notify,
}

/// What librdkafka's report on a delivered record says about the record.
pub(super) enum DeliveryReport {
    /// A broker acknowledged the record.
    Acknowledged(LogOffset),
    /// A broker acknowledged a later record of the partition, but not this record. This record may
    /// be missing from the log and must be sent again.
    OnlyLaterAcknowledged,
}

type AppendResult = Result<DeliveryReport, AppendError>;

/// Carries the result of one append to its caller. The append counts as pending until the ticket
/// is dropped.
pub(super) struct AppendTicket {
    reply: Option<oneshot::Sender<AppendResult>>,
    pending_appends: Arc<PendingAppends>,
}

impl AppendTicket {
    /// Creates a ticket. Its append counts as pending from now on.
    pub(super) fn new(
        reply: oneshot::Sender<AppendResult>,
        pending_appends: &Arc<PendingAppends>,
    ) -> Self {
        pending_appends.count.fetch_add(1, Ordering::AcqRel);
        Self {
            reply: Some(reply),
            pending_appends: Arc::clone(pending_appends),
        }
    }

    /// Sends the result to the caller, if it still waits.
    pub(super) fn finish(mut self, result: AppendResult) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(result);
        }
    }
}

impl Drop for AppendTicket {
    fn drop(&mut self) {
        self.pending_appends.count.fetch_sub(1, Ordering::AcqRel);
        self.pending_appends.decreased.notify_waiters();
    }
}

/// The librdkafka context of the producer. Receives delivery reports on the producer's own thread.
pub(super) struct DeliveryContext {
    reporter: Reporter,
    pub(super) watchdog: BrokerWatchdog,
    /// Time after which the records of a topic that stays missing are refused.
    missing_topic_timeout: Duration,
    /// When each missing topic was first reported as missing. Right after an outage, or before the
    /// topics are created, a single report does not prove that a topic is missing.
    missing_since: Mutex<HashMap<String, Instant>>,
    /// Whether `missing_since` has entries. Read first, so that most reports take no lock.
    has_missing_topics: AtomicBool,
}

impl DeliveryContext {
    /// `missing_topic_timeout` is the time after which the records of a topic that stays missing
    /// are refused.
    pub(super) fn new(missing_topic_timeout: Duration) -> Self {
        Self {
            reporter: Reporter::new("producer", None),
            watchdog: BrokerWatchdog::default(),
            missing_topic_timeout,
            missing_since: Mutex::default(),
            has_missing_topics: AtomicBool::new(false),
        }
    }

    /// Notes that the topic exists.
    fn clear_missing_topic(&self, topic: &str) {
        if self.has_missing_topics.load(Ordering::Acquire) {
            let mut missing_since = self.missing_since.lock();
            missing_since.remove(topic);
            self.has_missing_topics
                .store(!missing_since.is_empty(), Ordering::Release);
        }
    }

    /// Notes that the topic is missing, and returns the error of a record of this topic:
    /// [`AppendError::Refused`] once the topic has been missing for `missing_topic_timeout`,
    /// [`AppendError::Unknown`] before.
    fn missing_topic_error(&self, topic: &str, error: &KafkaError) -> AppendError {
        let mut missing_since = self.missing_since.lock();
        self.has_missing_topics.store(true, Ordering::Release);
        let since = *missing_since
            .entry(topic.to_owned())
            .or_insert_with(Instant::now);
        if since.elapsed() < self.missing_topic_timeout {
            AppendError::Unknown(error.to_string())
        } else {
            missing_topic_refusal(topic)
        }
    }
}

/// The refusal of a record whose topic stays missing.
pub(super) fn missing_topic_refusal(topic: &str) -> AppendError {
    AppendError::Refused(format!(
        "topic {topic} does not exist, and the cluster does not create it"
    ))
}

impl ClientContext for DeliveryContext {
    fn stats(&self, statistics: Statistics) {
        self.watchdog.observe(&statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log_line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reporter.record_error(&error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<AppendTicket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<AppendTicket>) {
        ticket.finish(match result {
            // librdkafka reports a record as delivered, without an offset, when a broker
            // acknowledged a later record of the partition: the broker would have refused the later
            // one if this one were missing. But a broker that does not know the producer accepts
            // any record: because the broker or the partition is new, or because the producer wrote
            // nothing to it for a day. Then this record may be missing.
            Ok(message) if message.offset() < 0 => Ok(DeliveryReport::OnlyLaterAcknowledged),
            Ok(message) => {
                self.clear_missing_topic(message.topic());
                Ok(DeliveryReport::Acknowledged(LogOffset {
                    partition: message.partition(),
                    offset: message.offset(),
                }))
            }
            Err((error, message)) => Err(match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition,
                ) => self.missing_topic_error(message.topic(), error),
                _ => to_append_error(error),
            }),
        });
    }
}

/// The append error for an error of librdkafka. The error of a missing topic is determined by
/// [`DeliveryContext::missing_topic_error`] instead, because the topic may be created soon.
pub(super) fn to_append_error(error: &KafkaError) -> AppendError {
    use RDKafkaErrorCode as Code;
    let is_refusal = match error {
        KafkaError::Nul(_) => true,
        other => matches!(
            other.rdkafka_error_code(),
            Some(
                Code::MessageSizeTooLarge
                    | Code::InvalidMessageSize
                    | Code::MessageBatchTooLarge
                    | Code::TopicAuthorizationFailed
                    | Code::InvalidTopic
                    | Code::UnknownPartition
                    | Code::PolicyViolation
                    | Code::InvalidRecord
            )
        ),
    };
    let reason = error.to_string();
    if is_refusal {
        AppendError::Refused(reason)
    } else {
        AppendError::Unknown(reason)
    }
}
