//! Generates the answer of an attempt: reads the context, builds the prompt, calls the model, and
//! retries failed calls.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::attempt::{Attempt, CallBudget};
use super::cancel_watch::CancelSubscriptions;
use super::coalesce::Coalescer;
use super::context_cache::CachedContext;
use super::live::{LiveTarget, LiveWriter, StopReason};
use super::outcome::{GeneratedAnswer, json_len, prefix_of_json_len};
use super::prompt::PromptBuilder;
use super::provider::metrics::ProviderMetrics;
use super::provider::{ModelError, ModelEvent, ModelRequest, Provider};
use crate::backoff::Backoff;
use crate::config::settings::WorkerSettings;
use crate::fanout::{self, HistoryRequest, Turn, WorkerFanout};
use crate::pipeline::{StopRequested, WorkSlot};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Question;
use crate::telemetry::traces::{Kind, Span};

/// `finish_reason` of an answer that was cut at `MAX_ANSWER_BYTES`.
const FINISH_REASON_LENGTH: &str = "length";

/// Generates answers with the model of one worker.
pub(super) struct Generator {
    provider: Arc<dyn Provider>,
    fanout: Arc<dyn WorkerFanout>,
    settings: WorkerSettings,
    /// `OPENAI_MAX_ATTEMPTS`; 1 for the demo model.
    max_calls: u32,
    cancels: CancelSubscriptions,
}

/// How the generation of an answer ended.
pub(super) enum GenerationResult {
    /// The answer is complete.
    Answer(GeneratedAnswer),
    /// The user cancelled the message; the text so far.
    Cancelled(String),
    /// The last call failed and no retry follows; the text so far.
    Failed(ModelError, String),
    /// The worker must call `begin` again: another worker holds the message, or a retry must start
    /// with an empty text.
    BeginAgain,
}

/// How one model call ended.
enum CallEnd {
    Answer(GeneratedAnswer),
    Failed(ModelError),
    Stopped(StopReason),
    DeadlineExceeded,
}

impl Generator {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(
        provider: Arc<dyn Provider>,
        fanout: Arc<dyn WorkerFanout>,
        settings: WorkerSettings,
    ) -> Self {
        let max_calls = settings
            .model
            .as_ref()
            .map_or(1, |model| model.max_attempts);
        // Exports the counters from the start, so that a rate over them sees the first increment.
        for attempt in 2..=max_calls {
            ProviderMetrics::retries(attempt).increment(0);
        }
        Self {
            cancels: CancelSubscriptions::start(Arc::clone(&fanout) as _),
            provider,
            fanout,
            settings,
            max_calls,
        }
    }

    /// The budget for one delivery of a message.
    pub(super) fn call_budget(&self) -> CallBudget {
        CallBudget::new(self.max_calls)
    }

    /// Generates the answer in this attempt, and publishes its text while it grows.
    pub(super) async fn generate(
        &self,
        attempt: &mut Attempt<'_>,
        budget: &mut CallBudget,
        slot: &mut WorkSlot,
    ) -> GenerationResult {
        let target = LiveTarget {
            message: attempt.message.reference.clone(),
            owner: attempt.message.owner.clone(),
            attempt: attempt.number,
            publishes_text: attempt.message.question.stream,
        };
        let coalescer =
            Coalescer::new(self.settings.stream_flush, self.settings.stream_flush_bytes);
        let writer = LiveWriter::start(
            Arc::clone(&self.fanout) as _,
            target,
            attempt.cancelled_outcome.clone(),
            coalescer,
            self.cancels.watcher(),
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

    /// The number of turns that are read, or cached, per conversation. Most turns are two messages,
    /// and the message's own turn may be among them.
    pub(super) fn context_turns(&self) -> usize {
        self.settings.prompt.history_max_messages.div_ceil(2) + 1
    }

    fn uses_history(&self) -> bool {
        let settings = &self.settings.prompt;
        settings.keep_history && settings.history_max_messages > 0
    }

    /// What `begin` requests of the conversation's history; `None` where the model sees none.
    pub(super) fn history_request(&self, cached: Option<&CachedContext>) -> Option<HistoryRequest> {
        self.uses_history().then(|| HistoryRequest {
            limit: self.context_turns(),
            max_idle_time: self.settings.prompt.history_ttl,
            known_version: cached.map(|context| context.version.clone()),
        })
    }

    /// Whether `turns` are all that the prompt can use, without the message's own turn.
    fn is_sufficient(&self, turns: &[Turn], question: &Question) -> bool {
        let is_own = |turn: &Turn| turn.message_id == question.message_id;
        let max_messages = self.settings.prompt.history_max_messages;
        (turns.len() < self.context_turns() || PromptBuilder::message_count(turns) >= max_messages)
            && !turns.iter().any(is_own)
    }

    /// Reads the earlier turns of the conversation. The previous message's turn is among them: its
    /// outcome is stored before the next message of the lane starts.
    async fn read_context(&self, question: &Question) -> fanout::Result<Vec<Turn>> {
        let settings = &self.settings.prompt;
        if !self.uses_history() {
            return Ok(Vec::new());
        }
        let max_messages = settings.history_max_messages;
        let (user, conversation) = (&question.user, &question.conversation);
        // If the first turns have too few messages, the maximum is read: a turn has at least one.
        let mut limit = self.context_turns();
        loop {
            let context = self
                .fanout
                .context(user, conversation, limit, settings.history_ttl);
            let mut turns = context.await?;
            let is_complete = turns.len() < limit || limit > max_messages;
            turns.retain(|turn| turn.message_id != question.message_id);
            if is_complete || PromptBuilder::message_count(&turns) >= max_messages {
                return Ok(turns);
            }
            limit = max_messages + 1;
        }
    }

    async fn model_request(
        &self,
        attempt: &Attempt<'_>,
        slot: &mut WorkSlot,
    ) -> Result<ModelRequest, StopRequested> {
        let question = &attempt.message.question;
        let settings = &self.settings.prompt;
        if let Some(context) = &attempt.context
            && self.is_sufficient(&context.turns, question)
        {
            return Ok(PromptBuilder::build(
                settings,
                &context.turns,
                &question.content,
            ));
        }
        let _span = slot.span().child(Kind::Internal, format_args!("context"));
        let turns = slot
            .retry("read context", || self.read_context(question))
            .await?;
        Ok(PromptBuilder::build(settings, &turns, &question.content))
    }

    /// Calls the model until it answers, the message is cancelled or taken over, or no retry is
    /// allowed.
    async fn call_with_retries(
        &self,
        request: &ModelRequest,
        budget: &mut CallBudget,
        writer: &LiveWriter,
        message_span: &Span,
    ) -> GenerationResult {
        let latest = Instant::now() + self.settings.message_deadline;
        let mut deadline = *budget.deadline.get_or_insert(latest);
        loop {
            budget.calls_made += 1;
            let mut span = self.start_call_span(request, budget.calls_made, message_span);
            let end = tokio::select! {
                biased;
                reason = writer.wait_until_stopped() => CallEnd::Stopped(reason),
                () = tokio::time::sleep_until(deadline) => CallEnd::DeadlineExceeded,
                result = self.call(request, writer, &mut span) => match result {
                    Ok(answer) => CallEnd::Answer(answer),
                    Err(error) => CallEnd::Failed(error),
                },
            };
            end_call_span(span, &end);
            let error = match end {
                CallEnd::Answer(answer) => return GenerationResult::Answer(answer),
                CallEnd::Stopped(reason) => return stopped_result(reason, writer),
                CallEnd::DeadlineExceeded => {
                    return GenerationResult::Failed(deadline_error(), writer.text());
                }
                CallEnd::Failed(error) => error,
            };
            let next_call = budget.calls_made + 1;
            let delay = retry_delay(budget.calls_made, error.retry_after, rand::random());
            let is_in_time = Instant::now() + delay < deadline;
            if !error.retryable || budget.is_exhausted() || !is_in_time {
                return GenerationResult::Failed(error, writer.text());
            }
            let delay_ms = delay.as_millis() as u64;
            tracing::warn!(
                %error, attempt = next_call, delay_ms, "the model call failed and is retried"
            );
            ProviderMetrics::retries(next_call).increment(1);
            if let Some(reason) = sleep_unless_stopped(delay, writer).await {
                return stopped_result(reason, writer);
            }
            if writer.has_text() {
                // The texts of two model calls are never mixed (I4).
                return GenerationResult::BeginAgain;
            }
            // A process that was paused for longer than its lease sees the call fail, too. Without
            // this check it would call the model for a message that another worker has taken over.
            // Waiting for an unavailable fan-out does not count against the deadline.
            let check_started = Instant::now();
            if let Err(reason) = writer.confirm_lease().await {
                return stopped_result(reason, writer);
            }
            deadline += check_started.elapsed();
            budget.deadline = Some(deadline);
        }
    }

    /// The span of one call, named by OpenTelemetry's conventions for generative AI.
    fn start_call_span(&self, request: &ModelRequest, number: u32, message: &Span) -> Span {
        let name = format_args!("chat {}", request.model);
        let mut span = message.child(Kind::Client, name);
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
        span.set_number("chatmesh.attempt", number);
        if let Some(url) = api.map(|api| &api.base_url) {
            span.set_text("server.address", url.host_str().unwrap_or_default());
            if let Some(port) = url.port_or_known_default() {
                span.set_number("server.port", port);
            }
        }
        span
    }

    /// Makes one call and reads its stream to the end, or to `MAX_ANSWER_BYTES`.
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
        let mut remaining = self.settings.max_answer_bytes;
        while let Some(event) = stream.next().await {
            match event? {
                ModelEvent::Text(text) => {
                    if answer.text.is_empty() {
                        span.add_event("first token");
                    }
                    let accepted = prefix_of_json_len(&text, remaining);
                    writer.push(accepted);
                    answer.text.push_str(accepted);
                    remaining = remaining.saturating_sub(json_len(accepted));
                    if accepted.len() < text.len() {
                        FINISH_REASON_LENGTH.clone_into(&mut answer.finish_reason);
                        return Ok(answer);
                    }
                }
                ModelEvent::Usage(usage) => answer.usage = Some(usage),
                ModelEvent::Finished { reason, model } => {
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

fn end_call_span(mut span: Span, end: &CallEnd) {
    match end {
        CallEnd::Answer(answer) => {
            span.set_text("gen_ai.response.model", &answer.model);
            span.set_texts("gen_ai.response.finish_reasons", &[&answer.finish_reason]);
            if let Some(usage) = &answer.usage {
                span.set_number("gen_ai.usage.input_tokens", usage.prompt_tokens);
                span.set_number("gen_ai.usage.output_tokens", usage.completion_tokens);
            }
        }
        CallEnd::Failed(error) => span.fail(error.kind),
        CallEnd::Stopped(StopReason::Cancelled) => span.add_event("cancelled"),
        CallEnd::Stopped(StopReason::Fenced) => span.add_event("taken over"),
        CallEnd::DeadlineExceeded => span.fail("deadline"),
    }
}

fn stopped_result(reason: StopReason, writer: &LiveWriter) -> GenerationResult {
    match reason {
        StopReason::Cancelled => GenerationResult::Cancelled(writer.text()),
        StopReason::Fenced => GenerationResult::BeginAgain,
    }
}

/// Sleeps for `delay`. Returns early, with the reason, when the attempt must stop.
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

/// The delay before another model call after `calls_made` of them failed: exponential, and at least
/// what the provider requested. `random` (0 to 1) is the jitter.
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
