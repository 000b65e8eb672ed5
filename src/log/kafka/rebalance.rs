//! Group rebalances: librdkafka's callback queues each change, and the consumer applies it outside
//! the callback.

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

use super::broker_watchdog::BrokerWatchdog;
use super::lag::Lag;
use super::report::Reporter;

/// A change of this member's assignment.
pub(super) enum RebalanceChange {
    /// The group assigned these partitions. librdkafka fetches no records of them until
    /// [`accept_assignment`] is called with the offsets at which to start.
    Assigned(TopicPartitionList),
    /// The group revoked these partitions, and librdkafka has stopped fetching them.
    Revoked(Vec<i32>),
}

/// The librdkafka context of one consumer. It updates the consumer's metrics, and queues the
/// rebalance changes that the consumer has not applied yet.
pub(super) struct GroupContext {
    reporter: Reporter,
    pub(super) lag: Lag,
    pub(super) watchdog: BrokerWatchdog,
    changes: Mutex<VecDeque<RebalanceChange>>,
    /// Set while the consumer leaves the group. From then on nothing waits for `changes`, so the
    /// callback accepts assignments itself.
    is_closing: AtomicBool,
}

impl GroupContext {
    pub(super) fn new(group: &str, topic: Arc<str>) -> Self {
        Self {
            reporter: Reporter::new("consumer", Some(group)),
            lag: Lag::new(group, topic),
            watchdog: BrokerWatchdog::default(),
            changes: Mutex::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Removes and returns the oldest change that was not applied yet.
    pub(super) fn next_change(&self) -> Option<RebalanceChange> {
        self.changes.lock().pop_front()
    }

    /// Makes the rebalance callback accept every later assignment itself.
    pub(super) fn start_closing(&self) {
        self.is_closing.store(true, Ordering::Release);
    }
}

/// Accepts an assignment: fetching starts at the offsets in the list.
pub(super) fn accept_assignment<C>(consumer: &C, partitions: &TopicPartitionList) -> KafkaResult<()>
where
    C: Consumer<GroupContext>,
{
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
        _ => consumer.assign(partitions),
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log_line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reporter.record_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.lag.update(&statistics);
        self.watchdog.observe(&statistics);
    }
}

impl ConsumerContext for GroupContext {
    /// Runs inside a poll on a runtime thread, so nothing here waits for a broker.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let result = match kind {
            // The consumer fetches the committed offsets outside the callback and then accepts the
            // assignment: it reports these offsets, and records must be fetched from exactly these
            // offsets on. An empty assignment has no offsets and is accepted below.
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS
                if partitions.count() > 0 && !self.is_closing.load(Ordering::Acquire) =>
            {
                let change = RebalanceChange::Assigned(partitions.clone());
                self.changes.lock().push_back(change);
                Ok(())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                accept_assignment(consumer, partitions)
            }
            // The group revokes the partitions. librdkafka commits their stored offsets itself,
            // unless the member has lost the partitions already.
            _ => {
                let lost = consumer.assignment_lost();
                let revoked: Vec<i32> = partitions
                    .elements()
                    .iter()
                    .map(TopicPartitionListElem::partition)
                    .collect();
                self.lag.revoke(&revoked);
                tracing::info!(partitions = ?revoked, lost, "kafka: partitions revoked");
                self.changes
                    .lock()
                    .push_back(RebalanceChange::Revoked(revoked));
                match consumer.rebalance_protocol() {
                    RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
                    _ => consumer.unassign(),
                }
            }
        };
        if let Err(error) = result {
            self.reporter
                .record_error(&error, "a rebalance could not be applied");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        // A failed commit loses nothing: the next commit includes these offsets. If there is none,
        // the next owner of the partition reads the records again.
        if let Err(error) = result {
            self.reporter.record_error(&error, "a commit failed");
        }
    }
}
