//! Appending: one idempotent producer, and a queue a topic before it, for when its own is full or
//! it believes that there is no such topic.

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

use super::delivery::{Context, Open, Report, Ticket, classify, nowhere};
use super::properties::Properties;
use crate::log::{AppendError, LogError, LogOffset};
use crate::protocol::log_record::NewRecord;

/// What may wait for room in librdkafka's queue, in bytes; beyond it an append fails at once.
const BACKLOG_BYTES: usize = 64 * 1024 * 1024;

/// Room is announced a moment before it is there (librdkafka frees a batch after its last report),
/// so it is tried again this soon in any case.
const RETRY: Duration = Duration::from_millis(10);

/// How long one look for a missing topic may take, the pause before the next, and how shortly
/// before its deadline an append to it is refused.
const LOOK_FOR_TIMEOUT: Duration = Duration::from_secs(1);
const LOOK_FOR_AGAIN: Duration = Duration::from_millis(100);
const LOOK_FOR_LAST: Duration = Duration::from_secs(2);

pub(super) type Client = ThreadedProducer<Context>;

/// Appends records in the order of the calls.
pub(super) struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    properties: Properties,
    core: Mutex<Core>,
    open: Arc<Open>,
}

/// Under one lock, so that calls keep their order across a full queue and a new producer.
struct Core {
    /// There until the end.
    client: Option<Client>,
    /// By topic, each served by a task of its own for as long as it is there: a topic that is
    /// missing holds up no other.
    backlog: HashMap<String, VecDeque<Waiting>>,
    backlog_bytes: usize,
}

/// Why librdkafka did not take a record yet.
enum Full {
    /// Its queue has no room.
    Queue(Box<Ticket>),
    /// When it last looked there was no such topic.
    NoTopic(Box<Ticket>),
}

/// An append that librdkafka did not take yet.
struct Waiting {
    record: Arc<NewRecord>,
    size: usize,
    deadline: Instant,
    ticket: Box<Ticket>,
}

impl Producer {
    /// Makes the producer; it connects in the background, for as long as it takes.
    pub(super) fn new(properties: Properties) -> Result<Self, LogError> {
        let client = make(&properties).map_err(|error| {
            LogError::Configuration(format!(
                "the kafka producer cannot be made: {}; check KAFKA_PROPERTIES",
                properties.redact(&error.to_string())
            ))
        })?;
        let core = Core {
            client: Some(client),
            backlog: HashMap::new(),
            backlog_bytes: 0,
        };
        let shared = Shared {
            properties,
            core: Mutex::new(core),
            open: Arc::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// See [`crate::log::Log::append`].
    pub(super) fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let allowed = self.shared.properties.produce_timeout();
        let deadline = Instant::now() + allowed;
        if record.headers.iter().any(|(name, _)| name.contains('\0')) {
            let reason = "a header's name holds a NUL".to_owned();
            return ready(Err(AppendError::Refused(reason))).boxed();
        }
        let record = Arc::new(record);
        let mut answer = self.shared.place(topic, &record, deadline);
        let (shared, topic) = (Arc::clone(&self.shared), topic.to_owned());
        async move {
            loop {
                let report = match timeout_at(deadline, answer).await {
                    Ok(Ok(report)) => report?,
                    Ok(Err(_)) => {
                        return Err(AppendError::Unknown("the producer was closed".to_owned()));
                    }
                    Err(_) => {
                        return Err(AppendError::Unknown(format!(
                            "nothing heard for {} ms",
                            allowed.as_millis()
                        )));
                    }
                };
                match report {
                    Report::At(place) => return Ok(place),
                    Report::LaterOne => {
                        tracing::warn!(
                            topic,
                            "kafka: a record is sent again: a later one was acknowledged, and it was not"
                        );
                        answer = shared.place(&topic, &record, deadline);
                    }
                }
            }
        }
        .boxed()
    }

    /// Waits until nothing is open, at most the time that an append has.
    pub(super) async fn flush(&self) {
        let open = &self.shared.open;
        let drained = async {
            loop {
                let fewer = open.fewer.notified();
                if open.count.load(Ordering::Acquire) == 0 {
                    return;
                }
                fewer.await;
            }
        };
        if timeout(self.shared.properties.produce_timeout(), drained)
            .await
            .is_err()
        {
            let open = open.count.load(Ordering::Acquire);
            tracing::warn!(
                open,
                "kafka: records were not acknowledged in time at a flush"
            );
        }
    }

    /// Makes the client anew where librdkafka has left it without brokers. What it had taken is
    /// reported as unknown.
    pub(super) fn revive(&self) {
        let mut core = self.shared.core.lock();
        let orphaned = |client: &Client| client.context().brokers.are_gone();
        if !core.client.as_ref().is_some_and(orphaned) {
            return;
        }
        tracing::warn!("kafka: the producer has no brokers any more and is made anew");
        match make(&self.shared.properties) {
            Ok(client) => retire(core.client.replace(client)),
            Err(error) => tracing::error!(%error, "kafka: the producer could not be made anew"),
        }
    }

    /// The client below, to ask about metadata: its events are served, unlike an idle admin
    /// client's, which would pile up.
    pub(super) fn client(&self) -> Result<Client, LogError> {
        let client = self.shared.core.lock().client.clone();
        client.ok_or_else(|| LogError::Unavailable("the producer is closed".to_owned()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        retire(self.core.lock().client.take());
    }
}

/// Dropping a producer waits for its thread, and purges: up to half a second.
fn retire(client: Option<Client>) {
    std::thread::spawn(move || drop(client));
}

fn make(properties: &Properties) -> Result<Client, KafkaError> {
    let context = Context::new(properties.produce_timeout() / 3);
    properties.producer().create_with_context(context)
}

impl Core {
    /// Hands a record to librdkafka. Gives the ticket back where it is worth trying again;
    /// otherwise the ticket is answered by the delivery report, or was already.
    fn send(
        &mut self,
        properties: &Properties,
        topic: &str,
        record: &NewRecord,
        mut ticket: Box<Ticket>,
    ) -> Option<Full> {
        let mut renewed = false;
        loop {
            let Some(client) = &self.client else {
                ticket.finish(Err(AppendError::Unknown(
                    "the producer is closed".to_owned(),
                )));
                return None;
            };
            let mut out = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, ticket);
            out.key = record.key.as_deref();
            out.payload = Some(&*record.value).filter(|_| !record.null_value);
            if !record.headers.is_empty() {
                let headers = OwnedHeaders::new_with_capacity(record.headers.len());
                out.headers = Some(
                    record
                        .headers
                        .iter()
                        .fold(headers, |headers, (key, value)| {
                            headers.insert(Header {
                                key,
                                value: Some(value.as_ref()),
                            })
                        }),
                );
            }
            let (error, unsent) = match client.send(out) {
                Ok(()) => return None,
                Err((error, unsent)) => (error, unsent.delivery_opaque),
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => return Some(Full::Queue(unsent)),
                Some(
                    RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition,
                ) => {
                    return Some(Full::NoTopic(unsent));
                }
                // An idempotent producer that lost track of its sequence stays dead. What it had
                // in flight is reported as unknown; a new one goes on.
                Some(RDKafkaErrorCode::Fatal) if !renewed => {
                    renewed = true;
                    ticket = unsent;
                    tracing::error!(
                        reason = client.client().fatal_error().map(|(_, reason)| reason),
                        "kafka: the producer failed for good and is made anew"
                    );
                    match make(properties) {
                        Ok(client) => {
                            retire(self.client.replace(client));
                        }
                        Err(error) => {
                            ticket.finish(Err(classify(&error)));
                            return None;
                        }
                    }
                }
                _ => {
                    unsent.finish(Err(classify(&error)));
                    return None;
                }
            }
        }
    }
}

/// Moves a topic's backlog into librdkafka's queue, in order, as room comes; ends when it is empty.
async fn pump(shared: Arc<Shared>, topic: String) {
    let mut missing = false;
    loop {
        if missing {
            look_for(&shared, &topic).await;
        }
        let fewer = shared.open.fewer.notified();
        if shared.move_on(&topic, &mut missing) {
            return;
        }
        // Running out of time here only means to look again.
        let _ = timeout(RETRY, fewer).await;
    }
}

/// Makes librdkafka look for a topic that it believes not to be there: it looks by itself only
/// every few minutes.
async fn look_for(shared: &Shared, topic: &str) {
    let Some(client) = shared.core.lock().client.clone() else {
        return;
    };
    let name = topic.to_owned();
    let looked = spawn_blocking(move || {
        client
            .client()
            .fetch_metadata(Some(&name), LOOK_FOR_TIMEOUT)
    });
    if let Ok(Err(error)) = looked.await {
        tracing::debug!(%error, topic, "kafka: looking for a topic");
    }
    sleep(LOOK_FOR_AGAIN).await;
}

impl Shared {
    /// Hands a record to librdkafka, or puts it behind those that wait. Returns where its report comes.
    fn place(
        self: &Arc<Self>,
        topic: &str,
        record: &Arc<NewRecord>,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<Report, AppendError>> {
        let (reply, answer) = oneshot::channel();
        let ticket = Box::new(Ticket::new(reply, &self.open));
        let mut core = self.core.lock();
        let ticket = if core.backlog.contains_key(topic) {
            ticket
        } else {
            match core.send(&self.properties, topic, record, ticket) {
                None => return answer,
                Some(Full::Queue(ticket) | Full::NoTopic(ticket)) => ticket,
            }
        };
        let size = topic.len()
            + record.value.len()
            + record.key.as_ref().map_or(0, bytes::Bytes::len)
            + record
                .headers
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
            + 256;
        if core.backlog_bytes + size > BACKLOG_BYTES {
            ticket.finish(Err(AppendError::Unknown(
                "the local queue is full".to_owned(),
            )));
            return answer;
        }
        core.backlog_bytes += size;
        let waiting = Waiting {
            record: Arc::clone(record),
            size,
            deadline,
            ticket,
        };
        if let Some(backlog) = core.backlog.get_mut(topic) {
            backlog.push_back(waiting);
        } else {
            core.backlog
                .insert(topic.to_owned(), VecDeque::from([waiting]));
            tokio::spawn(pump(Arc::clone(self), topic.to_owned()));
        }
        answer
    }

    /// Moves what can be moved. True: nothing is left. `missing`: whether the topic was, the last
    /// time that a record of it was tried.
    fn move_on(&self, topic: &str, missing: &mut bool) -> bool {
        let mut core = self.core.lock();
        while let Some(waiting) = core.backlog.get_mut(topic).and_then(VecDeque::pop_front) {
            core.backlog_bytes -= waiting.size;
            let Waiting {
                record,
                size,
                deadline,
                ticket,
            } = waiting;
            if deadline <= Instant::now() {
                ticket.finish(Err(AppendError::Unknown(
                    "the local queue stayed full".to_owned(),
                )));
                continue;
            }
            let ticket = match core.send(&self.properties, topic, &record, ticket) {
                None => {
                    *missing = false;
                    continue;
                }
                Some(Full::Queue(ticket)) => ticket,
                // Looked for again and again for as long as the append may take, or nearly.
                Some(Full::NoTopic(ticket))
                    if *missing && deadline <= Instant::now() + LOOK_FOR_LAST =>
                {
                    ticket.finish(Err(nowhere(topic)));
                    continue;
                }
                Some(Full::NoTopic(ticket)) => {
                    *missing = true;
                    ticket
                }
            };
            core.backlog_bytes += size;
            if let Some(backlog) = core.backlog.get_mut(topic) {
                backlog.push_front(Waiting {
                    record,
                    size,
                    deadline,
                    ticket,
                });
            }
            return false;
        }
        core.backlog.remove(topic);
        true
    }
}
