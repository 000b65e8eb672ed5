//! Checks from what the clients sent and received and from the records of the log whether every
//! promise was kept. The checker knows the contract (docs/protocol.md), not the implementation.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;
use tokio::time::Instant;

use super::answers::{check_complete, check_partial};
use super::calls::{CostlyFault, FaultCost, LogClock};
use super::clients::{SentMessage, UserObservation};
use crate::support::history::HistoryTurn;
use crate::support::kafka_client::KafkaRecord as Record;
use crate::support::v1::{Message, Transcript};

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
    /// Messages whose outcome no device received as a frame, because the history had it.
    pub(super) from_history: usize,
    pub(super) reloads: usize,
    /// Terminal records after the first one of a message.
    pub(super) duplicate_records: usize,
    /// Frames that were sent a second time after partitions were added and Redis was emptied.
    pub(super) repeated_after_move: usize,
    /// Shown answers that the outcome of another model call replaced, which only a data loss of
    /// Redis allows.
    pub(super) replaced_answers: usize,
    /// Answers with other parts than one text.
    pub(super) with_parts: usize,
    /// Messages that a client asked to cancel.
    cancel_requests: usize,
}

/// Duration of a reload in ms. The history may include messages that end during the reload.
const RELOAD_TOLERANCE_MS: i64 = 1_000;
/// Time by which retries and the model's rate limit may delay a failure, in ms.
const LATE_FAILURE_MS: i64 = 30_000;
/// From this number of cancel requests on, at least one message must have been cancelled.
const MIN_CANCELS: usize = 50;

/// An outcome in the log.
#[derive(Debug)]
struct Outcome {
    kind: String,
    text: String,
    /// The field `parts`; null if the record has none.
    parts: Value,
}

pub(super) struct Checker {
    /// The log position of each message's earliest record: time in ms, partition and offset.
    pub(super) log_positions: HashMap<String, (i64, i32, i64)>,
    /// The time in ms at which the log received each message's first outcome.
    pub(super) ended_ms: HashMap<String, i64>,
    /// The outcomes that the log has of each message.
    outcomes: HashMap<String, Vec<Outcome>>,
    /// The message of each question.
    pub(super) message_by_question: HashMap<String, String>,
    /// The message of each correlation id. A classic error frame names its message only by this id.
    pub(super) message_by_correlation_id: HashMap<String, String>,
    /// The time spans in which the model API or the connection to it failed: only then may an
    /// answer fail.
    model_fault_spans: Vec<(i64, i64)>,
    /// The time spans from a stop of Redis until it was back without its data, in the log's time.
    pub(super) data_losses: Vec<(i64, i64)>,
    pub(super) clock: LogClock,
    violations: Vec<Violation>,
    pub(super) totals: Totals,
}

impl Checker {
    /// Indexes the records of both topics, and checks that each message has an outcome.
    pub(super) fn new(
        (messages, responses): (&[Record], &[Record]),
        costly_faults: &[CostlyFault],
        model_fault_spans: &[(Instant, Instant)],
        clock: LogClock,
    ) -> Self {
        let data_losses = costly_faults
            .iter()
            .filter(|fault| fault.cost == FaultCost::Redis);
        let data_losses =
            data_losses.map(|fault| (clock.to_ms(fault.from), clock.to_ms(fault.until)));
        let model_fault_spans = model_fault_spans.iter();
        let mut checker = Self {
            log_positions: HashMap::new(),
            ended_ms: HashMap::new(),
            outcomes: HashMap::new(),
            message_by_question: HashMap::new(),
            message_by_correlation_id: HashMap::new(),
            model_fault_spans: model_fault_spans
                .map(|(from, until)| (clock.to_ms(*from), clock.to_ms(*until)))
                .collect(),
            data_losses: data_losses.collect(),
            clock,
            violations: Vec::new(),
            totals: Totals::default(),
        };
        let mut user_by_message = HashMap::new();
        for record in messages {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            let log_position = (record.timestamp_ms, record.partition, record.offset);
            let earliest = checker
                .log_positions
                .entry(id.clone())
                .or_insert(log_position);
            *earliest = (*earliest).min(log_position);
            let content = value["content"].as_str().unwrap_or_default();
            checker
                .message_by_question
                .insert(content.to_owned(), id.clone());
            let correlation_id = value["correlation_id"].as_str().unwrap_or_default();
            checker
                .message_by_correlation_id
                .insert(correlation_id.to_owned(), id.clone());
            user_by_message.insert(id, value["userid"].as_str().unwrap_or_default().to_owned());
        }
        let mut outcome_counts: HashMap<String, usize> = HashMap::new();
        for record in responses {
            let value = record.json();
            let id = value["message_id"].as_str().unwrap_or_default().to_owned();
            if user_by_message.get(&id).map(String::as_str) != value["userid"].as_str() {
                checker.report(
                    "an outcome whose message is not in the log or belongs to another user",
                    &[&id],
                );
            }
            let ended_ms = checker.ended_ms.entry(id.clone()).or_insert(i64::MAX);
            *ended_ms = (*ended_ms).min(record.timestamp_ms);
            let kind = match value["code"].as_str() {
                Some("cancelled") => "cancelled",
                _ => value["type"].as_str().unwrap_or_default(),
            };
            let text = value["content"].as_str().unwrap_or_default();
            let outcomes = checker.outcomes.entry(id.clone()).or_default();
            outcomes.push(Outcome {
                kind: kind.to_owned(),
                text: text.to_owned(),
                parts: value["parts"].clone(),
            });
            *outcome_counts.entry(id).or_default() += 1;
        }
        let unanswered: Vec<String> = checker
            .log_positions
            .keys()
            .filter(|id| !outcome_counts.contains_key(*id))
            .cloned()
            .collect();
        for id in unanswered {
            checker.totals.lost += 1;
            checker.report("in the log without an outcome (I1)", &[&id]);
        }
        checker.totals.duplicate_records = outcome_counts.values().map(|count| count - 1).sum();
        checker
    }

    /// Adds a violation.
    pub(super) fn report(&mut self, text: &str, ids: &[&str]) {
        self.violations.push(Violation {
            text: text.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        });
    }

    /// Checks a `chatmesh.v1` user. Its clients have already checked each frame: no duplicate, no
    /// gap in a part, no mixture of two streams, no frame of another user.
    pub(super) fn check_user(&mut self, observation: &UserObservation) {
        self.check_history(&observation.user, &observation.history);
        let turns = observation.history.iter().flatten();
        let history: BTreeMap<&str, &HistoryTurn> =
            turns.map(|turn| (turn.message_id.as_str(), turn)).collect();
        let questions: HashSet<&str> = observation
            .sent
            .iter()
            .map(|sent| sent.content.as_str())
            .collect();
        for turn in observation.history.iter().flatten() {
            let question = turn.question.as_deref();
            if question.is_some_and(|question| !questions.contains(question)) {
                let user = &observation.user;
                self.report(
                    &format!("{user}: a turn of another user (I8): {turn:?}"),
                    &[&turn.message_id],
                );
            }
        }
        self.totals.messages += observation.sent.len();
        self.totals.cancel_requests += observation.cancel_requested.len();
        for sent in &observation.sent {
            let mut outcomes = Vec::new();
            for device in &observation.devices {
                let message = device.get(&sent.id);
                let Some(message) = message.filter(|message| message.terminal.is_some()) else {
                    self.check_missing(sent, device, &history);
                    continue;
                };
                let id = device.message_id(&sent.id).unwrap_or_default();
                self.check_outcome(sent, id, message, history.get(id).copied());
                if message.outcome_type() == Some("cancelled")
                    && !observation.cancel_requested.contains(&sent.id)
                {
                    self.report(&format!("{}: cancelled without a request", sent.id), &[id]);
                }
                outcomes.push((id.to_owned(), message.clone()));
            }
            for pair in outcomes.windows(2) {
                let ((first_id, first), (second_id, second)) = (&pair[0], &pair[1]);
                if first_id != second_id || first.terminal != second.terminal {
                    self.totals.duplicated += 1;
                    self.report(
                        &format!(
                            "{}: two devices received different outcomes: {:?} and {:?}",
                            sent.id, first.terminal, second.terminal
                        ),
                        &[first_id, second_id],
                    );
                }
            }
            match outcomes
                .first()
                .and_then(|(_, message)| message.outcome_type())
            {
                Some("response") => self.totals.answered += 1,
                Some("cancelled") => self.totals.cancelled += 1,
                Some(_) => self.totals.failed += 1,
                None => self.totals.from_history += 1,
            }
        }
        // The order of a resent message is not checked: its first record may be that of the resend.
        let sent_once = observation.sent.iter();
        let sent_once = sent_once.filter(|sent| !observation.resent.contains(&sent.id));
        let mut by_conversation: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sent in sent_once {
            let questions = by_conversation.entry((sent.connection, &sent.conversation));
            questions.or_default().push(&sent.content);
        }
        for questions in by_conversation.into_values() {
            self.check_log_order(&observation.user, questions.into_iter());
        }
        for device in &observation.devices {
            for replaced in &device.replaced_answers {
                self.check_replaced(replaced);
            }
            self.totals.reloads += device.reloads().saturating_sub(1);
            for (id, received_at) in &device.repeated_after_move {
                self.check_repeated_after_move(id, *received_at);
            }
            self.check_order(observation, device);
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
            Some((*self.log_positions.get(id)?, id.clone()))
        };
        let log_positions: Vec<_> = questions.filter_map(log_entry).collect();
        for pair in log_positions.windows(2) {
            let ((first_position, first), (second_position, second)) = (&pair[0], &pair[1]);
            if first_position > second_position {
                self.totals.out_of_order += 1;
                let violation =
                    format!("{user}: {second} was sent after {first} and precedes it in the log");
                self.report(&violation, &[second, first]);
            }
        }
    }

    /// Checks the turns of each conversation, which are listed newest first: every message appears
    /// once and in the log's order.
    pub(super) fn check_history(&mut self, user: &str, conversations: &[Vec<HistoryTurn>]) {
        let mut ids = HashSet::new();
        for turn in conversations.iter().flatten() {
            if !ids.insert(turn.message_id.as_str()) {
                self.totals.duplicated += 1;
                let violation = format!("{user}: a message is in the history twice");
                self.report(&violation, &[&turn.message_id]);
            }
        }
        for turn in conversations.iter().flatten() {
            if let Some(question) = &turn.question
                && self.message_by_question.get(question) != Some(&turn.message_id)
            {
                let violation =
                    format!("{user}: a turn has the question of another message (I5): {turn:?}");
                self.report(&violation, &[&turn.message_id]);
            }
        }
        for turns in conversations {
            let log_positions = turns.iter().filter_map(|turn| {
                let id = turn.message_id.as_str();
                Some((*self.log_positions.get(id)?, id))
            });
            let log_positions: Vec<_> = log_positions.collect();
            for pair in log_positions.windows(2) {
                let ((newer_position, newer), (older_position, older)) = (pair[0], pair[1]);
                if newer_position < older_position {
                    self.totals.out_of_order += 1;
                    let violation = format!(
                        "{user}: {newer} at {newer_position:?} is after {older} at {older_position:?} in \
                         the history (I5)"
                    );
                    self.report(&violation, &[older, newer]);
                }
            }
        }
    }

    /// Checks that the log has the outcome that a client received. Usually it is the message's
    /// first terminal record. After a data loss of Redis, it may be a later one. `parts` is `None`
    /// for a classic client, which receives no parts.
    pub(super) fn check_outcome_in_log(
        &mut self,
        id: &str,
        kind: &str,
        text: &str,
        parts: Option<&Value>,
    ) {
        let outcomes = self.outcomes.get(id).map_or(&[][..], Vec::as_slice);
        let is_received = |outcome: &Outcome| {
            outcome.kind == kind
                && outcome.text == text
                && parts.is_none_or(|parts| outcome.parts == *parts)
        };
        if !outcomes.iter().any(is_received) {
            let violation =
                format!("received as {kind} {text:?} {parts:?}, but the log has {outcomes:?} (I5)");
            self.report(&violation, &[id]);
        }
    }

    /// Checks a message whose outcome a device never received: it must have ended before a reload
    /// of the history by the device, and the history must have the message or must have had it
    /// then.
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
        let ended_ms = self.ended_ms.get(&id).copied().unwrap_or(i64::MAX);
        let mut reloads = device.reloaded_at.iter();
        let was_reloaded = reloads
            .any(|reloaded_at| ended_ms <= self.clock.to_ms(*reloaded_at) + RELOAD_TOLERANCE_MS);
        let in_history = history.contains_key(id.as_str());
        if was_reloaded && (in_history || self.may_be_lost_from_history(&id)) {
            return;
        }
        self.totals.lost += 1;
        let message = device.get(&sent.id);
        let accepted_and_parts = message.map(|m| (m.is_accepted(), m.parts()));
        self.report(
            &format!(
                "{}: a device never received the outcome (I1), reloaded since: {was_reloaded}, in \
                 the history: {in_history}, accepted and parts: {accepted_and_parts:?}",
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
        message: &Message,
        turn: Option<&HistoryTurn>,
    ) {
        if !self.log_positions.contains_key(id) {
            self.report(
                &format!("{}: ended without being in the log (I1)", sent.id),
                &[id, &sent.id],
            );
        }
        let kind = message.outcome_type().unwrap_or_default();
        let shown = message.parts();
        let violation = match kind {
            "response" => check_complete(shown, &sent.content),
            "cancelled" => check_partial(shown, &sent.content),
            _ => None,
        };
        if let Some(violation) = violation {
            self.report(
                &format!("{}: {violation} (I4): {shown:?}", sent.id),
                &[id, &sent.id],
            );
        }
        let no_parts = Value::Null;
        let terminal = message.terminal.as_ref();
        let parts = terminal.map_or(&no_parts, |frame| &frame["parts"]);
        self.totals.with_parts += usize::from(!parts.is_null());
        if kind != "error" {
            self.check_outcome_in_log(id, kind, &message.text, Some(parts));
        }
        if kind == "error" && !self.may_fail(id) {
            self.report(
                &format!(
                    "{}: failed without a fault of the model API: {message:?}",
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
        let matches_history = turn.status == status
            && (status == "failed" || (turn.answer == message.text && turn.parts == *parts));
        if !matches_history {
            self.report(
                &format!(
                    "{}: the history has {turn:?}, the client received {kind} {:?} {parts} (I5)",
                    sent.id, message.text
                ),
                &[id, &sent.id],
            );
        }
    }

    /// Checks that outcomes arrived in the log's order within each conversation.
    fn check_order(&mut self, observation: &UserObservation, device: &Transcript) {
        let conversations: HashMap<&str, &str> = observation
            .sent
            .iter()
            .map(|sent| (sent.id.as_str(), sent.conversation.as_str()))
            .collect();
        let mut last_by_conversation: HashMap<&str, ((i64, i32, i64), String)> = HashMap::new();
        for message_id in &device.ended_message_ids {
            let Some(log_position) = self.log_positions.get(message_id).copied() else {
                continue;
            };
            let id = device.get(message_id).and_then(|m| m.id.as_deref());
            let Some(conversation) = id.and_then(|id| conversations.get(id)) else {
                continue;
            };
            if let Some((last_position, last_id)) = last_by_conversation.get(conversation)
                && *last_position > log_position
            {
                if self.may_repeat_after_move(device, message_id) {
                    self.totals.repeated_after_move += 1;
                    continue;
                }
                let last_id = last_id.clone();
                self.totals.out_of_order += 1;
                self.report(
                    &format!(
                        "{}: the outcome of {message_id} arrived after that of {last_id} (I3)",
                        observation.user
                    ),
                    &[message_id, &last_id],
                );
            }
            last_by_conversation.insert(conversation, (log_position, message_id.clone()));
        }
    }

    /// Whether an answer may fail: the model API failed between the message and its outcome. A
    /// worker that waits for the model's rate limit may report the failure later.
    pub(super) fn may_fail(&self, id: &str) -> bool {
        let accepted_ms = self.log_positions.get(id).map_or(0, |(ms, ..)| *ms);
        let ended_ms = self.ended_ms.get(id).copied().unwrap_or(i64::MAX);
        let mut faults = self.model_fault_spans.iter();
        faults.any(|(from, until)| *from <= ended_ms && accepted_ms <= *until + LATE_FAILURE_MS)
    }

    /// Checks the conditions that concern the totals of all users.
    pub(super) fn check_totals(&mut self) {
        if self.totals.cancel_requests >= MIN_CANCELS && self.totals.cancelled == 0 {
            let violation = format!(
                "none of {} cancel requests cancelled its message",
                self.totals.cancel_requests
            );
            self.report(&violation, &[]);
        }
        if self.totals.answered > 0 && self.totals.with_parts == 0 {
            self.report("no answer has parts besides its text", &[]);
        }
    }

    /// Adds violations that other checks found.
    pub(super) fn add_violations(&mut self, violations: Vec<Violation>) {
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
