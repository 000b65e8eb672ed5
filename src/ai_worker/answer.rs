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
use super::provider::backoff::Backoff;
use super::provider::{ModelError, ModelEvent, ModelRequest, Provider};
use crate::config::settings::WorkerSettings;
use crate::fanout::{Fanout, Turn};
use crate::pipeline::{Stopped, Work};
use crate::protocol::error_code::ErrorCode;
use crate::telemetry::metrics::provider::ProviderMetrics;

/// `finish_reason` of an answer that `MAX_ANSWER_BYTES` ended.
const LENGTH: &str = "length";

/// The model, and what is asked of it.
pub(super) struct Model {
    provider: Arc<dyn Provider>,
    fanout: Arc<dyn Fanout>,
    settings: WorkerSettings,
    /// `OPENAI_MAX_ATTEMPTS`; the demo model needs one.
    most_calls: u32,
    backoff: Backoff,
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
        fanout: Arc<dyn Fanout>,
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
            cancels: Cancels::start(Arc::clone(&fanout)),
            provider,
            fanout,
            settings,
            most_calls,
            backoff: Backoff::default(),
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
            Arc::clone(&self.fanout),
            subjects,
            attempt.endings(),
            coalescer,
            self.cancels.watcher(),
        );
        let written = match self.request(attempt, work).await {
            Ok(request) => self.ask(&request, calls, &writer).await,
            Err(Stopped) => Written::Again,
        };
        attempt.number = writer.number();
        written
    }

    /// The prompt. Earlier turns are read here, when the one before has been kept.
    async fn request(
        &self,
        attempt: &Attempt<'_>,
        work: &mut Work,
    ) -> Result<ModelRequest, Stopped> {
        let settings = &self.settings.prompt;
        let question = attempt.question;
        let mut turns: Vec<Turn> = Vec::new();
        if settings.keep_history && settings.history_max_messages > 0 {
            // A turn is at least one message, and this message's own may be among them.
            let most = settings.history_max_messages + 1;
            turns = work
                .until("history", || {
                    self.fanout.context(
                        &question.user,
                        &question.conversation,
                        most,
                        settings.history_ttl,
                    )
                })
                .await?;
            turns.retain(|turn| turn.message_id != question.message_id);
        }
        Ok(Prompt::build(settings, &turns, &question.content))
    }

    async fn ask(&self, request: &ModelRequest, calls: &mut Calls, writer: &LiveWriter) -> Written {
        let over = Instant::now() + self.settings.message_deadline;
        let deadline = *calls.deadline.get_or_insert(over);
        loop {
            calls.made += 1;
            let end = tokio::select! {
                biased;
                signal = writer.stopped() => CallEnd::Signal(signal),
                () = tokio::time::sleep_until(deadline) => CallEnd::DeadlineOver,
                result = self.call(request, writer) => match result {
                    Ok(answer) => CallEnd::Answer(answer),
                    Err(error) => CallEnd::Failed(error),
                },
            };
            let error = match end {
                CallEnd::Answer(answer) => return Written::Answer(answer),
                CallEnd::Signal(signal) => return after(signal, writer),
                CallEnd::DeadlineOver => return Written::Failed(deadline_over(), writer.text()),
                CallEnd::Failed(error) => error,
            };
            let attempt = calls.made + 1;
            let delay = self
                .backoff
                .delay(attempt, error.retry_after, rand::random());
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
        }
    }

    /// One call of the provider, read to its end.
    async fn call(
        &self,
        request: &ModelRequest,
        writer: &LiveWriter,
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
