//! The gateway on `chatmesh.v1` over real sockets. The test acts as worker and relay on the
//! embedded fan-out in memory, and decides which published frames are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chatmesh::config::settings::GatewaySettings;
use chatmesh::fanout::{
    Answers as _, BeginRequest, BeginResponse, DeliverRequest, DeliverResponse, Deliveries as _,
    KeepRequest, LiveRequest, LiveResponse, MessageRef, NewOutcome, Owner, Turn, TurnStatus,
};
use chatmesh::gateway::{Dependencies, GatewayError, serve};
use chatmesh::health::Health;
use chatmesh::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use chatmesh::protocol::position::{Epoch, Position};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::faulty_fanout::FaultyFanout;
use crate::gateway_classic::fakes::FakeLog;
use crate::gateway_classic::settings;
use crate::support::v1::V1Client;

mod catch_up;
mod client;
mod faulty_fanout;
mod lost_frames;
mod memory;
mod messages;

struct Gateway {
    port: u16,
    log: Arc<FakeLog>,
    fanout: Arc<FaultyFanout>,
    drain: CancellationToken,
    served: JoinHandle<Result<(), GatewayError>>,
    /// The offset of the next terminal record.
    next_offset: AtomicI64,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn start(settings: GatewaySettings) -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (log, fanout) = (FakeLog::new(), FaultyFanout::new());
    let drain = CancellationToken::new();
    let dependencies = Dependencies {
        log: log.clone(),
        fanout: fanout.clone(),
        settings,
        health: Arc::new(Health::new(&[])),
        dead_letters: None,
        admin: Arc::new(|_, _| None),
    };
    let served = tokio::spawn(serve(listener, dependencies, drain.clone()));
    Gateway {
        port,
        log,
        fanout,
        drain,
        served,
        next_offset: AtomicI64::new(0),
    }
}

fn position(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("test", "0", 0),
        offset,
    }
}

/// An answer that the test generates as a worker.
struct Answer {
    message: MessageRef,
    owner: Owner,
    attempt: u32,
    index: u32,
    text: String,
}

impl Gateway {
    /// Connects a `chatmesh.v1` client.
    async fn device(&self, user: &str) -> V1Client {
        let mut device = V1Client::new(user);
        // The gateway refuses connections until its feed is open.
        device.connect_with_retries(&[self.port]).await;
        device
    }

    /// Begins the answer to a message of the default conversation.
    async fn begin(&self, user: &str, id: &str) -> Answer {
        self.begin_in(user, id, "default").await
    }

    async fn begin_in(&self, user: &str, id: &str, conversation: &str) -> Answer {
        let user = UserId::parse(user).unwrap();
        let id = ClientMessageId::parse(id).unwrap();
        let message = MessageRef {
            message_id: MessageId::from_client_id(&user, &id),
            user,
            id: Some(id),
            conversation: ConversationId::parse(conversation).unwrap(),
        };
        let owner = Owner::random();
        let request = BeginRequest {
            message: message.clone(),
            owner: owner.clone(),
            last_attempt: 0,
            cancelled_outcome: outcome(&message, "", TurnStatus::Cancelled).into(),
            history: None,
        };
        let BeginResponse::Attempt { number, .. } =
            self.fanout.inner().begin(request).await.unwrap()
        else {
            panic!("the answer can't be begun");
        };
        Answer {
            message,
            owner,
            attempt: number,
            index: 0,
            text: String::new(),
        }
    }

    /// Publishes a delta as a worker.
    async fn stream(&self, answer: &mut Answer, text: &str) {
        let request = LiveRequest {
            message: answer.message.clone(),
            owner: answer.owner.clone(),
            attempt: answer.attempt,
            delta: Some((answer.index, text.to_owned())),
        };
        assert_eq!(
            self.fanout.inner().live(request).await.unwrap(),
            LiveResponse::Written
        );
        answer.index += 1;
        answer.text.push_str(text);
    }

    /// Stores the outcome as a worker.
    async fn keep(&self, answer: &Answer) {
        let request = KeepRequest {
            message: answer.message.clone(),
            owner: answer.owner.clone(),
            attempt: answer.attempt,
            outcome: outcome(&answer.message, &answer.text, TurnStatus::Answered).into(),
            cancelled_outcome: outcome(&answer.message, &answer.text, TurnStatus::Cancelled).into(),
        };
        self.fanout.inner().keep(request).await.unwrap();
    }

    /// Delivers the terminal frame as a relay.
    async fn deliver(&self, answer: &Answer) {
        let offset = self.next_offset.fetch_add(1, Ordering::SeqCst);
        let frame = outcome(&answer.message, &answer.text, TurnStatus::Answered).frame;
        let request = DeliverRequest {
            user: answer.message.user.clone(),
            message_id: answer.message.message_id.clone(),
            conversation: Some(answer.message.conversation.clone()),
            position: position(offset),
            known_end: None,
            logged_at_ms: None,
            is_rewind: false,
            frame: with_position(&frame, offset),
            answer: answer.text.clone(),
            status: TurnStatus::Answered,
        };
        let response = self.fanout.inner().deliver(request).await.unwrap();
        assert!(matches!(response, DeliverResponse::Published(_)));
    }

    /// Stores and delivers the outcome.
    async fn finish(&self, answer: &Answer) {
        self.keep(answer).await;
        self.deliver(answer).await;
    }

    /// Generates and delivers the whole answer to a message.
    async fn answer(&self, user: &str, id: &str, pieces: &[&str]) {
        let mut answer = self.begin(user, id).await;
        for piece in pieces {
            self.stream(&mut answer, piece).await;
        }
        self.finish(&answer).await;
    }
}

fn with_position(frame: &str, offset: i64) -> String {
    let mut frame: Value = serde_json::from_str(frame).unwrap();
    frame["position"] = position(offset).to_string().into();
    frame.to_string()
}

fn outcome(message: &MessageRef, text: &str, status: TurnStatus) -> NewOutcome {
    let mut frame = json!({"v": 1, "type": "response", "content": text, "userid": message.user,
        "timestamp": "2024-01-01T12:00:00Z", "processing_time_ms": 5, "correlation_id": "c",
        "message_id": message.message_id, "id": message.id, "finish_reason": "stop",
        "model": "test", "attempt": 1, "conversation_id": message.conversation,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}});
    if status == TurnStatus::Cancelled {
        frame["type"] = "error".into();
        frame["code"] = "cancelled".into();
        frame["message"] = "Cancelled".into();
        frame["retryable"] = false.into();
    }
    NewOutcome {
        frame: frame.to_string(),
        turn: Turn {
            message_id: message.message_id.clone(),
            question: Some("?".into()),
            answer: text.to_owned(),
            status,
            at_ms: 0,
        },
    }
}
