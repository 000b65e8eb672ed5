//! What the group gives and takes, noted inside librdkafka's callback and dealt with outside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};

use super::lag::Lag;
use super::orphan::Brokers;
use super::report::Reporter;

/// A change of what this member has.
pub(super) enum Change {
    /// The group gives these; librdkafka waits until [`take`] is called with where to begin.
    Offered(TopicPartitionList),
    /// The group took these, which has been done already.
    Taken(Vec<i32>),
}

/// The context of one consumer.
pub(super) struct Context {
    reporter: Reporter,
    /// The gauges of what is assigned.
    pub(super) lag: Lag,
    /// Whether there is anybody to talk to.
    pub(super) brokers: Brokers,
    changes: Mutex<VecDeque<Change>>,
    /// Set before the consumer is dropped: nobody asks for changes any more.
    closing: AtomicBool,
}

impl Context {
    pub(super) fn new(group: &str, topic: Arc<str>) -> Self {
        Self {
            reporter: Reporter::new("consumer", Some(group)),
            lag: Lag::new(group, topic),
            brokers: Brokers::default(),
            changes: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// The oldest change that was not dealt with.
    pub(super) fn next_change(&self) -> Option<Change> {
        self.changes.lock().pop_front()
    }

    /// From now on changes are answered inside the callback.
    pub(super) fn begin_to_close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

/// Takes what was offered, beginning at the offsets in the list.
pub(super) fn take<C>(consumer: &C, partitions: &TopicPartitionList) -> KafkaResult<()>
where
    C: Consumer<Context>,
{
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
        _ => consumer.assign(partitions),
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reporter.error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.lag.update(&statistics);
        self.brokers.look(&statistics);
    }
}

impl ConsumerContext for Context {
    /// Runs inside a poll, on a thread of the runtime: nothing here waits for a broker.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let done = match kind {
            // Where to begin is asked for outside: the owner is told the committed offset, and
            // fetching must begin at exactly that one. An empty offer needs no asking.
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS
                if partitions.count() > 0 && !self.closing.load(Ordering::Acquire) =>
            {
                self.changes
                    .lock()
                    .push_back(Change::Offered(partitions.clone()));
                Ok(())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => take(consumer, partitions),
            // librdkafka commits what was stored for them as they go, unless they are lost.
            _ => {
                let lost = consumer.assignment_lost();
                let taken: Vec<i32> = partitions
                    .elements()
                    .iter()
                    .map(TopicPartitionListElem::partition)
                    .collect();
                self.lag.revoke(&taken);
                tracing::info!(partitions = ?taken, lost, "kafka: partitions were taken");
                self.changes.lock().push_back(Change::Taken(taken));
                match consumer.rebalance_protocol() {
                    RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
                    _ => consumer.unassign(),
                }
            }
        };
        if let Err(error) = done {
            self.reporter
                .error(&error, "a rebalance could not be followed");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        // Stored offsets are committed again with the next ones, or read again by the next owner.
        if let Err(error) = result {
            self.reporter.error(&error, "a commit failed");
        }
    }
}
