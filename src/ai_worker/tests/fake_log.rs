//! A log of one partition in memory. Every consumer is assigned that partition, like two members of
//! a group that both believe they own it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::Journal;
use crate::log::{
    AppendError, Assignment, Consumer, ConsumerEvent, Log, LogError, LogOffset, TopicSpec,
};
use crate::protocol::log_record::{NewRecord, Record};

/// The records of a [`FakeLog`], and the offset that its one group has committed.
#[derive(Default)]
pub(super) struct FakeTopics {
    records: Mutex<HashMap<String, Vec<Record>>>,
    committed: Mutex<Option<i64>>,
    /// Appends to this topic are neither made nor acknowledged.
    pub(super) unacknowledged_topic: Mutex<Option<String>>,
    /// The timestamp that the log gives to the records that are appended next.
    pub(super) timestamp_ms: Mutex<i64>,
    /// Wakes the consumers after a record was appended.
    record_appended: Notify,
    journal: Journal,
}

pub(super) struct FakeLog(pub(super) Arc<FakeTopics>);

struct FakeConsumer {
    topics: Arc<FakeTopics>,
    topic: String,
    /// Offset of the record that is read next; `None` before the assignment.
    next_offset: Option<i64>,
}

impl FakeTopics {
    pub(super) fn new(journal: Journal) -> Arc<Self> {
        Arc::new(Self {
            timestamp_ms: Mutex::new(super::fake_fanout::START_MS),
            journal,
            ..Self::default()
        })
    }

    pub(super) fn append(&self, topic: &str, record: NewRecord) -> LogOffset {
        let mut topics = self.records.lock().unwrap();
        let records = topics.entry(topic.to_owned()).or_default();
        let offset = records.len() as i64;
        records.push(Record {
            topic: topic.into(),
            partition: 0,
            offset,
            timestamp_ms: *self.timestamp_ms.lock().unwrap(),
            key: record.key,
            value: record.value,
            null_value: false,
            headers: record.headers,
        });
        self.record_appended.notify_waiters();
        LogOffset {
            partition: 0,
            offset,
        }
    }

    /// The values of all records of a topic as JSON; `null` for a value that is not JSON.
    pub(super) fn values(&self, topic: &str) -> Vec<serde_json::Value> {
        let topics = self.records.lock().unwrap();
        let records = topics.get(topic).map(Vec::as_slice).unwrap_or_default();
        let parse = |record: &Record| serde_json::from_slice(&record.value).unwrap_or_default();
        records.iter().map(parse).collect()
    }

    pub(super) fn committed(&self) -> i64 {
        self.committed.lock().unwrap().unwrap_or(0)
    }

    /// A record with this value, and neither key nor headers.
    pub(super) fn record(value: &str) -> NewRecord {
        NewRecord {
            key: None,
            value: Bytes::from(value.to_owned()),
            null_value: false,
            headers: vec![],
        }
    }
}

#[async_trait]
impl Consumer for FakeConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            let record_appended = self.topics.record_appended.notified();
            let Some(next_offset) = self.next_offset else {
                let committed = *self.topics.committed.lock().unwrap();
                self.next_offset = Some(committed.unwrap_or(0));
                return ConsumerEvent::Assigned(vec![Assignment {
                    partition: 0,
                    committed_offset: committed,
                }]);
            };
            let record = {
                let topics = self.topics.records.lock().unwrap();
                topics
                    .get(&self.topic)
                    .and_then(|records| records.get(next_offset as usize).cloned())
            };
            if let Some(record) = record {
                self.next_offset = Some(next_offset + 1);
                return ConsumerEvent::Record(record);
            }
            record_appended.await;
        }
    }

    fn store_offset(&mut self, _: i32, next_offset: i64) {
        let mut committed = self.topics.committed.lock().unwrap();
        *committed = Some(next_offset.max(committed.unwrap_or(0)));
        self.topics.journal.lock().unwrap().push("offset".into());
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}

    async fn seek(&mut self, _: i32, offset: i64) -> Result<(), LogError> {
        self.next_offset = Some(offset);
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

#[async_trait]
impl Log for FakeLog {
    fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        if self.0.unacknowledged_topic.lock().unwrap().as_deref() == Some(topic) {
            return Box::pin(std::future::pending());
        }
        let log_offset = self.0.append(topic, record);
        self.0.journal.lock().unwrap().push(topic.to_owned());
        Box::pin(async move { Ok(log_offset) })
    }

    fn consumer(&self, _: &str, topic: &str) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(FakeConsumer {
            topics: Arc::clone(&self.0),
            topic: topic.to_owned(),
            next_offset: None,
        }))
    }

    async fn ensure_topics(&self, _: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(vec![])
    }

    async fn offset_at(&self, _: &str, _: i32, _: i64) -> Result<Option<i64>, LogError> {
        Ok(None)
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        Ok("test".into())
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }

    async fn flush(&self) {}
}
