//! Checks what classic clients received.

use std::collections::HashMap;

use serde_json::Value;

use super::answers::check_complete;
use super::checker::Checker;
use super::clients::{ClassicConnection, ClassicObservation};
use crate::support::history::HistoryTurn;

/// Longer than the longest recovery.
const RECOVERY_MS: i64 = 30_000;

impl Checker {
    /// Checks a classic client: no frame twice, none of another user, outcomes in order, and every
    /// message that was sent on a connection that stayed open was answered or refused on it.
    pub(super) fn check_classic(&mut self, seen: &ClassicObservation) {
        let mut last: Option<((i64, i32, i64), String)> = None;
        let mut received: HashMap<String, usize> = HashMap::new();
        let user = &seen.user;
        let frames = seen.connections.iter().flat_map(|one| &one.frames);
        for (at, frame) in frames {
            if frame["userid"] != user.as_str() {
                self.report(&format!("{user}: a frame of another user: {frame}"), &[]);
            }
            let Some(id) = self.ended_by(frame) else {
                continue;
            };
            *received.entry(id.clone()).or_default() += 1;
            self.check_classic_outcome(user, &id, frame);
            let Some(place) = self.accepted.get(&id).copied() else {
                self.report(&format!("{user}: ended without being in the log"), &[&id]);
                continue;
            };
            if let Some((before, other)) = last
                && before > place
            {
                self.totals.out_of_order += 1;
                self.report(
                    &format!(
                        "{user}: {id} at {place:?} came after {other} at {before:?}, at {at} (I3)"
                    ),
                    &[&id, &other],
                );
            }
            last = Some((place, id));
        }
        for connection in &seen.connections {
            self.totals.messages += connection.sent.len();
            self.check_missing_answers(user, connection, &received);
            self.check_log_order(user, connection.sent.iter().map(|(_, content)| content));
        }
        self.check_classic_history(seen);
        for (id, times) in received {
            if times > 1 {
                self.totals.duplicated += 1;
                self.report(
                    &format!("{user}: {times} outcomes of one message (I1)"),
                    &[&id],
                );
            }
        }
    }

    /// The message that a frame ends. `None` if the frame refuses a message, or says that the log
    /// did not acknowledge it in time; in that case the message may be in the log and its answer
    /// follows (docs/protocol.md, section 1).
    fn ended_by(&self, frame: &Value) -> Option<String> {
        if let Some(id) = frame["message_id"].as_str() {
            return Some(id.to_owned());
        }
        if frame["code"] == "unavailable" {
            return None;
        }
        let correlation = frame["correlation_id"].as_str()?;
        self.by_correlation.get(correlation).cloned()
    }

    fn check_classic_outcome(&mut self, user: &str, id: &str, frame: &Value) {
        if frame["type"] != "response" {
            self.totals.failed += 1;
            if !self.may_fail(id) {
                let what = format!("{user}: failed without a fault of the model API: {frame}");
                self.report(&what, &[id]);
            }
            return;
        }
        self.totals.answered += 1;
        let text = frame["content"].as_str().unwrap_or_default();
        let question = text.split_once("end ").map_or("", |(_, question)| question);
        if let Some(fault) = check_complete(text, question) {
            self.report(&format!("{user}: {fault} (I4): {text:?}"), &[id]);
        }
        // The question is all that connects a classic client's message with its answer.
        if self
            .message_by_question
            .get(question)
            .is_none_or(|known| known != id)
        {
            let what = format!("{user}: the answer of another question, {question:?} (I4)");
            self.report(&what, &[id]);
        }
        self.check_outcome_in_log(id, "response", text);
    }

    /// Checks that the history has each answer that the client received, unchanged.
    fn check_classic_history(&mut self, seen: &ClassicObservation) {
        let user = &seen.user;
        self.check_history(user, &seen.history);
        let turns = seen.history.iter().flatten();
        let turns: HashMap<&str, &HistoryTurn> =
            turns.map(|one| (one.message_id.as_str(), one)).collect();
        for (_, frame) in seen.connections.iter().flat_map(|one| &one.frames) {
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
                    let what = format!(
                        "{user}: the history has {turn:?}, the client received {received:?} (I5)"
                    );
                    self.report(&what, &[id]);
                }
            }
        }
    }

    /// Checks that a connection received every answer that was due early enough before it ended to
    /// allow for a recovery.
    fn check_missing_answers(
        &mut self,
        user: &str,
        connection: &ClassicConnection,
        received: &HashMap<String, usize>,
    ) {
        let in_time = |ms: i64| ms + RECOVERY_MS < connection.until;
        let mut unknown = 0;
        for (at, content) in &connection.sent {
            let Some(id) = self.message_by_question.get(content).cloned() else {
                unknown += usize::from(in_time(*at));
                continue;
            };
            let ended = self.ended.get(&id).copied().unwrap_or(i64::MAX);
            if ended < connection.until && in_time(ended) && !received.contains_key(&id) {
                self.totals.lost += 1;
                let what =
                    format!("{user}: no answer on the connection that asked, {id} at {at} (I1)");
                self.report(&what, &[&id]);
            }
        }
        let frames = connection.frames.iter();
        let refused = frames.filter(|(_, frame)| self.ended_by(frame).is_none());
        let refused = refused.count();
        if unknown > refused {
            self.totals.lost += unknown - refused;
            let what = format!(
                "{user}: {unknown} messages are not in the log, and {refused} were refused (I1)"
            );
            self.report(&what, &[]);
        }
    }
}
