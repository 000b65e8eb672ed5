//! Decides from what clients sent and received, and from what the log holds, whether every promise
//! was kept. It knows the contract (docs/protocol.md), not how it is kept.

use std::collections::{BTreeMap, HashMap};

use super::calls::{Clock, Cost, Stake};
use super::clients::{ClassicSeen, Seen, Sent};
use crate::support::kafka::Seen as Record;
use crate::support::v1::{Message, Replaced, Transcript};
use crate::support::world::Turn;

/// One broken promise.
#[derive(Debug)]
pub(super) struct Breach {
    pub(super) text: String,
    /// By which the message's path is found in the logs.
    pub(super) ids: Vec<String>,
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) messages: usize,
    pub(super) answered: usize,
    pub(super) cancelled: usize,
    pub(super) failed: usize,
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) out_of_order: usize,
    pub(super) from_history: usize,
    pub(super) reloads: usize,
    pub(super) records_again: usize,
    /// Texts on a screen that the end of another call replaced: only where Redis lost its data.
    pub(super) replaced: usize,
}

pub(super) struct Checker {
    /// Where in the log each message was accepted first.
    accepted: HashMap<String, (i64, i32, i64)>,
    /// From when until when Redis went and came back without its data, by the log's time.
    emptied: Vec<(i64, i64)>,
    clock: Clock,
    breaches: Vec<Breach>,
    pub(super) count: Count,
}

impl Checker {
    /// From the records of both topics, and what Redis lost.
    pub(super) fn new(
        messages: &[Record],
        responses: &[Record],
        stakes: &[Stake],
        clock: Clock,
    ) -> Self {
        let emptied = stakes.iter().filter(|stake| stake.cost == Cost::Redis);
        let emptied = emptied.map(|stake| (clock.ms(stake.from), clock.ms(stake.until)));
        let mut checker = Self {
            accepted: HashMap::new(),
            emptied: emptied.collect(),
            clock,
            breaches: Vec::new(),
            count: Count::default(),
        };
        let mut users = HashMap::new();
        for record in messages {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            let place = (record.timestamp_ms, record.partition, record.offset);
            let first = checker.accepted.entry(id.clone()).or_insert(place);
            *first = (*first).min(place);
            users.insert(id, value["userid"].as_str().unwrap_or_default().to_owned());
        }
        let mut ends: HashMap<String, usize> = HashMap::new();
        for record in responses {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            if users.get(&id).map(String::as_str) != value["userid"].as_str() {
                checker.breach("an answer without its message, or of another user", &[&id]);
            }
            *ends.entry(id).or_default() += 1;
        }
        let unanswered: Vec<String> = checker
            .accepted
            .keys()
            .filter(|id| !ends.contains_key(*id))
            .cloned()
            .collect();
        for id in unanswered {
            checker.count.lost += 1;
            checker.breach("in the log, and never answered (I1)", &[&id]);
        }
        checker.count.records_again = ends.values().map(|times| times - 1).sum();
        checker
    }

    fn breach(&mut self, text: &str, ids: &[&str]) {
        self.breaches.push(Breach {
            text: text.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        });
    }

    /// A user of `chatmesh.v1`. That no frame came twice, no index was left out, no text was
    /// spliced and no frame was another user's, its devices have checked with each frame.
    pub(super) fn user(&mut self, seen: &Seen) {
        let history: BTreeMap<&str, &Turn> = seen
            .history
            .iter()
            .map(|turn| (turn.message_id.as_str(), turn))
            .collect();
        if history.len() != seen.history.len() {
            self.count.doubled += seen.history.len() - history.len();
            self.breach(&format!("{}: twice in the history", seen.user), &[]);
        }
        self.count.messages += seen.sent.len();
        for sent in &seen.sent {
            let mut ends = Vec::new();
            for device in &seen.devices {
                let message = device.get(&sent.id);
                let Some(ended) = message.filter(|message| message.terminal.is_some()) else {
                    self.missing(sent, message, device, &history);
                    continue;
                };
                let id = device.message_id(&sent.id).unwrap_or_default();
                self.end(sent, id, ended, history.get(id).copied());
                ends.push((id.to_owned(), ended.clone()));
            }
            for pair in ends.windows(2) {
                if pair[0].0 != pair[1].0 || pair[0].1.terminal != pair[1].1.terminal {
                    self.count.doubled += 1;
                    self.breach(
                        &format!(
                            "{}: two devices, two ends: {:?} and {:?}",
                            sent.id, pair[0].1.terminal, pair[1].1.terminal
                        ),
                        &[&pair[0].0, &pair[1].0],
                    );
                }
            }
            match ends.first().and_then(|(_, message)| message.ended()) {
                Some("response") => self.count.answered += 1,
                Some("cancelled") => self.count.cancelled += 1,
                Some(_) => self.count.failed += 1,
                None => self.count.from_history += 1,
            }
        }
        for device in &seen.devices {
            for replaced in &device.replaced {
                self.replaced(replaced);
            }
            self.count.reloads += device.reloads.saturating_sub(1);
            self.order(seen, device);
        }
    }

    /// Another call's end took this text's place: Redis must have lost its data after the message was
    /// accepted, and the text must be of one call itself.
    fn replaced(&mut self, replaced: &Replaced) {
        self.count.replaced += 1;
        let id = replaced.message_id.as_str();
        let at = self.clock.ms(replaced.at);
        let accepted = self.accepted.get(id).map_or(i64::MAX, |(ms, ..)| *ms);
        let mut emptied = self.emptied.iter();
        if !emptied.any(|(from, until)| *until >= accepted && *from <= at) {
            let text = &replaced.text;
            let what = format!("replaced, and Redis had its data (I4): {text:?}");
            self.breach(&what, &[id]);
        }
        if let Err(fault) = words(&replaced.text) {
            self.breach(&format!("{fault} (I4): {:?}", replaced.text), &[id]);
        }
    }

    /// Only who was told to reload the history may lack a frame, or who was not there before the
    /// message was sent; and then the history has it.
    fn missing(
        &mut self,
        sent: &Sent,
        message: Option<&Message>,
        device: &Transcript,
        history: &BTreeMap<&str, &Turn>,
    ) {
        let id = device.message_id(&sent.id).unwrap_or_default();
        let of_content = |turn: &&&Turn| turn.question.as_deref() == Some(sent.content.as_str());
        let turn = history
            .get(id)
            .or_else(|| history.values().find(of_content));
        let was_there = device.since.is_some_and(|since| since <= sent.at);
        if turn.is_some() && (device.reloads > 1 || !was_there) {
            return;
        }
        self.count.lost += 1;
        let known = message.map(|m| (m.is_accepted(), m.text.clone()));
        self.breach(
            &format!("{}: a device never saw its end (I1): {known:?}", sent.id),
            &[id, &sent.id],
        );
    }

    /// The terminal frame against the question and the history.
    fn end(&mut self, sent: &Sent, id: &str, ended: &Message, turn: Option<&Turn>) {
        if !self.accepted.contains_key(id) {
            self.breach(
                &format!("{}: ended and not in the log (I1)", sent.id),
                &[id, &sent.id],
            );
        }
        let kind = ended.ended().unwrap_or_default();
        let fault = match kind {
            "response" => whole(&ended.text, &sent.content),
            "cancelled" => part(&ended.text, &sent.content),
            _ => None,
        };
        if let Some(fault) = fault {
            self.breach(
                &format!("{}: {fault} (I4): {:?}", sent.id, ended.text),
                &[id, &sent.id],
            );
        }
        // What is older than the history's bounds, or than what Redis lost, is not in it.
        let Some(turn) = turn else { return };
        let status = match kind {
            "response" => "answered",
            "cancelled" => "cancelled",
            _ => "failed",
        };
        let same = turn.status == status && (status == "failed" || turn.answer == ended.text);
        if !same {
            self.breach(
                &format!(
                    "{}: the history has {turn:?}, the client {kind} {:?} (I5)",
                    sent.id, ended.text
                ),
                &[id, &sent.id],
            );
        }
    }

    /// Ends come in the order in which the log has the messages, for each conversation.
    fn order(&mut self, seen: &Seen, device: &Transcript) {
        let conversations: HashMap<&str, &str> = seen
            .sent
            .iter()
            .map(|sent| (sent.id.as_str(), sent.conversation.as_str()))
            .collect();
        let mut last: HashMap<&str, ((i64, i32, i64), String)> = HashMap::new();
        for message_id in &device.order {
            let Some(place) = self.accepted.get(message_id).copied() else {
                continue;
            };
            let id = device.get(message_id).and_then(|m| m.id.as_deref());
            let Some(conversation) = id.and_then(|id| conversations.get(id)) else {
                continue;
            };
            if let Some((before, other)) = last.get(conversation)
                && *before > place
            {
                let other = other.clone();
                self.count.out_of_order += 1;
                self.breach(
                    &format!("{}: {message_id} after {other} (I3)", seen.user),
                    &[message_id, &other],
                );
            }
            last.insert(conversation, (place, message_id.clone()));
        }
    }

    /// A classic client: nothing twice, nothing of others, in order.
    pub(super) fn classic(&mut self, seen: &ClassicSeen) {
        let mut last: Option<((i64, i32, i64), String)> = None;
        let mut had: HashMap<&str, usize> = HashMap::new();
        self.count.messages += seen.sent;
        for (at, frame) in &seen.frames {
            if frame["userid"] != seen.user.as_str() {
                self.breach(
                    &format!("{}: a frame of another user: {frame}", seen.user),
                    &[],
                );
            }
            let Some(id) = frame["message_id"].as_str() else {
                continue;
            };
            *had.entry(id).or_default() += 1;
            match frame["type"].as_str() {
                Some("response") => {
                    self.count.answered += 1;
                    let text = frame["content"].as_str().unwrap_or_default();
                    let question = text.split_once("end ").map_or("", |(_, question)| question);
                    if let Some(fault) = whole(text, question) {
                        self.breach(&format!("{}: {fault} (I4): {text:?}", seen.user), &[id]);
                    }
                }
                _ => self.count.failed += 1,
            }
            let Some(place) = self.accepted.get(id).copied() else {
                self.breach(&format!("{}: ended and not in the log", seen.user), &[id]);
                continue;
            };
            if let Some((before, other)) = last
                && before > place
            {
                self.count.out_of_order += 1;
                self.breach(
                    &format!(
                        "{}: {id} at {place:?} came after {other} at {before:?}, at {at} (I3)",
                        seen.user
                    ),
                    &[id, &other],
                );
            }
            last = Some((place, id.to_owned()));
        }
        for (id, times) in had {
            if times > 1 {
                self.count.doubled += 1;
                self.breach(&format!("{}: {times} times (I1)", seen.user), &[id]);
            }
        }
    }

    /// What was found elsewhere.
    pub(super) fn add(&mut self, breaches: Vec<Breach>) {
        self.breaches.extend(breaches);
    }

    /// The first `count`, a line each.
    pub(super) fn some_breaches(&self, count: usize) -> String {
        let texts = self.breaches.iter().take(count);
        let lines: Vec<&str> = texts.map(|breach| breach.text.as_str()).collect();
        lines.join("\n  ")
    }

    pub(super) fn breaches(&self) -> &[Breach] {
        &self.breaches
    }
}

/// What is wrong with the words: they must be of one call, from the first on, without a gap.
/// Returns how they end, too.
fn words(text: &str) -> Result<Option<&str>, String> {
    let mut call = None;
    let mut rest = text;
    let mut next = 0_usize;
    loop {
        if let Some(question) = rest.strip_prefix("end ") {
            return Ok(Some(question));
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let parts = word.strip_prefix('c').and_then(|word| word.split_once('.'));
        let Some((of, index)) = parts else {
            return Err(format!("{word:?} is no word of the model"));
        };
        if call.is_some_and(|call| call != of) {
            return Err("text of two calls is spliced".to_owned());
        }
        call = Some(of);
        if index.parse() != Ok(next) {
            return Err(format!("word {next} is missing"));
        }
        next += 1;
        rest = after;
    }
}

fn whole(text: &str, question: &str) -> Option<String> {
    match words(text) {
        Ok(Some(end)) if end == question => None,
        Ok(Some(end)) => Some(format!("the answer of another question, {end:?}")),
        Ok(None) => Some("an answer without its end".to_owned()),
        Err(fault) => Some(fault),
    }
}

fn part(text: &str, question: &str) -> Option<String> {
    match words(text) {
        Ok(None) => None,
        Ok(Some(end)) if question.starts_with(end) => None,
        Ok(Some(end)) => Some(format!("the answer of another question, {end:?}")),
        Err(fault) => Some(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_splice_a_gap_and_another_answer_are_seen() {
        assert_eq!(whole("c1.0 c1.1 end q", "q"), None);
        assert!(whole("c1.0 c2.1 end q", "q").is_some());
        assert!(whole("c1.0 c1.2 end q", "q").is_some());
        assert!(whole("c1.1 end q", "q").is_some());
        assert!(whole("c1.0 c1.0 c1.1 end q", "q").is_some());
        assert!(whole("c1.0 c1.1 ", "q").is_some());
        assert!(whole("c1.0 end other", "q").is_some());
        assert_eq!(part("c1.0 c1.1 ", "q"), None);
        assert_eq!(part("", "q"), None);
        assert!(part("c1.0 c2.0 ", "q").is_some());
    }
}
