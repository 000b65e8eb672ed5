//! Generates the answer of an attempt for the handler: reads the context, builds the prompt, calls
//! the model, and retries failed calls.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::answer_parts::{AnswerParts, LimitReached, Part};
use super::attempt::{Attempt, CallBudget};
use super::cancel_watch::CancelSubscriptions;
use super::coalesce::Coalescer;
use super::context_cache::CachedContext;
use super::live::LiveWriter;
use super::live_state::{LiveAnswer, LiveTarget, StopReason};
use super::outcome::GeneratedAnswer;
use super::prompt::PromptBuilder;
use super::provider::metrics::ProviderMetrics;
use super::provider::{ModelError, ModelEvent, ModelRequest, Provider};
use crate::backoff::Backoff;
use crate::config::settings::WorkerSettings;
use crate::fanout::{self, HistoryRequest, Turn, WorkerFanout};
use crate::pipeline::{StopRequested, WorkSlot};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Question;
use crate::telemetry::traces::{Span, SpanKind};

/// `finish_reason` of an answer that was cut at `MAX_ANSWER_BYTES` or [`MAX_PARTS`].
///
/// [`MAX_PARTS`]: crate::protocol::parts::MAX_PARTS
const FINISH_REASON_LENGTH: &str = "length";

/// Generates the answers of one worker.
pub(super) struct Generator {
    provider: Arc<dyn Provider>,
    fanout: Arc<dyn WorkerFanout>,
    settings: WorkerSettings,
    /// Maximum number of model calls for one delivery of a message: `OPENAI_MAX_ATTEMPTS`, or 1 for
    /// the demo model.
    max_calls: u32,
    cancel_subscriptions: CancelSubscriptions,
}

/// How the generation of an answer ended.
pub(super) enum GenerationResult {
    /// The answer is complete.
    Answer(GeneratedAnswer),
    /// The user cancelled the message. The field is the parts so far.
    Cancelled(Arc<[Part]>),
    /// The last call failed and no retry follows. The fields are the error and the parts so far.
    Failed(ModelError, Arc<[Part]>),
    /// The handler must call `begin` again, because another worker holds the message or a retry
    /// must start without parts. Also returned if a stop was requested before the first call:
    /// the handler detects the stop before it calls `begin`.
    BeginAgain,
}

/// How one model call ended.
enum CallResult {
    Answer(GeneratedAnswer),
    Failed(ModelError),
    Stopped(StopReason),
    DeadlineExceeded,
}

impl Generator {
    /// Creates the generator, and starts the task that subscribes to cancels. Must be called inside
    /// a tokio runtime.
    pub(super) fn new(
        provider: Arc<dyn Provider>,
        fanout: Arc<dyn WorkerFanout>,
        settings: WorkerSettings,
    ) -> Self {
        let max_calls = settings
            .model
            .as_ref()
            .map_or(1, |model| model.max_attempts);
        // The counters exist from the start, so that a rate over them includes the first increment.
        for call_number in 2..=max_calls {
            ProviderMetrics::retries(call_number).increment(0);
        }
        Self {
            cancel_subscriptions: CancelSubscriptions::start(Arc::clone(&fanout) as _),
            provider,
            fanout,
            settings,
            max_calls,
        }
    }

    /// Returns a new budget of model calls for one delivery of a message.
    pub(super) fn call_budget(&self) -> CallBudget {
        CallBudget::new(self.max_calls)
    }

    /// Generates the answer in this attempt, and publishes the parts while they grow.
    /// Updates `attempt.number`, which grows if the fan-out loses its data during the attempt.
    pub(super) async fn generate(
        &self,
        attempt: &mut Attempt<'_>,
        budget: &mut CallBudget,
        slot: &mut WorkSlot,
    ) -> GenerationResult {
        let target = LiveTarget {
            message: attempt.message.message_ref.clone(),
            owner: attempt.message.owner.clone(),
            attempt: attempt.number,
            begun_at: attempt.begun_at,
            publishes_parts: attempt.message.question.stream,
        };
        let settings = &self.settings;
        let answer = LiveAnswer::new(
            AnswerParts::new(settings.max_answer_bytes, settings.reasoning),
            Coalescer::new(settings.stream_flush, settings.stream_flush_bytes),
        );
        let writer = LiveWriter::start(
            Arc::clone(&self.fanout) as _,
            target,
            attempt.message.outcomes.clone(),
            answer,
            self.cancel_subscriptions.watcher(),
        );
        let result = match self.model_request(attempt, slot).await {
            Ok(request) => {
                self.call_with_retries(&request, budget, &writer, slot.span())
                    .await
            }
            Err(StopRequested) => GenerationResult::BeginAgain,
        };
        attempt.number = writer.attempt();
        result
    }

    /// The number of turns of a conversation that are requested first, and the maximum number that
    /// are cached. It is half of `CHAT_HISTORY_MAX_MESSAGES`, because most turns are two messages,
    /// and one more, because the message's own turn may be among them.
    pub(super) fn context_turns(&self) -> usize {
        self.settings.prompt.history_max_messages.div_ceil(2) + 1
    }

    /// Whether prompts contain earlier turns.
    fn uses_history(&self) -> bool {
        let settings = &self.settings.prompt;
        settings.keep_history && settings.history_max_messages > 0
    }

    /// Returns the request for the conversation's history, which is part of `begin`. `None` where
    /// prompts contain no history.
    pub(super) fn history_request(
        &self,
        cached_context: Option<&CachedContext>,
    ) -> Option<HistoryRequest> {
        self.uses_history().then(|| HistoryRequest {
            limit: self.context_turns(),
            max_newest_turn_age: self.settings.prompt.max_newest_turn_age,
            known_version: cached_context.map(|context| context.version.clone()),
        })
    }

    /// Whether the prompt can be built from `turns` without another read: they are all turns of the
    /// conversation, or as many messages as a prompt may contain, and the message's own turn is not
    /// among them.
    fn is_sufficient_context(&self, turns: &[Turn], question: &Question) -> bool {
        let is_own = |turn: &Turn| turn.message_id == question.message_id;
        let max_messages = self.settings.prompt.history_max_messages;
        (turns.len() < self.context_turns() || PromptBuilder::message_count(turns) >= max_messages)
            && !turns.iter().any(is_own)
    }

    /// Reads the earlier turns of the conversation; none where prompts contain no history. The
    /// previous message's turn is among them, because the lane starts a message only after the
    /// outcome of the previous message is stored.
    async fn read_context(&self, question: &Question) -> fanout::Result<Vec<Turn>> {
        let settings = &self.settings.prompt;
        if !self.uses_history() {
            return Ok(Vec::new());
        }
        let max_messages = settings.history_max_messages;
        let (user, conversation) = (&question.user, &question.conversation);
        // If the turns of the first read have too few messages, a second read requests as many
        // turns as a prompt may have messages, because each turn is at least one message.
        let mut limit = self.context_turns();
        loop {
            let context =
                self.fanout
                    .context(user, conversation, limit, settings.max_newest_turn_age);
            let mut turns = context.await?;
            let is_complete = turns.len() < limit || limit > max_messages;
            turns.retain(|turn| turn.message_id != question.message_id);
            if is_complete || PromptBuilder::message_count(&turns) >= max_messages {
                return Ok(turns);
            }
            limit = max_messages + 1;
        }
    }

    /// Builds the request from the attempt's context. Where that is absent or not sufficient, reads
    /// the turns from the fan-out.
    async fn model_request(
        &self,
        attempt: &Attempt<'_>,
        slot: &mut WorkSlot,
    ) -> Result<ModelRequest, StopRequested> {
        let question = &attempt.message.question;
        let settings = &self.settings.prompt;
        if let Some(context) = &attempt.context
            && self.is_sufficient_context(&context.turns, question)
        {
            return Ok(PromptBuilder::build(
                settings,
                &context.turns,
                &question.content,
            ));
        }
        let _span = slot
            .span()
            .child(SpanKind::Internal, format_args!("context"));
        let turns = slot
            .retry("read context", || self.read_context(question))
            .await?;
        Ok(PromptBuilder::build(settings, &turns, &question.content))
    }

    /// Calls the model, and repeats a failed call while the error, the budget and the deadline
    /// allow it. Returns early when the message is cancelled or taken over. After a failed call
    /// that has produced a part, returns [`GenerationResult::BeginAgain`], because the next call
    /// needs a new attempt.
    async fn call_with_retries(
        &self,
        request: &ModelRequest,
        budget: &mut CallBudget,
        writer: &LiveWriter,
        message_span: &Span,
    ) -> GenerationResult {
        let new_deadline = Instant::now() + self.settings.message_deadline;
        let mut deadline = *budget.deadline.get_or_insert(new_deadline);
        loop {
            budget.calls_made += 1;
            let mut span = self.start_call_span(request, budget.calls_made, message_span);
            let call_result = tokio::select! {
                biased;
                reason = writer.wait_until_stopped() => CallResult::Stopped(reason),
                () = tokio::time::sleep_until(deadline) => CallResult::DeadlineExceeded,
                result = self.call(request, writer, &mut span) => match result {
                    Ok(answer) => CallResult::Answer(answer),
                    Err(error) => CallResult::Failed(error),
                },
            };
            finish_call_span(span, &call_result);
            let error = match call_result {
                CallResult::Answer(answer) => {
                    writer.wait_until_reasoning_published().await;
                    return GenerationResult::Answer(answer);
                }
                CallResult::Stopped(reason) => return stopped_result(reason, writer),
                CallResult::DeadlineExceeded => {
                    return GenerationResult::Failed(deadline_error(), writer.parts());
                }
                CallResult::Failed(error) => error,
            };
            let next_call = budget.calls_made + 1;
            let delay = retry_delay(budget.calls_made, error.retry_after, rand::random());
            let is_in_time = Instant::now() + delay < deadline;
            if !error.retryable || budget.is_exhausted() || !is_in_time {
                return GenerationResult::Failed(error, writer.parts());
            }
            let delay_ms = delay.as_millis() as u64;
            tracing::warn!(
                %error,
                failed_calls = budget.calls_made,
                delay_ms,
                "the model call failed and is retried"
            );
            ProviderMetrics::retries(next_call).increment(1);
            if let Some(reason) = sleep_unless_stopped(delay, writer).await {
                return stopped_result(reason, writer);
            }
            if writer.has_parts() {
                // A new attempt starts, because the parts of two calls are never mixed (I4).
                return GenerationResult::BeginAgain;
            }
            // The call also fails in a process that was paused for longer than its lease. Without
            // this check, the process would call the model for a message that another worker has
            // taken over. The time that the check waits for the fan-out is added to the deadline.
            let check_started = Instant::now();
            if let Err(reason) = writer.confirm_lease().await {
                return stopped_result(reason, writer);
            }
            deadline += check_started.elapsed();
            budget.deadline = Some(deadline);
        }
    }

    /// Starts the span of one call, with name and attributes by OpenTelemetry's conventions for
    /// generative AI.
    fn start_call_span(
        &self,
        request: &ModelRequest,
        call_number: u32,
        message_span: &Span,
    ) -> Span {
        let name = format_args!("chat {}", request.model);
        let mut span = message_span.child(SpanKind::Client, name);
        if !span.is_recorded() {
            return span;
        }
        let api = self.settings.model.as_ref();
        span.set_text("gen_ai.operation.name", "chat");
        let provider = api.map_or("chatmesh.demo", |_| "openai");
        span.set_text("gen_ai.provider.name", provider);
        span.set_text("gen_ai.request.model", &request.model);
        span.set_number("gen_ai.request.max_tokens", request.max_tokens);
        span.set_float("gen_ai.request.temperature", request.temperature);
        span.set_number("chatmesh.attempt", call_number);
        if let Some(url) = api.map(|api| &api.base_url) {
            span.set_text("server.address", url.host_str().unwrap_or_default());
            if let Some(port) = url.port_or_known_default() {
                span.set_number("server.port", port);
            }
        }
        span
    }

    /// Makes one call, and passes the pieces to `writer` as they arrive. Returns the complete
    /// answer, or the answer cut at its limits.
    async fn call(
        &self,
        request: &ModelRequest,
        writer: &LiveWriter,
        span: &mut Span,
    ) -> Result<GeneratedAnswer, ModelError> {
        let mut stream = self.provider.call(request).await?;
        let mut answer = GeneratedAnswer {
            model: request.model.clone(),
            ..GeneratedAnswer::default()
        };
        let mut has_received_token = false;
        while let Some(event) = stream.next().await {
            match event? {
                ModelEvent::Delta(delta) => {
                    if !has_received_token {
                        span.add_event("first token");
                        has_received_token = true;
                    }
                    if let Err(LimitReached) = writer.push(delta) {
                        answer.parts = writer.finish();
                        FINISH_REASON_LENGTH.clone_into(&mut answer.finish_reason);
                        return Ok(answer);
                    }
                }
                ModelEvent::Usage(usage) => answer.usage = Some(usage),
                ModelEvent::Finished { reason, model } => {
                    answer.parts = writer.finish();
                    answer.finish_reason = reason;
                    if let Some(model) = model {
                        answer.model = model;
                    }
                    return Ok(answer);
                }
            }
        }
        Err(ModelError {
            code: ErrorCode::ProviderFailed,
            retryable: true,
            retry_after: None,
            detail: "the stream ended without a finish reason".to_owned(),
            kind: "cut_off",
        })
    }
}

/// Adds the result of the call to its span, and ends the span by dropping it.
fn finish_call_span(mut span: Span, call_result: &CallResult) {
    match call_result {
        CallResult::Answer(answer) => {
            span.set_text("gen_ai.response.model", &answer.model);
            span.set_texts("gen_ai.response.finish_reasons", &[&answer.finish_reason]);
            if let Some(usage) = &answer.usage {
                span.set_number("gen_ai.usage.input_tokens", usage.prompt_tokens);
                span.set_number("gen_ai.usage.output_tokens", usage.completion_tokens);
            }
        }
        CallResult::Failed(error) => span.fail(error.kind),
        CallResult::Stopped(StopReason::Cancelled) => span.add_event("cancelled"),
        CallResult::Stopped(StopReason::Fenced) => span.add_event("taken over"),
        CallResult::DeadlineExceeded => span.fail("deadline"),
    }
}

fn stopped_result(reason: StopReason, writer: &LiveWriter) -> GenerationResult {
    match reason {
        StopReason::Cancelled => GenerationResult::Cancelled(writer.parts()),
        StopReason::Fenced => GenerationResult::BeginAgain,
    }
}

/// Sleeps for `delay`, and returns `None`. Returns early, with the reason, when the attempt must
/// stop.
async fn sleep_unless_stopped(delay: Duration, writer: &LiveWriter) -> Option<StopReason> {
    tokio::select! {
        biased;
        reason = writer.wait_until_stopped() => Some(reason),
        () = tokio::time::sleep(delay) => None,
    }
}

fn deadline_error() -> ModelError {
    ModelError {
        code: ErrorCode::ProviderTimeout,
        retryable: true,
        retry_after: None,
        detail: "no answer within MESSAGE_DEADLINE_MS".to_owned(),
        kind: "deadline",
    }
}

/// The delay before another model call after `calls_made` calls have failed. It grows exponentially
/// and is at least `retry_after`, which the provider requested. `random` (0 to 1) determines the
/// jitter.
fn retry_delay(calls_made: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    const BACKOFF: Backoff =
        Backoff::new(Duration::from_millis(500), Duration::from_secs(8)).with_jitter();
    let delay = BACKOFF.delay(calls_made.saturating_sub(1), random);
    delay.max(retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_between_calls_double_from_500_ms_to_8_s() {
        let delay = |calls_made| retry_delay(calls_made, None, 1.0).as_millis();
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 59, u32::MAX].map(delay),
            [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]
        );
    }

    #[test]
    fn retry_after_of_the_provider_is_a_lower_bound() {
        let longer = Some(Duration::from_secs(20));
        assert_eq!(retry_delay(1, longer, 1.0), Duration::from_secs(20));
        let shorter = Some(Duration::from_millis(20));
        assert_eq!(retry_delay(1, shorter, 1.0), Duration::from_millis(500));
    }
}
