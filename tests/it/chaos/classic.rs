//! Checks what classic clients received.

use std::collections::HashMap;

use serde_json::Value;

use super::answers::check_text;
use super::checker::Checker;
use super::clients::{ClassicConnection, ClassicObservation};
use crate::support::history::HistoryTurn;

/// Time in ms that is longer than the longest recovery of the system.
const RECOVERY_MS: i64 = 30_000;

impl Checker {
    /// Checks a classic client: it received no frame twice and none of another user, the outcomes
    /// arrived in order, and every message was answered or refused if its connection stayed open
    /// for long enough.
    pub(super) fn check_classic(&mut self, observation: &ClassicObservation) {
        let mut previous: Option<((i64, i32, i64), String)> = None;
        let mut received: HashMap<String, usize> = HashMap::new();
        let user = &observation.user;
        let frames = observation
            .connections
            .iter()
            .flat_map(|connection| &connection.frames);
        for (received_ms, frame) in frames {
            if frame["userid"] != user.as_str() {
                self.report(&format!("{user}: a frame of another user: {frame}"), &[]);
            }
            let Some(id) = self.ended_message(frame) else {
                continue;
            };
            *received.entry(id.clone()).or_default() += 1;
            self.check_classic_outcome(user, &id, frame);
            let Some(log_position) = self.log_positions.get(&id).copied() else {
                self.report(&format!("{user}: ended without being in the log"), &[&id]);
                continue;
            };
            if let Some((previous_position, previous_id)) = previous
                && previous_position > log_position
            {
                self.totals.out_of_order += 1;
                self.report(
                    &format!(
                        "{user}: {id} at {log_position:?} was received after {previous_id} at \
                         {previous_position:?}, at {received_ms} (I3)"
                    ),
                    &[&id, &previous_id],
                );
            }
            previous = Some((log_position, id));
        }
        for connection in &observation.connections {
            self.totals.messages += connection.sent.len();
            self.check_missing_answers(user, connection, &received);
            self.check_log_order(user, connection.sent.iter().map(|(_, content)| content));
        }
        self.check_classic_history(observation);
        for (id, count) in received {
            if count > 1 {
                self.totals.duplicated += 1;
                self.report(
                    &format!("{user}: {count} outcomes of one message (I1)"),
                    &[&id],
                );
            }
        }
    }

    /// The message that a frame ends. `None` if the frame refuses a message, or reports that the
    /// log did not acknowledge the message in time; then the message may be in the log, and its
    /// answer follows (docs/protocol.md, section 1).
    fn ended_message(&self, frame: &Value) -> Option<String> {
        if let Some(id) = frame["message_id"].as_str() {
            return Some(id.to_owned());
        }
        if frame["code"] == "unavailable" {
            return None;
        }
        let correlation_id = frame["correlation_id"].as_str()?;
        self.message_by_correlation_id.get(correlation_id).cloned()
    }

    fn check_classic_outcome(&mut self, user: &str, id: &str, frame: &Value) {
        if frame["type"] != "response" {
            self.totals.failed += 1;
            if !self.may_fail(id) {
                let violation = format!("{user}: failed without a fault of the model API: {frame}");
                self.report(&violation, &[id]);
            }
            return;
        }
        self.totals.answered += 1;
        let text = frame["content"].as_str().unwrap_or_default();
        let question = text.split_once("end ").map_or("", |(_, question)| question);
        if let Some(violation) = check_text(text, question) {
            self.report(&format!("{user}: {violation} (I4): {text:?}"), &[id]);
        }
        // A classic client's message has no id, so only the question in the text connects it with
        // its answer.
        if self
            .message_by_question
            .get(question)
            .is_none_or(|message_id| message_id != id)
        {
            let violation = format!("{user}: the answer to another question, {question:?} (I4)");
            self.report(&violation, &[id]);
        }
        self.check_outcome_in_log(id, "response", text, None);
    }

    /// Checks that the history has each answer that the client received, unchanged.
    fn check_classic_history(&mut self, observation: &ClassicObservation) {
        let user = &observation.user;
        self.check_history(user, &observation.history);
        let turns = observation.history.iter().flatten();
        let turns: HashMap<&str, &HistoryTurn> =
            turns.map(|turn| (turn.message_id.as_str(), turn)).collect();
        for (_, frame) in observation
            .connections
            .iter()
            .flat_map(|connection| &connection.frames)
        {
            let (Some(id), "response") = (
                frame["message_id"].as_str(),
                frame["type"].as_str().unwrap_or_default(),
            ) else {
                continue;
            };
            let received = frame["content"].as_str().unwrap_or_default();
            match turns.get(id) {
                Some(turn) if turn.status == "answered" && turn.answer == received => {}
                None if self.may_be_lost_from_history(id) => {}
                turn => {
                    let violation = format!(
                        "{user}: the history has {turn:?}, the client received {received:?} (I5)"
                    );
                    self.report(&violation, &[id]);
                }
            }
        }
    }

    /// Checks that a connection received every answer that the log had at least `RECOVERY_MS`
    /// before the connection ended, and that no more messages are missing in the log than were
    /// refused.
    fn check_missing_answers(
        &mut self,
        user: &str,
        connection: &ClassicConnection,
        received: &HashMap<String, usize>,
    ) {
        let is_due = |ms: i64| ms + RECOVERY_MS < connection.ended_ms;
        let mut not_in_log = 0;
        for (sent_ms, content) in &connection.sent {
            let Some(id) = self.message_by_question.get(content).cloned() else {
                not_in_log += usize::from(is_due(*sent_ms));
                continue;
            };
            let ended_ms = self.ended_ms.get(&id).copied().unwrap_or(i64::MAX);
            if ended_ms < connection.ended_ms && is_due(ended_ms) && !received.contains_key(&id) {
                self.totals.lost += 1;
                let violation =
                    format!("{user}: no answer on the connection that sent {id} at {sent_ms} (I1)");
                self.report(&violation, &[&id]);
            }
        }
        let frames = connection.frames.iter();
        let refused = frames.filter(|(_, frame)| self.ended_message(frame).is_none());
        let refused = refused.count();
        if not_in_log > refused {
            self.totals.lost += not_in_log - refused;
            let violation = format!(
                "{user}: {not_in_log} messages are not in the log, and {refused} were refused (I1)"
            );
            self.report(&violation, &[]);
        }
    }
}
