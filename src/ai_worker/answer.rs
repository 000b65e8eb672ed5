//! Asks the model and reads its answer, with the attempts that the provider's faults need.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::cancels::Cancels;
use super::coalesce::Coalescer;
use super::ending::{Answer, fitting, json_len};
use super::handler::Attempt;
use super::live::{LiveWriter, Signal, Subjects};
use super::prompt::Prompt;
use super::provider::metrics::ProviderMetrics;
use super::provider::{ModelError, ModelEvent, ModelRequest, Provider};
use super::recent::Known;
use crate::backoff::Backoff;
use crate::config::settings::WorkerSettings;
use crate::fanout::{self, HistoryRequest, Turn, WorkerFanout};
use crate::pipeline::{Stopped, Work};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Question;
use crate::telemetry::traces::{Kind, Span};

/// `finish_reason` of an answer that `MAX_ANSWER_BYTES` ended.
const LENGTH: &str = "length";

/// The model, and what is asked of it.
pub(super) struct Model {
    provider: Arc<dyn Provider>,
    fanout: Arc<dyn WorkerFanout>,
    settings: WorkerSettings,
    /// `OPENAI_MAX_ATTEMPTS`; the demo model needs one.
    most_calls: u32,
    cancels: Cancels,
}

/// The provider calls of one taking of a message, over all its attempts.
pub(super) struct Calls {
    /// Known from the first call on: waiting for another worker's lease, or for a fan-out that
    /// is away, is no fault of the message.
    deadline: Option<Instant>,
    made: u32,
    /// At most this many (`OPENAI_MAX_ATTEMPTS`).
    most: u32,
}

/// How the writing of an answer ended.
pub(super) enum Written {
    /// Whole.
    Answer(Answer),
    /// Its user stopped it; the text so far.
    Cancelled(String),
    /// No attempt is left, or none would help; the text so far.
    Failed(ModelError, String),
    /// `begin` again: another worker has it, or the text has to begin anew.
    Again,
}

enum CallEnd {
    Answer(Answer),
    Failed(ModelError),
    Signal(Signal),
    DeadlineOver,
}

impl Model {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(
        provider: Arc<dyn Provider>,
        fanout: Arc<dyn WorkerFanout>,
        settings: WorkerSettings,
    ) -> Self {
        let most_calls = settings
            .model
            .as_ref()
            .map_or(1, |model| model.max_attempts);
        // So that a rate over them begins at zero, and not with the first failure.
        for attempt in 2..=most_calls {
            ProviderMetrics::retries(attempt).increment(0);
        }
        Self {
            cancels: Cancels::start(Arc::clone(&fanout) as _),
            provider,
            fanout,
            settings,
            most_calls,
        }
    }

    /// The calls that a taking may make.
    pub(super) fn calls(&self) -> Calls {
        Calls {
            deadline: None,
            made: 0,
            most: self.most_calls,
        }
    }

    /// Writes the answer in this attempt.
    pub(super) async fn write(
        &self,
        attempt: &mut Attempt<'_>,
        calls: &mut Calls,
        work: &mut Work,
    ) -> Written {
        let subjects = Subjects {
            subject: attempt.subject.clone(),
            owner: attempt.owner.clone(),
            number: attempt.number,
            stream: attempt.question.stream,
        };
        let coalescer =
            Coalescer::new(self.settings.stream_flush, self.settings.stream_flush_bytes);
        let writer = LiveWriter::start(
            Arc::clone(&self.fanout) as _,
            subjects,
            attempt.cancelled.clone(),
            coalescer,
            self.cancels.watcher(),
        );
        let request = self.request(attempt, work).await;
        let written = match request {
            Ok(request) => self.ask(&request, calls, &writer, work.span()).await,
            Err(Stopped) => Written::Again,
        };
        attempt.number = writer.number();
        written
    }

    /// How many turns are asked for, or remembered, of a conversation. Most turns are two messages,
    /// and this message's own may be among them.
    pub(super) fn recalled_turns(&self) -> usize {
        self.settings.prompt.history_max_messages.div_ceil(2) + 1
    }

    /// Whether the model is to know anything of what came earlier.
    fn keeps_history(&self) -> bool {
        let settings = &self.settings.prompt;
        settings.keep_history && settings.history_max_messages > 0
    }

    /// What `begin` is to say of the conversation's history.
    pub(super) fn recall(&self, known: Option<&Known>) -> Option<HistoryRequest> {
        self.keeps_history().then(|| HistoryRequest {
            limit: self.recalled_turns(),
            max_age: self.settings.prompt.history_ttl,
            known_version: known.map(|known| known.mark.clone()),
        })
    }

    /// Whether these are all turns that the prompt can use, and this message's own not among them.
    fn is_enough(&self, turns: &[Turn], question: &Question) -> bool {
        let own = |turn: &Turn| turn.message_id == question.message_id;
        let most = self.settings.prompt.history_max_messages;
        (turns.len() < self.recalled_turns() || Prompt::messages(turns) >= most)
            && !turns.iter().any(own)
    }

    /// What came earlier in the conversation; nothing where the model is to know nothing of it. The
    /// one before has been kept when this message's turn comes.
    async fn earlier(&self, question: &Question) -> fanout::Result<Vec<Turn>> {
        let settings = &self.settings.prompt;
        if !self.keeps_history() {
            return Ok(Vec::new());
        }
        let most = settings.history_max_messages;
        let (user, conversation) = (&question.user, &question.conversation);
        // Only where the first turns are too few messages, as many as there may be are read: a turn
        // is at least one message.
        let mut limit = self.recalled_turns();
        loop {
            let context = self
                .fanout
                .context(user, conversation, limit, settings.history_ttl);
            let mut turns = context.await?;
            let all = turns.len() < limit || limit > most;
            turns.retain(|turn| turn.message_id != question.message_id);
            if all || Prompt::messages(&turns) >= most {
                return Ok(turns);
            }
            limit = most + 1;
        }
    }

    async fn request(
        &self,
        attempt: &Attempt<'_>,
        work: &mut Work,
    ) -> Result<ModelRequest, Stopped> {
        let (question, settings) = (attempt.question, &self.settings.prompt);
        if let Some(known) = &attempt.known
            && self.is_enough(&known.turns, question)
        {
            return Ok(Prompt::build(settings, &known.turns, &question.content));
        }
        let _reading = work.span().child(Kind::Internal, format_args!("context"));
        let turns = work.until("history", || self.earlier(question)).await?;
        Ok(Prompt::build(settings, &turns, &question.content))
    }

    async fn ask(
        &self,
        request: &ModelRequest,
        calls: &mut Calls,
        writer: &LiveWriter,
        message: &Span,
    ) -> Written {
        let over = Instant::now() + self.settings.message_deadline;
        let mut deadline = *calls.deadline.get_or_insert(over);
        loop {
            calls.made += 1;
            let mut span = self.begin_call(request, calls.made, message);
            let end = tokio::select! {
                biased;
                signal = writer.stopped() => CallEnd::Signal(signal),
                () = tokio::time::sleep_until(deadline) => CallEnd::DeadlineOver,
                result = self.call(request, writer, &mut span) => match result {
                    Ok(answer) => CallEnd::Answer(answer),
                    Err(error) => CallEnd::Failed(error),
                },
            };
            end_call(span, &end);
            let error = match end {
                CallEnd::Answer(answer) => return Written::Answer(answer),
                CallEnd::Signal(signal) => return after(signal, writer),
                CallEnd::DeadlineOver => return Written::Failed(deadline_over(), writer.text()),
                CallEnd::Failed(error) => error,
            };
            let attempt = calls.made + 1;
            let delay = retry_delay(calls.made, error.retry_after, rand::random());
            let in_time = Instant::now() + delay < deadline;
            if !error.retryable || calls.made >= calls.most || !in_time {
                return Written::Failed(error, writer.text());
            }
            let delay_ms = delay.as_millis() as u64;
            tracing::warn!(%error, attempt, delay_ms, "the model's call failed and is tried again");
            ProviderMetrics::retries(attempt).increment(1);
            if let Some(signal) = pause(delay, writer).await {
                return after(signal, writer);
            }
            if writer.has_text() {
                // What was said is never continued by another attempt's words (I4).
                return Written::Again;
            }
            // Nobody pays again for what another has taken over: a process that was stopped for longer
            // than its lease sees a model that did not answer. A fan-out that is away costs no time.
            let asked = Instant::now();
            if let Err(signal) = writer.still_ours().await {
                return after(signal, writer);
            }
            deadline += asked.elapsed();
            calls.deadline = Some(deadline);
        }
    }

    /// The span of one call, by the conventions for generative AI.
    fn begin_call(&self, request: &ModelRequest, number: u32, message: &Span) -> Span {
        let name = format_args!("chat {}", request.model);
        let mut span = message.child(Kind::Client, name);
        if !span.is_recorded() {
            return span;
        }
        let api = self.settings.model.as_ref();
        span.text("gen_ai.operation.name", "chat");
        let provider = api.map_or("chatmesh.demo", |_| "openai");
        span.text("gen_ai.provider.name", provider);
        span.text("gen_ai.request.model", &request.model);
        span.number("gen_ai.request.max_tokens", request.max_tokens);
        span.float("gen_ai.request.temperature", request.temperature);
        span.number("chatmesh.attempt", number);
        if let Some(url) = api.map(|api| &api.base_url) {
            span.text("server.address", url.host_str().unwrap_or_default());
            if let Some(port) = url.port_or_known_default() {
                span.number("server.port", port);
            }
        }
        span
    }

    /// One call of the provider, read to its end.
    async fn call(
        &self,
        request: &ModelRequest,
        writer: &LiveWriter,
        span: &mut Span,
    ) -> Result<Answer, ModelError> {
        let mut stream = self.provider.call(request).await?;
        let mut answer = Answer {
            model: request.model.clone(),
            ..Answer::default()
        };
        let mut room = self.settings.max_answer_bytes;
        while let Some(event) = stream.next().await {
            match event? {
                ModelEvent::Text(text) => {
                    if answer.text.is_empty() {
                        span.event("first token");
                    }
                    let fit = fitting(&text, room);
                    writer.push(fit);
                    answer.text.push_str(fit);
                    room = room.saturating_sub(json_len(fit));
                    if fit.len() < text.len() {
                        LENGTH.clone_into(&mut answer.finish_reason);
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
            detail: "the answer ended without a reason".to_owned(),
            kind: "cut_off",
        })
    }
}

fn end_call(mut span: Span, end: &CallEnd) {
    match end {
        CallEnd::Answer(answer) => {
            span.text("gen_ai.response.model", &answer.model);
            span.texts("gen_ai.response.finish_reasons", &[&answer.finish_reason]);
            if let Some(usage) = &answer.usage {
                span.number("gen_ai.usage.input_tokens", usage.prompt_tokens);
                span.number("gen_ai.usage.output_tokens", usage.completion_tokens);
            }
        }
        CallEnd::Failed(error) => span.fail(error.kind),
        CallEnd::Signal(Signal::Cancelled) => span.event("cancelled"),
        CallEnd::Signal(Signal::Go | Signal::Fenced) => span.event("taken over"),
        CallEnd::DeadlineOver => span.fail("deadline"),
    }
}

fn after(signal: Signal, writer: &LiveWriter) -> Written {
    match signal {
        Signal::Cancelled => Written::Cancelled(writer.text()),
        Signal::Go | Signal::Fenced => Written::Again,
    }
}

/// Waits, unless there is a reason to stop.
async fn pause(delay: Duration, writer: &LiveWriter) -> Option<Signal> {
    tokio::select! {
        biased;
        signal = writer.stopped() => Some(signal),
        () = tokio::time::sleep(delay) => None,
    }
}

fn deadline_over() -> ModelError {
    ModelError {
        code: ErrorCode::ProviderTimeout,
        retryable: true,
        retry_after: None,
        detail: "no answer within MESSAGE_DEADLINE_MS".to_owned(),
        kind: "deadline",
    }
}

/// The delay before another call to the provider after `calls_made` of them failed: never less
/// than what the provider asked for. `random` (0 to 1) is the jitter.
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
