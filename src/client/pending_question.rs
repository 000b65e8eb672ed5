//! A question that has no outcome yet: the frames to send for it, and the events to report.

use tokio::time::Instant;

use super::events::{Event, EventWriter, Outcome};
use super::options::Question;
use super::received_parts::ReceivedParts;
use super::retry_hint::retry_backoff;
use crate::backoff::Backoff;
use crate::protocol::ids::MessageId;
use crate::protocol::wire::v1::{Cancel, ClientToServer, Delta, Message, Restarted, Snapshot};

/// A question without an outcome.
#[derive(Debug)]
pub(super) struct PendingQuestion {
    pub(super) question: Question,
    pub(super) events: EventWriter,
    pub(super) is_accepted: bool,
    pub(super) is_cancel_requested: bool,
    /// The parts of the answer so far.
    pub(super) received: ReceivedParts,
    /// When the question was asked, or when the connection was last lost if that is later. The
    /// retry timeout counts from this time.
    pub(super) waiting_since: Instant,
    /// When to send the question again, after the server could not accept it; `None` if no retry is
    /// scheduled.
    pub(super) retry_at: Option<Instant>,
    pub(super) backoff: Backoff,
}

impl PendingQuestion {
    pub(super) fn new(question: Question, events: EventWriter) -> Self {
        Self {
            question,
            events,
            is_accepted: false,
            is_cancel_requested: false,
            received: ReceivedParts::default(),
            waiting_since: Instant::now(),
            retry_at: None,
            backoff: retry_backoff(),
        }
    }

    /// Returns the frame that sends or resends the question. The server recognises a resend by its
    /// `id`.
    pub(super) fn message_frame(&self) -> ClientToServer {
        ClientToServer::Message(Message {
            id: self.question.id.clone(),
            content: self.question.content.clone(),
            conversation_id: self.question.conversation.clone(),
            // An accepted message has already cancelled the earlier messages. A resend must not
            // cancel the messages that were sent after it.
            interrupt: self.question.interrupt && !self.is_accepted,
            userid: None,
            traceparent: None,
            tracestate: None,
        })
    }

    pub(super) fn cancel_frame(&self) -> ClientToServer {
        ClientToServer::Cancel(Cancel {
            id: Some(self.question.id.clone()),
            message_id: None,
        })
    }

    /// Marks the question as accepted, and reports that the first time.
    pub(super) fn set_accepted(&mut self, message_id: &MessageId) {
        if !self.is_accepted {
            self.is_accepted = true;
            self.events.push(Event::Accepted(message_id.clone()));
        }
    }

    /// Applies a `delta`, and reports it unless the client has its text already or misses an
    /// earlier delta.
    pub(super) fn receive_delta(&mut self, frame: Delta) {
        if let Some(event) = self.received.apply_delta(frame) {
            self.events.push(event);
        }
    }

    pub(super) fn receive_snapshot(&mut self, frame: Snapshot) {
        let event = self.received.apply_snapshot(frame);
        self.events.push(event);
    }

    pub(super) fn receive_restarted(&mut self, frame: Restarted) {
        self.received.restart(frame.stream);
        self.events.push(Event::Restarted);
    }

    /// Reports the outcome, which is the last event of the question.
    pub(super) fn end(self, outcome: Outcome) {
        self.events.push(Event::Ended(outcome));
    }
}
