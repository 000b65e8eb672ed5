//! Decides from what clients sent and received, and from what the log holds, whether every promise
//! was kept. It knows the contract (docs/protocol.md), not how it is kept.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio::time::Instant;

use super::answers::{part, whole, words};
use super::calls::{Clock, Cost, Stake};
use super::clients::{Seen, Sent};
use crate::support::history::HistoryTurn;
use crate::support::kafka_client::KafkaRecord as Record;
use crate::support::v1::{Message, Replaced, Transcript};

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
    /// Frames that came once more, where partitions were added and Redis was emptied.
    pub(super) told_after_move: usize,
    /// Texts on a screen that the end of another call replaced: only where Redis lost its data.
    pub(super) replaced: usize,
    /// Messages that a client asked to cancel.
    to_cancel: usize,
}

/// A loss of Redis's data must be mended after so long, as everything after a fault.
const REFILLED_MS: i64 = 60_000;

/// `RELAY_REBUILD_SECONDS` (600), but for what passes until a relay sees that Redis is empty.
const REBUILT_MS: i64 = 570_000;
/// A client that is told to reload may find in the history what ends meanwhile.
const RELOADING_MS: i64 = 1_000;
/// A call that failed is repeated, and one that the model's rate held up comes later.
const LATE_FAILURE_MS: i64 = 30_000;
/// Most cancels come in time: of so many not all come too late.
const CANCELS: usize = 50;

pub(super) struct Checker {
    /// Where in the log each message was accepted first.
    pub(super) accepted: HashMap<String, (i64, i32, i64)>,
    /// When the log got each message's first end, in ms.
    pub(super) ended: HashMap<String, i64>,
    /// What the log has of each message's end: kind and text.
    records: HashMap<String, Vec<(String, String)>>,
    /// The messages of what was said.
    pub(super) said: HashMap<String, String>,
    /// And of their correlation ids: all that a classic client's error names.
    pub(super) by_correlation: HashMap<String, String>,
    /// While the model, or the way to it, was at fault: only then may an answer fail.
    model_at_fault: Vec<(i64, i64)>,
    /// From when until when Redis went and came back without its data, by the log's time.
    emptied: Vec<(i64, i64)>,
    clock: Clock,
    breaches: Vec<Breach>,
    pub(super) count: Count,
}

impl Checker {
    /// From the records of both topics, what Redis lost, and when the model was at fault.
    pub(super) fn new(
        (messages, responses): (&[Record], &[Record]),
        stakes: &[Stake],
        model_at_fault: &[(Instant, Instant)],
        clock: Clock,
    ) -> Self {
        let emptied = stakes.iter().filter(|stake| stake.cost == Cost::Redis);
        let emptied = emptied.map(|stake| (clock.ms(stake.from), clock.ms(stake.until)));
        let at_fault = model_at_fault.iter();
        let mut checker = Self {
            accepted: HashMap::new(),
            ended: HashMap::new(),
            records: HashMap::new(),
            said: HashMap::new(),
            by_correlation: HashMap::new(),
            model_at_fault: at_fault
                .map(|(from, until)| (clock.ms(*from), clock.ms(*until)))
                .collect(),
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
            let content = value["content"].as_str().unwrap_or_default();
            checker.said.insert(content.to_owned(), id.clone());
            let correlation = value["correlation_id"].as_str().unwrap_or_default();
            let of = &mut checker.by_correlation;
            of.insert(correlation.to_owned(), id.clone());
            users.insert(id, value["userid"].as_str().unwrap_or_default().to_owned());
        }
        let mut ends: HashMap<String, usize> = HashMap::new();
        for record in responses {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            if users.get(&id).map(String::as_str) != value["userid"].as_str() {
                checker.breach("an answer without its message, or of another user", &[&id]);
            }
            let ended = checker.ended.entry(id.clone()).or_insert(i64::MAX);
            *ended = (*ended).min(record.timestamp_ms);
            let kind = match value["code"].as_str() {
                Some("cancelled") => "cancelled",
                _ => value["type"].as_str().unwrap_or_default(),
            };
            let text = value["content"].as_str().unwrap_or_default();
            let records = checker.records.entry(id.clone()).or_default();
            records.push((kind.to_owned(), text.to_owned()));
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

    pub(super) fn breach(&mut self, text: &str, ids: &[&str]) {
        self.breaches.push(Breach {
            text: text.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        });
    }

    /// A user of `chatmesh.v1`. That no frame came twice, no index was left out, no text was
    /// spliced and no frame was another user's, its devices have checked with each frame.
    pub(super) fn user(&mut self, seen: &Seen) {
        self.history(&seen.user, &seen.history);
        let turns = seen.history.iter().flatten();
        let history: BTreeMap<&str, &HistoryTurn> =
            turns.map(|turn| (turn.message_id.as_str(), turn)).collect();
        let said: HashSet<&str> = seen.sent.iter().map(|sent| sent.content.as_str()).collect();
        for turn in seen.history.iter().flatten() {
            let question = turn.question.as_deref();
            if question.is_some_and(|question| !said.contains(question)) {
                let user = &seen.user;
                self.breach(
                    &format!("{user}: not its own (I8): {turn:?}"),
                    &[&turn.message_id],
                );
            }
        }
        self.count.messages += seen.sent.len();
        self.count.to_cancel += seen.cancelled.len();
        for sent in &seen.sent {
            let mut ends = Vec::new();
            for device in &seen.devices {
                let message = device.get(&sent.id);
                let Some(ended) = message.filter(|message| message.terminal.is_some()) else {
                    self.missing(sent, device, &history);
                    continue;
                };
                let id = device.message_id(&sent.id).unwrap_or_default();
                self.end(sent, id, ended, history.get(id).copied());
                if ended.ended() == Some("cancelled") && !seen.cancelled.contains(&sent.id) {
                    self.breach(&format!("{}: nobody cancelled it", sent.id), &[id]);
                }
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
        // What was said again may be in the log twice, or by its second saying only.
        let once = seen.sent.iter();
        let once = once.filter(|sent| !seen.repeated.contains(&sent.id));
        let mut said: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sent in once {
            let together = said.entry((sent.connection, &sent.conversation));
            together.or_default().push(&sent.content);
        }
        for together in said.into_values() {
            self.as_sent(&seen.user, together.into_iter());
        }
        for device in &seen.devices {
            for replaced in &device.replaced {
                self.replaced(replaced);
            }
            self.count.reloads += device.reloads().saturating_sub(1);
            for (id, at) in &device.told_after_move {
                self.told_after_move(id, *at);
            }
            self.order(seen, device);
        }
    }

    /// The log has what was said on a connection, in a conversation, in the order in which it was.
    pub(super) fn as_sent<'a>(&mut self, user: &str, said: impl Iterator<Item = &'a String>) {
        let of = |content: &String| {
            let id = self.said.get(content)?;
            Some((*self.accepted.get(id)?, id.clone()))
        };
        let places: Vec<_> = said.filter_map(of).collect();
        for pair in places.windows(2) {
            let ((before, first), (after, second)) = (&pair[0], &pair[1]);
            if before > after {
                self.count.out_of_order += 1;
                let what = format!("{user}: {second} sent after {first}, and before it in the log");
                self.breach(&what, &[second, first]);
            }
        }
    }

    /// Of each conversation its turns, newest first: each message once, and in the log's order.
    pub(super) fn history(&mut self, user: &str, conversations: &[Vec<HistoryTurn>]) {
        let mut ids = HashSet::new();
        for turn in conversations.iter().flatten() {
            if !ids.insert(turn.message_id.as_str()) {
                self.count.doubled += 1;
                let what = format!("{user}: twice in the history");
                self.breach(&what, &[&turn.message_id]);
            }
        }
        for turn in conversations.iter().flatten() {
            let asked = turn.question.as_ref().map(|text| self.said.get(text));
            if asked.is_some_and(|asked| asked != Some(&turn.message_id)) {
                let what = format!("{user}: the question of another message (I5): {turn:?}");
                self.breach(&what, &[&turn.message_id]);
            }
        }
        for turns in conversations {
            let places = turns.iter().filter_map(|turn| {
                let id = turn.message_id.as_str();
                Some((*self.accepted.get(id)?, id))
            });
            let places: Vec<_> = places.collect();
            for pair in places.windows(2) {
                let ((later, second), (earlier, first)) = (pair[0], pair[1]);
                if later < earlier {
                    self.count.out_of_order += 1;
                    let what = format!(
                        "{user}: {second} at {later:?} is after {first} at {earlier:?} in the history (I5)"
                    );
                    self.breach(&what, &[first, second]);
                }
            }
        }
    }

    /// What a client was told is what the log has: of the first record or, where Redis had lost its data, of
    /// another.
    pub(super) fn is_in_log(&mut self, id: &str, kind: &str, text: &str) {
        let records = self.records.get(id).map_or(&[][..], Vec::as_slice);
        if !records.iter().any(|one| one.0 == kind && one.1 == text) {
            let what = format!("told as {kind} {text:?}, and the log has {records:?} (I5)");
            self.breach(&what, &[id]);
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

    /// A user who had moved to another partition was told a frame once more: Redis must have been emptied
    /// shortly before.
    fn told_after_move(&mut self, id: &str, at: Instant) {
        self.count.told_after_move += 1;
        if !self.is_being_refilled(at) {
            self.breach("told a second time, and Redis had its data (I2)", &[id]);
        }
    }

    fn is_being_refilled(&self, at: Instant) -> bool {
        let at = self.clock.ms(at);
        let mut emptied = self.emptied.iter();
        emptied.any(|(from, until)| *from <= at && at <= *until + REFILLED_MS)
    }

    /// Frames from before a move come once more while Redis is refilled: also one that the device was told
    /// to find in the history, and so has only now.
    fn is_told_after_move(&self, device: &Transcript, message_id: &str) -> bool {
        let ended_at = device.get(message_id).and_then(|message| message.ended_at);
        device.may_be_told_again()
            && device.reloads() > 1
            && ended_at.is_some_and(|at| self.is_being_refilled(at))
    }

    /// Only what had ended when a device was told to reload the history (or came for the first time)
    /// may it lack; and then the history has it, or had it then.
    fn missing(
        &mut self,
        sent: &Sent,
        device: &Transcript,
        history: &BTreeMap<&str, &HistoryTurn>,
    ) {
        let id = self.said.get(&sent.content).cloned().unwrap_or_default();
        let ended = self.ended.get(&id).copied().unwrap_or(i64::MAX);
        let mut reloaded = device.reloaded.iter();
        let reloaded = reloaded.any(|at| ended <= self.clock.ms(*at) + RELOADING_MS);
        let in_history = history.contains_key(id.as_str());
        if reloaded && (in_history || self.may_be_forgotten(&id)) {
            return;
        }
        self.count.lost += 1;
        let known = device.get(&sent.id);
        let known = known.map(|m| (m.is_accepted(), m.text.clone()));
        self.breach(
            &format!(
                "{}: a device never saw its end (I1), reloaded since: {reloaded}, in the history: {in_history}: {known:?}",
                sent.id,
            ),
            &[&id, &sent.id],
        );
    }

    /// The terminal frame against the question and the history.
    fn end(&mut self, sent: &Sent, id: &str, ended: &Message, turn: Option<&HistoryTurn>) {
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
        if kind != "error" {
            self.is_in_log(id, kind, &ended.text);
        }
        if kind == "error" && !self.may_fail(id) {
            self.breach(
                &format!("{}: failed, and the model was well: {ended:?}", sent.id),
                &[id, &sent.id],
            );
        }
        let Some(turn) = turn else {
            if !self.may_be_forgotten(id) {
                self.count.lost += 1;
                self.breach(&format!("{}: not in the history (I5)", sent.id), &[id]);
            }
            return;
        };
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
                if self.is_told_after_move(device, message_id) {
                    self.count.told_after_move += 1;
                    continue;
                }
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

    /// An answer fails where the model was at fault between the message and its end; a worker that
    /// waits for the model's rate makes that later.
    pub(super) fn may_fail(&self, id: &str) -> bool {
        let accepted = self.accepted.get(id).map_or(0, |(ms, ..)| *ms);
        let ended = self.ended.get(id).copied().unwrap_or(i64::MAX);
        let mut faults = self.model_at_fault.iter();
        faults.any(|(from, until)| *from <= ended && accepted <= *until + LATE_FAILURE_MS)
    }

    /// What had ended long before Redis lost its data is not brought back.
    pub(super) fn may_be_forgotten(&self, id: &str) -> bool {
        let ended = self.ended.get(id).copied().unwrap_or(i64::MAX);
        let mut emptied = self.emptied.iter();
        emptied.any(|(_, until)| ended < *until - REBUILT_MS)
    }

    /// What is to be said of all messages together.
    pub(super) fn all(&mut self) {
        if self.count.to_cancel >= CANCELS && self.count.cancelled == 0 {
            let what = format!("none of {} was cancelled", self.count.to_cancel);
            self.breach(&what, &[]);
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
