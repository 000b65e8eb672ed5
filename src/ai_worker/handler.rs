//! One message: taken, answered, its outcome kept, its terminal record produced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng;
use tracing::Instrument;

use super::answer::{Model, Written};
use super::ending::Endings;
use super::metrics::WorkerMetrics;
use super::recent::{Known, Recent};
use crate::config::settings::WorkerSettings;
use crate::fanout::{
    BeginRequest, BeginResponse, DeferredOutcome, HistoryResponse, KeepRequest, KeepResponse,
    MessageRef, NewOutcome, Owner, StoredOutcome, WorkerFanout,
};
use crate::log::Log;
use crate::pipeline::{Delivery, Handler, Stopped, Verdict, Work};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::{Question, Terminal, add_trace, header};
use crate::protocol::trace_context::TraceContext;
use crate::telemetry::traces::{self, Kind};

pub(super) struct WorkerHandler {
    pub(super) log: Arc<dyn Log>,
    pub(super) fanout: Arc<dyn WorkerFanout>,
    pub(super) settings: WorkerSettings,
    pub(super) model: Model,
    pub(super) recent: Recent,
    pub(super) metrics: WorkerMetrics,
}

/// What is to be done for a message.
#[derive(Clone)]
enum Job {
    /// Ask the model.
    Answer,
    /// Only tell the user that it failed; the record is a dead letter for this reason.
    Fail(String),
}

/// How one attempt ended.
enum Attempted {
    /// The outcome is fixed.
    Ended {
        outcome: StoredOutcome,
        /// Where the record is to become a dead letter, why.
        dead: Option<String>,
        /// It is the one that this attempt brought, and not one that was there before.
        ours: bool,
    },
    /// Another worker has it, or another attempt is needed.
    Again,
}

impl WorkerHandler {
    async fn settle(
        &self,
        question: &Arc<Question>,
        job: &Job,
        work: &mut Work,
    ) -> Result<Verdict, Stopped> {
        let taken = Instant::now();
        let endings = Endings::new(Arc::clone(question), taken);
        let subject = subject_of(question);
        let owner = Owner::random();
        let mut last_attempt = 0;
        let mut calls = None;
        let mut written = None;
        let answering = matches!(job, Job::Answer);
        let mut known = answering.then(|| self.recent.take(question)).flatten();
        loop {
            if work.stopped() {
                return Err(Stopped);
            }
            let begin = BeginRequest {
                message: subject.clone(),
                owner: owner.clone(),
                last_attempt,
                cancelled_outcome: endings.cancelled_later(said(written.as_ref())),
                history: (answering && written.is_none())
                    .then(|| self.model.recall(known.as_ref()))
                    .flatten(),
            };
            let taking_it = work.span().child(Kind::Internal, format_args!("begin"));
            let begun = work
                .until("begin", || self.fanout.begin(begin.clone()))
                .await?;
            drop(taking_it);
            match begun {
                BeginResponse::Ended(outcome) => {
                    tracing::info!("already ended, nothing is paid again");
                    let dead = dead_again(job, &outcome);
                    return self.produce(question, &outcome, dead, work).await;
                }
                BeginResponse::Busy(left) => {
                    let jitter = Duration::from_millis(rand::rng().random_range(5..50));
                    tracing::debug!(left_ms = left.as_millis() as u64, "another worker has it");
                    work.wait(left + jitter).await?;
                }
                BeginResponse::Attempt {
                    number,
                    now_ms,
                    delivery_count,
                    history,
                } => {
                    last_attempt = number;
                    let known = match history {
                        None => None,
                        Some(HistoryResponse::Unchanged) => known.take(),
                        Some(HistoryResponse::Turns(mark, turns)) => Some(Known::new(mark, turns)),
                    };
                    let mut attempt = Attempt {
                        cancelled: &begin.cancelled_outcome,
                        question,
                        known,
                        subject: &subject,
                        owner: &owner,
                        endings: &endings,
                        number,
                    };
                    let done = match job {
                        Job::Fail(reason) => {
                            let ending = endings.failed(ErrorCode::Internal);
                            self.keep(&mut attempt, ending, "", Some(reason.clone()), work)
                                .await
                        }
                        Job::Answer => {
                            let calls = calls.get_or_insert_with(|| self.model.calls());
                            let written = &mut written;
                            self.answer(&mut attempt, now_ms, delivery_count, calls, written, work)
                                .await
                        }
                    };
                    last_attempt = last_attempt.max(attempt.number);
                    if let Attempted::Ended {
                        outcome,
                        mut dead,
                        ours,
                    } = done
                    {
                        if !ours {
                            dead = dead_again(job, &outcome);
                        }
                        return self.produce(question, &outcome, dead, work).await;
                    }
                }
            }
        }
    }

    /// `written` is what this delivery_count has had of the model already: an answer that could not be
    /// kept in its own attempt (the number had just grown, or another worker came and died) is
    /// paid, and kept in this one.
    async fn answer(
        &self,
        attempt: &mut Attempt<'_>,
        now_ms: i64,
        delivery_count: u32,
        calls: &mut super::answer::Calls,
        written: &mut Option<Written>,
        work: &mut Work,
    ) -> Attempted {
        if let Some(written) = written {
            return self.end(attempt, written, work).await;
        }
        let endings = attempt.endings;
        let age_ms = now_ms - attempt.question.appended_ms;
        if age_ms > self.settings.message_max_age.as_millis() as i64 {
            tracing::warn!(age_ms, "waited longer than MESSAGE_MAX_AGE, not asked");
            WorkerMetrics::record_failure(ErrorCode::Expired);
            return self
                .keep(attempt, endings.failed(ErrorCode::Expired), "", None, work)
                .await;
        }
        if delivery_count > self.settings.pipeline.max_deliveries {
            let reason = format!(
                "taken {} times without coming to an end",
                delivery_count - 1
            );
            WorkerMetrics::record_failure(ErrorCode::Internal);
            let ending = endings.failed(ErrorCode::Internal);
            return self.keep(attempt, ending, "", Some(reason), work).await;
        }
        if let Some(known) = &mut attempt.known {
            known.forget_where_old(self.settings.prompt.history_ttl, now_ms);
        }
        let had = self.model.write(attempt, calls, work).await;
        if let Written::Failed(error, _) = &had {
            tracing::warn!(%error, "the model gave no answer");
            WorkerMetrics::record_failure(error.code);
        }
        let had = written.insert(had);
        let attempted = self.end(attempt, had, work).await;
        if matches!(had, Written::Again) {
            *written = None;
        }
        attempted
    }

    /// Fixes what was written as the outcome.
    async fn end(
        &self,
        attempt: &mut Attempt<'_>,
        written: &Written,
        work: &mut Work,
    ) -> Attempted {
        let endings = attempt.endings;
        match written {
            Written::Answer(answer) => {
                let ending = endings.answered(answer, attempt.number);
                self.keep(attempt, ending, &answer.text, None, work).await
            }
            Written::Cancelled(text) => {
                self.keep(attempt, endings.cancelled(text), text, None, work)
                    .await
            }
            Written::Failed(error, text) => {
                let ending = endings.failed_by_provider(error, attempt.number);
                self.keep(attempt, ending, text, Some(error.to_string()), work)
                    .await
            }
            Written::Again => Attempted::Again,
        }
    }

    /// Fixes the outcome. Tried until the fan-out answers, also when the partition is taken away
    /// meanwhile: the answer is there and paid.
    async fn keep(
        &self,
        attempt: &mut Attempt<'_>,
        ending: NewOutcome,
        text: &str,
        dead: Option<String>,
        work: &mut Work,
    ) -> Attempted {
        let call = KeepRequest {
            message: attempt.subject.clone(),
            owner: attempt.owner.clone(),
            attempt: attempt.number,
            cancelled_outcome: attempt.endings.cancelled_later(text),
            outcome: Arc::new(ending),
        };
        let keeping = work.span().child(Kind::Internal, format_args!("keep"));
        let kept = work.finish("keep", || self.fanout.keep(call.clone())).await;
        drop(keeping);
        match kept {
            KeepResponse::Appended(outcome, grown) => {
                let limit = self.model.recalled_turns();
                let known = attempt.known.take();
                if let Some(known) =
                    known.and_then(|known| known.appended(grown, &call.outcome.turn, limit))
                {
                    self.recent.put(attempt.question, known);
                }
                Attempted::Ended {
                    outcome,
                    dead,
                    ours: true,
                }
            }
            KeepResponse::Outcome(outcome) => {
                let ours = outcome.frame == call.outcome.frame;
                Attempted::Ended {
                    outcome,
                    dead,
                    ours,
                }
            }
            KeepResponse::Fenced => {
                tracing::info!(attempt = attempt.number, "another worker has taken over");
                Attempted::Again
            }
        }
    }

    /// Produces the terminal record and waits for its acknowledgement, however long that takes.
    async fn produce(
        &self,
        question: &Question,
        outcome: &StoredOutcome,
        dead: Option<String>,
        work: &mut Work,
    ) -> Result<Verdict, Stopped> {
        if outcome.delivered_at.is_none() {
            let topic = &self.settings.responses_topic;
            let mut sending = work
                .span()
                .child(Kind::Producer, format_args!("send {topic}"));
            sending.text("messaging.system", traces::log_system());
            sending.text("messaging.operation.name", "send");
            sending.text("messaging.operation.type", "send");
            sending.text("messaging.destination.name", topic);
            sending.text("messaging.message.id", question.message_id.as_str());
            let record = terminal_record(question, outcome, sending.context());
            let place = work
                .finish("produce", || {
                    let appended = self.log.append(topic, record.clone());
                    async {
                        appended
                            .await
                            .inspect_err(|_| self.metrics.record_publish_error())
                    }
                })
                .await;
            self.metrics.record_publish();
            sending.number("messaging.kafka.offset", place.offset);
            drop(sending);
            tracing::info!(
                partition = place.partition,
                offset = place.offset,
                "terminal record produced"
            );
        }
        Ok(dead.map_or(Verdict::Done, Verdict::Dead))
    }

    async fn take(&self, delivery: &Delivery, work: &mut Work) -> Result<Verdict, Stopped> {
        let record = &delivery.record;
        let (question, job) = match Question::parse(record) {
            Ok(question) => (question, Job::Answer),
            Err(error) => match question_from_headers(record) {
                Some(question) => (question, Job::Fail(error.to_string())),
                None => return Ok(Verdict::Dead(error.to_string())),
            },
        };
        let span = tracing::info_span!(
            "message",
            correlation_id = %question.correlation_id,
            message_id = %question.message_id,
            trace_id = work.span().trace_id(),
        );
        let question = Arc::new(question);
        self.settle(&question, &job, work).instrument(span).await
    }
}

/// One attempt at one message.
pub(super) struct Attempt<'a> {
    pub(super) question: &'a Question,
    /// What came earlier in the conversation, where that is known.
    pub(super) known: Option<Known>,
    pub(super) subject: &'a MessageRef,
    pub(super) owner: &'a Owner,
    /// The ending of a message that was cancelled before anything was said.
    pub(super) cancelled: &'a DeferredOutcome,
    endings: &'a Endings,
    /// Its number; grows when the fan-out loses its data meanwhile.
    pub(super) number: u32,
}

#[async_trait]
impl Handler for WorkerHandler {
    fn lane(&self, record: &Record) -> String {
        Question::parse(record).map_or_else(
            |_| String::new(),
            |question| format!("{} {}", question.user, question.conversation),
        )
    }

    async fn handle(&self, delivery: &Delivery, work: &mut Work) -> Verdict {
        let begun = Instant::now();
        let appended_ms = delivery.record.timestamp_ms;
        self.metrics.record_log_wait(appended_ms);
        let verdict = self
            .take(delivery, work)
            .await
            .unwrap_or_else(Verdict::from);
        self.metrics
            .record_processed(&verdict, begun.elapsed(), appended_ms);
        verdict
    }

    async fn give_up(
        &self,
        delivery: &Delivery,
        reason: &str,
        work: &mut Work,
    ) -> Result<(), Stopped> {
        let question = Question::parse(&delivery.record)
            .ok()
            .or_else(|| question_from_headers(&delivery.record));
        if let Some(question) = question {
            self.settle(&Arc::new(question), &Job::Fail(reason.to_owned()), work)
                .await?;
        }
        Ok(())
    }
}

/// What this delivery_count has had of the model: a cancelled message ends with it.
fn said(written: Option<&Written>) -> &str {
    match written {
        Some(Written::Answer(answer)) => &answer.text,
        Some(Written::Cancelled(text) | Written::Failed(_, text)) => text,
        Some(Written::Again) | None => "",
    }
}

fn subject_of(question: &Question) -> MessageRef {
    MessageRef {
        user: question.user.clone(),
        message_id: question.message_id.clone(),
        id: question.id.clone(),
        conversation: question.conversation.clone(),
    }
}

/// Why a message whose outcome was there already is a dead letter: who kept the outcome may have
/// died before it wrote one. There twice rather than not at all.
fn dead_again(job: &Job, outcome: &StoredOutcome) -> Option<String> {
    if let Job::Fail(reason) = job {
        return Some(reason.clone());
    }
    let code = Terminal::parse(outcome.frame.as_bytes()).ok()?.code?;
    let is_dead = match code {
        ErrorCode::ProviderTimeout
        | ErrorCode::ProviderRateLimited
        | ErrorCode::ProviderRejected
        | ErrorCode::ProviderFailed
        | ErrorCode::Internal => true,
        ErrorCode::InvalidMessage
        | ErrorCode::TooLarge
        | ErrorCode::RateLimited
        | ErrorCode::Unauthorized
        | ErrorCode::Unavailable
        | ErrorCode::Cancelled
        | ErrorCode::Expired => false,
    };
    is_dead.then(|| format!("ended before: {}", code.as_str()))
}

fn terminal_record(
    question: &Question,
    outcome: &StoredOutcome,
    trace: Option<&TraceContext>,
) -> NewRecord {
    let text = |value: &str| Bytes::from(value.to_owned());
    let mut headers = vec![
        (
            header::MESSAGE_ID.to_owned(),
            text(question.message_id.as_str()),
        ),
        (
            header::CORRELATION_ID.to_owned(),
            text(&question.correlation_id),
        ),
    ];
    add_trace(&mut headers, trace);
    NewRecord {
        key: Some(text(question.user.as_str())),
        value: text(&outcome.frame),
        null_value: false,
        headers,
    }
}

/// Whose an unreadable record is, where its key and headers say so (protocol.md section 2).
fn question_from_headers(record: &Record) -> Option<Question> {
    let message_id = MessageId::parse(record.header_text(header::MESSAGE_ID)?).ok()?;
    let user = UserId::parse(std::str::from_utf8(record.key.as_deref()?).ok()?).ok()?;
    let correlation_id = record
        .header_text(header::CORRELATION_ID)
        .unwrap_or(message_id.as_str());
    Some(Question {
        id: None,
        user,
        conversation: ConversationId::default_conversation(),
        content: "".into(),
        correlation_id: correlation_id.into(),
        stream: false,
        appended_ms: record.timestamp_ms,
        message_id,
    })
}
