//! A question on its way: what is sent for it, and what is told of it.

use tokio::time::Instant;

use super::answer::{End, Event, Writer};
use super::options::Question;
use super::retry_hint::retry_backoff;
use crate::backoff::Backoff;
use crate::protocol::ids::MessageId;
use crate::protocol::wire::v1::{Cancel, Message, ToServer};

/// A question that has not ended.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) writer: Writer,
    pub(super) accepted: bool,
    pub(super) cancel: bool,
    /// The attempt and the index that the next delta continues.
    pub(super) next: Option<(u32, u32)>,
    /// When its waiting for a server that takes it began.
    pub(super) waits_since: Instant,
    /// The server could not take it: then again.
    pub(super) again_at: Option<Instant>,
    pub(super) backoff: Backoff,
}

impl Asked {
    pub(super) fn new(question: Question, writer: Writer) -> Self {
        Self {
            question,
            writer,
            accepted: false,
            cancel: false,
            next: None,
            waits_since: Instant::now(),
            again_at: None,
            backoff: retry_backoff(),
        }
    }

    pub(super) fn frame(&self) -> ToServer {
        ToServer::Message(Message {
            id: self.question.id.clone(),
            content: self.question.content.clone(),
            conversation_id: self.question.conversation.clone(),
            interrupt: self.question.interrupt && !self.accepted,
            userid: None,
            traceparent: None,
            tracestate: None,
        })
    }

    pub(super) fn cancel_frame(&self) -> ToServer {
        ToServer::Cancel(Cancel {
            id: Some(self.question.id.clone()),
            message_id: None,
        })
    }

    pub(super) fn accept(&mut self, message_id: &MessageId) {
        if !self.accepted {
            self.accepted = true;
            self.writer.push(Event::Accepted(message_id.clone()));
        }
    }

    pub(super) fn ended(self, end: End) {
        self.writer.push(Event::Ended(end));
    }
}
