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
    use super::super::parts::{Part, PartDelta};
    use super::*;
    use crate::protocol::parts::PartKind;

    fn delta(part: usize, kind: PartKind, text: &str) -> Event {
        Event::Delta(PartDelta {
            part,
            kind: Some(kind),
            meta: None,
            text: text.to_owned(),
        })
    }

    fn text_part(text: &str) -> Part {
        Part {
            kind: Some(PartKind::Text),
            meta: None,
            text: text.to_owned(),
        }
    }

    #[tokio::test]
    async fn unread_text_is_merged_and_discarded_by_a_restart() {
        let (commands, _receiver) = mpsc::channel(1);
        let (writer, reader) = event_queue();
        let mut answer = Answer::new(ClientMessageId::random(), reader, commands);
        writer.push(delta(0, PartKind::Text, "a"));
        writer.push(delta(0, PartKind::Text, "b"));
        assert_eq!(answer.next().await, Some(delta(0, PartKind::Text, "ab")));
        writer.push(delta(0, PartKind::Text, "c"));
        writer.push(Event::Restarted);
        writer.push(delta(0, PartKind::Text, "d"));
        writer.push(Event::Snapshot(vec![text_part("de")]));
        writer.push(delta(0, PartKind::Text, "f"));
        writer.push(delta(1, PartKind::Text, "g"));
        let parts = vec![text_part("def"), text_part("g")];
        assert_eq!(answer.next().await, Some(Event::Snapshot(parts)));
        let ended = Event::Ended(Outcome::Cancelled {
            content: None,
            parts: Vec::new(),
        });
        writer.push(ended.clone());
        assert_eq!(answer.next().await, Some(ended));
        assert_eq!(answer.next().await, None);
    }

    #[tokio::test]
    async fn unread_parts_are_reported_one_after_the_other() {
        let (commands, _receiver) = mpsc::channel(1);
        let (writer, reader) = event_queue();
        let mut answer = Answer::new(ClientMessageId::random(), reader, commands);
        let events = [
            delta(0, PartKind::Reasoning, "hm"),
            delta(1, PartKind::Text, "a"),
            delta(1, PartKind::Text, "b"),
        ];
        for event in events {
            writer.push(event);
        }
        let reasoning = delta(0, PartKind::Reasoning, "hm");
        assert_eq!(answer.next().await, Some(reasoning));
        assert_eq!(answer.next().await, Some(delta(1, PartKind::Text, "ab")));
    }
}
