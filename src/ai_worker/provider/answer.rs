//! One answer of the API while it is being written: time-outs, end, what is counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::time::{Instant, timeout_at};

use super::chunk::{Chunk, Said};
use super::error::{self, kind};
use super::metrics::{ModelHandles, ProviderMetrics};
use super::sse::{Broken, Event};
use super::throttle::{Pass, Throttle};
use super::{ModelError, ModelEvent, ModelStream};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Usage;

/// How long after the finish reason the usage is waited for, at most.
const USAGE_GRACE: Duration = Duration::from_secs(1);
/// How long after `[DONE]` the body's end is waited for: a body that was read to its end leaves a
/// connection that can be used again.
const END_GRACE: Duration = Duration::from_millis(20);

/// Counts a call exactly once, however it ends.
pub(super) struct CallRecord {
    started: Instant,
    metrics: Arc<ProviderMetrics>,
    model: Arc<ModelHandles>,
    counted: bool,
}

impl CallRecord {
    pub(super) fn new(metrics: &Arc<ProviderMetrics>, model: &str) -> Self {
        Self {
            started: Instant::now(),
            model: metrics.model(model),
            metrics: Arc::clone(metrics),
            counted: false,
        }
    }

    pub(super) fn failed(&mut self, error: &ModelError) {
        self.model.error.increment(1);
        self.metrics.record_failure(error.kind);
        self.end();
    }

    fn succeeded(&mut self, usage: Option<Usage>) {
        self.model.success.increment(1);
        if let Some(usage) = usage {
            self.model.record_usage(usage);
        }
        self.end();
    }

    fn first_token(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.model.first_token.record(seconds);
    }

    fn end(&mut self) {
        self.counted = true;
        let seconds = self.started.elapsed().as_secs_f64();
        self.model.duration.record(seconds);
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if !self.counted {
            self.model.cancelled.increment(1);
            self.end();
        }
    }
}

/// The time-outs of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) first_token: Duration,
    pub(super) idle: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No content has come yet.
    Waiting,
    /// Between tokens.
    Writing,
    /// The finish reason has come.
    Finishing,
    /// `[DONE]` has come after it.
    Closing,
    /// The last event was handed out.
    Ended,
}

pub(super) struct Answer {
    events: BoxStream<'static, Result<Event, Broken>>,
    patience: Patience,
    phase: Phase,
    deadline: Instant,
    ready: VecDeque<ModelEvent>,
    reason: String,
    model: Option<String>,
    usage: Option<Usage>,
    record: CallRecord,
    throttle: Arc<Throttle>,
    pass: Pass,
}

impl Answer {
    /// `first_token_by` is when the first content must be there.
    pub(super) fn stream(
        events: BoxStream<'static, Result<Event, Broken>>,
        patience: Patience,
        first_token_by: Instant,
        record: CallRecord,
        throttle: Arc<Throttle>,
        pass: Pass,
    ) -> ModelStream {
        let answer = Self {
            events,
            patience,
            phase: Phase::Waiting,
            deadline: first_token_by,
            ready: VecDeque::new(),
            reason: String::new(),
            model: None,
            usage: None,
            record,
            throttle,
            pass,
        };
        stream::unfold(answer, |mut answer| async move {
            let event = answer.next().await?;
            Some((event, answer))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<ModelEvent, ModelError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.phase == Phase::Ended {
                return None;
            }
            let next = timeout_at(self.deadline, self.events.next()).await;
            let result = match next {
                Ok(Some(Ok(event))) => self.hear(&event),
                // Whatever happens to the connection now, the answer is whole.
                _ if self.is_finished() => {
                    self.finish();
                    Ok(())
                }
                Ok(Some(Err(Broken::Connection(detail)))) => {
                    Err(error::failed(kind::CONNECTION, detail))
                }
                Ok(Some(Err(Broken::Malformed(detail)))) => {
                    Err(error::failed(kind::MALFORMED, detail))
                }
                Ok(None) => Err(error::failed(
                    kind::CUT_OFF,
                    "the stream ended without a finish reason",
                )),
                Err(_) => Err(self.too_late()),
            };
            if let Err(error) = result {
                return Some(Err(self.fail(error)));
            }
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finishing | Phase::Closing)
    }

    fn hear(&mut self, event: &Event) -> Result<(), ModelError> {
        if self.phase == Phase::Closing {
            return Ok(());
        }
        match Said::of(event) {
            Said::Chunk(chunk) => self.take(chunk),
            Said::Error(reported) => {
                tracing::debug!(
                    message = reported.message(),
                    "the model's API reports an error in the stream"
                );
                Err(error::broken_off(&reported))
            }
            Said::Done if self.phase == Phase::Finishing => {
                self.phase = Phase::Closing;
                self.deadline = self.deadline.min(Instant::now() + END_GRACE);
                Ok(())
            }
            Said::Done => Err(error::failed(
                kind::CUT_OFF,
                "[DONE] without a finish reason",
            )),
            // Such as a usage chunk that was cut off.
            Said::Malformed if self.phase == Phase::Finishing => Ok(()),
            Said::Malformed => Err(error::failed(kind::MALFORMED, "a chunk that is no JSON")),
        }
    }

    fn take(&mut self, chunk: Chunk) -> Result<(), ModelError> {
        let now = Instant::now();
        self.model = self.model.take().or(chunk.model);
        // Some servers send the usage so far with every chunk: the last one counts.
        self.usage = chunk.usage.or(self.usage);
        let has_text = !chunk.text.is_empty();
        if has_text {
            if self.phase == Phase::Waiting {
                self.record.first_token();
            }
            self.ready.push_back(ModelEvent::Text(chunk.text));
        }
        match (self.phase, chunk.finish_reason) {
            (Phase::Waiting | Phase::Writing, Some(reason)) => {
                self.reason = reason;
                self.phase = Phase::Finishing;
                self.deadline = now + self.patience.idle.min(USAGE_GRACE);
            }
            (Phase::Waiting, None) if has_text => {
                self.phase = Phase::Writing;
                self.deadline = now + self.patience.idle;
            }
            (Phase::Writing, None) => self.deadline = now + self.patience.idle,
            // A stream that is always ready would never let the timer be looked at.
            (Phase::Waiting, None) if now >= self.deadline => return Err(self.too_late()),
            _ => {}
        }
        Ok(())
    }

    fn too_late(&self) -> ModelError {
        if self.phase == Phase::Waiting {
            error::timeout(kind::FIRST_TOKEN_TIMEOUT, self.patience.first_token)
        } else {
            error::timeout(kind::IDLE_TIMEOUT, self.patience.idle)
        }
    }

    fn finish(&mut self) {
        self.record.succeeded(self.usage);
        self.ready.extend(self.usage.map(ModelEvent::Usage));
        self.ready.push_back(ModelEvent::Finished {
            reason: std::mem::take(&mut self.reason),
            model: self.model.take(),
        });
        self.end();
    }

    fn fail(&mut self, error: ModelError) -> ModelError {
        if error.kind == kind::RATE_LIMITED && error.code == ErrorCode::ProviderRateLimited {
            self.throttle
                .refused(self.pass, error.retry_after, rand::random());
        }
        self.record.failed(&error);
        self.end();
        error
    }

    /// Nothing more is read, and the connection is let go at once.
    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.events = stream::empty().boxed();
    }
}
