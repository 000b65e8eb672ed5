//! A member of a consumer group: merges librdkafka's rebalances and records into one ordered
//! sequence of events.

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
use super::rebalance::{GroupContext, RebalanceChange, accept_assignment};
use crate::log::{Assignment, Consumer, ConsumerEvent, LogError};
use crate::protocol::log_record::{Headers, Record};

/// Maximum delay before librdkafka's queue is polled again, because a wake-up can be lost.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time limit of one request for committed offsets. The request is repeated until it succeeds.
const COMMITTED_OFFSETS_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay before a request for committed offsets is repeated.
const COMMITTED_OFFSETS_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Time after which a seek fails if the partition's fetcher in librdkafka has not started.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before a failed seek is tried again.
const SEEK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum time for which [`Consumer::close`] waits until this member has left the group.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// librdkafka's consumer, shared with the blocking tasks that send requests.
type Client = Arc<StreamConsumer<GroupContext>>;

/// A member of a consumer group that reads one topic.
pub(super) struct KafkaConsumer {
    properties: Properties,
    group: String,
    /// `None` once the consumer is closed.
    client: Option<Client>,
    topic: Arc<str>,
    /// The partitions whose assignment was accepted and that were not revoked since.
    assigned_partitions: BTreeSet<i32>,
    is_paused: bool,
    pending_assignment: Option<PendingAssignment>,
    /// Events that [`Consumer::next`] returns before it polls librdkafka again.
    events: VecDeque<ConsumerEvent>,
}

/// An assignment that is not accepted yet, because the committed offsets of its partitions are
/// still being fetched. Until then librdkafka fetches no records of these partitions.
struct PendingAssignment {
    partitions: TopicPartitionList,
    /// The task that fetches the committed offsets.
    offsets_task: JoinHandle<TopicPartitionList>,
}

impl KafkaConsumer {
    /// Creates a consumer, which joins the group in the background.
    pub(super) fn join(
        properties: &Properties,
        group: &str,
        topic: &str,
    ) -> Result<Self, LogError> {
        let topic: Arc<str> = Arc::from(topic);
        let client = create_client(properties, group, &topic).map_err(|error| {
            properties.creation_error(&format!("consumer of topic {topic}"), &error)
        })?;
        Ok(Self {
            properties: properties.clone(),
            group: group.to_owned(),
            client: Some(client),
            topic,
            assigned_partitions: BTreeSet::new(),
            is_paused: false,
            pending_assignment: None,
            events: VecDeque::new(),
        })
    }

    /// Replaces a client that has lost every broker with a new client, which joins the group again.
    /// All partitions count as revoked. Offsets that were stored but not committed are lost, so the
    /// records below them are delivered again.
    fn recreate_if_disconnected(&mut self) {
        let is_disconnected = |client: &Client| client.context().watchdog.is_disconnected();
        if !self.client.as_ref().is_some_and(is_disconnected) {
            return;
        }
        tracing::warn!(
            topic = %self.topic,
            "kafka: the consumer lost every broker, recreating it; no action is needed"
        );
        match create_client(&self.properties, &self.group, &self.topic) {
            Ok(client) => {
                // The old client reaches no broker, so it can neither commit nor leave the group.
                self.leave_group(false);
                self.client = Some(client);
                self.events.clear();
                let lost: Vec<i32> = std::mem::take(&mut self.assigned_partitions)
                    .into_iter()
                    .collect();
                if !lost.is_empty() {
                    self.events.push_back(ConsumerEvent::Revoked(lost));
                }
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    topic = %self.topic,
                    "kafka: the consumer could not be recreated, retrying"
                );
            }
        }
    }

    /// Makes the client look as if it had lost every broker.
    #[cfg(test)]
    pub(super) fn simulate_broker_loss(&self) {
        if let Some(client) = &self.client {
            client.context().watchdog.simulate_loss();
        }
    }

    /// Applies the changes that the rebalance callback queued.
    fn apply_rebalance_changes(&mut self, client: &Client) {
        while let Some(change) = client.context().next_change() {
            match change {
                RebalanceChange::Assigned(partitions) => {
                    let offsets_task = tokio::spawn(fetch_committed_offsets(
                        Arc::clone(client),
                        partitions.clone(),
                    ));
                    self.pending_assignment = Some(PendingAssignment {
                        partitions,
                        offsets_task,
                    });
                }
                RebalanceChange::Revoked(partitions) => {
                    // Not expected, because librdkafka revokes no assignment before it was
                    // accepted. If it does, the assignment must not be accepted afterwards.
                    if let Some(pending) = self.pending_assignment.take() {
                        pending.offsets_task.abort();
                    }
                    let lost: Vec<i32> = partitions
                        .into_iter()
                        .filter(|p| self.assigned_partitions.remove(p))
                        .collect();
                    if !lost.is_empty() {
                        self.events.push_back(ConsumerEvent::Revoked(lost));
                    }
                }
            }
        }
    }

    /// Accepts the pending assignment, so that librdkafka fetches records from these committed
    /// offsets on, and queues the event that reports the assignment.
    fn complete_assignment(&mut self, client: &Client, committed_offsets: &TopicPartitionList) {
        if let Err(error) = accept_assignment(client.as_ref(), committed_offsets) {
            tracing::error!(
                %error,
                topic = %self.topic,
                "kafka: an assignment could not be accepted; restart this process if its \
                 partitions stay unread"
            );
            return;
        }
        // librdkafka remembers that a partition was paused even after it was revoked, so a new
        // assignment has to be resumed explicitly.
        let result = if self.is_paused {
            client.pause(committed_offsets)
        } else {
            client.resume(committed_offsets)
        };
        if let Err(error) = result {
            tracing::warn!(
                %error,
                topic = %self.topic,
                "kafka: new partitions could not be paused or resumed; no action is needed \
                 unless their lag grows"
            );
        }
        let assignments: Vec<Assignment> = committed_offsets
            .elements()
            .iter()
            .map(|element| Assignment {
                partition: element.partition(),
                committed_offset: match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                },
            })
            .collect();
        self.assigned_partitions
            .extend(assignments.iter().map(|assignment| assignment.partition));
        client
            .context()
            .lag
            .assign(assignments.iter().map(|assignment| assignment.partition));
        tracing::debug!(?assignments, topic = %self.topic, "kafka: partitions assigned");
        self.events.push_back(ConsumerEvent::Assigned(assignments));
    }

    fn assigned_list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(self.assigned_partitions.len());
        for partition in &self.assigned_partitions {
            list.add_partition(&self.topic, *partition);
        }
        list
    }

    /// Leaves the group on a new thread, which first commits the stored offsets if `commit` is set.
    /// Returns a channel that reports when the consumer has left. `None` if it is closed already.
    ///
    /// Leaving blocks until the brokers answer, and must delay neither the runtime nor the end of
    /// the process.
    fn leave_group(&mut self, commit: bool) -> Option<oneshot::Receiver<()>> {
        let client = self.client.take()?;
        let pending = self.pending_assignment.take();
        let (left_sender, left_receiver) = oneshot::channel();
        std::thread::spawn(move || {
            client.context().start_closing();
            // The group does not let a member leave before it has accepted its assignments.
            let mut unaccepted: Vec<TopicPartitionList> = Vec::new();
            if let Some(pending) = pending {
                pending.offsets_task.abort();
                unaccepted.push(pending.partitions);
            }
            while let Some(change) = client.context().next_change() {
                if let RebalanceChange::Assigned(partitions) = change {
                    unaccepted.push(partitions);
                }
            }
            for partitions in unaccepted {
                if let Err(error) = accept_assignment(client.as_ref(), &partitions) {
                    tracing::debug!(%error, "kafka: an assignment was not accepted while closing");
                }
            }
            if commit
                && let Err(error) = client.commit_consumer_state(CommitMode::Sync)
                && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
            {
                tracing::warn!(
                    %error,
                    "kafka: the last commit failed, its records will be delivered again; no \
                     action is needed"
                );
            }
            drop(client);
            let _ = left_sender.send(());
        });
        Some(left_receiver)
    }
}

fn create_client(
    properties: &Properties,
    group: &str,
    topic: &Arc<str>,
) -> Result<Client, KafkaError> {
    let context = GroupContext::new(group, Arc::clone(topic));
    let client: StreamConsumer<GroupContext> =
        properties.consumer(group).create_with_context(context)?;
    client.subscribe(&[topic])?;
    Ok(Arc::new(client))
}

/// Fetches the committed offsets of these partitions, and retries until the answer has the offset
/// of each partition, or says that there is none.
async fn fetch_committed_offsets(
    client: Client,
    partitions: TopicPartitionList,
) -> TopicPartitionList {
    loop {
        let (blocking_client, requested) = (Arc::clone(&client), partitions.clone());
        let request = spawn_blocking(move || {
            blocking_client.committed_offsets(requested, COMMITTED_OFFSETS_TIMEOUT)
        });
        match request.await {
            Ok(Ok(list))
                if list
                    .elements()
                    .iter()
                    .all(|element| element.error().is_ok()) =>
            {
                return list;
            }
            Ok(Ok(_)) => tracing::debug!("kafka: some committed offsets are not available yet"),
            Ok(Err(error)) => {
                tracing::debug!(%error, "kafka: committed offsets are not available yet");
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "kafka: the request for committed offsets panicked, retrying; report this bug"
                );
            }
        }
        // The group's coordinator is moving or still loading. It sends no notification when it is
        // ready, so the request is repeated after a delay.
        sleep(COMMITTED_OFFSETS_RETRY_INTERVAL).await;
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            self.recreate_if_disconnected();
            let Some(client) = self.client.clone() else {
                return std::future::pending().await;
            };
            self.apply_rebalance_changes(&client);
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            // Lets other tasks run now and then: as long as records are available, this function
            // returns without another await.
            consume_budget().await;
            let received = if let Some(pending) = &mut self.pending_assignment {
                tokio::select! {
                    biased;
                    result = &mut pending.offsets_task => {
                        if let Some(pending) = self.pending_assignment.take() {
                            // The task fails only when its runtime stops. Without offsets in the
                            // list, librdkafka looks up the committed offsets itself.
                            let committed_offsets = result.unwrap_or(pending.partitions);
                            self.complete_assignment(&client, &committed_offsets);
                        }
                        continue;
                    }
                    received = timeout(POLL_INTERVAL, client.recv()) => received,
                }
            } else {
                timeout(POLL_INTERVAL, client.recv()).await
            };
            match received {
                Ok(Ok(message)) => {
                    let partition = message.partition();
                    let record = to_record(&message, &self.topic);
                    // Before the poll returned the record, it may have called the rebalance
                    // callback and revoked the record's partition.
                    self.apply_rebalance_changes(&client);
                    if self.assigned_partitions.contains(&partition) {
                        self.events.push_back(ConsumerEvent::Record(record));
                    }
                }
                // `GroupContext` counts and logs the error, and librdkafka recovers by itself.
                Ok(Err(error)) => {
                    tracing::debug!(%error, topic = %self.topic, "kafka: receive error");
                }
                // `POLL_INTERVAL` has passed without a record, so the loop polls again.
                Err(_) => {}
            }
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        let Some(client) = &self.client else { return };
        if !self.assigned_partitions.contains(&partition) {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(1);
        let stored = list
            .add_partition_offset(&self.topic, partition, Offset::Offset(next_offset))
            .and_then(|()| client.store_offsets(&list));
        if let Err(error) = stored {
            // The partition was revoked a moment ago, and a `Revoked` event follows.
            tracing::debug!(%error, partition, next_offset, "kafka: an offset was not stored");
        }
    }

    fn pause(&mut self) {
        self.is_paused = true;
        if let Some(client) = &self.client
            && let Err(error) = client.pause(&self.assigned_list())
        {
            tracing::warn!(
                %error,
                topic = %self.topic,
                "kafka: pausing failed; no action is needed unless memory use grows"
            );
        }
    }

    fn resume(&mut self) {
        self.is_paused = false;
        if let Some(client) = &self.client
            && let Err(error) = client.resume(&self.assigned_list())
        {
            tracing::warn!(
                %error,
                topic = %self.topic,
                "kafka: resuming failed; restart this process if its lag grows"
            );
        }
    }

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        let not_assigned =
            || LogError::Unavailable(format!("partition {partition} is no longer assigned"));
        let deadline = Instant::now() + SEEK_TIMEOUT;
        loop {
            let Some(client) = self.client.clone() else {
                return Err(not_assigned());
            };
            self.apply_rebalance_changes(&client);
            if !self.assigned_partitions.contains(&partition) {
                return Err(not_assigned());
            }
            let topic = Arc::clone(&self.topic);
            let result = spawn_blocking(move || {
                client.seek(
                    &topic,
                    partition,
                    Offset::Offset(offset),
                    Duration::from_secs(1),
                )
            })
            .await;
            let error = match result {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!(
                    "seek in partition {partition} failed: {error}"
                )));
            }
            // The fetcher of a new partition starts in the background and sends no notification, so
            // the seek is tried again after a delay.
            sleep(SEEK_RETRY_INTERVAL).await;
        }
        // librdkafka drops the partition's records that it has fetched. This drops the records that
        // were received from librdkafka before.
        self.events.retain(
            |event| !matches!(event, ConsumerEvent::Record(record) if record.partition == partition),
        );
        Ok(())
    }

    async fn close(mut self: Box<Self>) {
        if let Some(left_receiver) = self.leave_group(true)
            && timeout(CLOSE_TIMEOUT, left_receiver).await.is_err()
        {
            tracing::warn!(
                topic = %self.topic,
                "kafka: leaving the group takes long and continues in the background; no action is \
                 needed"
            );
        }
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.leave_group(false);
    }
}

/// Copies a message out of librdkafka's memory.
pub(super) fn to_record(message: &BorrowedMessage<'_>, topic: &Arc<str>) -> Record {
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
        headers: to_headers(message),
    }
}

/// Copies the headers of a message. A header's name may be any bytes on the wire, and rdkafka
/// panics if the name is not UTF-8. Such a header is omitted, so that it cannot stop the consumer.
fn to_headers(message: &BorrowedMessage<'_>) -> Headers {
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
