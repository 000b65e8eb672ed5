//! Appends records through one idempotent producer. In front of it, each topic has a backlog for
//! records that librdkafka does not accept yet, because librdkafka's queue is full or the topic
//! seems to be missing.

use std::collections::{HashMap, VecDeque};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::delivery::{
    AppendTicket, DeliveryContext, DeliveryReport, PendingAppends, missing_topic_refusal,
    to_append_error,
};
use super::properties::Properties;
use crate::log::{AppendError, LogError, LogOffset};
use crate::protocol::log_record::{Headers, NewRecord};

/// Maximum size in bytes of all backlogs together. An append that would exceed it fails at once.
const MAX_BACKLOG_BYTES: usize = 64 * 1024 * 1024;

/// Estimated memory in bytes that a record in a backlog occupies beside its contents.
const BACKLOG_ENTRY_OVERHEAD_BYTES: usize = 256;

/// Maximum delay until the records left in a backlog are tried again. A delivery report wakes the
/// backlog's task earlier, but librdkafka frees the room of a batch only after the batch's last
/// report.
const BACKLOG_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Time limit of one metadata request for a missing topic.
const TOPIC_LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay after a metadata request for a missing topic.
const TOPIC_LOOKUP_INTERVAL: Duration = Duration::from_millis(100);
/// Time before an append's deadline at which the append is refused if its topic is missing. The
/// refusal must arrive before the caller times out.
const MISSING_TOPIC_MARGIN: Duration = Duration::from_secs(2);

/// librdkafka's producer, which polls its events on its own thread.
pub(super) type Client = ThreadedProducer<DeliveryContext>;

/// Implements appends to Kafka, in the order of the calls.
pub(super) struct Producer {
    shared: Arc<Shared>,
}

/// The state that the producer, its appends and the tasks of its backlogs share.
struct Shared {
    properties: Properties,
    state: Mutex<ProducerState>,
    pending_appends: Arc<PendingAppends>,
}

/// The client and the backlogs. They share one lock, so that records keep the order of the calls
/// while librdkafka's queue is full and when the client is replaced.
struct ProducerState {
    /// The current client. `None` only while the producer is dropped.
    client: Option<Client>,
    /// Backlogs by topic. Each backlog has its own task for as long as it exists, so that a missing
    /// topic does not delay the records of another topic.
    backlogs: HashMap<String, VecDeque<BacklogEntry>>,
    /// Size of all backlogs together, in bytes.
    backlog_bytes: usize,
}

/// Why librdkafka did not accept a record, with the ticket for the next attempt.
enum SendRefusal {
    /// librdkafka's queue is full.
    QueueFull(Box<AppendTicket>),
    /// The topic was missing when librdkafka last fetched metadata.
    TopicMissing(Box<AppendTicket>),
}

/// An append whose record librdkafka did not accept yet.
struct BacklogEntry {
    record: Arc<NewRecord>,
    /// The entry's share of `backlog_bytes`.
    size: usize,
    deadline: Instant,
    ticket: Box<AppendTicket>,
}

/// Why an attempt to send a topic's backlog has stopped.
enum SendBacklogResult {
    /// The backlog is empty: every record was sent, or its append failed.
    Empty,
    /// librdkafka's queue is full.
    QueueFull,
    /// librdkafka reports the topic as missing, or reported it before and has not accepted a record
    /// of it since.
    TopicMissing,
}

impl Producer {
    /// Creates the producer, which connects in the background and retries without limit.
    pub(super) fn new(properties: Properties) -> Result<Self, LogError> {
        let client = create_client(&properties)
            .map_err(|error| properties.creation_error("producer", &error))?;
        let state = ProducerState {
            client: Some(client),
            backlogs: HashMap::new(),
            backlog_bytes: 0,
        };
        let shared = Shared {
            properties,
            state: Mutex::new(state),
            pending_appends: Arc::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Implements [`crate::log::Log::append`].
    pub(super) fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let time_limit = self.shared.properties.produce_timeout();
        let deadline = Instant::now() + time_limit;
        if record.headers.iter().any(|(name, _)| name.contains('\0')) {
            let reason = "a header name contains a NUL character".to_owned();
            return ready(Err(AppendError::Refused(reason))).boxed();
        }
        let record = Arc::new(record);
        let mut result = self.shared.enqueue(topic, &record, deadline);
        let (shared, topic) = (Arc::clone(&self.shared), topic.to_owned());
        async move {
            loop {
                let report = match timeout_at(deadline, result).await {
                    Ok(Ok(report)) => report?,
                    Ok(Err(_)) => {
                        return Err(AppendError::Unknown("the producer was closed".to_owned()));
                    }
                    Err(_) => {
                        return Err(AppendError::Unknown(format!(
                            "no acknowledgement within {} ms",
                            time_limit.as_millis()
                        )));
                    }
                };
                match report {
                    DeliveryReport::Acknowledged(offset) => return Ok(offset),
                    DeliveryReport::OnlyLaterAcknowledged => {
                        tracing::warn!(
                            topic,
                            "kafka: only a later record was acknowledged, sending this one again; \
                             no action is needed"
                        );
                        result = shared.enqueue(&topic, &record, deadline);
                    }
                }
            }
        }
        .boxed()
    }

    /// Waits until no append is pending, for at most the time limit of an append.
    pub(super) async fn flush(&self) {
        let pending_appends = &self.shared.pending_appends;
        let drained = async {
            loop {
                let decreased = pending_appends.decreased.notified();
                if pending_appends.count.load(Ordering::Acquire) == 0 {
                    return;
                }
                decreased.await;
            }
        };
        if timeout(self.shared.properties.produce_timeout(), drained)
            .await
            .is_err()
        {
            let pending = pending_appends.count.load(Ordering::Acquire);
            tracing::warn!(
                pending,
                "kafka: records were not acknowledged before the flush timed out; clients that \
                 send them again lose nothing"
            );
        }
    }

    /// Replaces a client that has lost every broker. The appends that the old client had accepted
    /// fail with [`AppendError::Unknown`].
    pub(super) fn recreate_if_disconnected(&self) {
        let mut state = self.shared.state.lock();
        let is_disconnected = |client: &Client| client.context().watchdog.is_disconnected();
        if !state.client.as_ref().is_some_and(is_disconnected) {
            return;
        }
        tracing::warn!("kafka: the producer lost every broker, recreating it; no action is needed");
        match create_client(&self.shared.properties) {
            Ok(client) => drop_in_background(state.client.replace(client)),
            Err(error) => {
                tracing::error!(%error, "kafka: the producer could not be recreated, retrying");
            }
        }
    }

    /// The producer's client, for metadata requests. Its own thread polls its events, whereas the
    /// events of a client that nothing polls would accumulate.
    pub(super) fn client(&self) -> Result<Client, LogError> {
        let client = self.shared.state.lock().client.clone();
        client.ok_or_else(|| LogError::Unavailable("the producer is closed".to_owned()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop_in_background(self.state.lock().client.take());
    }
}

/// Drops a client on a new thread, because the drop purges the client's queue and joins the
/// client's thread, which blocks for up to half a second.
fn drop_in_background(client: Option<Client>) {
    std::thread::spawn(move || drop(client));
}

fn create_client(properties: &Properties) -> Result<Client, KafkaError> {
    let context = DeliveryContext::new(properties.produce_timeout() / 3);
    properties.producer().create_with_context(context)
}

fn to_kafka_headers(headers: &Headers) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(empty, |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: Some(value.as_ref()),
        })
    })
}

impl ProducerState {
    /// Hands a record to librdkafka. Returns a refusal with the ticket if the record can be sent
    /// again later. `None` if the delivery report will finish the ticket, or if the append failed
    /// and the ticket is finished.
    fn send(
        &mut self,
        properties: &Properties,
        topic: &str,
        record: &NewRecord,
        mut ticket: Box<AppendTicket>,
    ) -> Option<SendRefusal> {
        let mut was_recreated = false;
        loop {
            let Some(client) = &self.client else {
                ticket.finish(Err(AppendError::Unknown(
                    "the producer is closed".to_owned(),
                )));
                return None;
            };
            let mut outgoing = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, ticket);
            outgoing.key = record.key.as_deref();
            outgoing.payload = Some(&*record.value).filter(|_| !record.null_value);
            if !record.headers.is_empty() {
                outgoing.headers = Some(to_kafka_headers(&record.headers));
            }
            let (error, unsent) = match client.send(outgoing) {
                Ok(()) => return None,
                Err((error, unsent)) => (error, unsent.delivery_opaque),
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => return Some(SendRefusal::QueueFull(unsent)),
                Some(
                    RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition,
                ) => {
                    return Some(SendRefusal::TopicMissing(unsent));
                }
                // An idempotent producer that lost track of its sequence numbers never recovers.
                // The appends in flight fail as `Unknown`, and a new client replaces the producer.
                Some(RDKafkaErrorCode::Fatal) if !was_recreated => {
                    was_recreated = true;
                    ticket = unsent;
                    tracing::error!(
                        reason = client.client().fatal_error().map(|(_, reason)| reason),
                        "kafka: the producer failed fatally, recreating it; no action is needed"
                    );
                    match create_client(properties) {
                        Ok(client) => drop_in_background(self.client.replace(client)),
                        Err(error) => {
                            ticket.finish(Err(to_append_error(&error)));
                            return None;
                        }
                    }
                }
                _ => {
                    unsent.finish(Err(to_append_error(&error)));
                    return None;
                }
            }
        }
    }
}

/// The task of one topic's backlog: sends the records to librdkafka in order, as room becomes free,
/// and returns when the backlog is empty.
async fn drain_backlog(shared: Arc<Shared>, topic: String) {
    let mut is_topic_missing = false;
    loop {
        if is_topic_missing {
            refresh_topic_metadata(&shared, &topic).await;
        }
        let decreased = shared.pending_appends.decreased.notified();
        match shared.send_backlog(&topic, is_topic_missing) {
            SendBacklogResult::Empty => return,
            SendBacklogResult::QueueFull => is_topic_missing = false,
            SendBacklogResult::TopicMissing => is_topic_missing = true,
        }
        // The records that librdkafka has not accepted yet are tried again once an append has
        // ended, or after the interval.
        let _ = timeout(BACKLOG_RETRY_INTERVAL, decreased).await;
    }
}

/// Makes librdkafka look for a topic that it reports as missing. Without this request it looks only
/// every few minutes.
async fn refresh_topic_metadata(shared: &Shared, topic: &str) {
    let Some(client) = shared.state.lock().client.clone() else {
        return;
    };
    let name = topic.to_owned();
    let request = spawn_blocking(move || {
        client
            .client()
            .fetch_metadata(Some(&name), TOPIC_LOOKUP_TIMEOUT)
    });
    if let Ok(Err(error)) = request.await {
        tracing::debug!(%error, topic, "kafka: metadata request for a missing topic failed");
    }
    sleep(TOPIC_LOOKUP_INTERVAL).await;
}

/// Estimated memory in bytes that a record occupies in a backlog.
fn backlog_size(topic: &str, record: &NewRecord) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    topic.len()
        + record.value.len()
        + record.key.as_ref().map_or(0, bytes::Bytes::len)
        + headers
        + BACKLOG_ENTRY_OVERHEAD_BYTES
}

impl Shared {
    /// Hands a record to librdkafka, or adds it to the topic's backlog. Returns the channel that
    /// delivers the record's delivery report, or the error if the append fails.
    fn enqueue(
        self: &Arc<Self>,
        topic: &str,
        record: &Arc<NewRecord>,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<DeliveryReport, AppendError>> {
        let (reply, result) = oneshot::channel();
        let ticket = Box::new(AppendTicket::new(reply, &self.pending_appends));
        let mut state = self.state.lock();
        let ticket = if state.backlogs.contains_key(topic) {
            ticket
        } else {
            match state.send(&self.properties, topic, record, ticket) {
                None => return result,
                Some(SendRefusal::QueueFull(ticket) | SendRefusal::TopicMissing(ticket)) => ticket,
            }
        };
        let size = backlog_size(topic, record);
        if state.backlog_bytes + size > MAX_BACKLOG_BYTES {
            ticket.finish(Err(AppendError::Unknown(
                "the local queue is full".to_owned(),
            )));
            return result;
        }
        state.backlog_bytes += size;
        let entry = BacklogEntry {
            record: Arc::clone(record),
            size,
            deadline,
            ticket,
        };
        if let Some(backlog) = state.backlogs.get_mut(topic) {
            backlog.push_back(entry);
        } else {
            state
                .backlogs
                .insert(topic.to_owned(), VecDeque::from([entry]));
            tokio::spawn(drain_backlog(Arc::clone(self), topic.to_owned()));
        }
        result
    }

    /// Sends the topic's backlog until it is empty or librdkafka accepts no more records.
    /// `is_topic_missing` says that librdkafka reported the topic as missing before.
    fn send_backlog(&self, topic: &str, mut is_topic_missing: bool) -> SendBacklogResult {
        let mut state = self.state.lock();
        while let Some(entry) = state.backlogs.get_mut(topic).and_then(VecDeque::pop_front) {
            state.backlog_bytes -= entry.size;
            let BacklogEntry {
                record,
                size,
                deadline,
                ticket,
            } = entry;
            if deadline <= Instant::now() {
                ticket.finish(Err(AppendError::Unknown(
                    "the local queue stayed full".to_owned(),
                )));
                continue;
            }
            let (ticket, result) = match state.send(&self.properties, topic, &record, ticket) {
                None => {
                    is_topic_missing = false;
                    continue;
                }
                // A full queue does not show that the topic exists, so the topic stays missing.
                Some(SendRefusal::QueueFull(ticket)) if is_topic_missing => {
                    (ticket, SendBacklogResult::TopicMissing)
                }
                Some(SendRefusal::QueueFull(ticket)) => (ticket, SendBacklogResult::QueueFull),
                // The append waits for the topic until shortly before its deadline, and is then
                // refused.
                Some(SendRefusal::TopicMissing(ticket))
                    if is_topic_missing && deadline <= Instant::now() + MISSING_TOPIC_MARGIN =>
                {
                    ticket.finish(Err(missing_topic_refusal(topic)));
                    continue;
                }
                Some(SendRefusal::TopicMissing(ticket)) => {
                    (ticket, SendBacklogResult::TopicMissing)
                }
            };
            state.backlog_bytes += size;
            if let Some(entries) = state.backlogs.get_mut(topic) {
                entries.push_front(BacklogEntry {
                    record,
                    size,
                    deadline,
                    ticket,
                });
            }
            return result;
        }
        state.backlogs.remove(topic);
        SendBacklogResult::Empty
    }
}
