//! What a classic client may see, and what it is owed.

use std::collections::HashMap;

use serde_json::Value;

use super::answers::whole;
use super::checker::Checker;
use super::clients::{ClassicSeen, Connection};
use crate::support::history::HistoryTurn;

/// Longer than the longest recovery.
const IN_TIME_MS: i64 = 30_000;

impl Checker {
    /// A classic client: nothing twice, nothing of others, in order; and what was said on a
    /// connection that stayed open is answered there, or refused.
    pub(super) fn classic(&mut self, seen: &ClassicSeen) {
        let mut last: Option<((i64, i32, i64), String)> = None;
        let mut had: HashMap<String, usize> = HashMap::new();
        let user = &seen.user;
        let frames = seen.connections.iter().flat_map(|one| &one.frames);
        for (at, frame) in frames {
            if frame["userid"] != user.as_str() {
                self.breach(&format!("{user}: a frame of another user: {frame}"), &[]);
            }
            let Some(id) = self.ended_by(frame) else {
                continue;
            };
            *had.entry(id.clone()).or_default() += 1;
            self.classic_end(user, &id, frame);
            let Some(place) = self.accepted.get(&id).copied() else {
                self.breach(&format!("{user}: ended and not in the log"), &[&id]);
                continue;
            };
            if let Some((before, other)) = last
                && before > place
            {
                self.count.out_of_order += 1;
                self.breach(
                    &format!(
                        "{user}: {id} at {place:?} came after {other} at {before:?}, at {at} (I3)"
                    ),
                    &[&id, &other],
                );
            }
            last = Some((place, id));
        }
        for connection in &seen.connections {
            self.count.messages += connection.sent.len();
            self.owed(user, connection, &had);
            self.as_sent(user, connection.sent.iter().map(|(_, content)| content));
        }
        self.classic_history(seen);
        for (id, times) in had {
            if times > 1 {
                self.count.doubled += 1;
                self.breach(&format!("{user}: {times} times (I1)"), &[&id]);
            }
        }
    }

    /// The message that a frame ends; none where it refuses one, or says that the log did not
    /// acknowledge it in time: then it may be there, and its answer comes (protocol.md, section 1).
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

    fn classic_end(&mut self, user: &str, id: &str, frame: &Value) {
        if frame["type"] != "response" {
            self.count.failed += 1;
            if !self.may_fail(id) {
                let what = format!("{user}: failed, and the model was well: {frame}");
                self.breach(&what, &[id]);
            }
            return;
        }
        self.count.answered += 1;
        let text = frame["content"].as_str().unwrap_or_default();
        let question = text.split_once("end ").map_or("", |(_, question)| question);
        if let Some(fault) = whole(text, question) {
            self.breach(&format!("{user}: {fault} (I4): {text:?}"), &[id]);
        }
        // A classic client names its message by nothing but what it said.
        if self.said.get(question).is_none_or(|said| said != id) {
            let what = format!("{user}: the answer of another question, {question:?} (I4)");
            self.breach(&what, &[id]);
        }
        self.is_in_log(id, "response", text);
    }

    /// Each answer that the client had is in the history as it was told.
    fn classic_history(&mut self, seen: &ClassicSeen) {
        let user = &seen.user;
        self.history(user, &seen.history);
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
            let told = frame["content"].as_str().unwrap_or_default();
            match turns.get(id) {
                Some(turn) if turn.status == "answered" && turn.answer == told => {}
                None if self.may_be_forgotten(id) => {}
                turn => {
                    let what = format!("{user}: the history has {turn:?}, told was {told:?} (I5)");
                    self.breach(&what, &[id]);
                }
            }
        }
    }

    /// What a connection should have brought before it ended, with time to recover from anything.
    fn owed(&mut self, user: &str, connection: &Connection, had: &HashMap<String, usize>) {
        let in_time = |ms: i64| ms + IN_TIME_MS < connection.until;
        let mut unknown = 0;
        for (at, content) in &connection.sent {
            let Some(id) = self.said.get(content).cloned() else {
                unknown += usize::from(in_time(*at));
                continue;
            };
            let ended = self.ended.get(&id).copied().unwrap_or(i64::MAX);
            if ended < connection.until && in_time(ended) && !had.contains_key(&id) {
                self.count.lost += 1;
                let what =
                    format!("{user}: no answer on the connection that asked, {id} at {at} (I1)");
                self.breach(&what, &[&id]);
            }
        }
        let frames = connection.frames.iter();
        let refused = frames.filter(|(_, frame)| self.ended_by(frame).is_none());
        let refused = refused.count();
        if unknown > refused {
            self.count.lost += unknown - refused;
            let what = format!("{user}: {unknown} never in the log, {refused} refused (I1)");
            self.breach(&what, &[]);
        }
    }
}
