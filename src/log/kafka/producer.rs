//! Appending: one idempotent producer, and a queue before it for when its own is full.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::Message;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::properties::Properties;
use super::report::{Reporter, lock};
use crate::log::{AppendError, LogError, NewRecord, Place};

/// What may wait for room in librdkafka's queue, in bytes; beyond it an append fails at once.
const BACKLOG_BYTES: usize = 64 * 1024 * 1024;

/// Room is announced a moment before it is there (librdkafka frees a batch after its last report),
/// so it is tried again this soon in any case.
const RETRY: Duration = Duration::from_millis(10);

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
    backlog: VecDeque<Waiting>,
    backlog_bytes: usize,
    pumping: bool,
}

/// An append that found the local queue full.
struct Waiting {
    topic: String,
    record: NewRecord,
    size: usize,
    deadline: Instant,
    ticket: Box<Ticket>,
}

/// How many appends have no result yet.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    fewer: Notify,
}

/// Carries the result of one append to its caller, and counts it as open until dropped.
pub(super) struct Ticket {
    reply: Option<oneshot::Sender<Result<Place, AppendError>>>,
    open: Arc<Open>,
}

impl Ticket {
    fn finish(mut self: Box<Self>, result: Result<Place, AppendError>) {
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
}

impl ClientContext for Context {
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
            Ok(message) => Ok(Place {
                partition: message.partition(),
                offset: message.offset(),
            }),
            Err((error, _)) => Err(classify(error)),
        });
    }
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
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            pumping: false,
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
    ) -> BoxFuture<'static, Result<Place, AppendError>> {
        let (reply, answer) = oneshot::channel();
        let allowed = self.shared.properties.produce_timeout();
        let deadline = Instant::now() + allowed;
        self.shared.open.count.fetch_add(1, Ordering::AcqRel);
        let ticket = Box::new(Ticket {
            reply: Some(reply),
            open: Arc::clone(&self.shared.open),
        });
        if record.headers.iter().any(|(name, _)| name.contains('\0')) {
            ticket.finish(Err(AppendError::Refused(
                "a header's name holds a NUL".to_owned(),
            )));
        } else {
            self.place(topic, record, deadline, ticket);
        }
        async move {
            match timeout_at(deadline, answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(AppendError::Unknown("the producer was closed".to_owned())),
                Err(_) => Err(AppendError::Unknown(format!(
                    "nothing heard for {} ms",
                    allowed.as_millis()
                ))),
            }
        }
        .boxed()
    }

    fn place(&self, topic: &str, record: NewRecord, deadline: Instant, ticket: Box<Ticket>) {
        let mut core = lock(&self.shared.core);
        let ticket = if core.backlog.is_empty() {
            match core.send(&self.shared.properties, topic, &record, ticket) {
                None => return,
                Some(ticket) => ticket,
            }
        } else {
            ticket
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
            return;
        }
        core.backlog_bytes += size;
        core.backlog.push_back(Waiting {
            topic: topic.to_owned(),
            record,
            size,
            deadline,
            ticket,
        });
        if !core.pumping {
            core.pumping = true;
            tokio::spawn(pump(Arc::clone(&self.shared)));
        }
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

    /// The client below, to ask about metadata: its events are served, unlike an idle admin
    /// client's, which would pile up.
    pub(super) fn client(&self) -> Result<Client, LogError> {
        let client = lock(&self.shared.core).client.clone();
        client.ok_or_else(|| LogError::Unavailable("the producer is closed".to_owned()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        retire(lock(&self.core).client.take());
    }
}

/// Dropping a producer waits for its thread, and purges: up to half a second.
fn retire(client: Option<Client>) {
    std::thread::spawn(move || drop(client));
}

fn make(properties: &Properties) -> Result<Client, KafkaError> {
    let context = Context {
        reporter: Reporter::new("producer", None),
    };
    properties.producer().create_with_context(context)
}

impl Core {
    /// Hands a record to librdkafka. Returns the ticket when its queue is full; otherwise the
    /// ticket is answered by the delivery report, or was already.
    fn send(
        &mut self,
        properties: &Properties,
        topic: &str,
        record: &NewRecord,
        mut ticket: Box<Ticket>,
    ) -> Option<Box<Ticket>> {
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
            out.payload = Some(&record.value);
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
                Some(RDKafkaErrorCode::QueueFull) => return Some(unsent),
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

/// Moves the backlog into librdkafka's queue, in order, as room comes; ends when it is empty.
async fn pump(shared: Arc<Shared>) {
    loop {
        let fewer = shared.open.fewer.notified();
        {
            let mut core = lock(&shared.core);
            while let Some(waiting) = core.backlog.pop_front() {
                core.backlog_bytes -= waiting.size;
                if waiting.deadline <= Instant::now() {
                    let reason = "the local queue stayed full".to_owned();
                    waiting.ticket.finish(Err(AppendError::Unknown(reason)));
                    continue;
                }
                let Waiting {
                    topic,
                    record,
                    size,
                    deadline,
                    ticket,
                } = waiting;
                if let Some(ticket) = core.send(&shared.properties, &topic, &record, ticket) {
                    core.backlog_bytes += size;
                    core.backlog.push_front(Waiting {
                        topic,
                        record,
                        size,
                        deadline,
                        ticket,
                    });
                    break;
                }
            }
            if core.backlog.is_empty() {
                core.pumping = false;
                return;
            }
        }
        // Running out of time here only means to look again.
        let _ = timeout(RETRY, fewer).await;
    }
}

/// A fault of the record, or of the way to the log?
fn classify(error: &KafkaError) -> AppendError {
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
                    | Code::UnknownTopic
                    | Code::UnknownTopicOrPartition
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
