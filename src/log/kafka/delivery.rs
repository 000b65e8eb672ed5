//! What became of an append: the report of librdkafka, and the way back to the caller.

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

use super::orphan::Brokers;
use super::report::Reporter;
use crate::log::{AppendError, LogOffset};

/// How many appends have no result yet.
#[derive(Default)]
pub(super) struct Open {
    pub(super) count: AtomicUsize,
    /// One of them got its result.
    pub(super) fewer: Notify,
}

/// What librdkafka reports of a record that it calls delivered.
pub(super) enum Report {
    /// It is in the log.
    At(LogOffset),
    /// A later record of its partition is, and no broker has acknowledged this one.
    LaterOne,
}

/// Carries the result of one append to its caller, and counts it as open until dropped.
pub(super) struct Ticket {
    reply: Option<oneshot::Sender<Result<Report, AppendError>>>,
    open: Arc<Open>,
}

impl Ticket {
    /// A ticket that counts as open from now on.
    pub(super) fn new(
        reply: oneshot::Sender<Result<Report, AppendError>>,
        open: &Arc<Open>,
    ) -> Self {
        open.count.fetch_add(1, Ordering::AcqRel);
        Self {
            reply: Some(reply),
            open: Arc::clone(open),
        }
    }

    /// Tells the caller.
    pub(super) fn finish(mut self, result: Result<Report, AppendError>) {
        if let Some(reply) = self.reply.take() {
            // Who no longer waits needs no result.
            let _ = reply.send(result);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.open.count.fetch_sub(1, Ordering::AcqRel);
        self.open.fewer.notify_waiters();
    }
}

/// Receives delivery reports, on the producer's own thread.
pub(super) struct Context {
    reporter: Reporter,
    /// Whether there is anybody to talk to.
    pub(super) brokers: Brokers,
    /// How long a topic must have been missing before its records are refused.
    patience: Duration,
    /// Topics that were reported as missing, and when first. Right after an outage of the brokers
    /// or before the topics are made that says little; again and later, it is so.
    missing: Mutex<HashMap<String, Instant>>,
    any_missing: AtomicBool,
}

impl Context {
    /// `patience`: how long a topic must have been missing before its records are refused.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            reporter: Reporter::new("producer", None),
            brokers: Brokers::default(),
            patience,
            missing: Mutex::default(),
            any_missing: AtomicBool::new(false),
        }
    }

    fn is_there(&self, topic: &str) {
        if self.any_missing.load(Ordering::Acquire) {
            let mut missing = self.missing.lock();
            missing.remove(topic);
            self.any_missing
                .store(!missing.is_empty(), Ordering::Release);
        }
    }

    fn is_missing(&self, topic: &str, error: &KafkaError) -> AppendError {
        let mut missing = self.missing.lock();
        self.any_missing.store(true, Ordering::Release);
        let since = *missing.entry(topic.to_owned()).or_insert_with(Instant::now);
        if since.elapsed() < self.patience {
            AppendError::Unknown(error.to_string())
        } else {
            nowhere(topic)
        }
    }
}

/// Refuses a record whose topic stays missing.
pub(super) fn nowhere(topic: &str) -> AppendError {
    AppendError::Refused(format!("there is no topic {topic}, and nobody makes it"))
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.brokers.look(&statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reporter.error(&error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        ticket.finish(match result {
            // librdkafka reports a record as delivered, without an offset, when a later one of the partition
            // was acknowledged: the broker would have refused that, had this one been missing. But a broker
            // that does not know the producer (it is new, or the partition is, or it wrote nothing to it for a day)
            // takes any, and this one may have failed.
            Ok(message) if message.offset() < 0 => Ok(Report::LaterOne),
            Ok(message) => {
                self.is_there(message.topic());
                Ok(Report::At(LogOffset {
                    partition: message.partition(),
                    offset: message.offset(),
                }))
            }
            Err((error, message)) => Err(match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition,
                ) => self.is_missing(message.topic(), error),
                _ => classify(error),
            }),
        });
    }
}

/// A fault of the record, or of the way to the log? A topic that is missing may only be about to be
/// made: see [`Context::is_missing`].
pub(super) fn classify(error: &KafkaError) -> AppendError {
    use RDKafkaErrorCode as Code;
    let refused = match error {
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
    if refused {
        AppendError::Refused(reason)
    } else {
        AppendError::Unknown(reason)
    }
}
