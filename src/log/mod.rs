//! The log seam: topics of partitions, keys, consumer groups, offsets, redelivery.
//!
//! Two implementations, one contract: [`kafka`] for a deployment, [`embedded`] for one process.
//! What every implementation promises, and the contract suite checks:
//!
//! - **Order.** Records of one producer handle with the same key are in one partition, in the
//!   order in which [`Log::append`] was called (called: its future need not be awaited before the
//!   next call, see there).
//! - **Durability.** An append that returned `Ok` survives the death of every chatmesh process and,
//!   within the engine's own settings, of its machine.
//! - **At least once.** A record is delivered to a group again until an offset above it was stored
//!   by [`Consumer::store`] and committed. Stored offsets are committed in the background, at
//!   revocation and by [`Consumer::close`].
//! - **One reader.** Of the members of a group at most one is assigned a partition at a time, as
//!   far as the group knows: a paused process may believe that it still is.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::protocol::ids::MessageId;

pub mod embedded;
pub mod kafka;

/// Headers in order; a name may stand there twice.
pub type Headers = Vec<(String, Bytes)>;

/// A record to be appended.
#[derive(Debug, Clone, Default)]
pub struct NewRecord {
    /// Decides the partition (murmur2, as Java's clients place it); without one any partition.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// The record has no payload at all (Kafka's tombstone), and `value` is empty. Only a record
    /// that was read so is written so; the embedded log makes it an empty payload.
    pub null_value: bool,
    /// Read without decoding the value.
    pub headers: Headers,
}

/// Where an appended record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Partition, from 0.
    pub partition: i32,
    /// Offset in it, from 0.
    pub offset: i64,
}

/// A record that was read.
#[derive(Debug, Clone)]
pub struct Record {
    /// The topic.
    pub topic: Arc<str>,
    /// Partition, from 0.
    pub partition: i32,
    /// Offset in it, from 0. Offsets grow, and may have gaps.
    pub offset: i64,
    /// When it was appended, milliseconds since the Unix epoch by the log's clock.
    pub timestamp_ms: i64,
    /// The key, where there is one.
    pub key: Option<Bytes>,
    /// The payload; empty where the record has none.
    pub value: Bytes,
    /// The record has no payload at all (Kafka's tombstone).
    pub null_value: bool,
    /// In order.
    pub headers: Headers,
}

impl Record {
    /// The last header of this name, where it is UTF-8.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The identity of a record that carries none (protocol.md section 2).
    pub fn derived_message_id(&self) -> MessageId {
        MessageId::of_record(&self.topic, self.partition, self.offset, self.timestamp_ms)
    }

    /// About how much memory it holds, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(k, v)| k.len() + v.len()).sum();
        self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + headers + 128
    }
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The log will never take this record (too large, topic not allowed): a fault of the record.
    #[error("the log refused the record: {0}")]
    Refused(String),
    /// Not acknowledged in time. The record may be there, or appear later: sending the same
    /// message again is safe only because its identity is the same.
    #[error("the log did not acknowledge in time: {0}")]
    Unknown(String),
}

/// The log could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// Away, or not yet there; worth waiting for.
    #[error("{0}")]
    Unavailable(String),
    /// Will not work until a person changes something.
    #[error("{0}")]
    Configuration(String),
}

/// A topic that has to be there.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions it is made with when it is missing; an existing one keeps its own.
    pub partitions: i32,
    /// How many replicas it is made with, and should have.
    pub replication: i16,
}

/// What a consumer tells its owner, in the order in which it happened.
#[derive(Debug)]
pub enum Event {
    /// These partitions are now this member's.
    Assigned(Vec<Assignment>),
    /// These no longer are. Records of them that were handed out stay valid to look at, but
    /// storing their offsets does nothing.
    Revoked(Vec<i32>),
    /// The next record of an assigned partition.
    Record(Record),
}

/// A partition that came to this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// Which.
    pub partition: i32,
    /// The group's committed offset (the next to be read), if it has one.
    pub committed: Option<i64>,
}

/// One member of a consumer group. Dropping it leaves the group without committing; use
/// [`Consumer::close`].
#[async_trait]
pub trait Consumer: Send {
    /// The next event. Cancel-safe. Never ends and never fails: faults of the connection are
    /// logged, counted, shown by [`Log::check`], and waited out.
    ///
    /// Must be called again within a few seconds for as long as the consumer lives (also while
    /// everything is paused): group membership hangs on it.
    async fn next(&mut self) -> Event;

    /// Everything below `next_offset` is finished; committed soon. For a partition that is no
    /// longer assigned it does nothing.
    fn store(&mut self, partition: i32, next_offset: i64);

    /// Hands out no more records of any partition until [`Consumer::resume`]; a few that were
    /// already fetched may still come.
    fn pause(&mut self);

    /// Undoes [`Consumer::pause`].
    fn resume(&mut self);

    /// The next records of this assigned partition come from `offset` on. Records from before
    /// the seek are not handed out after it returned. Does not touch the committed offset.
    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError>;

    /// Commits what was stored and leaves the group, so that others take over at once.
    /// Bounded by about 5 seconds when the log is away.
    async fn close(self: Box<Self>);
}

/// The log.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends a record and waits for its acknowledgement, at most `PRODUCE_TIMEOUT_MS`.
    ///
    /// The record's place in the order is taken when this function is *called*, before the
    /// returned future is first polled: callers may call in order and await later. The call
    /// itself never blocks; a full local queue is waited for inside the future, and then the
    /// order among the waiting calls of one key is still kept.
    fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> futures_util::future::BoxFuture<'static, Result<Place, AppendError>>;

    /// Joins `group` as a reader of `topic`. Begins at the committed offsets, and where there
    /// are none at the earliest record. Returns at once; the log need not be there yet.
    fn consumer(&self, group: &str, topic: &str) -> Result<Box<dyn Consumer>, LogError>;

    /// Makes the topics that are missing, and returns a sentence for each setting of an existing
    /// one that endangers what chatmesh promises (too few replicas, `min.insync.replicas`,
    /// another timestamp type).
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError>;

    /// The offset of the first record of the partition whose timestamp is at or after
    /// `timestamp_ms`; `None` where there is none that young.
    async fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, LogError>;

    /// A name of this log that no other log has (Kafka's cluster id): part of every position.
    async fn cluster_id(&self) -> Result<String, LogError>;

    /// Asks the log whether it answers, within 2 seconds.
    async fn check(&self) -> Result<(), LogError>;

    /// Waits until everything appended was acknowledged or timed out, at most `PRODUCE_TIMEOUT_MS`.
    async fn flush(&self);
}

/// What there is of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Which.
    pub partition: i32,
    /// Offset of the oldest record that is kept.
    pub start: i64,
    /// The offset after the newest record's.
    pub end: i64,
}

/// Looking into the log without being a member of a group, for what operators do.
#[async_trait]
pub trait Browse: Log {
    /// The partitions of a topic in order; none where there is no such topic.
    async fn extents(&self, topic: &str) -> Result<Vec<Extent>, LogError>;

    /// Records of a partition with `from <= offset < to`, in order: at least one where there is
    /// one, and about `max_bytes` of them. Empty means that there are no more.
    async fn read(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError>;
}

/// A key that leads to this partition of so many, as [`NewRecord::key`] places it.
pub fn key_of_partition(partition: i32, partitions: usize) -> Bytes {
    let leads_there =
        |key: &String| embedded::place(key.as_bytes(), partitions) == partition as usize;
    // Hashes are spread evenly, so that the key is found long before this bound.
    let key = (0..1_000_000_u32)
        .map(|n| format!("partition-{partition}-{n}"))
        .find(leads_there);
    Bytes::from(key.unwrap_or_default())
}
