//! What one client sends: checked, admitted, produced in its order, acknowledged.
//!
//! Several messages are under way at once, so that a client need not wait for one
//! acknowledgement to have the next message taken; how many is bounded, and over it the socket is
//! not read. Order is kept because admissions come back in order, and a record's place is taken
//! when `append` is called.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::time::{Instant, sleep, timeout_at};

use super::handshake::Session;
use super::registry::Entry;
use super::user::{Socket, Source};
use super::{Gateway, feed};
use crate::fanout::{Admitted, Subject};
use crate::log::{AppendError, NewRecord, Place};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::frame::{classic_error, parse_classic};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::record::{QuestionRecord, header};
use crate::protocol::timestamp::now_rfc3339;

/// Messages of one connection that are not acknowledged yet.
const IN_FLIGHT: usize = 64;

struct Message {
    id: MessageId,
    correlation_id: Arc<str>,
    content: String,
    received: Instant,
}

struct Produced {
    id: MessageId,
    correlation_id: Arc<str>,
    received: Instant,
    /// `None` where it took too long.
    result: Option<Result<Place, AppendError>>,
}

/// The messages of one connection that are under way.
pub(super) struct Inbound {
    gateway: Arc<Gateway>,
    session: Session,
    entry: Arc<Entry>,
    socket: Arc<Socket>,
    admissions: FuturesOrdered<BoxFuture<'static, (Message, Option<Admitted>)>>,
    acknowledgements: FuturesUnordered<BoxFuture<'static, Produced>>,
}

impl Inbound {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        session: Session,
        entry: Arc<Entry>,
        socket: Arc<Socket>,
    ) -> Self {
        Self {
            gateway,
            session,
            entry,
            socket,
            admissions: FuturesOrdered::new(),
            acknowledgements: FuturesUnordered::new(),
        }
    }

    /// Whether everything read has found its end.
    pub(super) fn is_empty(&self) -> bool {
        self.admissions.is_empty() && self.acknowledgements.is_empty()
    }

    /// Whether another message may be read.
    pub(super) fn has_room(&self) -> bool {
        self.admissions.len() + self.acknowledgements.len() < IN_FLIGHT
    }

    /// Takes a text frame.
    pub(super) fn frame(&mut self, text: &str) {
        let gateway = &self.gateway;
        gateway.counters.received.increment(1);
        let number = gateway.messages.fetch_add(1, Ordering::Relaxed);
        let correlation_id: Arc<str> = format!("{}-{number}", self.session.correlation_id).into();
        let limit = gateway.settings.max_content_chars;
        match parse_classic(text, &self.session.user, limit) {
            Err(refused) => self.refuse(refused.code, &refused.text, &correlation_id),
            Ok(content) => {
                let message = Message {
                    id: MessageId::random(),
                    correlation_id,
                    content,
                    received: Instant::now(),
                };
                let subject = Subject {
                    user: self.session.user.clone(),
                    message_id: message.id.clone(),
                    id: None,
                    conversation: ConversationId::default_conversation(),
                };
                let gateway = gateway.clone();
                self.admissions
                    .push_back(Box::pin(admit(gateway, subject, message)));
            }
        }
    }

    /// Carries what is under way a step on; pending for ever where nothing is. Cancel-safe.
    pub(super) async fn step(&mut self) {
        tokio::select! {
            Some((message, admitted)) = self.admissions.next(), if !self.admissions.is_empty() =>
                self.produce(message, admitted),
            Some(produced) = self.acknowledgements.next(), if !self.acknowledgements.is_empty() =>
                self.finish(&produced),
            else => std::future::pending().await,
        }
    }

    fn refuse(&self, code: ErrorCode, text: &str, correlation_id: &str) {
        self.gateway.counters.message_error(code.as_str());
        tracing::debug!(correlation_id, code = code.as_str(), "message not accepted");
        let frame = classic_error(&self.session.user, code, text, correlation_id);
        self.socket.outbound.push(frame.into());
    }

    fn produce(&self, message: Message, admitted: Option<Admitted>) {
        match admitted {
            None => {
                let code = ErrorCode::Unavailable;
                self.refuse(code, code.text(), &message.correlation_id);
            }
            Some(Admitted::New) => {
                let (id, correlation) = (message.id.clone(), message.correlation_id.clone());
                self.entry.state().opened(id, correlation);
                let appended = self.append(&message);
                let deadline = message.received + self.gateway.settings.produce_timeout;
                self.acknowledgements.push(Box::pin(async move {
                    Produced {
                        id: message.id,
                        correlation_id: message.correlation_id,
                        received: message.received,
                        result: timeout_at(deadline, appended).await.ok(),
                    }
                }));
            }
            // Its answer is on its way.
            Some(Admitted::Kept) => {
                let (id, correlation) = (message.id, message.correlation_id);
                self.entry.state().opened(id, correlation);
            }
            Some(Admitted::Forgotten) => {
                let code = ErrorCode::Cancelled;
                self.refuse(code, code.text(), &message.correlation_id);
            }
            Some(Admitted::Delivered(frame, position)) => {
                let (id, correlation) = (message.id, message.correlation_id);
                self.entry.state().opened(id, correlation);
                let (payload, at) = (frame.as_bytes(), Some(position));
                feed::take(&self.gateway, &self.entry, payload, at, Source::Mailbox);
            }
        }
    }

    fn append(&self, message: &Message) -> BoxFuture<'static, Result<Place, AppendError>> {
        let settings = &self.gateway.settings;
        let conversation = ConversationId::default_conversation();
        let record = QuestionRecord {
            v: 1,
            kind: "message",
            content: &message.content,
            userid: &self.session.user,
            timestamp: now_rfc3339(),
            server_id: &settings.server_id,
            correlation_id: &message.correlation_id,
            message_id: &message.id,
            id: None,
            conversation_id: &conversation,
            stream: false,
        };
        let value = match serde_json::to_vec(&record) {
            Ok(value) => value,
            Err(error) => {
                let error = AppendError::Refused(error.to_string());
                return Box::pin(async move { Err(error) });
            }
        };
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let mut headers = vec![
            (header::MESSAGE_ID.to_owned(), bytes(message.id.as_str())),
            (
                header::CORRELATION_ID.to_owned(),
                bytes(&message.correlation_id),
            ),
        ];
        if let Some(traceparent) = &self.session.traceparent {
            headers.push((header::TRACEPARENT.to_owned(), traceparent.clone()));
        }
        self.gateway.log.append(
            &settings.messages_topic,
            NewRecord {
                key: Some(bytes(self.session.user.as_str())),
                value: value.into(),
                headers,
            },
        )
    }

    fn finish(&self, produced: &Produced) {
        let counters = &self.gateway.counters;
        let correlation_id = &*produced.correlation_id;
        let message_id = produced.id.as_str();
        let error = match &produced.result {
            Some(Ok(place)) => {
                counters.published.increment(1);
                counters
                    .duration
                    .record(produced.received.elapsed().as_secs_f64());
                let (partition, offset) = (place.partition, place.offset);
                tracing::info!(
                    correlation_id,
                    message_id,
                    partition,
                    offset,
                    "message accepted"
                );
                return;
            }
            Some(Err(error)) => error.to_string(),
            None => "the log did not acknowledge in time".to_owned(),
        };
        counters.publish_errors.increment(1);
        tracing::warn!(
            correlation_id,
            message_id,
            error,
            "message not acknowledged"
        );
        let code = match &produced.result {
            // It will never be there. Otherwise it may be, and its answer comes then.
            Some(Err(AppendError::Refused(_))) => {
                self.entry.state().refused(&produced.id);
                ErrorCode::Internal
            }
            _ => ErrorCode::Unavailable,
        };
        self.refuse(code, code.text(), correlation_id);
    }
}

/// Asks the fan-out, again where it is away, for half of the time that a message has: the other
/// half is the log's.
async fn admit(
    gateway: Arc<Gateway>,
    subject: Subject,
    message: Message,
) -> (Message, Option<Admitted>) {
    let deadline = message.received + gateway.settings.produce_timeout / 2;
    let mut pause = Duration::from_millis(50);
    loop {
        let asked = gateway.fanout.admit(&subject, &message.content);
        let error = match timeout_at(deadline, asked).await {
            Ok(Ok(admitted)) => return (message, Some(admitted)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        gateway.counters.redis_error("admit");
        if Instant::now() + pause >= deadline {
            let correlation_id = &*message.correlation_id;
            let message_id = message.id.as_str();
            tracing::warn!(correlation_id, message_id, error, "message not admitted");
            return (message, None);
        }
        sleep(pause).await;
        pause *= 2;
    }
}
