//! Calls about one user, as gateways, workers and a relay make them all the time. Each call is
//! repeated while Redis is unavailable, and every response is checked against the earlier ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chatmesh::fanout::{
    AdmissionDecision, BeginRequest, BeginResponse, DeliverRequest, DeliverResponse, Fanout,
    FanoutError, KeepRequest, KeepResponse, MessageRef, NewOutcome, Owner, ReadRequest, Result,
    StreamResponse, Turn, TurnStatus, UserView,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::parts::PartKind;
use chatmesh::protocol::position::{Epoch, Position};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fanout_contract::StreamWriter;

/// Time within which calls must succeed again.
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);
/// Delay before a call that found Redis unavailable is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// A message with the terminal frame that was stored for it.
#[derive(Clone)]
pub(super) struct Outcome {
    message: MessageRef,
    frame: String,
}

/// The calls about one user, as gateways, workers and a relay make them.
pub(super) struct Load {
    fanout: Arc<dyn Fanout>,
    pub(super) user: UserId,
    epoch: Epoch,
    /// The outcomes that the relay has delivered; the index is the offset.
    delivered: Mutex<Vec<Outcome>>,
    is_stopping: AtomicBool,
    /// Number of calls that succeeded.
    successes: AtomicUsize,
    /// Number of calls that found Redis unavailable.
    failures: AtomicUsize,
}

impl Load {
    pub(super) fn new(fanout: &Arc<dyn Fanout>, user: UserId) -> Arc<Self> {
        Arc::new(Self {
            fanout: Arc::clone(fanout),
            epoch: Epoch::new(user.as_str(), "0", 0),
            user,
            delivered: Mutex::default(),
            is_stopping: AtomicBool::new(false),
            successes: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        })
    }

    /// Makes a call, and repeats it while Redis is unavailable. Any other error is a failure.
    async fn retry<T, F>(&self, call: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            match call().await {
                Ok(response) => {
                    self.successes.fetch_add(1, Ordering::Relaxed);
                    return response;
                }
                Err(FanoutError::Unavailable(_)) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    sleep(RETRY_DELAY).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Ends the tasks of [`Load::start`] after the messages that they have begun.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Number of calls that found Redis unavailable.
    pub(super) fn failure_count(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    fn is_running(&self) -> bool {
        !self.is_stopping.load(Ordering::Relaxed)
    }

    fn position(&self, offset: usize) -> Position {
        Position {
            epoch: self.epoch.clone(),
            offset: offset as i64,
        }
    }

    fn new_message(&self) -> MessageRef {
        MessageRef {
            user: self.user.clone(),
            message_id: MessageId::random(),
            id: None,
            conversation: ConversationId::default_conversation(),
        }
    }

    async fn read(&self) -> UserView {
        let request = ReadRequest {
            user: self.user.clone(),
            after: None,
            from_start: false,
            max_bytes: 1000,
        };
        self.retry(|| self.fanout.read(request.clone())).await
    }

    /// Admits one message after the other. Two workers answer it at the same time, as after a
    /// redelivery, and get the same outcome.
    async fn answer_messages(self: Arc<Self>, outcomes: mpsc::Sender<Outcome>) {
        while self.is_running() {
            self.answer_message(&outcomes).await;
        }
    }

    async fn answer_message(&self, outcomes: &mpsc::Sender<Outcome>) {
        let message = self.new_message();
        let admission = self.retry(|| self.fanout.admit(&message, "question")).await;
        assert_eq!(admission.decision, AdmissionDecision::New);
        let (first, second) = tokio::join!(self.generate(&message), self.generate(&message));
        assert_eq!(first, second, "expected one outcome");
        let frame = first;
        outcomes.send(Outcome { message, frame }).await.unwrap();
    }

    /// Answers a message as a worker does. Returns the frame of its outcome.
    async fn generate(&self, message: &MessageRef) -> String {
        let owner = Owner::random();
        let mut last_attempt = 0;
        loop {
            match self.begin(message, &owner, last_attempt).await {
                BeginResponse::Ended(outcome) => return outcome.frame,
                BeginResponse::Busy(remaining) => {
                    sleep(remaining.min(Duration::from_millis(50))).await;
                }
                BeginResponse::Attempt { number, .. } => {
                    last_attempt = number;
                    let writer = StreamWriter::new(message.clone(), owner.clone(), number);
                    if let Some(frame) = self.run_attempt(writer).await {
                        return frame;
                    }
                }
            }
        }
    }

    async fn begin(&self, message: &MessageRef, owner: &Owner, last_attempt: u32) -> BeginResponse {
        let request = BeginRequest {
            message: message.clone(),
            owner: owner.clone(),
            last_attempt,
            cancelled_outcome: new_outcome(message, "cancelled").into(),
            history: None,
        };
        self.retry(|| self.fanout.begin(request.clone())).await
    }

    /// Writes the parts of an attempt and stores its outcome. Returns the frame of the message's
    /// outcome, or `None` if the attempt is fenced off, because the lease expired.
    async fn run_attempt(&self, mut writer: StreamWriter) -> Option<String> {
        for part in 0..2 {
            let opening = writer.next_opening(PartKind::Text, Some("{}"), &format!("{part}"));
            let opened = self.retry(|| self.fanout.open_part(opening.clone())).await;
            if !is_attempt_current(opened) {
                return None;
            }
            writer.record_opening(&opening);
            for piece in 0..5 {
                let append = writer.next_append(&format!(" {piece}😀"));
                let pieces = self.retry(|| self.fanout.append(append.clone())).await;
                if pieces > 0 {
                    writer.record_append(&append);
                }
                sleep(Duration::from_millis(5)).await;
                let renewal = writer.renewal();
                let renewed = self.retry(|| self.fanout.renew(renewal.clone())).await;
                if !is_attempt_current(renewed) {
                    return None;
                }
                assert!(
                    pieces > 0,
                    "expected the stream of a current attempt to exist"
                );
            }
        }
        let answers = self.read().await.in_flight;
        let answer = answers
            .iter()
            .find(|answer| answer.stream == writer.stream());
        if let Some(answer) = answer {
            assert_eq!(answer.parts, writer.parts);
        }
        let text = writer.stream().as_str().to_owned();
        let request = KeepRequest {
            message: writer.message.clone(),
            owner: writer.owner.clone(),
            attempt: writer.attempt,
            outcome: Arc::new(new_outcome(&writer.message, &text)),
            cancelled_outcome: new_outcome(&writer.message, "cancelled").into(),
        };
        let kept = self.retry(|| self.fanout.keep(request.clone())).await;
        match kept {
            KeepResponse::Outcome(outcome) | KeepResponse::Appended(outcome, _) => {
                Some(outcome.frame)
            }
            KeepResponse::Fenced => None,
        }
    }

    /// Delivers the outcomes in the order of the log.
    async fn deliver_outcomes(self: Arc<Self>, mut outcomes: mpsc::Receiver<Outcome>) {
        while let Some(outcome) = outcomes.recv().await {
            self.deliver(outcome).await;
        }
    }

    async fn deliver(&self, outcome: Outcome) {
        let offset = self.delivered.lock().len();
        let request = DeliverRequest {
            user: self.user.clone(),
            message_id: outcome.message.message_id.clone(),
            conversation: Some(outcome.message.conversation.clone()),
            position: self.position(offset),
            known_end: offset.checked_sub(1).map(|offset| self.position(offset)),
            logged_at_ms: None,
            is_rewind: false,
            frame: outcome.frame.clone(),
            answer: outcome.frame.clone(),
            parts: None,
            status: TurnStatus::Answered,
        };
        let response = self.retry(|| self.fanout.deliver(request.clone())).await;
        assert_ne!(response, DeliverResponse::DataLost);
        self.delivered.lock().push(outcome);
    }

    /// Sends delivered messages again, lets other workers begin them, and reads the user's state.
    /// Asserts that no call sees less than what was there before.
    async fn check_state(self: Arc<Self>) {
        let mut last = self.read().await;
        let mut next = 0;
        while self.is_running() {
            let (delivered, offset) = {
                let delivered = self.delivered.lock();
                (
                    delivered[next % delivered.len()].clone(),
                    next % delivered.len(),
                )
            };
            next += 7;
            let minimum_end = self.delivered.lock().len() as i64 - 1;
            self.assert_delivered(&delivered, offset).await;
            let view = self.read().await;
            assert_eq!(view.number.counter, last.number.counter);
            assert!(view.number.n >= last.number.n, "{view:?}");
            assert_eq!(view.end.epoch, self.epoch);
            assert!(
                view.end.offset >= minimum_end.max(last.end.offset),
                "{view:?}"
            );
            last = view;
        }
    }

    /// Asserts that a message has the outcome that was delivered, for every kind of caller.
    async fn assert_delivered(&self, outcome: &Outcome, offset: usize) {
        let Outcome { message, frame } = outcome;
        let admission = self.retry(|| self.fanout.admit(message, "question")).await;
        let expected = AdmissionDecision::Delivered(frame.clone(), self.position(offset));
        assert_eq!(admission.decision, expected);
        let BeginResponse::Ended(stored) = self.begin(message, &Owner::random(), 0).await else {
            panic!("expected a delivered message to have an outcome");
        };
        assert_eq!(stored.frame, *frame);
        assert_eq!(stored.delivered_at, Some(self.position(offset)));
    }

    /// Starts all tasks of this user: answers to new messages and checks of the state.
    pub(super) fn start(self: &Arc<Self>, tasks: &mut JoinSet<()>, concurrent_messages: usize) {
        let (sender, receiver) = mpsc::channel(100);
        for _ in 0..concurrent_messages {
            tasks.spawn(Arc::clone(self).answer_messages(sender.clone()));
        }
        tasks.spawn(Arc::clone(self).deliver_outcomes(receiver));
        tasks.spawn(Arc::clone(self).check_state());
    }

    /// Answers and delivers messages before the load starts.
    pub(super) async fn prepare(&self, count: usize) {
        let (sender, mut receiver) = mpsc::channel(1);
        for _ in 0..count {
            self.answer_message(&sender).await;
            self.deliver(receiver.recv().await.unwrap()).await;
        }
    }

    /// Asserts that each message has one outcome and one turn, and that no message is open.
    pub(super) async fn assert_complete(&self) {
        let delivered = self.delivered.lock().clone();
        for (offset, outcome) in delivered.iter().enumerate() {
            self.assert_delivered(outcome, offset).await;
        }
        let view = self.read().await;
        assert!(view.in_flight.is_empty(), "{:?}", view.in_flight);
        assert!(view.pending.is_empty(), "{:?}", view.pending);
        assert_eq!(view.end, self.position(delivered.len() - 1));
        let conversation = ConversationId::default_conversation();
        let history = self
            .retry(|| {
                let limit = usize::MAX;
                self.fanout.history(&self.user, &conversation, None, limit)
            })
            .await
            .unwrap();
        let mut turns: Vec<_> = history.iter().map(|turn| &turn.message_id).collect();
        turns.sort_unstable();
        let count = turns.len();
        turns.dedup();
        assert_eq!(turns.len(), count, "expected one turn of each message");
        assert!(count > 0 && count <= delivered.len(), "{count}");
    }

    /// Waits until further calls have succeeded.
    pub(super) async fn wait_for_progress(&self) {
        let target = self.successes.load(Ordering::Relaxed) + 100;
        let progress = async {
            while self.successes.load(Ordering::Relaxed) < target {
                sleep(RETRY_DELAY).await;
            }
        };
        timeout(TIMEOUT, progress)
            .await
            .unwrap_or_else(|_| panic!("the calls about {} no longer succeed", self.user));
    }
}

/// Whether the attempt that made a call is the current one. Panics if the fan-out reports a data
/// loss, because a migration loses no data.
fn is_attempt_current(response: StreamResponse) -> bool {
    match response {
        StreamResponse::Confirmed(_) => true,
        StreamResponse::Fenced => false,
        response => panic!("expected no loss, got {response:?}"),
    }
}

fn new_outcome(message: &MessageRef, text: &str) -> NewOutcome {
    NewOutcome {
        frame: format!(r#"{{"type":"response","content":"{text}"}}"#),
        turn: Turn {
            message_id: message.message_id.clone(),
            question: Some("question".into()),
            answer: text.to_owned(),
            parts: None,
            status: TurnStatus::Answered,
            at_ms: 0,
        },
    }
}
