//! Reading: one member of a group, one queue, events in the order in which they happened.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, coop::consume_budget, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use super::properties::Properties;
use super::rebalance::{Change, Context, take};
use crate::log::{Assignment, Consumer, ConsumerEvent, LogError};
use crate::protocol::log_record::{Headers, Record};

/// A wake-up of librdkafka's queue can be lost; this long later it is looked at anyway.
const POLL: Duration = Duration::from_secs(1);

/// One question about committed offsets; it is repeated until there is an answer.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a seek waits for the partition's fetcher to have started.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long leaving the group may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

type Inner = Arc<StreamConsumer<Context>>;

/// A member of a consumer group on one topic.
pub(super) struct KafkaConsumer {
    properties: Properties,
    group: String,
    /// There until it is closed.
    inner: Option<Inner>,
    topic: Arc<str>,
    assigned: BTreeSet<i32>,
    paused: bool,
    /// Partitions that wait until their committed offsets are known.
    offered: Option<Offered>,
    /// What is to be handed out before anything is polled.
    ready: VecDeque<ConsumerEvent>,
}

/// Partitions that the group gave and that were not taken yet: nothing of them is fetched.
struct Offered {
    partitions: TopicPartitionList,
    committed: JoinHandle<TopicPartitionList>,
}

impl KafkaConsumer {
    /// Joins the group, in the background.
    pub(super) fn join(
        properties: &Properties,
        group: &str,
        topic: &str,
    ) -> Result<Self, LogError> {
        let name: Arc<str> = Arc::from(topic);
        let inner = make(properties, group, &name).map_err(|error| {
            LogError::Configuration(format!(
                "the kafka consumer of {topic} cannot be made: {}; check KAFKA_PROPERTIES",
                properties.redact(&error.to_string())
            ))
        })?;
        Ok(Self {
            properties: properties.clone(),
            group: group.to_owned(),
            inner: Some(inner),
            topic: name,
            assigned: BTreeSet::new(),
            paused: false,
            offered: None,
            ready: VecDeque::new(),
        })
    }

    /// Joins the group anew where librdkafka has left this member without brokers. What it had is
    /// lost, and what was stored and not committed comes again.
    fn rejoin(&mut self) {
        let orphaned = |inner: &Inner| inner.context().brokers.are_gone();
        if !self.inner.as_ref().is_some_and(orphaned) {
            return;
        }
        tracing::warn!(
            topic = %self.topic,
            "kafka: the consumer has no brokers any more and joins its group anew"
        );
        match make(&self.properties, &self.group, &self.topic) {
            Ok(inner) => {
                // It can't reach anybody: there is nothing to commit and nobody to say goodbye to.
                self.leave(false);
                self.inner = Some(inner);
                self.ready.clear();
                let lost: Vec<i32> = std::mem::take(&mut self.assigned).into_iter().collect();
                if !lost.is_empty() {
                    self.ready.push_back(ConsumerEvent::Revoked(lost));
                }
            }
            Err(error) => {
                tracing::error!(%error, topic = %self.topic, "kafka: it could not be made anew");
            }
        }
    }

    /// As if librdkafka had left this member without brokers.
    #[cfg(test)]
    pub(super) fn lose_brokers(&self) {
        if let Some(inner) = &self.inner {
            inner.context().brokers.lose();
        }
    }

    /// Turns the changes that the callback noted into events.
    fn follow(&mut self, inner: &Inner) {
        while let Some(change) = inner.context().next_change() {
            match change {
                Change::Offered(partitions) => {
                    let committed = tokio::spawn(committed(Arc::clone(inner), partitions.clone()));
                    self.offered = Some(Offered {
                        partitions,
                        committed,
                    });
                }
                Change::Taken(partitions) => {
                    // An offer is never taken back before it was answered; if it is after all,
                    // answering it would be an error.
                    if let Some(offered) = self.offered.take() {
                        offered.committed.abort();
                    }
                    let lost: Vec<i32> = partitions
                        .into_iter()
                        .filter(|p| self.assigned.remove(p))
                        .collect();
                    if !lost.is_empty() {
                        self.ready.push_back(ConsumerEvent::Revoked(lost));
                    }
                }
            }
        }
    }

    /// The committed offsets are known: fetching begins at exactly these.
    fn begin(&mut self, inner: &Inner, from: &TopicPartitionList) {
        if let Err(error) = take(inner.as_ref(), from) {
            tracing::error!(%error, topic = %self.topic, "kafka: an assignment was refused");
            return;
        }
        // librdkafka remembers a pause over a loss of the partition.
        let paused = if self.paused {
            inner.pause(from)
        } else {
            inner.resume(from)
        };
        if let Err(error) = paused {
            tracing::warn!(%error, topic = %self.topic, "kafka: pausing or resuming failed");
        }
        let assignments: Vec<Assignment> = from
            .elements()
            .iter()
            .map(|element| Assignment {
                partition: element.partition(),
                committed: match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                },
            })
            .collect();
        self.assigned
            .extend(assignments.iter().map(|assignment| assignment.partition));
        inner
            .context()
            .lag
            .assign(assignments.iter().map(|assignment| assignment.partition));
        tracing::debug!(?assignments, topic = %self.topic, "kafka: partitions came");
        self.ready.push_back(ConsumerEvent::Assigned(assignments));
    }

    fn list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(self.assigned.len());
        for partition in &self.assigned {
            list.add_partition(&self.topic, *partition);
        }
        list
    }

    /// Leaves the group on a thread of its own, which tells when it is done: that blocks for as
    /// long as the brokers let it, and must hold up neither the runtime nor the end of the process.
    fn leave(&mut self, commit: bool) -> Option<oneshot::Receiver<()>> {
        let inner = self.inner.take()?;
        let offered = self.offered.take();
        let (done, wait) = oneshot::channel();
        std::thread::spawn(move || {
            inner.context().begin_to_close();
            // An offer that nobody answers would keep the group from letting us go.
            let mut offers: Vec<TopicPartitionList> = Vec::new();
            if let Some(offered) = offered {
                offered.committed.abort();
                offers.push(offered.partitions);
            }
            while let Some(change) = inner.context().next_change() {
                if let Change::Offered(partitions) = change {
                    offers.push(partitions);
                }
            }
            for partitions in offers {
                if let Err(error) = take(inner.as_ref(), &partitions) {
                    tracing::debug!(%error, "kafka: an offer could not be answered at the end");
                }
            }
            if commit
                && let Err(error) = inner.commit_consumer_state(CommitMode::Sync)
                && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
            {
                tracing::warn!(%error, "kafka: the last commit failed, records will come again");
            }
            drop(inner);
            // Nobody waits any longer: fine.
            let _ = done.send(());
        });
        Some(wait)
    }
}

fn make(properties: &Properties, group: &str, topic: &Arc<str>) -> Result<Inner, KafkaError> {
    let context = Context::new(group, Arc::clone(topic));
    let inner: StreamConsumer<Context> = properties.consumer(group).create_with_context(context)?;
    inner.subscribe(&[topic])?;
    Ok(Arc::new(inner))
}

/// Asks until there is an answer for every partition.
async fn committed(inner: Inner, partitions: TopicPartitionList) -> TopicPartitionList {
    loop {
        let (asker, asked) = (Arc::clone(&inner), partitions.clone());
        let answer = spawn_blocking(move || asker.committed_offsets(asked, COMMITTED_TIMEOUT));
        match answer.await {
            Ok(Ok(list))
                if list
                    .elements()
                    .iter()
                    .all(|element| element.error().is_ok()) =>
            {
                return list;
            }
            Ok(Ok(_)) => tracing::debug!("kafka: some committed offsets are not known yet"),
            Ok(Err(error)) => tracing::debug!(%error, "kafka: committed offsets not known yet"),
            Err(error) => tracing::warn!(%error, "kafka: asking for committed offsets failed"),
        }
        // The coordinator moves or loads; it has no way to tell when it is ready.
        sleep(Duration::from_millis(100)).await;
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            self.rejoin();
            let Some(inner) = self.inner.clone() else {
                return std::future::pending().await;
            };
            self.follow(&inner);
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            // Records that are there already come without waiting: others shall have a turn too.
            consume_budget().await;
            let received = if let Some(offered) = &mut self.offered {
                tokio::select! {
                    biased;
                    known = &mut offered.committed => {
                        if let Some(offered) = self.offered.take() {
                            // It fails only with its runtime; then librdkafka finds out itself.
                            self.begin(&inner, &known.unwrap_or(offered.partitions));
                        }
                        continue;
                    }
                    received = timeout(POLL, inner.recv()) => received,
                }
            } else {
                timeout(POLL, inner.recv()).await
            };
            match received {
                Ok(Ok(message)) => {
                    let partition = message.partition();
                    let record = owned(&message, &self.topic);
                    // The poll that brought it may have called back before.
                    self.follow(&inner);
                    if self.assigned.contains(&partition) {
                        self.ready.push_back(ConsumerEvent::Record(record));
                    }
                }
                // Counted and logged by the context; librdkafka goes on by itself.
                Ok(Err(error)) => tracing::debug!(%error, topic = %self.topic, "kafka: receiving"),
                Err(_) => {}
            }
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        let Some(inner) = &self.inner else { return };
        if !self.assigned.contains(&partition) {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(1);
        let stored = list
            .add_partition_offset(&self.topic, partition, Offset::Offset(next_offset))
            .and_then(|()| inner.store_offsets(&list));
        if let Err(error) = stored {
            // Lost a moment ago; the event is on its way.
            tracing::debug!(%error, partition, next_offset, "kafka: an offset was not stored");
        }
    }

    fn pause(&mut self) {
        self.paused = true;
        if let Some(inner) = &self.inner
            && let Err(error) = inner.pause(&self.list())
        {
            tracing::warn!(%error, topic = %self.topic, "kafka: pausing failed");
        }
    }

    fn resume(&mut self) {
        self.paused = false;
        if let Some(inner) = &self.inner
            && let Err(error) = inner.resume(&self.list())
        {
            tracing::warn!(%error, topic = %self.topic, "kafka: resuming failed");
        }
    }

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        let lost =
            || LogError::Unavailable(format!("partition {partition} is not assigned any longer"));
        let deadline = Instant::now() + SEEK_TIMEOUT;
        loop {
            let Some(inner) = self.inner.clone() else {
                return Err(lost());
            };
            self.follow(&inner);
            if !self.assigned.contains(&partition) {
                return Err(lost());
            }
            let topic = Arc::clone(&self.topic);
            let sought = spawn_blocking(move || {
                inner.seek(
                    &topic,
                    partition,
                    Offset::Offset(offset),
                    Duration::from_secs(1),
                )
            })
            .await;
            let error = match sought {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!(
                    "seeking in partition {partition} failed: {error}"
                )));
            }
            // Just assigned: its fetcher starts in the background, and tells nobody when.
            sleep(Duration::from_millis(20)).await;
        }
        // librdkafka drops what it has fetched; this is what was taken from it already.
        self.ready.retain(
            |event| !matches!(event, ConsumerEvent::Record(record) if record.partition == partition),
        );
        Ok(())
    }

    async fn close(mut self: Box<Self>) {
        if let Some(done) = self.leave(true)
            && timeout(CLOSE_TIMEOUT, done).await.is_err()
        {
            tracing::warn!(
                topic = %self.topic,
                "kafka: leaving the group takes long and goes on in the background"
            );
        }
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.leave(false);
    }
}

pub(super) fn owned(message: &BorrowedMessage<'_>, topic: &Arc<str>) -> Record {
    Record {
        topic: Arc::clone(topic),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        key: message.key().map(Bytes::copy_from_slice),
        value: message
            .payload()
            .map(Bytes::copy_from_slice)
            .unwrap_or_default(),
        null_value: message.payload().is_none(),
        headers: headers(message),
    }
}

/// Header names are any bytes on the wire, and rdkafka panics where they are not UTF-8: such a
/// header is left out, it must not end the consumer.
fn headers(message: &BorrowedMessage<'_>) -> Headers {
    let Some(headers) = message.headers() else {
        return Headers::new();
    };
    (0..headers.count())
        .filter_map(|index| catch_unwind(AssertUnwindSafe(|| headers.try_get(index))).ok()?)
        .map(|header| {
            (
                header.key.to_owned(),
                header.value.map(Bytes::copy_from_slice).unwrap_or_default(),
            )
        })
        .collect()
}
