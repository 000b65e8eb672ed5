//! The interface of the log, through which gateway, worker and relay exchange records.
//!
//! There are two implementations: [`kafka`] for a cluster of processes, [`embedded`] for a single
//! process. The test suite `tests/it/log_contract` checks these guarantees for both:
//!
//! - **Order.** Records that are appended through one [`Log`] with the same key are in one
//!   partition, in the order of the calls of [`Log::append`]. The returned future need not be
//!   awaited before the next call.
//! - **Durability.** A record whose append returned `Ok` survives the death of every chatmesh
//!   process and, as far as the engine's own settings allow, the death of its machine. The embedded
//!   log on a store in memory is the exception: it is lost with its process.
//! - **At-least-once delivery.** A record is delivered to a group again until an offset above it
//!   was stored by [`Consumer::store_offset`] and committed. Stored offsets are committed in the
//!   background, when partitions are revoked, and by [`Consumer::close`].
//! - **One reader.** A partition is assigned to at most one member of a group at a time, from the
//!   group's point of view: a paused process may still believe that it owns the partition.

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use crate::protocol::log_record::{NewRecord, Record};

pub mod embedded;
pub mod kafka;
pub mod partitioner;

/// The address of a record inside its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOffset {
    /// The partition, from 0.
    pub partition: i32,
    /// The offset in the partition, from 0.
    pub offset: i64,
}

/// Why an append was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The log never accepts this record, for example because it is too large or because its topic
    /// does not exist. Appending it again does not help.
    #[error("the log refused the record: {0}")]
    Refused(String),
    /// The append failed or was not acknowledged in time. The record may be in the log or may
    /// appear later, so it may be appended again only if its message id makes the duplicate
    /// harmless.
    #[error("the log did not acknowledge the record: {0}")]
    Unknown(String),
}

/// Why a request to the log failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The log is not reachable, or not ready yet. The request can be retried.
    #[error("{0}")]
    Unavailable(String),
    /// The request fails until an operator changes something. Retrying does not help.
    #[error("{0}")]
    Configuration(String),
}

/// A topic that must exist.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// The topic's name.
    pub name: String,
    /// Number of partitions if the topic has to be created. An existing topic keeps its number.
    pub partitions: i32,
    /// Number of replicas if the topic has to be created. [`Log::ensure_topics`] returns a warning
    /// for an existing topic that has fewer.
    pub replication: i16,
}

/// An event that [`Consumer::next`] returns. Events are in the order in which they happened.
#[derive(Debug)]
pub enum ConsumerEvent {
    /// The group assigned these partitions to this member.
    Assigned(Vec<Assignment>),
    /// The group revoked these partitions. Their records that were delivered before may still be
    /// processed, but storing their offsets has no effect.
    Revoked(Vec<i32>),
    /// The next record of an assigned partition.
    Record(Record),
}

/// A partition that the group assigned to this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The partition, from 0.
    pub partition: i32,
    /// The group's committed offset, which is the offset of the next record to read. `None` if the
    /// group has never committed an offset for this partition.
    pub committed_offset: Option<i64>,
}

/// One member of a consumer group. Dropping the member leaves the group without committing; call
/// [`Consumer::close`] to commit first.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next event. Cancel-safe. Never fails: while the log is unavailable, the call
    /// keeps waiting, and [`Log::check`] reports the failure.
    ///
    /// Must be called again within a few seconds for as long as the consumer lives, even while it
    /// is paused. Rebalances wait for a member that stops polling, until the group revokes the
    /// member's partitions.
    async fn next(&mut self) -> ConsumerEvent;

    /// Stores the offset below which every record of the partition is finished. The stored offset
    /// is committed soon after. Has no effect for a partition that is no longer assigned.
    fn store_offset(&mut self, partition: i32, next_offset: i64);

    /// Stops the delivery of records from all partitions until [`Consumer::resume`]. A few records
    /// that were fetched before may still be delivered.
    fn pause(&mut self);

    /// Resumes delivery after [`Consumer::pause`].
    fn resume(&mut self);

    /// Continues the delivery of an assigned partition's records at `offset`. Once the seek has
    /// returned, no record is delivered that was fetched before the call. Does not change the
    /// committed offset.
    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError>;

    /// Commits the stored offsets and leaves the group, so that other members take over at once.
    /// Returns after at most 5 seconds, even if the log is unavailable.
    async fn close(self: Box<Self>);
}

/// A log: appends records, opens consumers, and manages topics.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends a record and waits for its acknowledgement, at most `PRODUCE_TIMEOUT_MS`.
    ///
    /// The *call* determines the order of the record, not the first poll of the returned future, so
    /// callers may call in order and await later. The call itself never waits. If the local queue
    /// is full, the future waits for room in it, in the order of the calls, or fails with
    /// [`AppendError::Unknown`].
    fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>>;

    /// Joins `group` as a reader of `topic`. Each partition is read from the group's committed
    /// offset on, or from its oldest record if the group has none. Returns at once, even if the log
    /// is not reachable yet.
    fn consumer(&self, group: &str, topic: &str) -> Result<Box<dyn Consumer>, LogError>;

    /// Creates the topics that are missing. Returns one warning for each setting of an existing
    /// topic that endangers chatmesh's guarantees: too few replicas, `min.insync.replicas` below 2,
    /// or timestamps that are not the brokers' own.
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError>;

    /// The offset of the first record of the partition with a timestamp at or after
    /// `timestamp_ms`. `None` if every record is older.
    async fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, LogError>;

    /// An id that no other log has (Kafka's cluster id). It is part of every position.
    async fn cluster_id(&self) -> Result<String, LogError>;

    /// Checks whether the log is usable: that Kafka answers within 2 seconds, or that the embedded
    /// log's store works and has enough free space.
    async fn check(&self) -> Result<(), LogError>;

    /// Waits until every append so far was acknowledged or failed, at most `PRODUCE_TIMEOUT_MS`.
    async fn flush(&self);
}

/// The range of offsets that a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionRange {
    /// The partition, from 0.
    pub partition: i32,
    /// The offset of the oldest retained record; equal to `end` if no record is retained.
    pub start: i64,
    /// The offset that the next record will get.
    pub end: i64,
}

/// Read access to the log without joining a consumer group, for operators' tools.
#[async_trait]
pub trait LogBrowser: Log {
    /// The range of offsets of each partition of a topic, in the order of the partitions. Empty if
    /// the topic does not exist.
    async fn partition_ranges(&self, topic: &str) -> Result<Vec<PartitionRange>, LogError>;

    /// Reads records of a partition with `from <= offset < to` in order, and stops once their size
    /// reaches `max_bytes`. The result is empty only if the range contains no record.
    async fn read(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError>;
}
