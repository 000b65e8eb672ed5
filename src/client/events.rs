//! What a client reports: the events of one question, and the state of the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::parts::{Part, PartDelta};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::MessageId;
use crate::protocol::record::Usage;
use crate::protocol::wire::v1::CancelOutcome;

/// The state of the connection to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Connected; the server's `welcome` has arrived.
    Connected,
    /// The connection was lost for this reason, and the client is connecting again.
    Reconnecting(String),
    /// The client has ended for this reason. All pending questions have ended too.
    Closed(String),
}

/// An event of one question.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The log has acknowledged the message, so the message gets exactly one outcome, even if
    /// processes fail.
    Accepted(MessageId),
    /// Text to append to a part of the answer. The part is the last one, or the next one.
    Delta(PartDelta),
    /// A new attempt begins; the parts so far are invalid.
    Restarted,
    /// All parts so far. They replace the earlier parts.
    Snapshot(Vec<Part>),
    /// The server's reply to a request to cancel the message.
    Cancel(CancelOutcome),
    /// The outcome of the question. No event follows.
    Ended(Outcome),
}

/// The outcome of a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The model answered.
    Answered {
        /// The complete text: that of the text and refusal parts.
        content: String,
        /// All parts. They replace the earlier parts.
        parts: Vec<Part>,
        /// The provider's reason for the end of the answer.
        finish_reason: Option<String>,
        /// The model that answered.
        model: Option<String>,
        /// The tokens used.
        usage: Option<Usage>,
    },
    /// The user cancelled the message, on this or another device.
    Cancelled {
        /// The answer's text when it was cancelled, if the server sent that text.
        content: Option<String>,
        /// The answer's parts when it was cancelled; none if the server did not send its text.
        parts: Vec<Part>,
    },
    /// The server rejected the message, or the message could not be answered.
    Failed {
        /// Machine-readable reason.
        code: Option<ErrorCode>,
        /// Human-readable reason.
        message: String,
        /// Whether the same question may succeed later.
        retryable: bool,
        /// Minimum delay before a retry, if the server named such a delay.
        retry_after: Option<Duration>,
    },
    /// The client was closed, was rejected for good, or could not reach the server in time, so the
    /// outcome is unknown. Asking again with the same `id` is safe.
    Unknown {
        /// Why the outcome is unknown.
        reason: String,
    },
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// The writer was dropped, so no further event follows.
    is_closed: bool,
}

#[derive(Debug, Default)]
struct SharedQueue {
    queue: Mutex<Queue>,
    /// Notified when an event was pushed or the writer was dropped.
    changed: Notify,
}

/// The writing end of a question's events.
#[derive(Debug)]
pub(super) struct EventWriter(Arc<SharedQueue>);

/// The reading end of a question's events.
#[derive(Debug)]
pub(super) struct EventReader(Arc<SharedQueue>);

/// Creates the queue of a question's events. The queue merges unread text: it holds the answer's
/// parts at most once, and once more in the outcome, so a slow reader needs no backpressure.
pub(super) fn event_queue() -> (EventWriter, EventReader) {
    let shared = Arc::new(SharedQueue::default());
    (EventWriter(shared.clone()), EventReader(shared))
}

impl EventWriter {
    pub(super) fn push(&self, event: Event) {
        let mut queue = self.0.queue.lock();
        let events = &mut queue.events;
        match (event, events.back_mut()) {
            (Event::Delta(delta), Some(Event::Delta(unread))) if delta.part == unread.part => {
                unread.text.push_str(&delta.text);
            }
            (Event::Delta(delta), Some(Event::Snapshot(parts))) => delta.apply_to(parts),
            (event @ (Event::Restarted | Event::Snapshot(_)), _) => {
                events.retain(|event| {
                    !matches!(
                        event,
                        Event::Delta(_) | Event::Snapshot(_) | Event::Restarted
                    )
                });
                events.push_back(event);
            }
            (event, _) => events.push_back(event),
        }
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Drop for EventWriter {
    fn drop(&mut self) {
        self.0.queue.lock().is_closed = true;
        self.0.changed.notify_one();
    }
}

impl EventReader {
    /// Waits for the next event. `None` if the writer was dropped and all events are read.
    /// Cancel-safe: no event is lost if the future is dropped.
    pub(super) async fn next(&self) -> Option<Event> {
        loop {
            let (event, is_closed) = {
                let mut queue = self.0.queue.lock();
                (queue.events.pop_front(), queue.is_closed)
            };
            if event.is_some() || is_closed {
                return event;
            }
            self.0.changed.notified().await;
        }
    }
}
