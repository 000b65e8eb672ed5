//! The means of the suite: one user of its own for each test.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{
    AdmissionDecision, BeginRequest, BeginResponse, DeliverRequest, DeliverResponse, Fanout,
    KeepRequest, KeepResponse, LiveRequest, LiveResponse, MessageRef, NewOutcome, Owner,
    ReadRequest, StoredOutcome, Turn, TurnStatus, UserView,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::position::{Epoch, Position};

/// An implementation under test. Instances of one backend share their data.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Another process's view of the same data.
    async fn open(&self, bounds: Bounds) -> Arc<dyn Fanout>;

    /// Deletes everything that is stored about a user. Returns a new fan-out where the old one can't
    /// continue on the empty data.
    async fn lose_data(&self, user: &UserId) -> Option<Arc<dyn Fanout>>;

    /// Whether anything that is stored about a user contains this text.
    async fn contains(&self, user: &UserId, text: &str) -> bool;
}

/// A user of its own.
pub(crate) struct Case<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) fanout: Arc<dyn Fanout>,
    pub(crate) user: UserId,
    pub(crate) epoch: Epoch,
}

pub(crate) fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub(crate) fn attempt(begun: &BeginResponse) -> u32 {
    match begun {
        BeginResponse::Attempt { number, .. } => *number,
        other => panic!("expected an attempt, got {other:?}"),
    }
}

pub(crate) fn outcome(begun: BeginResponse) -> StoredOutcome {
    match begun {
        BeginResponse::Ended(outcome) => outcome,
        other => panic!("expected an outcome, got {other:?}"),
    }
}

pub(crate) fn kept(kept: KeepResponse) -> StoredOutcome {
    match kept {
        KeepResponse::Outcome(outcome) | KeepResponse::Appended(outcome, _) => outcome,
        KeepResponse::Fenced => panic!("expected an outcome, got fenced"),
    }
}

pub(crate) fn terminal(text: &str) -> String {
    format!(r#"{{"type":"response","content":"{text}"}}"#)
}

impl<'a> Case<'a> {
    pub(crate) async fn new(backend: &'a dyn Backend) -> Case<'a> {
        Self::with(backend, Bounds::default()).await
    }

    pub(crate) async fn with(backend: &'a dyn Backend, bounds: Bounds) -> Case<'a> {
        let user = UserId::parse(&format!("u-{}", unique())).unwrap();
        Self::of(backend, bounds, user).await
    }

    pub(crate) async fn of(backend: &'a dyn Backend, bounds: Bounds, user: UserId) -> Case<'a> {
        Case {
            backend,
            fanout: backend.open(bounds).await,
            user,
            epoch: Epoch::new(&unique(), "0", 3),
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

    pub(crate) fn at(&self, offset: i64) -> Position {
        Position {
            epoch: self.epoch.clone(),
            offset,
        }
    }

    pub(crate) fn ending(subject: &MessageRef, text: &str, status: TurnStatus) -> NewOutcome {
        NewOutcome {
            frame: terminal(text),
            turn: Turn {
                message_id: subject.message_id.clone(),
                question: Some(format!("question {}", subject.message_id)),
                answer: text.to_owned(),
                status,
                at_ms: 0,
            },
        }
    }

    pub(crate) async fn admit(&self, subject: &MessageRef) -> AdmissionDecision {
        self.fanout
            .admit(subject, "question")
            .await
            .unwrap()
            .decision
    }

    pub(crate) async fn begin(
        &self,
        subject: &MessageRef,
        owner: &Owner,
        last_attempt: u32,
    ) -> BeginResponse {
        let call = BeginRequest {
            message: subject.clone(),
            owner: owner.clone(),
            last_attempt,
            cancelled_outcome: Self::ending(subject, "stopped early", TurnStatus::Cancelled).into(),
            history: None,
        };
        self.fanout.begin(call).await.unwrap()
    }

    /// Asks again for as long as another owner's lease says.
    pub(crate) async fn begin_when_free(
        &self,
        subject: &MessageRef,
        owner: &Owner,
        last_attempt: u32,
    ) -> BeginResponse {
        loop {
            match self.begin(subject, owner, last_attempt).await {
                BeginResponse::Busy(left) => {
                    tokio::time::sleep(left + Duration::from_millis(5)).await
                }
                begun => return begun,
            }
        }
    }

    pub(crate) async fn live(
        &self,
        subject: &MessageRef,
        owner: &Owner,
        attempt: u32,
        delta: Option<(u32, &str)>,
    ) -> LiveResponse {
        let call = LiveRequest {
            message: subject.clone(),
            owner: owner.clone(),
            attempt,
            delta: delta.map(|(index, text)| (index, text.to_owned())),
        };
        self.fanout.live(call).await.unwrap()
    }

    pub(crate) async fn keep(
        &self,
        subject: &MessageRef,
        owner: &Owner,
        attempt: u32,
        text: &str,
    ) -> KeepResponse {
        self.keep_as(subject, owner, attempt, text, TurnStatus::Answered)
            .await
    }

    pub(crate) async fn keep_as(
        &self,
        subject: &MessageRef,
        owner: &Owner,
        attempt: u32,
        text: &str,
        status: TurnStatus,
    ) -> KeepResponse {
        let call = KeepRequest {
            message: subject.clone(),
            owner: owner.clone(),
            attempt,
            outcome: Self::ending(subject, text, status).into(),
            cancelled_outcome: Self::ending(subject, "stopped", TurnStatus::Cancelled).into(),
        };
        self.fanout.keep(call).await.unwrap()
    }

    /// A message from its taking to its kept end.
    pub(crate) async fn answer(&self, subject: &MessageRef, text: &str) {
        let owner = Owner::random();
        let number = attempt(&self.begin(subject, &owner, 0).await);
        kept(self.keep(subject, &owner, number, text).await);
    }

    pub(crate) fn delivery(&self, subject: &MessageRef, offset: i64, text: &str) -> DeliverRequest {
        DeliverRequest {
            user: subject.user.clone(),
            message_id: subject.message_id.clone(),
            conversation: Some(subject.conversation.clone()),
            position: self.at(offset),
            known_end: None,
            logged_at_ms: None,
            is_rewind: false,
            frame: terminal(text),
            answer: text.to_owned(),
            status: TurnStatus::Answered,
        }
    }

    pub(crate) async fn deliver(
        &self,
        subject: &MessageRef,
        offset: i64,
        text: &str,
    ) -> DeliverResponse {
        self.deliver_call(self.delivery(subject, offset, text))
            .await
    }

    pub(crate) async fn deliver_call(&self, call: DeliverRequest) -> DeliverResponse {
        self.fanout.deliver(call).await.unwrap()
    }

    pub(crate) async fn read(&self, after: Option<&Position>) -> UserView {
        let call = ReadRequest {
            user: self.user.clone(),
            after: after.cloned(),
            from_start: false,
            max_bytes: 1 << 20,
        };
        self.fanout.read(call).await.unwrap()
    }

    /// The frames after a position, or none where it can't be said.
    pub(crate) async fn after(&self, after: &Position) -> Option<Vec<(i64, String)>> {
        let look = self.read(Some(after)).await;
        assert!(look.recovered || look.frames.is_empty());
        let frames = look.frames.into_iter();
        look.recovered
            .then(|| frames.map(|(at, frame)| (at.offset, frame)).collect())
    }

    pub(crate) async fn context(&self, conversation: &ConversationId) -> Vec<Turn> {
        self.fanout
            .context(&self.user, conversation, 100, Duration::from_secs(3600))
            .await
            .unwrap()
    }
}

pub(crate) fn published(delivered: DeliverResponse) -> bool {
    matches!(delivered, DeliverResponse::Published(_))
}
