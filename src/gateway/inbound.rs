//! What one client sends: checked, admitted, produced in its order, acknowledged.
//!
//! Several messages are under way at once, so that a client need not wait for one
//! acknowledgement to have the next message taken; how many is bounded, and over it the socket is
//! not read. Order is kept because admissions come back in order, and a record's place is taken
//! when `append` is called.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::registry::Entry;
use super::session::Session;
use super::user::{Socket, Source};
use super::v1::asks::{self, Cancel};
use super::{Gateway, feed};
use crate::fanout::{AdmissionDecision, Limit, MessageRef};
use crate::log::{AppendError, LogOffset};
use crate::protocol::close::CloseReason;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::frame::{Published, classic_error, parse_classic};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId};
use crate::protocol::log_record::NewRecord;
use crate::protocol::open_message::CancelResult;
use crate::protocol::position::Position;
use crate::protocol::record::{QuestionRecord, add_trace, header};
use crate::protocol::timestamp::now_rfc3339;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1::{self, Accepted, ClientFrame};
use crate::telemetry::traces::{self, Kind, Span};

/// Messages of one connection that are not acknowledged yet.
pub(super) const IN_FLIGHT: usize = 64;

struct Message {
    id: MessageId,
    client_id: Option<ClientMessageId>,
    conversation: ConversationId,
    interrupt: bool,
    correlation_id: Arc<str>,
    content: String,
    received: Instant,
    /// Gateways that listen for this user's live frames, as far as is known.
    live_subscribers: u64,
    /// From here to its acknowledgement.
    span: Span,
}

struct Produced {
    message: Message,
    /// `None` where it took too long.
    result: Option<Result<LogOffset, AppendError>>,
}

/// What was under way and has come to its next step.
enum Step {
    Produced(Box<Produced>),
    Cancelled(Cancel, Option<CancelResult>),
    /// The user's other sockets were told of a message, or not.
    Announced,
}

/// Refusals within one rate window after which the connection is closed.
const ABUSE: u32 = 100;

/// The fan-out that may be away while the rest is not, as its health is noted.
const FANOUT: &str = "redis";

/// What waits until everything before it is admitted: nothing else is read meanwhile.
enum Held {
    Interrupt(Box<Message>),
    Cancel(Cancel),
}

type Asked = (Message, Option<AdmissionDecision>);

/// The messages of one connection that are under way.
pub(super) struct Inbound {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    entry: Arc<Entry>,
    socket: Arc<Socket>,
    /// `None` of a client that has long been silent.
    under_way: Option<Box<UnderWay>>,
    /// Messages over a limit, since the beginning of a rate window.
    refused: (Instant, u32),
}

#[derive(Default)]
struct UnderWay {
    admissions: FuturesOrdered<BoxFuture<'static, Asked>>,
    held: Option<Held>,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
}

impl UnderWay {
    fn is_empty(&self) -> bool {
        self.admissions.is_empty() && self.steps.is_empty() && self.held.is_none()
    }

    fn has_room(&self) -> bool {
        self.held.is_none() && self.admissions.len() + self.steps.len() < IN_FLIGHT
    }
}

impl Inbound {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        session: Arc<Session>,
        entry: Arc<Entry>,
        socket: Arc<Socket>,
    ) -> Self {
        Self {
            gateway,
            session,
            entry,
            socket,
            under_way: None,
            refused: (Instant::now(), 0),
        }
    }

    /// The user whose messages they are.
    pub(super) fn entry(&self) -> Arc<Entry> {
        self.entry.clone()
    }

    /// Whether everything read has found its end.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.as_ref().is_none_or(|it| it.is_empty())
    }

    /// Whether another message may be read.
    pub(super) fn has_room(&self) -> bool {
        self.under_way.as_ref().is_none_or(|it| it.has_room())
    }

    /// Gives back the memory of messages that were under way, where none is: their client is
    /// silent.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            self.under_way = None;
        }
    }

    fn under_way(&mut self) -> &mut UnderWay {
        self.under_way.get_or_insert_default()
    }

    /// Takes a text frame.
    pub(super) fn frame(&mut self, text: &str) {
        let gateway = &self.gateway;
        gateway.counters.received.increment(1);
        let number = gateway.messages.fetch_add(1, Ordering::Relaxed);
        let correlation_id: Arc<str> = format!("{}-{number}", self.session.correlation_id).into();
        let limit = gateway.settings.max_content_chars;
        if self.socket.line.is_none() {
            match parse_classic(text, &self.session.user, limit) {
                Err(refused) => self.refuse(refused.code, &refused.text, &correlation_id, None),
                Ok(content) => self.admit(Message {
                    id: MessageId::random(),
                    client_id: None,
                    conversation: ConversationId::default_conversation(),
                    interrupt: false,
                    correlation_id,
                    content,
                    received: Instant::now(),
                    live_subscribers: u64::MAX,
                    span: self.begin(None),
                }),
            }
            return;
        }
        match v1::parse(text, &self.session.user, limit) {
            Err(v1::RefusedFrame { refused, id }) => {
                self.refuse(refused.code, &refused.text, &correlation_id, id.as_ref());
            }
            Ok(ClientFrame::Ping) => self.socket.outbound.push_control(v1::PONG.into()),
            Ok(ClientFrame::Cancel { message_id, id }) => {
                self.under_way().held = Some(Held::Cancel(Cancel {
                    message_id,
                    id,
                    correlation_id,
                }));
                self.release();
            }
            Ok(ClientFrame::Message {
                id,
                content,
                conversation,
                interrupt,
                trace,
            }) => {
                let message = Message {
                    id: MessageId::of_client(&self.session.user, &id),
                    client_id: Some(id),
                    conversation,
                    interrupt,
                    correlation_id,
                    content,
                    received: Instant::now(),
                    live_subscribers: u64::MAX,
                    span: self.begin(trace),
                };
                if interrupt {
                    self.under_way().held = Some(Held::Interrupt(Box::new(message)));
                    self.release();
                } else {
                    self.admit(message);
                }
            }
        }
    }

    /// Begins a message's span, in the trace that it brought, or else in its connection's.
    fn begin(&self, trace: Option<TraceContext>) -> Span {
        let parent = trace.or_else(|| self.session.trace.as_deref().cloned());
        Span::begin(parent, Kind::Server, format_args!("receive message"))
    }

    /// Goes on with what is held, when everything before it is admitted.
    fn release(&mut self) {
        let under_way = self.under_way();
        if !under_way.admissions.is_empty() {
            return;
        }
        match under_way.held.take() {
            None => {}
            Some(Held::Interrupt(message)) => self.admit(*message),
            Some(Held::Cancel(cancel)) => {
                let (gateway, user) = (self.gateway.clone(), self.session.user.clone());
                let deadline = Instant::now() + gateway.settings.produce_timeout / 2;
                self.under_way().steps.push(Box::pin(async move {
                    let result = asks::cancel(&gateway, &user, &cancel.message_id, deadline).await;
                    Step::Cancelled(cancel, result)
                }));
            }
        }
    }

    fn subject(&self, message: &Message) -> MessageRef {
        MessageRef {
            user: self.session.user.clone(),
            message_id: message.id.clone(),
            id: message.client_id.clone(),
            conversation: message.conversation.clone(),
        }
    }

    fn admit(&mut self, mut message: Message) {
        let span = &mut message.span;
        span.text("messaging.message.id", message.id.as_str());
        span.text("correlation_id", &message.correlation_id);
        let subject = self.subject(&message);
        let gateway = self.gateway.clone();
        self.under_way()
            .admissions
            .push_back(Box::pin(admit(gateway, subject, message)));
    }

    /// Carries what is under way a step on; pending for ever where nothing is. Cancel-safe.
    pub(super) async fn step(&mut self) {
        poll_fn(|cx| self.poll_step(cx)).await;
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(under_way) = &mut self.under_way else {
            return Poll::Pending;
        };
        if let Poll::Ready(Some(admission)) = under_way.admissions.poll_next_unpin(cx) {
            let (message, admitted) = admission;
            self.admitted(message, admitted);
            self.release();
            return Poll::Ready(());
        }
        let Poll::Ready(Some(step)) = under_way.steps.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        match step {
            Step::Produced(produced) => self.finish(*produced),
            Step::Cancelled(cancel, result) => self.cancelled(&cancel, result),
            Step::Announced => {}
        }
        Poll::Ready(())
    }

    fn refuse(
        &self,
        code: ErrorCode,
        text: &str,
        correlation_id: &str,
        id: Option<&ClientMessageId>,
    ) {
        self.gateway.counters.message_error(code.as_str());
        tracing::debug!(correlation_id, code = code.as_str(), "message not accepted");
        let (user, outbound) = (&self.session.user, &self.socket.outbound);
        if self.socket.line.is_some() {
            outbound.push_control(v1::error(user, id, code, text, correlation_id).into());
        } else {
            outbound.push(classic_error(user, code, text, correlation_id).into());
        }
    }

    fn cancelled(&self, cancel: &Cancel, result: Option<CancelResult>) {
        let user = &self.session.user;
        let Some(result) = result else {
            let (code, id) = (ErrorCode::Unavailable, cancel.id.as_ref());
            self.refuse(code, code.text(), &cancel.correlation_id, id);
            return;
        };
        let correlation_id = &*cancel.correlation_id;
        tracing::info!(correlation_id, message_id = %cancel.message_id, ?result, "cancel");
        let frame = v1::cancel_result(user, &cancel.message_id, cancel.id.as_ref(), result);
        self.socket.outbound.push_control(frame.into());
    }

    fn accepted(&self, message: &Message) {
        if self.socket.line.is_some() {
            let frame = Accepted {
                userid: &self.session.user,
                message_id: &message.id,
                id: message.client_id.as_ref(),
                conversation_id: &message.conversation,
                content: None,
                origin: None,
            };
            self.socket.outbound.push_control(frame.to_json().into());
        }
    }

    fn admitted(&mut self, mut message: Message, admitted: Option<AdmissionDecision>) {
        let (id, correlation) = (message.id.clone(), message.correlation_id.clone());
        let conversation = message.conversation.clone();
        match admitted {
            None => {
                let (code, id) = (ErrorCode::Unavailable, message.client_id.as_ref());
                message.span.fail(code.as_str());
                self.refuse(code, code.text(), &message.correlation_id, id);
            }
            Some(AdmissionDecision::Refused(limit)) => {
                message.span.fail(ErrorCode::RateLimited.as_str());
                self.over(limit, &message);
            }
            Some(AdmissionDecision::New) => {
                self.entry
                    .state()
                    .awaited
                    .admitted(id, correlation, Some(conversation));
                let mut sending = self.begin_sending(&message);
                let appended = self.append(&message, sending.context());
                let deadline = message.received + self.gateway.settings.produce_timeout;
                self.under_way().steps.push(Box::pin(async move {
                    let result = timeout_at(deadline, appended).await.ok();
                    match &result {
                        Some(Ok(place)) => sending.number("messaging.kafka.offset", place.offset),
                        Some(Err(_)) => sending.fail("refused"),
                        None => sending.fail("timeout"),
                    }
                    Step::Produced(Box::new(Produced { message, result }))
                }));
            }
            // Its answer is on its way.
            Some(AdmissionDecision::OutcomeStored) => {
                let mut state = self.entry.state();
                state
                    .awaited
                    .open(id.clone(), correlation, Some(conversation));
                state.awaited.is_in_log(&id);
                drop(state);
                self.accepted(&message);
            }
            Some(AdmissionDecision::Delivered(frame, position)) if self.socket.line.is_some() => {
                self.accepted(&message);
                self.tell_again(&message, &frame, &position);
            }
            Some(AdmissionDecision::Forgotten) => {
                self.accepted(&message);
                self.forgotten(&message);
            }
            Some(AdmissionDecision::Delivered(frame, position)) => {
                self.entry
                    .state()
                    .awaited
                    .open(id, correlation, Some(conversation));
                let payload = frame.as_bytes();
                feed::take(
                    &self.gateway,
                    &self.entry,
                    payload,
                    position,
                    Source::Mailbox,
                );
            }
        }
    }

    /// Says that a limit is reached. Who goes on and on is closed.
    fn over(&mut self, limit: Limit, message: &Message) {
        let code = ErrorCode::RateLimited;
        let (text, wait) = match limit {
            Limit::Rate(wait) => (code.text(), Some(wait)),
            Limit::Tokens(wait) => (
                "Rate limit exceeded. The budget of today is used up.",
                Some(wait),
            ),
            Limit::Pending => (
                "Rate limit exceeded. Too many messages wait for their answers.",
                None,
            ),
            Limit::Conversations => (
                "Rate limit exceeded. Delete a conversation before beginning another one.",
                None,
            ),
        };
        self.gateway.counters.message_error(code.as_str());
        let correlation_id = &*message.correlation_id;
        tracing::debug!(correlation_id, ?limit, "message not accepted");
        let (user, outbound) = (&self.session.user, &self.socket.outbound);
        if self.socket.line.is_some() {
            let id = message.client_id.as_ref();
            let frame = v1::refusal(user, id, code, text, correlation_id, wait);
            outbound.push_control(frame.into());
        } else {
            outbound.push(classic_error(user, code, text, correlation_id).into());
        }
        let now = Instant::now();
        if now.duration_since(self.refused.0) >= self.gateway.settings.rate_window {
            self.refused = (now, 0);
        }
        self.refused.1 += 1;
        if self.refused.1 >= ABUSE {
            outbound.close(CloseReason::RateAbused);
        }
    }

    /// All that is left of the message is that it has ended.
    fn forgotten(&self, message: &Message) {
        let user = &self.session.user;
        let outbound = &self.socket.outbound;
        if self.socket.line.is_some() {
            let id = message.client_id.as_ref();
            let frame = v1::forgotten(user, &message.id, id, &message.conversation);
            outbound.push_control(frame.into());
        } else {
            let (code, correlation_id) = (ErrorCode::Cancelled, &message.correlation_id);
            outbound.push(classic_error(user, code, code.text(), correlation_id).into());
        }
    }

    /// A resent message whose terminal frame the socket has had gets it again. One that is not
    /// that far gets it by a read, as everything else that it has not had.
    fn tell_again(&self, message: &Message, frame: &str, position: &Position) {
        let text = Published::parse(frame.as_bytes())
            .ok()
            .and_then(|frame| v1::of_published(&frame, &self.session.user));
        let Some(text) = text.map(Utf8Bytes::from) else {
            return;
        };
        let mut state = self.entry.state();
        let outbound = &self.socket.outbound;
        if state.followers.has_reached(&self.socket, position) && outbound.offer(text.clone()) {
            return;
        }
        let id = message.id.clone();
        if !state.followers.await_terminal(&self.socket, id, text) {
            drop(state);
            outbound.close(CloseReason::SlowConsumer);
        }
    }

    fn begin_sending(&self, message: &Message) -> Span {
        let topic = &self.gateway.settings.messages_topic;
        let name = format_args!("send {topic}");
        let mut span = message.span.child(Kind::Producer, name);
        span.text("messaging.system", traces::log_system());
        span.text("messaging.operation.name", "send");
        span.text("messaging.operation.type", "send");
        span.text("messaging.destination.name", topic);
        span.text("messaging.message.id", message.id.as_str());
        span
    }

    fn append(
        &self,
        message: &Message,
        trace: Option<&TraceContext>,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let settings = &self.gateway.settings;
        let record = QuestionRecord {
            v: 1,
            kind: "message",
            content: &message.content,
            userid: &self.session.user,
            timestamp: now_rfc3339(),
            server_id: &settings.server_id,
            correlation_id: &message.correlation_id,
            message_id: &message.id,
            id: message.client_id.as_ref(),
            conversation_id: &message.conversation,
            // Of a classic client too: another of the user's devices may watch.
            stream: true,
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
        add_trace(&mut headers, trace);
        self.gateway.log.append(
            &settings.messages_topic,
            NewRecord {
                key: Some(bytes(self.session.user.as_str())),
                value: value.into(),
                null_value: false,
                headers,
            },
        )
    }

    fn finish(&mut self, produced: Produced) {
        let counters = &self.gateway.counters;
        let Produced {
            mut message,
            result,
        } = produced;
        let correlation_id = &*message.correlation_id;
        let trace_id = message.span.trace_id();
        let message_id = message.id.as_str();
        let error = match &result {
            Some(Ok(place)) => {
                counters.published.increment(1);
                counters
                    .duration
                    .record(message.received.elapsed().as_secs_f64());
                let (partition, offset) = (place.partition, place.offset);
                tracing::info!(
                    correlation_id,
                    message_id,
                    trace_id,
                    partition,
                    offset,
                    "message accepted"
                );
                self.entry.state().awaited.is_in_log(&message.id);
                self.accepted(&message);
                self.announce(&message);
                return;
            }
            Some(Err(error)) => error.to_string(),
            None => "the log did not acknowledge in time".to_owned(),
        };
        counters.publish_errors.increment(1);
        tracing::warn!(
            correlation_id,
            message_id,
            trace_id,
            error,
            "message not acknowledged"
        );
        message.span.fail("not_acknowledged");
        let code = match &result {
            // It will never be there. Otherwise it may be, and its answer comes then.
            Some(Err(AppendError::Refused(_))) => {
                self.entry.state().awaited.remove(&message.id);
                ErrorCode::Internal
            }
            _ => ErrorCode::Unavailable,
        };
        self.refuse(
            code,
            code.text(),
            correlation_id,
            message.client_id.as_ref(),
        );
    }

    /// Shows the question to the user's other sockets, if there are any: most users have one, and
    /// one that connects after the admission finds the message in `pending`.
    fn announce(&mut self, message: &Message) {
        // This socket, and for it this gateway's subscription.
        let own = usize::from(self.socket.line.is_some());
        if message.live_subscribers <= own as u64 && self.entry.state().followers.count() <= own {
            return;
        }
        let subject = self.subject(message);
        let frame = Accepted {
            userid: &self.session.user,
            message_id: &message.id,
            id: message.client_id.as_ref(),
            conversation_id: &message.conversation,
            content: Some(&message.content),
            origin: self.socket.line.as_ref().map(|line| &*line.origin),
        }
        .to_json();
        let gateway = self.gateway.clone();
        let deadline = Instant::now() + gateway.settings.produce_timeout / 2;
        self.under_way().steps.push(Box::pin(async move {
            // Who misses it sees the answer all the same, and the question in the history.
            asks::ask(&gateway, "accept", deadline, || {
                gateway.fanout.accept(&subject, frame.clone())
            })
            .await;
            Step::Announced
        }));
    }
}

/// Asks the fan-out, again where it is away, for half of the time that a message has: the other
/// half is the log's.
async fn admit(gateway: Arc<Gateway>, subject: MessageRef, mut message: Message) -> Asked {
    let patience = gateway.settings.produce_timeout / 2;
    let deadline = message.received + patience;
    let _admitting = message.span.child(Kind::Internal, format_args!("admit"));
    // What has been away for as long as a message would wait is not waited for once more.
    let admitted = if gateway.health.away(FANOUT) > patience {
        None
    } else {
        let admit = || gateway.fanout.admit(&subject, &message.content);
        asks::ask(&gateway, "admit", deadline, admit).await
    };
    let admitted = admitted.map(|admission| {
        message.live_subscribers = admission.live_subscribers;
        admission.decision
    });
    let admitted = match admitted {
        // Nobody counts while the fan-out is away, and that was asked for.
        None if gateway.settings.rate_fail_open => Some(AdmissionDecision::New),
        admitted => admitted,
    };
    if message.interrupt
        && admitted == Some(AdmissionDecision::New)
        && !asks::interrupt(&gateway, &subject, deadline).await
    {
        return (message, None);
    }
    (message, admitted)
}
