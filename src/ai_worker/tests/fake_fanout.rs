//! The embedded fan-out on the runtime's clock, wrapped so that a test can count and block its
//! calls, make them fail, delete its data, and publish cancels.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::Journal;
use crate::config::bounds::Bounds;
use crate::fanout::embedded::EmbeddedFanout;
use crate::fanout::{
    Admissions, Answers, AppendRequest, BeginRequest, BeginResponse, Channel, FanoutError, Feed,
    FeedEvent, Feeds, History, KeepRequest, KeepResponse, NewOutcome, OpenPartRequest, Piece,
    RenewRequest, Result, StreamResponse, Turn,
};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::parts::PartKind;
use crate::store::Store;

/// The fan-out's clock at the start of each test, in milliseconds since the Unix epoch.
pub(super) const START_MS: i64 = 1_800_000_000_000;

/// A call that concerns an answer's stream, and to which the fan-out has responded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StreamCall {
    pub(super) at: Instant,
    pub(super) attempt: u32,
    pub(super) content: CallContent,
    /// Whether the response confirmed the call.
    pub(super) is_confirmed: bool,
}

/// What a [`StreamCall`] was to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum CallContent {
    Open(PartKind, Piece),
    Append(Piece),
    Renew { parts: u32, last_length: u32 },
}

impl CallContent {
    /// The piece that the call publishes; `None` for a renewal.
    pub(super) fn piece(&self) -> Option<&Piece> {
        match self {
            Self::Open(_, piece) | Self::Append(piece) => Some(piece),
            Self::Renew { .. } => None,
        }
    }
}

/// A fault of one call of `open_part` or `append`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The call is not executed and fails.
    Refused,
    /// The call is executed, but its response is lost.
    ResponseLost,
    /// The call of `append` is not executed, and its response is that the stream has no pieces.
    NoPieces,
    /// The call is executed, and its response is that the stream has one piece.
    OnePiece,
}

/// A gate, which blocks calls while it is closed. A new gate is open. A gate that was opened again
/// stays open, because it has permits left.
#[derive(Debug)]
pub(super) struct Gate {
    is_closed: AtomicBool,
    permits: Semaphore,
}

impl Gate {
    fn new() -> Self {
        Self {
            is_closed: AtomicBool::new(false),
            permits: Semaphore::new(0),
        }
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
        self.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits until the gate is open.
    async fn pass(&self) {
        if self.is_closed.load(Ordering::SeqCst) {
            self.permits.acquire().await.unwrap().forget();
        }
    }
}

/// The cancel subscriptions of one worker.
#[derive(Debug, Default)]
pub(super) struct TestSubscriptions {
    /// Sends events to the worker's feed; `None` before the feed is opened.
    event_sender: Mutex<Option<mpsc::Sender<FeedEvent>>>,
    subscribed_users: Mutex<HashSet<UserId>>,
    /// `+user` for each subscription and `-user` for each end of a subscription, in their order.
    changes: Mutex<Vec<String>>,
    /// Whether opening a feed fails.
    pub(super) opening_fails: AtomicBool,
    /// Whether subscribing never returns.
    pub(super) subscribing_hangs: AtomicBool,
}

impl TestSubscriptions {
    pub(super) fn send(&self, event: FeedEvent) {
        let event_sender = self.event_sender.lock().unwrap();
        event_sender.as_ref().unwrap().try_send(event).unwrap();
    }

    pub(super) fn changes(&self) -> Vec<String> {
        self.changes.lock().unwrap().clone()
    }
}

struct TestFeed(Arc<TestSubscriptions>);

#[async_trait]
impl Feed for TestFeed {
    async fn subscribe(&self, user: &UserId, channel: Channel) -> Result<()> {
        assert_eq!(channel, Channel::Cancel);
        if self.0.subscribing_hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.0.changes.lock().unwrap().push(format!("+{user}"));
        assert!(
            self.0.subscribed_users.lock().unwrap().insert(user.clone()),
            "twice"
        );
        Ok(())
    }

    async fn unsubscribe(&self, user: &UserId, _: Channel) -> Result<()> {
        self.0.changes.lock().unwrap().push(format!("-{user}"));
        assert!(
            self.0.subscribed_users.lock().unwrap().remove(user),
            "not subscribed"
        );
        Ok(())
    }
}

/// The fan-out of one worker process.
pub(super) struct FakeFanout {
    inner: Mutex<Arc<EmbeddedFanout>>,
    journal: Journal,
    pub(super) stream_calls: Mutex<Vec<StreamCall>>,
    /// The faults of the next calls of `open_part` and `append`.
    pub(super) faults: Mutex<VecDeque<Fault>>,
    /// Whether `renew` fails.
    pub(super) renewing_fails: AtomicBool,
    /// Gate that `open_part`, `append` and `renew` pass before they are executed.
    pub(super) stream_gate: Gate,
    /// The outcomes that `keep` was called with.
    pub(super) kept_outcomes: Mutex<Vec<Arc<NewOutcome>>>,
    /// Gate that each `begin` passes before it is executed.
    pub(super) begin_gate: Gate,
    /// Gate that each `begin` passes after it is executed and before its response is returned.
    pub(super) begin_response_gate: Gate,
    /// Number of calls of `begin`.
    pub(super) begins: AtomicU32,
    /// Time until which `context` fails and `begin` returns no history.
    pub(super) context_unavailable_until: Mutex<Option<Instant>>,
    pub(super) subscriptions: Arc<TestSubscriptions>,
}

fn unavailable<T>() -> Result<T> {
    Err(FanoutError::Unavailable("test".into()))
}

fn empty_fanout() -> Arc<EmbeddedFanout> {
    let started = Instant::now();
    let clock = move || START_MS + started.elapsed().as_millis() as i64;
    Arc::new(
        EmbeddedFanout::open_with_clock(Store::in_memory(), Bounds::default(), Box::new(clock))
            .unwrap(),
    )
}

impl FakeFanout {
    pub(super) fn new(journal: Journal) -> Arc<Self> {
        Self::wrap(empty_fanout(), journal)
    }

    /// A fan-out with the same data for another process.
    pub(super) fn second_process(&self) -> Arc<Self> {
        Self::wrap(self.inner(), Arc::clone(&self.journal))
    }

    fn wrap(inner: Arc<EmbeddedFanout>, journal: Journal) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            journal,
            stream_calls: Mutex::default(),
            faults: Mutex::default(),
            renewing_fails: AtomicBool::new(false),
            stream_gate: Gate::new(),
            kept_outcomes: Mutex::default(),
            begin_gate: Gate::new(),
            begin_response_gate: Gate::new(),
            begins: AtomicU32::new(0),
            context_unavailable_until: Mutex::default(),
            subscriptions: Arc::default(),
        })
    }

    fn inner(&self) -> Arc<EmbeddedFanout> {
        Arc::clone(&self.inner.lock().unwrap())
    }

    fn is_context_unavailable(&self) -> bool {
        let until = *self.context_unavailable_until.lock().unwrap();
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Removes all data of this process's fan-out.
    pub(super) fn lose_all(&self) {
        *self.inner.lock().unwrap() = empty_fanout();
    }

    /// The calls that concern streams.
    pub(super) fn stream_calls(&self) -> Vec<StreamCall> {
        self.stream_calls.lock().unwrap().clone()
    }

    /// The pieces that were published: attempt, part, offset and text of each.
    pub(super) fn pieces(&self) -> Vec<(u32, u32, u32, String)> {
        let calls = self.stream_calls.lock().unwrap();
        let confirmed = calls.iter().filter(|call| call.is_confirmed);
        let pieces = confirmed.filter_map(|call| {
            let Piece { range, text } = call.content.piece()?.clone();
            Some((call.attempt, range.part, range.offset, text))
        });
        pieces.collect()
    }

    /// When the lease was renewed.
    pub(super) fn renewals(&self) -> Vec<Instant> {
        let calls = self.stream_calls.lock().unwrap();
        let renewals = calls
            .iter()
            .filter(|call| call.is_confirmed && call.content.piece().is_none());
        renewals.map(|call| call.at).collect()
    }

    fn record_call(&self, attempt: u32, content: CallContent, is_confirmed: bool) {
        self.stream_calls.lock().unwrap().push(StreamCall {
            at: Instant::now(),
            attempt,
            content,
            is_confirmed,
        });
    }

    fn next_fault(&self) -> Option<Fault> {
        self.faults.lock().unwrap().pop_front()
    }

    /// Cancels a message, and sends the frame to the worker if it has subscribed to the user.
    pub(super) async fn cancel(
        &self,
        user: &UserId,
        message_id: &MessageId,
    ) -> Result<CancelResult> {
        let result = self.inner().cancel(user, message_id).await?;
        if self
            .subscriptions
            .subscribed_users
            .lock()
            .unwrap()
            .contains(user)
        {
            self.subscriptions.send(FeedEvent::Frame {
                user: user.clone(),
                channel: Channel::Cancel,
                payload: Bytes::from(format!(r#"{{"message_id":"{message_id}"}}"#)),
            });
        }
        Ok(result)
    }

    pub(super) async fn forget(
        &self,
        user: &UserId,
        conversation: Option<&ConversationId>,
    ) -> Result<bool> {
        self.inner().forget(user, conversation).await
    }
}

#[async_trait]
impl Answers for FakeFanout {
    async fn begin(&self, request: BeginRequest) -> Result<BeginResponse> {
        self.begins.fetch_add(1, Ordering::SeqCst);
        self.begin_gate.pass().await;
        let mut response = self.inner().begin(request).await;
        if self.is_context_unavailable()
            && let Ok(BeginResponse::Attempt { history, .. }) = &mut response
        {
            *history = None;
        }
        self.begin_response_gate.pass().await;
        response
    }

    async fn open_part(&self, request: OpenPartRequest) -> Result<StreamResponse> {
        self.stream_gate.pass().await;
        let attempt = request.attempt;
        let content = CallContent::Open(request.kind, request.piece.clone());
        let fault = self.next_fault();
        let result = match fault {
            Some(Fault::Refused) => unavailable(),
            _ => self.inner().open_part(request).await,
        };
        let result = match (fault, result) {
            (Some(Fault::ResponseLost), Ok(_)) => unavailable(),
            (Some(Fault::OnePiece), Ok(_)) => Ok(StreamResponse::Confirmed(1)),
            (_, result) => result,
        };
        let is_confirmed = matches!(result, Ok(StreamResponse::Confirmed(_)));
        self.record_call(attempt, content, is_confirmed);
        result
    }

    async fn append(&self, request: AppendRequest) -> Result<u64> {
        self.stream_gate.pass().await;
        let attempt = request.attempt;
        let content = CallContent::Append(request.piece.clone());
        let fault = self.next_fault();
        let result = match fault {
            Some(Fault::Refused) => unavailable(),
            Some(Fault::NoPieces) => Ok(0),
            _ => self.inner().append(request).await,
        };
        let result = match (fault, result) {
            (Some(Fault::ResponseLost), Ok(_)) => unavailable(),
            (Some(Fault::OnePiece), Ok(_)) => Ok(1),
            (_, result) => result,
        };
        self.record_call(attempt, content, matches!(result, Ok(1..)));
        result
    }

    async fn renew(&self, request: RenewRequest) -> Result<StreamResponse> {
        self.stream_gate.pass().await;
        let attempt = request.attempt;
        let content = CallContent::Renew {
            parts: request.parts,
            last_length: request.last_length,
        };
        let result = if self.renewing_fails.load(Ordering::SeqCst) {
            unavailable()
        } else {
            self.inner().renew(request).await
        };
        let is_confirmed = matches!(result, Ok(StreamResponse::Confirmed(_)));
        self.record_call(attempt, content, is_confirmed);
        result
    }

    async fn keep(&self, request: KeepRequest) -> Result<KeepResponse> {
        let outcome = Arc::clone(&request.outcome);
        self.kept_outcomes.lock().unwrap().push(outcome);
        let response = self.inner().keep(request).await?;
        if matches!(
            response,
            KeepResponse::Outcome(_) | KeepResponse::Appended(..)
        ) {
            self.journal.lock().unwrap().push("kept".into());
        }
        Ok(response)
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_newest_turn_age: Duration,
    ) -> Result<Vec<Turn>> {
        if self.is_context_unavailable() {
            return unavailable();
        }
        let inner = self.inner();
        inner
            .context(user, conversation, limit, max_newest_turn_age)
            .await
    }
}

#[async_trait]
impl Feeds for FakeFanout {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        if self.subscriptions.opening_fails.load(Ordering::SeqCst) {
            return unavailable();
        }
        let (sender, events) = mpsc::channel(capacity);
        *self.subscriptions.event_sender.lock().unwrap() = Some(sender);
        Ok((Arc::new(TestFeed(Arc::clone(&self.subscriptions))), events))
    }
}
