//! Processes one record of `incoming_messages` for the pipeline: begins an attempt, generates the
//! answer, stores the outcome, and appends the terminal record.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng;
use tokio::time::Instant;
use tracing::Instrument;

use super::answer_parts::Part;
use super::attempt::{Attempt, CallBudget, Message};
use super::context_cache::{CachedContext, ContextCache};
use super::generation::{GenerationResult, Generator};
use super::metrics::WorkerMetrics;
use crate::config::settings::WorkerSettings;
use crate::fanout::{
    BeginRequest, BeginResponse, HistoryResponse, KeepRequest, KeepResponse, NewOutcome,
    StoredOutcome, WorkerFanout,
};
use crate::log::Log;
use crate::pipeline::{Delivery, Handler, StopRequested, Verdict, WorkSlot};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::{Question, TerminalRecord, add_trace_headers, header};
use crate::protocol::trace_context::TraceContext;
use crate::telemetry::traces::{self, SpanKind};

/// The worker's [`Handler`], which answers messages.
pub(super) struct WorkerHandler {
    pub(super) log: Arc<dyn Log>,
    pub(super) fanout: Arc<dyn WorkerFanout>,
    pub(super) settings: WorkerSettings,
    pub(super) generator: Generator,
    pub(super) contexts: ContextCache,
    pub(super) metrics: WorkerMetrics,
}

/// How a message is processed.
#[derive(Clone)]
enum Job {
    /// Generate an answer to the message.
    Answer,
    /// End the message with an error. Its record becomes a dead letter; the field is the reason.
    Fail(String),
}

/// How an attempt ended.
enum AttemptResult {
    /// The message has an outcome.
    Ended {
        outcome: StoredOutcome,
        /// The reason for which the record becomes a dead letter; `None` where it does not become
        /// a dead letter.
        dead_letter_reason: Option<String>,
        /// Whether `outcome` is the outcome that this attempt passed to `keep`. Otherwise the
        /// message was cancelled, or an earlier call had stored the message's outcome.
        is_outcome_of_attempt: bool,
    },
    /// The message has no known outcome, because another worker holds its lease or another attempt
    /// is needed. The handler calls `begin` again.
    BeginAgain,
}

/// The progress of one delivery of a message, across its attempts.
struct Progress {
    /// Number of the last attempt; 0 before the first.
    last_attempt: u32,
    budget: CallBudget,
    /// The result of the model calls; `None` until they have ended. It survives an attempt whose
    /// outcome could not be stored, so that the next attempt stores it without another model call.
    generated: Option<GenerationResult>,
    /// The conversation's cached context; `None` where nothing is cached. Each `begin` names its
    /// version. The first attempt whose `begin` confirms the version takes the context.
    context: Option<CachedContext>,
}

impl Progress {
    /// The answer's parts so far. The outcome of a cancelled message contains these parts.
    fn parts(&self) -> Arc<[Part]> {
        match &self.generated {
            Some(GenerationResult::Answer(answer)) => Arc::clone(&answer.parts),
            Some(GenerationResult::Cancelled(parts) | GenerationResult::Failed(_, parts)) => {
                Arc::clone(parts)
            }
            Some(GenerationResult::BeginAgain) | None => no_parts(),
        }
    }

    /// Returns the context of an attempt, from the `history` in the response of `begin`. `None`
    /// where the context must be read from the fan-out.
    fn take_context(&mut self, history: Option<HistoryResponse>) -> Option<CachedContext> {
        match history? {
            HistoryResponse::Unchanged => self.context.take(),
            HistoryResponse::Turns(version, turns) => Some(CachedContext::new(version, turns)),
        }
    }
}

impl WorkerHandler {
    /// Parses a record and processes its message. An unreadable record becomes a dead letter; its
    /// user gets an error if key and headers name user and message.
    async fn process_record(
        &self,
        delivery: &Delivery,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let record = &delivery.record;
        let (question, job) = match Question::parse(record) {
            Ok(question) => (question, Job::Answer),
            Err(error) => match question_from_headers(record) {
                Some(question) => (question, Job::Fail(error.to_string())),
                None => return Ok(Verdict::DeadLetter(error.to_string())),
            },
        };
        let span = tracing::info_span!(
            "message",
            correlation_id = %question.correlation_id,
            message_id = %question.message_id,
            trace_id = slot.span().trace_id(),
        );
        self.process(question, &job, slot).instrument(span).await
    }

    /// Repeats attempts until the message has an outcome, then appends the terminal record.
    async fn process(
        &self,
        question: Question,
        job: &Job,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let message = Message::new(question, self.settings.reasoning);
        let is_answering = matches!(job, Job::Answer);
        let mut progress = Progress {
            last_attempt: 0,
            budget: self.generator.call_budget(),
            generated: None,
            context: is_answering
                .then(|| self.contexts.remove(&message.question))
                .flatten(),
        };
        loop {
            if slot.is_stopped() {
                return Err(StopRequested);
            }
            let request = self.begin_request(&message, job, &progress);
            let (begun_at, response) = self.begin(&request, slot).await?;
            match response {
                BeginResponse::Ended(outcome) => {
                    tracing::info!("outcome already stored, skipping the model call");
                    let dead_letter_reason = stored_dead_letter_reason(job, &outcome);
                    return self
                        .append_terminal_record(&message, &outcome, dead_letter_reason, slot)
                        .await;
                }
                BeginResponse::Busy(remaining) => {
                    let lease_ms = remaining.as_millis() as u64;
                    tracing::debug!(lease_ms, "another worker holds the lease");
                    let jitter = Duration::from_millis(rand::rng().random_range(5..50));
                    slot.sleep(remaining + jitter).await?;
                }
                BeginResponse::Attempt {
                    number,
                    now_ms,
                    delivery_count,
                    history,
                } => {
                    let mut attempt = Attempt {
                        message: &message,
                        context: progress.take_context(history),
                        begun_at,
                        number,
                    };
                    let result = match job {
                        Job::Fail(reason) => self.fail(&mut attempt, reason, slot).await,
                        Job::Answer => {
                            self.answer(&mut attempt, now_ms, delivery_count, &mut progress, slot)
                                .await
                        }
                    };
                    progress.last_attempt = attempt.number;
                    if let AttemptResult::Ended {
                        outcome,
                        dead_letter_reason,
                        is_outcome_of_attempt,
                    } = result
                    {
                        let dead_letter_reason = if is_outcome_of_attempt {
                            dead_letter_reason
                        } else {
                            stored_dead_letter_reason(job, &outcome)
                        };
                        return self
                            .append_terminal_record(&message, &outcome, dead_letter_reason, slot)
                            .await;
                    }
                }
            }
        }
    }

    /// Calls `begin` until the fan-out responds. Returns when that call was made, and its response.
    async fn begin(
        &self,
        request: &BeginRequest,
        slot: &mut WorkSlot,
    ) -> Result<(Instant, BeginResponse), StopRequested> {
        let _span = slot.span().child(SpanKind::Internal, format_args!("begin"));
        let mut begun_at = Instant::now();
        let response = slot
            .retry("begin", || {
                begun_at = Instant::now();
                self.fanout.begin(request.clone())
            })
            .await?;
        Ok((begun_at, response))
    }

    fn begin_request(&self, message: &Message, job: &Job, progress: &Progress) -> BeginRequest {
        let needs_context = matches!(job, Job::Answer) && progress.generated.is_none();
        BeginRequest {
            message: message.message_ref.clone(),
            owner: message.owner.clone(),
            last_attempt: progress.last_attempt,
            cancelled_outcome: message.outcomes.lazy_cancelled_outcome(&progress.parts()),
            history: needs_context
                .then(|| self.generator.history_request(progress.context.as_ref()))
                .flatten(),
        }
    }

    /// Stores the error `internal` as the outcome of a message that cannot be processed. Its record
    /// becomes a dead letter for `reason`.
    async fn fail(
        &self,
        attempt: &mut Attempt<'_>,
        reason: &str,
        slot: &mut WorkSlot,
    ) -> AttemptResult {
        let outcome = attempt.message.outcomes.error_outcome(ErrorCode::Internal);
        self.keep(attempt, outcome, &no_parts(), Some(reason.to_owned()), slot)
            .await
    }

    /// Generates the answer in this attempt and stores it as the outcome. A message that expired or
    /// was delivered too often gets an error instead. If an earlier attempt of the same delivery
    /// has generated the answer, that answer is stored without another model call.
    async fn answer(
        &self,
        attempt: &mut Attempt<'_>,
        now_ms: i64,
        delivery_count: u32,
        progress: &mut Progress,
        slot: &mut WorkSlot,
    ) -> AttemptResult {
        if let Some(generated) = &progress.generated {
            return self.keep_generated(attempt, generated, slot).await;
        }
        let outcomes = &attempt.message.outcomes;
        let age_ms = now_ms - attempt.message.question.appended_ms;
        if age_ms > self.settings.message_max_age.as_millis() as i64 {
            tracing::warn!(
                age_ms,
                "message is older than MESSAGE_MAX_AGE, skipping the model call; if this is \
                 frequent, add workers"
            );
            WorkerMetrics::record_failure(ErrorCode::Expired);
            let expired = outcomes.error_outcome(ErrorCode::Expired);
            return self.keep(attempt, expired, &no_parts(), None, slot).await;
        }
        if delivery_count > self.settings.pipeline.max_deliveries {
            let reason = format!("delivered {} times without an outcome", delivery_count - 1);
            WorkerMetrics::record_failure(ErrorCode::Internal);
            let failed = outcomes.error_outcome(ErrorCode::Internal);
            return self
                .keep(attempt, failed, &no_parts(), Some(reason), slot)
                .await;
        }
        if let Some(context) = &mut attempt.context {
            context.clear_if_older_than(self.settings.prompt.max_newest_turn_age, now_ms);
        }
        let generated = self
            .generator
            .generate(attempt, &mut progress.budget, slot)
            .await;
        if let GenerationResult::Failed(error, _) = &generated {
            tracing::warn!(
                %error,
                "the model call failed, no retry follows; the user gets an error and the record \
                 becomes a dead letter"
            );
            WorkerMetrics::record_failure(error.code);
        }
        let result = self.keep_generated(attempt, &generated, slot).await;
        if !matches!(generated, GenerationResult::BeginAgain) {
            progress.generated = Some(generated);
        }
        result
    }

    /// Stores the result of the model calls as the message's outcome. Stores nothing for
    /// [`GenerationResult::BeginAgain`].
    async fn keep_generated(
        &self,
        attempt: &mut Attempt<'_>,
        generated: &GenerationResult,
        slot: &mut WorkSlot,
    ) -> AttemptResult {
        let outcomes = &attempt.message.outcomes;
        match generated {
            GenerationResult::Answer(answer) => {
                let outcome = outcomes.answer_outcome(answer, attempt.number);
                self.keep(attempt, outcome, &answer.parts, None, slot).await
            }
            GenerationResult::Cancelled(parts) => {
                let outcome = outcomes.cancelled_outcome(parts);
                self.keep(attempt, outcome, parts, None, slot).await
            }
            GenerationResult::Failed(error, parts) => {
                let outcome = outcomes.provider_error_outcome(error, attempt.number);
                self.keep(attempt, outcome, parts, Some(error.to_string()), slot)
                    .await
            }
            GenerationResult::BeginAgain => AttemptResult::BeginAgain,
        }
    }

    /// Stores the message's outcome, unless the message has an outcome already. The call is
    /// repeated until the fan-out responds, even after the partition was revoked, because the next
    /// owner would have to repeat the model call. `parts` are the parts so far, which the outcome
    /// contains if the message was cancelled.
    async fn keep(
        &self,
        attempt: &mut Attempt<'_>,
        outcome: NewOutcome,
        parts: &Arc<[Part]>,
        dead_letter_reason: Option<String>,
        slot: &mut WorkSlot,
    ) -> AttemptResult {
        let message = attempt.message;
        let request = KeepRequest {
            message: message.message_ref.clone(),
            owner: message.owner.clone(),
            attempt: attempt.number,
            cancelled_outcome: message.outcomes.lazy_cancelled_outcome(parts),
            outcome: Arc::new(outcome),
        };
        let keep_span = slot.span().child(SpanKind::Internal, format_args!("keep"));
        let response = slot
            .retry_despite_stop("keep", || self.fanout.keep(request.clone()))
            .await;
        drop(keep_span);
        match response {
            KeepResponse::Appended(outcome, appended) => {
                let limit = self.generator.context_turns();
                let context = attempt.context.take();
                let context = context
                    .and_then(|context| context.append(appended, &request.outcome.turn, limit));
                if let Some(context) = context {
                    self.contexts.insert(&message.question, context);
                }
                AttemptResult::Ended {
                    outcome,
                    dead_letter_reason,
                    is_outcome_of_attempt: true,
                }
            }
            KeepResponse::Outcome(outcome) => AttemptResult::Ended {
                is_outcome_of_attempt: outcome.frame == request.outcome.frame,
                outcome,
                dead_letter_reason,
            },
            KeepResponse::Fenced => {
                tracing::info!(
                    attempt = attempt.number,
                    "fenced: another worker has taken over the message"
                );
                AttemptResult::BeginAgain
            }
        }
    }

    /// Appends the terminal record to the log, unless a relay has delivered the outcome already,
    /// and waits for the log's acknowledgement without a time limit. Returns the record's verdict.
    async fn append_terminal_record(
        &self,
        message: &Message,
        outcome: &StoredOutcome,
        dead_letter_reason: Option<String>,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        if outcome.delivered_at.is_none() {
            let topic = &self.settings.responses_topic;
            let question = &message.question;
            let mut span = slot
                .span()
                .child(SpanKind::Producer, format_args!("send {topic}"));
            span.set_text("messaging.system", traces::log_system());
            span.set_text("messaging.operation.name", "send");
            span.set_text("messaging.operation.type", "send");
            span.set_text("messaging.destination.name", topic);
            span.set_text("messaging.message.id", question.message_id.as_str());
            let record = terminal_record(question, outcome, span.context());
            let log_offset = slot
                .retry_despite_stop("produce", || {
                    let appended = self.log.append(topic, record.clone());
                    async {
                        appended
                            .await
                            .inspect_err(|_| self.metrics.record_publish_error())
                    }
                })
                .await;
            self.metrics.record_publish();
            span.set_number("messaging.kafka.offset", log_offset.offset);
            drop(span);
            tracing::info!(
                partition = log_offset.partition,
                offset = log_offset.offset,
                "terminal record produced"
            );
        }
        Ok(dead_letter_reason.map_or(Verdict::Done, Verdict::DeadLetter))
    }
}

#[async_trait]
impl Handler for WorkerHandler {
    fn lane(&self, record: &Record) -> String {
        Question::parse(record).map_or_else(
            |_| String::new(),
            |question| format!("{} {}", question.user, question.conversation),
        )
    }

    async fn handle(&self, delivery: &Delivery, slot: &mut WorkSlot) -> Verdict {
        let started = Instant::now();
        let appended_ms = delivery.record.timestamp_ms;
        self.metrics.record_log_wait(appended_ms);
        let verdict = self
            .process_record(delivery, slot)
            .await
            .unwrap_or_else(Verdict::from);
        self.metrics
            .record_processed(&verdict, started.elapsed(), appended_ms);
        verdict
    }

    async fn report_failure(
        &self,
        delivery: &Delivery,
        reason: &str,
        slot: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        let question = Question::parse(&delivery.record)
            .ok()
            .or_else(|| question_from_headers(&delivery.record));
        if let Some(question) = question {
            self.process(question, &Job::Fail(reason.to_owned()), slot)
                .await?;
        }
        Ok(())
    }
}

/// The parts of an answer that has none.
fn no_parts() -> Arc<[Part]> {
    Arc::default()
}

/// Returns the dead-letter reason of a message whose stored `outcome` is not the outcome of this
/// attempt. `None` where a message with this outcome becomes no dead letter. The worker that stored
/// the outcome may have crashed before it wrote the dead letter, so the dead letter is written
/// again: a duplicate is better than a loss.
fn stored_dead_letter_reason(job: &Job, outcome: &StoredOutcome) -> Option<String> {
    if let Job::Fail(reason) = job {
        return Some(reason.clone());
    }
    let code = TerminalRecord::parse(outcome.frame.as_bytes()).ok()?.code?;
    let is_dead_letter = match code {
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
    is_dead_letter.then(|| format!("ended before: {}", code.as_str()))
}

fn terminal_record(
    question: &Question,
    outcome: &StoredOutcome,
    trace: Option<&TraceContext>,
) -> NewRecord {
    let bytes = |value: &str| Bytes::from(value.to_owned());
    let mut headers = vec![
        (
            header::MESSAGE_ID.to_owned(),
            bytes(question.message_id.as_str()),
        ),
        (
            header::CORRELATION_ID.to_owned(),
            bytes(&question.correlation_id),
        ),
    ];
    add_trace_headers(&mut headers, trace);
    NewRecord {
        key: Some(bytes(question.user.as_str())),
        value: bytes(&outcome.frame),
        null_value: false,
        headers,
    }
}

/// Builds the message of an unreadable record from the record's key and headers, so that its user
/// gets an error (protocol.md section 2). `None` where key and headers do not name both user and
/// message.
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
