//! Checks from what the clients sent and received and from the records of the log whether every
//! promise was kept. It knows the contract (docs/protocol.md), not the implementation.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio::time::Instant;

use super::answers::{check_complete, check_partial, parse_words};
use super::calls::{CostlyFault, FaultCost, LogClock};
use super::clients::{SentMessage, UserObservation};
use crate::support::history::HistoryTurn;
use crate::support::kafka_client::KafkaRecord as Record;
use crate::support::v1::{Message, ReplacedText, Transcript};

/// A broken promise.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) text: String,
    /// The ids by which the message is found in the logs.
    pub(super) ids: Vec<String>,
}

/// Totals over the messages of a run.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) messages: usize,
    pub(super) answered: usize,
    pub(super) cancelled: usize,
    pub(super) failed: usize,
    pub(super) lost: usize,
    pub(super) duplicated: usize,
    pub(super) out_of_order: usize,
    pub(super) from_history: usize,
    pub(super) reloads: usize,
    pub(super) duplicate_records: usize,
    /// Frames that were sent a second time after partitions were added and Redis was emptied.
    pub(super) repeated_after_move: usize,
    /// Shown texts that the outcome of another model call replaced, which only a data loss of Redis
    /// allows.
    pub(super) replaced: usize,
    /// Messages that a client asked to cancel.
    to_cancel: usize,
}

/// Time after a data loss within which Redis must be rebuilt, in ms.
const REBUILD_LIMIT_MS: i64 = 60_000;

/// `RELAY_REBUILD_SECONDS` (600) less the time until a relay notices that Redis is empty, in ms.
const REBUILD_WINDOW_MS: i64 = 570_000;
/// A client that reloads may find in the history what ends during the reload, in ms.
const RELOAD_TOLERANCE_MS: i64 = 1_000;
/// Time by which retries and the model's rate limit may delay a failure, in ms.
const LATE_FAILURE_MS: i64 = 30_000;
/// From this number of cancels on, at least one must have been in time.
const MIN_CANCELS: usize = 50;

pub(super) struct Checker {
    /// The earliest record of each message: time, partition and offset.
    pub(super) accepted: HashMap<String, (i64, i32, i64)>,
    /// When the log received each message's first outcome, in ms.
    pub(super) ended: HashMap<String, i64>,
    /// The outcomes that the log has of each message: type and text.
    records: HashMap<String, Vec<(String, String)>>,
    /// The message of each question.
    pub(super) message_by_question: HashMap<String, String>,
    /// The message of each correlation id, which is all that a classic error frame names.
    pub(super) by_correlation: HashMap<String, String>,
    /// The time spans in which the model API or the connection to it failed: only then may an
    /// answer fail.
    model_at_fault: Vec<(i64, i64)>,
    /// The time spans from a stop of Redis until it was back without its data, in the log's time.
    data_losses: Vec<(i64, i64)>,
    clock: LogClock,
    violations: Vec<Violation>,
    pub(super) totals: Totals,
}

impl Checker {
    /// Indexes the records of both topics, and checks that each message has an outcome.
    pub(super) fn new(
        (messages, responses): (&[Record], &[Record]),
        costly_faults: &[CostlyFault],
        model_at_fault: &[(Instant, Instant)],
        clock: LogClock,
    ) -> Self {
        let data_losses = costly_faults
            .iter()
            .filter(|fault| fault.cost == FaultCost::Redis);
        let data_losses = data_losses.map(|fault| (clock.ms(fault.from), clock.ms(fault.until)));
        let at_fault = model_at_fault.iter();
        let mut checker = Self {
            accepted: HashMap::new(),
            ended: HashMap::new(),
            records: HashMap::new(),
            message_by_question: HashMap::new(),
            by_correlation: HashMap::new(),
            model_at_fault: at_fault
                .map(|(from, until)| (clock.ms(*from), clock.ms(*until)))
                .collect(),
            data_losses: data_losses.collect(),
            clock,
            violations: Vec::new(),
            totals: Totals::default(),
        };
        let mut users = HashMap::new();
        for record in messages {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            let log_position = (record.timestamp_ms, record.partition, record.offset);
            let first = checker.accepted.entry(id.clone()).or_insert(log_position);
            *first = (*first).min(log_position);
            let content = value["content"].as_str().unwrap_or_default();
            checker
                .message_by_question
                .insert(content.to_owned(), id.clone());
            let correlation = value["correlation_id"].as_str().unwrap_or_default();
            let ids = &mut checker.by_correlation;
            ids.insert(correlation.to_owned(), id.clone());
            users.insert(id, value["userid"].as_str().unwrap_or_default().to_owned());
        }
        let mut ends: HashMap<String, usize> = HashMap::new();
        for record in responses {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            if users.get(&id).map(String::as_str) != value["userid"].as_str() {
                checker.report(
                    "an outcome without its message, or with another user",
                    &[&id],
                );
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
            checker.totals.lost += 1;
            checker.report("in the log without an outcome (I1)", &[&id]);
        }
        checker.totals.duplicate_records = ends.values().map(|times| times - 1).sum();
        checker
    }

    pub(super) fn report(&mut self, text: &str, ids: &[&str]) {
        self.violations.push(Violation {
            text: text.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        });
    }

    /// Checks a `chatmesh.v1` user. Its clients have already checked each frame: no duplicate, no
    /// missing index, no mixed text, no frame of another user.
    pub(super) fn check_user(&mut self, seen: &UserObservation) {
        self.check_history(&seen.user, &seen.history);
        let turns = seen.history.iter().flatten();
        let history: BTreeMap<&str, &HistoryTurn> =
            turns.map(|turn| (turn.message_id.as_str(), turn)).collect();
        let questions: HashSet<&str> = seen.sent.iter().map(|sent| sent.content.as_str()).collect();
        for turn in seen.history.iter().flatten() {
            let question = turn.question.as_deref();
            if question.is_some_and(|question| !questions.contains(question)) {
                let user = &seen.user;
                self.report(
                    &format!("{user}: a turn of another user (I8): {turn:?}"),
                    &[&turn.message_id],
                );
            }
        }
        self.totals.messages += seen.sent.len();
        self.totals.to_cancel += seen.cancelled.len();
        for sent in &seen.sent {
            let mut ends = Vec::new();
            for device in &seen.devices {
                let message = device.get(&sent.id);
                let Some(ended) = message.filter(|message| message.terminal.is_some()) else {
                    self.check_missing(sent, device, &history);
                    continue;
                };
                let id = device.message_id(&sent.id).unwrap_or_default();
                self.check_outcome(sent, id, ended, history.get(id).copied());
                if ended.outcome_type() == Some("cancelled") && !seen.cancelled.contains(&sent.id) {
                    self.report(&format!("{}: cancelled without a request", sent.id), &[id]);
                }
                ends.push((id.to_owned(), ended.clone()));
            }
            for pair in ends.windows(2) {
                if pair[0].0 != pair[1].0 || pair[0].1.terminal != pair[1].1.terminal {
                    self.totals.duplicated += 1;
                    self.report(
                        &format!(
                            "{}: two devices received different outcomes: {:?} and {:?}",
                            sent.id, pair[0].1.terminal, pair[1].1.terminal
                        ),
                        &[&pair[0].0, &pair[1].0],
                    );
                }
            }
            match ends.first().and_then(|(_, message)| message.outcome_type()) {
                Some("response") => self.totals.answered += 1,
                Some("cancelled") => self.totals.cancelled += 1,
                Some(_) => self.totals.failed += 1,
                None => self.totals.from_history += 1,
            }
        }
        // A message that was sent again may be in the log twice, or only by its second sending.
        let once = seen.sent.iter();
        let once = once.filter(|sent| !seen.repeated.contains(&sent.id));
        let mut by_conversation: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sent in once {
            let together = by_conversation.entry((sent.connection, &sent.conversation));
            together.or_default().push(&sent.content);
        }
        for together in by_conversation.into_values() {
            self.check_log_order(&seen.user, together.into_iter());
        }
        for device in &seen.devices {
            for replaced in &device.replaced_texts {
                self.check_replaced(replaced);
            }
            self.totals.reloads += device.reloads().saturating_sub(1);
            for (id, at) in &device.repeated_after_move {
                self.check_repeated_after_move(id, *at);
            }
            self.check_order(seen, device);
        }
    }

    /// Checks that the log has the messages of one connection and conversation in the order of
    /// sending.
    pub(super) fn check_log_order<'a>(
        &mut self,
        user: &str,
        questions: impl Iterator<Item = &'a String>,
    ) {
        let log_entry = |content: &String| {
            let id = self.message_by_question.get(content)?;
            Some((*self.accepted.get(id)?, id.clone()))
        };
        let log_positions: Vec<_> = questions.filter_map(log_entry).collect();
        for pair in log_positions.windows(2) {
            let ((before, first), (after, second)) = (&pair[0], &pair[1]);
            if before > after {
                self.totals.out_of_order += 1;
                let what =
                    format!("{user}: {second} was sent after {first} and precedes it in the log");
                self.report(&what, &[second, first]);
            }
        }
    }

    /// Checks the turns of each conversation: every message once, and in the log's order.
    pub(super) fn check_history(&mut self, user: &str, conversations: &[Vec<HistoryTurn>]) {
        let mut ids = HashSet::new();
        for turn in conversations.iter().flatten() {
            if !ids.insert(turn.message_id.as_str()) {
                self.totals.duplicated += 1;
                let what = format!("{user}: a message is in the history twice");
                self.report(&what, &[&turn.message_id]);
            }
        }
        for turn in conversations.iter().flatten() {
            let asked = turn
                .question
                .as_ref()
                .map(|text| self.message_by_question.get(text));
            if asked.is_some_and(|asked| asked != Some(&turn.message_id)) {
                let what = format!("{user}: the question of another message (I5): {turn:?}");
                self.report(&what, &[&turn.message_id]);
            }
        }
        for turns in conversations {
            let log_positions = turns.iter().filter_map(|turn| {
                let id = turn.message_id.as_str();
                Some((*self.accepted.get(id)?, id))
            });
            let log_positions: Vec<_> = log_positions.collect();
            for pair in log_positions.windows(2) {
                let ((later, second), (earlier, first)) = (pair[0], pair[1]);
                if later < earlier {
                    self.totals.out_of_order += 1;
                    let what = format!(
                        "{user}: {second} at {later:?} is after {first} at {earlier:?} in the history (I5)"
                    );
                    self.report(&what, &[first, second]);
                }
            }
        }
    }

    /// Checks that the log has the outcome that a client received: in the message's first record
    /// or, if Redis lost its data, in another one.
    pub(super) fn check_outcome_in_log(&mut self, id: &str, kind: &str, text: &str) {
        let records = self.records.get(id).map_or(&[][..], Vec::as_slice);
        if !records.iter().any(|one| one.0 == kind && one.1 == text) {
            let what = format!("received as {kind} {text:?}, but the log has {records:?} (I5)");
            self.report(&what, &[id]);
        }
    }

    /// Checks a text that the outcome of another call replaced: Redis must have lost its data after
    /// the message was accepted, and the text itself must belong to one call.
    fn check_replaced(&mut self, replaced: &ReplacedText) {
        self.totals.replaced += 1;
        let id = replaced.message_id.as_str();
        let at = self.clock.ms(replaced.replaced_at);
        let accepted = self.accepted.get(id).map_or(i64::MAX, |(ms, ..)| *ms);
        let mut data_losses = self.data_losses.iter();
        if !data_losses.any(|(from, until)| *until >= accepted && *from <= at) {
            let text = &replaced.text;
            let what = format!("text replaced although Redis had its data (I4): {text:?}");
            self.report(&what, &[id]);
        }
        if let Err(fault) = parse_words(&replaced.text) {
            self.report(&format!("{fault} (I4): {:?}", replaced.text), &[id]);
        }
    }

    /// Checks a frame that a user received a second time after a move to another partition: Redis
    /// must have been emptied shortly before.
    fn check_repeated_after_move(&mut self, id: &str, at: Instant) {
        self.totals.repeated_after_move += 1;
        if !self.is_being_rebuilt(at) {
            self.report("sent a second time although Redis had its data (I2)", &[id]);
        }
    }

    fn is_being_rebuilt(&self, at: Instant) -> bool {
        let at = self.clock.ms(at);
        let mut data_losses = self.data_losses.iter();
        data_losses.any(|(from, until)| *from <= at && at <= *until + REBUILD_LIMIT_MS)
    }

    /// Whether a frame from before a move may be sent again because Redis is being rebuilt. This
    /// includes outcomes that the device was to find in the history, so that it receives them only
    /// now.
    fn may_repeat_after_move(&self, device: &Transcript, message_id: &str) -> bool {
        let ended_at = device.get(message_id).and_then(|message| message.ended_at);
        device.may_repeat_frames()
            && device.reloads() > 1
            && ended_at.is_some_and(|at| self.is_being_rebuilt(at))
    }

    /// Checks a message whose outcome a device never received: it must have ended before the device
    /// was told to reload the history, and the history must have it or have had it then.
    fn check_missing(
        &mut self,
        sent: &SentMessage,
        device: &Transcript,
        history: &BTreeMap<&str, &HistoryTurn>,
    ) {
        let id = self
            .message_by_question
            .get(&sent.content)
            .cloned()
            .unwrap_or_default();
        let ended = self.ended.get(&id).copied().unwrap_or(i64::MAX);
        let mut reloaded = device.reloaded_at.iter();
        let reloaded = reloaded.any(|at| ended <= self.clock.ms(*at) + RELOAD_TOLERANCE_MS);
        let in_history = history.contains_key(id.as_str());
        if reloaded && (in_history || self.may_be_lost_from_history(&id)) {
            return;
        }
        self.totals.lost += 1;
        let known = device.get(&sent.id);
        let known = known.map(|m| (m.is_accepted(), m.text.clone()));
        self.report(
            &format!(
                "{}: a device never received the outcome (I1), reloaded since: {reloaded}, in the history: {in_history}: {known:?}",
                sent.id,
            ),
            &[&id, &sent.id],
        );
    }

    /// Checks a terminal frame against its question and the history.
    fn check_outcome(
        &mut self,
        sent: &SentMessage,
        id: &str,
        ended: &Message,
        turn: Option<&HistoryTurn>,
    ) {
        if !self.accepted.contains_key(id) {
            self.report(
                &format!("{}: ended without being in the log (I1)", sent.id),
                &[id, &sent.id],
            );
        }
        let kind = ended.outcome_type().unwrap_or_default();
        let fault = match kind {
            "response" => check_complete(&ended.text, &sent.content),
            "cancelled" => check_partial(&ended.text, &sent.content),
            _ => None,
        };
        if let Some(fault) = fault {
            self.report(
                &format!("{}: {fault} (I4): {:?}", sent.id, ended.text),
                &[id, &sent.id],
            );
        }
        if kind != "error" {
            self.check_outcome_in_log(id, kind, &ended.text);
        }
        if kind == "error" && !self.may_fail(id) {
            self.report(
                &format!(
                    "{}: failed without a fault of the model API: {ended:?}",
                    sent.id
                ),
                &[id, &sent.id],
            );
        }
        let Some(turn) = turn else {
            if !self.may_be_lost_from_history(id) {
                self.totals.lost += 1;
                self.report(&format!("{}: not in the history (I5)", sent.id), &[id]);
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
            self.report(
                &format!(
                    "{}: the history has {turn:?}, the client {kind} {:?} (I5)",
                    sent.id, ended.text
                ),
                &[id, &sent.id],
            );
        }
    }

    /// Checks that outcomes arrived in the log's order within each conversation.
    fn check_order(&mut self, seen: &UserObservation, device: &Transcript) {
        let conversations: HashMap<&str, &str> = seen
            .sent
            .iter()
            .map(|sent| (sent.id.as_str(), sent.conversation.as_str()))
            .collect();
        let mut last: HashMap<&str, ((i64, i32, i64), String)> = HashMap::new();
        for message_id in &device.ended_message_ids {
            let Some(log_position) = self.accepted.get(message_id).copied() else {
                continue;
            };
            let id = device.get(message_id).and_then(|m| m.id.as_deref());
            let Some(conversation) = id.and_then(|id| conversations.get(id)) else {
                continue;
            };
            if let Some((before, other)) = last.get(conversation)
                && *before > log_position
            {
                if self.may_repeat_after_move(device, message_id) {
                    self.totals.repeated_after_move += 1;
                    continue;
                }
                let other = other.clone();
                self.totals.out_of_order += 1;
                self.report(
                    &format!("{}: {message_id} after {other} (I3)", seen.user),
                    &[message_id, &other],
                );
            }
            last.insert(conversation, (log_position, message_id.clone()));
        }
    }

    /// Whether an answer may fail: the model API was at fault between the message and its outcome.
    /// A worker that waits for the model's rate limit may delay that.
    pub(super) fn may_fail(&self, id: &str) -> bool {
        let accepted = self.accepted.get(id).map_or(0, |(ms, ..)| *ms);
        let ended = self.ended.get(id).copied().unwrap_or(i64::MAX);
        let mut faults = self.model_at_fault.iter();
        faults.any(|(from, until)| *from <= ended && accepted <= *until + LATE_FAILURE_MS)
    }

    /// Whether a message ended so long before a data loss that it is not rebuilt.
    pub(super) fn may_be_lost_from_history(&self, id: &str) -> bool {
        let ended = self.ended.get(id).copied().unwrap_or(i64::MAX);
        let mut data_losses = self.data_losses.iter();
        data_losses.any(|(_, until)| ended < *until - REBUILD_WINDOW_MS)
    }

    /// Checks that only the totals show.
    pub(super) fn check_totals(&mut self) {
        if self.totals.to_cancel >= MIN_CANCELS && self.totals.cancelled == 0 {
            let what = format!("none of {} was cancelled", self.totals.to_cancel);
            self.report(&what, &[]);
        }
    }

    /// Adds violations that other checks found.
    pub(super) fn add(&mut self, violations: Vec<Violation>) {
        self.violations.extend(violations);
    }

    /// The first `count` violations, one per line.
    pub(super) fn format_violations(&self, count: usize) -> String {
        let texts = self.violations.iter().take(count);
        let lines: Vec<&str> = texts.map(|violation| violation.text.as_str()).collect();
        lines.join("\n  ")
    }

    pub(super) fn violations(&self) -> &[Violation] {
        &self.violations
    }
}
