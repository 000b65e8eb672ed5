//! The answer to one question, as a stream of events. [`Client::ask`](super::Client::ask) returns
//! it.

use tokio::sync::mpsc;

use super::command::Command;
use super::events::{Event, EventReader, Outcome};
use crate::protocol::ids::ClientMessageId;

/// The answer to one question: its events, which the caller reads at its own pace, and the means to
/// cancel it.
#[derive(Debug)]
pub struct Answer {
    id: ClientMessageId,
    events: EventReader,
    commands: mpsc::Sender<Command>,
    has_ended: bool,
}

impl Answer {
    pub(super) fn new(
        id: ClientMessageId,
        events: EventReader,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            id,
            events,
            commands,
            has_ended: false,
        }
    }

    /// The question's `id`.
    pub fn id(&self) -> &ClientMessageId {
        &self.id
    }

    /// Waits for the next event; `None` after [`Event::Ended`]. Cancel-safe: no event is lost if
    /// the future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        if self.has_ended {
            return None;
        }
        let event = self.events.next().await.unwrap_or_else(|| {
            let reason = "the client was closed".to_owned();
            Event::Ended(Outcome::Unknown { reason })
        });
        self.has_ended = matches!(event, Event::Ended(_));
        Some(event)
    }

    /// Waits for the outcome and skips all other events.
    pub async fn outcome(mut self) -> Outcome {
        while let Some(event) = self.next().await {
            if let Event::Ended(outcome) = event {
                return outcome;
            }
        }
        Outcome::Unknown {
            reason: "its outcome was read before".to_owned(),
        }
    }

    /// Asks the server to cancel the message. The events report the result.
    pub async fn cancel(&self) {
        // Sending fails only after the session has ended. Then every question has an outcome, so
        // there is nothing to cancel.
        let _ = self.commands.send(Command::Cancel(self.id.clone())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::event_queue;
    use super::*;

    #[tokio::test]
    async fn unread_text_is_merged_and_discarded_by_a_restart() {
        let (commands, _receiver) = mpsc::channel(1);
        let (writer, reader) = event_queue();
        let mut answer = Answer::new(ClientMessageId::random(), reader, commands);
        writer.push(Event::Delta("a".into()));
        writer.push(Event::Delta("b".into()));
        assert_eq!(answer.next().await, Some(Event::Delta("ab".into())));
        writer.push(Event::Delta("c".into()));
        writer.push(Event::Restarted);
        writer.push(Event::Delta("d".into()));
        writer.push(Event::Snapshot("de".into()));
        writer.push(Event::Delta("f".into()));
        assert_eq!(answer.next().await, Some(Event::Snapshot("def".into())));
        let ended = Event::Ended(Outcome::Cancelled { content: None });
        writer.push(ended.clone());
        assert_eq!(answer.next().await, Some(ended));
        assert_eq!(answer.next().await, None);
    }
}
