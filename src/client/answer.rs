//! An answer as it grows: written by the session, read at the caller's pace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};

use super::session::Command;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ClientMessageId, MessageId};
use crate::protocol::record::Usage;
use crate::protocol::wire::v1::CancelOutcome;

/// What happens to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The log has it: it will end exactly once, whatever dies.
    Accepted(MessageId),
    /// More of the text.
    Delta(String),
    /// The text so far is worth nothing: another attempt begins.
    Restarted,
    /// The whole text so far, in place of what was there.
    Snapshot(String),
    /// The server's answer to [`Answer::cancel`].
    Cancel(CancelOutcome),
    /// The last one.
    Ended(End),
}

/// How a question ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// With the whole answer.
    Answered {
        /// The text, in place of what was there.
        content: String,
        /// The provider's reason to end.
        finish_reason: Option<String>,
        /// The model that answered.
        model: Option<String>,
        /// What it used.
        usage: Option<Usage>,
    },
    /// By its user, here or on another device.
    Cancelled {
        /// The text so far, where it is known.
        content: Option<String>,
    },
    /// Refused by the server, or failed for good.
    Failed {
        /// For programs.
        code: Option<ErrorCode>,
        /// For people.
        message: String,
        /// Whether asking again may help.
        retryable: bool,
        /// After how long.
        retry_after: Option<Duration>,
    },
    /// The connection did not come back in time; what becomes of the question is unknown. Asking
    /// again with the same `id` is safe.
    Lost {
        /// Why.
        why: String,
    },
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// Nobody will write any more.
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }
}

/// The events of one question.
#[derive(Debug)]
pub struct Answer {
    id: ClientMessageId,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    ended: bool,
}

/// The session's side.
#[derive(Debug)]
pub(super) struct Writer(Arc<Shared>);

pub(super) fn pair(id: ClientMessageId, commands: mpsc::Sender<Command>) -> (Writer, Answer) {
    let shared = Arc::new(Shared::default());
    let answer = Answer {
        id,
        shared: shared.clone(),
        commands,
        ended: false,
    };
    (Writer(shared), answer)
}

impl Writer {
    /// What is not read yet is put together: it never holds more than one text.
    pub(super) fn push(&self, event: Event) {
        let mut waiting = self.0.lock();
        let events = &mut waiting.events;
        match (&event, events.back_mut()) {
            (Event::Delta(more), Some(Event::Delta(text) | Event::Snapshot(text))) => {
                text.push_str(more);
            }
            (Event::Restarted | Event::Snapshot(_), _) => {
                events.retain(|event| {
                    !matches!(
                        event,
                        Event::Delta(_) | Event::Snapshot(_) | Event::Restarted
                    )
                });
                events.push_back(event);
            }
            _ => events.push_back(event),
        }
        drop(waiting);
        self.0.more.notify_one();
    }
}

impl Answer {
    /// The question's `id`.
    pub fn id(&self) -> &ClientMessageId {
        &self.id
    }

    /// What happened next; `None` after [`Event::Ended`]. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Event> {
        while !self.ended {
            let (event, closed) = {
                let mut waiting = self.shared.lock();
                (waiting.events.pop_front(), waiting.closed)
            };
            let why = || "the client was closed".to_owned();
            let lost = || Event::Ended(End::Lost { why: why() });
            if let Some(event) = event.or_else(|| closed.then(lost)) {
                self.ended = matches!(event, Event::Ended(_));
                return Some(event);
            }
            self.shared.more.notified().await;
        }
        None
    }

    /// Its end; everything before that is left out.
    pub async fn end(mut self) -> End {
        while let Some(event) = self.next().await {
            if let Event::Ended(end) = event {
                return end;
            }
        }
        End::Lost {
            why: "its end was read before".to_owned(),
        }
    }

    /// Asks for its end. What comes of it, events tell: nothing is promised here.
    pub async fn cancel(&self) {
        // Without a session everything open has ended.
        let _ = self.commands.send(Command::Cancel(self.id.clone())).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_read_is_put_together_and_a_restart_throws_it_away() {
        let (commands, _inbox) = mpsc::channel(1);
        let (writer, mut answer) = pair(ClientMessageId::random(), commands);
        writer.push(Event::Delta("a".into()));
        writer.push(Event::Delta("b".into()));
        assert_eq!(answer.next().await, Some(Event::Delta("ab".into())));
        writer.push(Event::Delta("c".into()));
        writer.push(Event::Restarted);
        writer.push(Event::Delta("d".into()));
        writer.push(Event::Snapshot("de".into()));
        writer.push(Event::Delta("f".into()));
        assert_eq!(answer.next().await, Some(Event::Snapshot("def".into())));
        let end = Event::Ended(End::Cancelled { content: None });
        writer.push(end.clone());
        assert_eq!(answer.next().await, Some(end));
        assert_eq!(answer.next().await, None);
    }
}
