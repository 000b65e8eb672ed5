//! The means of the suite: one user of its own for each test.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chatmesh::fanout::{
    Admitted, Begin, Begun, Bounds, Deliver, Delivered, Ending, Fanout, Keep, Kept, Live,
    LiveReply, Look, Outcome, Owner, Read, Subject, Turn, TurnStatus,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::position::{Epoch, Position};

/// An implementation under test. Instances of one backend share their data.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Another process's view of the same data.
    async fn open(&self, bounds: Bounds) -> Arc<dyn Fanout>;

    /// All that is kept of this user is lost.
    async fn lose(&self, user: &UserId);

    /// Whether anything that is kept of this user, of whatever kind, has this text in it.
    async fn holds(&self, user: &UserId, text: &str) -> bool;
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

pub(crate) fn attempt(begun: &Begun) -> u32 {
    match begun {
        Begun::Attempt { number, .. } => *number,
        other => panic!("expected an attempt, got {other:?}"),
    }
}

pub(crate) fn outcome(begun: Begun) -> Outcome {
    match begun {
        Begun::Ended(outcome) => outcome,
        other => panic!("expected an outcome, got {other:?}"),
    }
}

pub(crate) fn kept(kept: Kept) -> Outcome {
    match kept {
        Kept::Outcome(outcome) | Kept::Grown(outcome, _) => outcome,
        Kept::Fenced => panic!("expected an outcome, got fenced"),
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

    pub(crate) async fn lose(&self) {
        self.backend.lose(&self.user).await;
    }

    pub(crate) fn message(&self) -> Subject {
        self.message_in(&ConversationId::default_conversation())
    }

    pub(crate) fn message_in(&self, conversation: &ConversationId) -> Subject {
        Subject {
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

    pub(crate) fn ending(subject: &Subject, text: &str, status: TurnStatus) -> Ending {
        Ending {
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

    pub(crate) async fn admit(&self, subject: &Subject) -> Admitted {
        self.fanout
            .admit(subject, "question")
            .await
            .unwrap()
            .admitted
    }

    pub(crate) async fn begin(&self, subject: &Subject, owner: &Owner, had: u32) -> Begun {
        let call = Begin {
            subject: subject.clone(),
            owner: owner.clone(),
            had,
            cancelled: Self::ending(subject, "stopped early", TurnStatus::Cancelled).into(),
            recall: None,
        };
        self.fanout.begin(call).await.unwrap()
    }

    /// Asks again for as long as another owner's lease says.
    pub(crate) async fn begin_when_free(
        &self,
        subject: &Subject,
        owner: &Owner,
        had: u32,
    ) -> Begun {
        loop {
            match self.begin(subject, owner, had).await {
                Begun::Busy(left) => tokio::time::sleep(left + Duration::from_millis(5)).await,
                begun => return begun,
            }
        }
    }

    pub(crate) async fn live(
        &self,
        subject: &Subject,
        owner: &Owner,
        attempt: u32,
        delta: Option<(u32, &str)>,
    ) -> LiveReply {
        let call = Live {
            subject: subject.clone(),
            owner: owner.clone(),
            attempt,
            delta: delta.map(|(index, text)| (index, text.to_owned())),
        };
        self.fanout.live(call).await.unwrap()
    }

    pub(crate) async fn keep(
        &self,
        subject: &Subject,
        owner: &Owner,
        attempt: u32,
        text: &str,
    ) -> Kept {
        self.keep_as(subject, owner, attempt, text, TurnStatus::Answered)
            .await
    }

    pub(crate) async fn keep_as(
        &self,
        subject: &Subject,
        owner: &Owner,
        attempt: u32,
        text: &str,
        status: TurnStatus,
    ) -> Kept {
        let call = Keep {
            subject: subject.clone(),
            owner: owner.clone(),
            attempt,
            ending: Self::ending(subject, text, status).into(),
            cancelled: Self::ending(subject, "stopped", TurnStatus::Cancelled).into(),
        };
        self.fanout.keep(call).await.unwrap()
    }

    /// A message from its taking to its kept end.
    pub(crate) async fn answer(&self, subject: &Subject, text: &str) {
        let owner = Owner::random();
        let number = attempt(&self.begin(subject, &owner, 0).await);
        kept(self.keep(subject, &owner, number, text).await);
    }

    pub(crate) fn delivery(&self, subject: &Subject, offset: i64, text: &str) -> Deliver {
        Deliver {
            user: subject.user.clone(),
            message_id: subject.message_id.clone(),
            conversation: Some(subject.conversation.clone()),
            position: self.at(offset),
            known: None,
            ended_ms: None,
            rewind: false,
            frame: terminal(text),
            answer: text.to_owned(),
            status: TurnStatus::Answered,
        }
    }

    pub(crate) async fn deliver(&self, subject: &Subject, offset: i64, text: &str) -> Delivered {
        self.deliver_call(self.delivery(subject, offset, text))
            .await
    }

    pub(crate) async fn deliver_call(&self, call: Deliver) -> Delivered {
        self.fanout.deliver(call).await.unwrap()
    }

    pub(crate) async fn read(&self, after: Option<&Position>) -> Look {
        let call = Read {
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

pub(crate) fn published(delivered: Delivered) -> bool {
    matches!(delivered, Delivered::Published(_))
}
