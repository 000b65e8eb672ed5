//! The gateway on `chatmesh.v1` over real sockets. The test acts as worker and relay on the
//! embedded fan-out in memory, and decides which published frames are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chatmesh::config::settings::GatewaySettings;
use chatmesh::fanout::{
    Answers as _, AppendRequest, BeginRequest, BeginResponse, DeliverRequest, DeliverResponse,
    Deliveries as _, KeepRequest, MessageRef, NewOutcome, OpenPartRequest, Owner, Piece,
    StreamResponse, Turn, TurnStatus,
};
use chatmesh::gateway::{Dependencies, GatewayError, serve};
use chatmesh::health::Health;
use chatmesh::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use chatmesh::protocol::parts::{PartKind, TextRange, utf16_len};
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
    /// The kind, the properties and the text of each part.
    parts: Vec<(PartKind, Value, String)>,
}

impl Answer {
    /// The text of the answer.
    fn text(&self) -> String {
        let content = self.parts.iter().filter(|(kind, ..)| kind.is_content());
        content.map(|(.., text)| text.as_str()).collect()
    }

    /// The parts as a terminal frame has them. `None` for an answer that is one text part, or
    /// empty.
    fn finished_parts(&self) -> Option<Value> {
        if matches!(&self.parts[..], [] | [(PartKind::Text, ..)]) {
            return None;
        }
        let finished = self.parts.iter().map(|(kind, meta, text)| {
            let mut part = json!({"kind": kind});
            if !meta.is_null() {
                part["meta"] = meta.clone();
            }
            if kind.is_content() || *kind == PartKind::Reasoning {
                part["length"] = utf16_len(text).into();
            } else {
                part["content"] = text.as_str().into();
            }
            part
        });
        Some(finished.collect())
    }
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
            cancelled_outcome: empty_outcome(&message).into(),
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
            parts: Vec::new(),
        }
    }

    /// Publishes text as a worker: as the first part of the answer, or as the next piece of the last
    /// part.
    async fn stream(&self, answer: &mut Answer, text: &str) {
        let number = answer.parts.len().saturating_sub(1) as u32;
        let Some((.., last_text)) = answer.parts.last_mut() else {
            self.open_part(answer, PartKind::Text, Value::Null, text)
                .await;
            return;
        };
        let offset = utf16_len(last_text);
        last_text.push_str(text);
        let piece = piece(number, offset, text);
        let request = AppendRequest {
            message: answer.message.clone(),
            owner: answer.owner.clone(),
            attempt: answer.attempt,
            piece,
        };
        let pieces = self.fanout.inner().append(request).await.unwrap();
        assert!(pieces > 0);
    }

    /// Opens the next part of the answer as a worker, with its first piece.
    async fn open_part(&self, answer: &mut Answer, kind: PartKind, meta: Value, text: &str) {
        let previous = answer.parts.last();
        let request = OpenPartRequest {
            message: answer.message.clone(),
            owner: answer.owner.clone(),
            attempt: answer.attempt,
            kind,
            meta: (!meta.is_null()).then(|| meta.to_string().into()),
            previous_end: previous.map(|(.., text)| utf16_len(text)),
            piece: piece(answer.parts.len() as u32, 0, text),
        };
        let response = self.fanout.inner().open_part(request).await.unwrap();
        assert!(matches!(response, StreamResponse::Confirmed(_)));
        answer.parts.push((kind, meta, text.to_owned()));
    }

    /// Stores the outcome as a worker.
    async fn keep(&self, answer: &Answer) {
        let request = KeepRequest {
            message: answer.message.clone(),
            owner: answer.owner.clone(),
            attempt: answer.attempt,
            outcome: outcome(answer, TurnStatus::Answered).into(),
            cancelled_outcome: outcome(answer, TurnStatus::Cancelled).into(),
        };
        self.fanout.inner().keep(request).await.unwrap();
    }

    /// Delivers the terminal frame as a relay.
    async fn deliver(&self, answer: &Answer) {
        let offset = self.next_offset.fetch_add(1, Ordering::SeqCst);
        let outcome = outcome(answer, TurnStatus::Answered);
        let request = DeliverRequest {
            user: answer.message.user.clone(),
            message_id: answer.message.message_id.clone(),
            conversation: Some(answer.message.conversation.clone()),
            position: position(offset),
            known_end: None,
            logged_at_ms: None,
            is_rewind: false,
            frame: with_position(&outcome.frame, offset),
            answer: outcome.turn.answer,
            parts: outcome.turn.parts,
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

fn piece(part: u32, offset: u32, text: &str) -> Piece {
    let end = offset + utf16_len(text);
    Piece {
        range: TextRange { part, offset, end },
        text: text.to_owned(),
    }
}

/// The outcome of a message that was cancelled before its answer was begun.
fn empty_outcome(message: &MessageRef) -> NewOutcome {
    let answer = Answer {
        message: message.clone(),
        owner: Owner::random(),
        attempt: 1,
        parts: Vec::new(),
    };
    outcome(&answer, TurnStatus::Cancelled)
}

fn outcome(answer: &Answer, status: TurnStatus) -> NewOutcome {
    let (message, text, parts) = (&answer.message, answer.text(), answer.finished_parts());
    let mut frame = json!({"v": 1, "type": "response", "content": text, "userid": message.user,
        "timestamp": "2024-01-01T12:00:00Z", "processing_time_ms": 5, "correlation_id": "c",
        "message_id": message.message_id, "id": message.id, "finish_reason": "stop",
        "model": "test", "attempt": answer.attempt, "conversation_id": message.conversation,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}});
    if let Some(parts) = &parts {
        frame["parts"] = parts.clone();
    }
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
            answer: text,
            parts: parts.map(|parts| parts.to_string().into()),
            status,
            at_ms: 0,
        },
    }
}
