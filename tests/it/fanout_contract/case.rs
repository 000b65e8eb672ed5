//! Helpers of the suite. Each test has a user of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{
    AdmissionDecision, AppendRequest, BeginRequest, BeginResponse, DeliverRequest, DeliverResponse,
    Fanout, KeepRequest, KeepResponse, MessageRef, NewOutcome, OpenPartRequest, Owner, Piece,
    ReadRequest, RenewRequest, StoredOutcome, StreamResponse, Turn, TurnStatus, UserView,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::open_message::InFlightAnswer;
use chatmesh::protocol::parts::{PartKind, TextRange, utf16_len};
use chatmesh::protocol::position::{Epoch, Position};

/// Number of pieces in a renewal that lets the fan-out read all pieces of the stream.
pub(crate) const ALL_PIECES: u64 = u64::MAX;

/// An implementation under test. All fan-outs of one backend share their data.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Opens the fan-out as another process would.
    async fn open(&self, bounds: Bounds) -> Arc<dyn Fanout>;

    /// Deletes everything that is stored about a user. Returns a new fan-out where the old one
    /// can't continue on the empty data.
    async fn lose_data(&self, user: &UserId) -> Option<Arc<dyn Fanout>>;

    /// Whether anything that is stored about a user contains this text.
    async fn contains(&self, user: &UserId, text: &str) -> bool;

    /// The names of the keys in which the user's data is stored, sorted. Empty if the
    /// implementation stores no keys while an answer is in flight.
    async fn key_names(&self, user: &UserId) -> Vec<String>;
}

/// A fan-out and the user of one test.
pub(crate) struct Case<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) fanout: Arc<dyn Fanout>,
    pub(crate) user: UserId,
    pub(crate) epoch: Epoch,
}

pub(crate) fn unique_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub(crate) fn attempt_number(response: &BeginResponse) -> u32 {
    match response {
        BeginResponse::Attempt { number, .. } => *number,
        other => panic!("expected an attempt, got {other:?}"),
    }
}

pub(crate) fn ended_outcome(response: BeginResponse) -> StoredOutcome {
    match response {
        BeginResponse::Ended(outcome) => outcome,
        other => panic!("expected an outcome, got {other:?}"),
    }
}

pub(crate) fn stored_outcome(response: KeepResponse) -> StoredOutcome {
    match response {
        KeepResponse::Outcome(outcome) | KeepResponse::Appended(outcome, _) => outcome,
        KeepResponse::Fenced => panic!("expected an outcome, got fenced"),
    }
}

pub(crate) fn is_confirmed(response: StreamResponse) -> bool {
    matches!(response, StreamResponse::Confirmed(_))
}

/// A piece of a part's text that begins at this offset.
pub(crate) fn piece(part: u32, offset: u32, text: &str) -> Piece {
    let end = offset + utf16_len(text);
    Piece {
        range: TextRange { part, offset, end },
        text: text.to_owned(),
    }
}

/// The texts of an answer's parts.
pub(crate) fn texts(answer: &InFlightAnswer) -> Vec<&str> {
    answer.parts.iter().map(|part| part.text.as_str()).collect()
}

pub(crate) fn terminal_frame(text: &str) -> String {
    format!(r#"{{"type":"response","content":"{text}"}}"#)
}

impl<'a> Case<'a> {
    pub(crate) async fn new(backend: &'a dyn Backend) -> Case<'a> {
        Self::with_bounds(backend, Bounds::default()).await
    }

    pub(crate) async fn with_bounds(backend: &'a dyn Backend, bounds: Bounds) -> Case<'a> {
        let user = UserId::parse(&format!("u-{}", unique_id())).unwrap();
        Self::for_user(backend, bounds, user).await
    }

    pub(crate) async fn for_user(
        backend: &'a dyn Backend,
        bounds: Bounds,
        user: UserId,
    ) -> Case<'a> {
        Case {
            backend,
            fanout: backend.open(bounds).await,
            user,
            epoch: Epoch::new(&unique_id(), "0", 3),
        }
    }

    pub(crate) async fn lose_data(&mut self) {
        if let Some(fanout) = self.backend.lose_data(&self.user).await {
            self.fanout = fanout;
        }
    }

    pub(crate) fn message(&self) -> MessageRef {
        self.message_in(&ConversationId::default_conversation())
    }

    pub(crate) fn message_in(&self, conversation: &ConversationId) -> MessageRef {
        MessageRef {
            user: self.user.clone(),
            message_id: MessageId::random(),
            id: None,
            conversation: conversation.clone(),
        }
    }

    pub(crate) fn position(&self, offset: i64) -> Position {
        Position {
            epoch: self.epoch.clone(),
            offset,
        }
    }

    pub(crate) fn new_outcome(message: &MessageRef, text: &str, status: TurnStatus) -> NewOutcome {
        NewOutcome {
            frame: terminal_frame(text),
            turn: Turn {
                message_id: message.message_id.clone(),
                question: Some(format!("question {}", message.message_id)),
                answer: text.to_owned(),
                parts: None,
                status,
                at_ms: 0,
            },
        }
    }

    pub(crate) async fn admit(&self, message: &MessageRef) -> AdmissionDecision {
        self.fanout
            .admit(message, "question")
            .await
            .unwrap()
            .decision
    }

    pub(crate) async fn begin(
        &self,
        message: &MessageRef,
        owner: &Owner,
        last_attempt: u32,
    ) -> BeginResponse {
        let request = BeginRequest {
            message: message.clone(),
            owner: owner.clone(),
            last_attempt,
            cancelled_outcome: Self::new_outcome(message, "stopped early", TurnStatus::Cancelled)
                .into(),
            history: None,
        };
        self.fanout.begin(request).await.unwrap()
    }

    /// Repeats `begin` until no other owner has a lease.
    pub(crate) async fn begin_when_free(
        &self,
        message: &MessageRef,
        owner: &Owner,
        last_attempt: u32,
    ) -> BeginResponse {
        loop {
            match self.begin(message, owner, last_attempt).await {
                BeginResponse::Busy(remaining) => {
                    tokio::time::sleep(remaining + Duration::from_millis(5)).await;
                }
                response => return response,
            }
        }
    }

    /// Opens part 0 of an answer as a part of text.
    pub(crate) async fn open_text(
        &self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        text: &str,
    ) -> StreamResponse {
        let request = OpenPartRequest {
            message: message.clone(),
            owner: owner.clone(),
            attempt,
            kind: PartKind::Text,
            meta: None,
            previous_end: None,
            piece: piece(0, 0, text),
        };
        self.fanout.open_part(request).await.unwrap()
    }

    pub(crate) async fn append(
        &self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        piece: Piece,
    ) -> u64 {
        let request = AppendRequest {
            message: message.clone(),
            owner: owner.clone(),
            attempt,
            piece,
        };
        self.fanout.append(request).await.unwrap()
    }

    /// Renews the lease. The caller knows that this many parts are stored, the last of them with
    /// this length.
    pub(crate) async fn renew(
        &self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        (parts, last_length): (u32, u32),
    ) -> StreamResponse {
        let request = RenewRequest {
            message: message.clone(),
            owner: owner.clone(),
            attempt,
            parts,
            last_length,
            pieces: ALL_PIECES,
        };
        self.fanout.renew(request).await.unwrap()
    }

    pub(crate) async fn keep(
        &self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        text: &str,
    ) -> KeepResponse {
        self.keep_as(message, owner, attempt, text, TurnStatus::Answered)
            .await
    }

    pub(crate) async fn keep_as(
        &self,
        message: &MessageRef,
        owner: &Owner,
        attempt: u32,
        text: &str,
        status: TurnStatus,
    ) -> KeepResponse {
        let request = KeepRequest {
            message: message.clone(),
            owner: owner.clone(),
            attempt,
            outcome: Self::new_outcome(message, text, status).into(),
            cancelled_outcome: Self::new_outcome(message, "stopped", TurnStatus::Cancelled).into(),
        };
        self.fanout.keep(request).await.unwrap()
    }

    /// Answers a message: begins it and stores its outcome.
    pub(crate) async fn answer(&self, message: &MessageRef, text: &str) {
        let owner = Owner::random();
        let number = attempt_number(&self.begin(message, &owner, 0).await);
        stored_outcome(self.keep(message, &owner, number, text).await);
    }

    pub(crate) fn delivery(&self, message: &MessageRef, offset: i64, text: &str) -> DeliverRequest {
        DeliverRequest {
            user: message.user.clone(),
            message_id: message.message_id.clone(),
            conversation: Some(message.conversation.clone()),
            position: self.position(offset),
            known_end: None,
            logged_at_ms: None,
            is_rewind: false,
            frame: terminal_frame(text),
            answer: text.to_owned(),
            parts: None,
            status: TurnStatus::Answered,
        }
    }

    pub(crate) async fn deliver(
        &self,
        message: &MessageRef,
        offset: i64,
        text: &str,
    ) -> DeliverResponse {
        self.deliver_call(self.delivery(message, offset, text))
            .await
    }

    pub(crate) async fn deliver_call(&self, request: DeliverRequest) -> DeliverResponse {
        self.fanout.deliver(request).await.unwrap()
    }

    pub(crate) async fn read(&self, after: Option<&Position>) -> UserView {
        let request = ReadRequest {
            user: self.user.clone(),
            after: after.cloned(),
            from_start: false,
            max_bytes: 1 << 20,
        };
        self.fanout.read(request).await.unwrap()
    }

    /// The user's only answer in flight.
    pub(crate) async fn answer_in_flight(&self) -> InFlightAnswer {
        let mut answers = self.read(None).await.in_flight;
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// The frames after a position, or `None` if the mailbox may lack some of them.
    pub(crate) async fn frames_after(&self, after: &Position) -> Option<Vec<(i64, String)>> {
        let view = self.read(Some(after)).await;
        assert!(view.recovered || view.frames.is_empty());
        let frames = view.frames.into_iter();
        view.recovered.then(|| {
            frames
                .map(|(position, frame)| (position.offset, frame))
                .collect()
        })
    }

    pub(crate) async fn context(&self, conversation: &ConversationId) -> Vec<Turn> {
        self.fanout
            .context(&self.user, conversation, 100, Duration::from_secs(3600))
            .await
            .unwrap()
    }
}

pub(crate) fn is_published(response: DeliverResponse) -> bool {
    matches!(response, DeliverResponse::Published(_))
}
