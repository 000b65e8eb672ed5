//! Converts the server-sent events of one model call into model events: enforces the time-outs,
//! detects the end of the answer, and records the call's metrics.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::time::{Instant, timeout_at};

use super::chunk::{Chunk, ParsedEvent};
use super::error::{self, kind};
use super::metrics::{ModelHandles, ProviderMetrics};
use super::sse::{SseEvent, StreamError};
use super::throttle::{CallPermit, Throttle};
use super::tool_calls::ToolCallNumbers;
use super::{ModelError, ModelEvent, ModelStream};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Usage;

/// Time for which the usage is awaited after the finish reason has arrived.
const USAGE_GRACE: Duration = Duration::from_secs(1);
/// Time for which the end of the body is awaited after `[DONE]`. A body that was read to its end
/// leaves the connection reusable.
const END_GRACE: Duration = Duration::from_millis(20);

/// Records the metrics of a call exactly once, however the call ends: a dropped call counts as
/// cancelled.
pub(super) struct CallMetrics {
    started: Instant,
    metrics: Arc<ProviderMetrics>,
    model: Arc<ModelHandles>,
    is_recorded: bool,
}

impl CallMetrics {
    pub(super) fn new(metrics: &Arc<ProviderMetrics>, model: &str) -> Self {
        Self {
            started: Instant::now(),
            model: metrics.model(model),
            metrics: Arc::clone(metrics),
            is_recorded: false,
        }
    }

    pub(super) fn record_failure(&mut self, error: &ModelError) {
        self.model.error.increment(1);
        self.metrics.record_failure(error.kind);
        self.record_duration();
    }

    fn record_success(&mut self, usage: Option<Usage>) {
        self.model.success.increment(1);
        if let Some(usage) = usage {
            self.model.record_usage(usage);
        }
        self.record_duration();
    }

    fn record_first_token(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.model.first_token.record(seconds);
    }

    fn record_duration(&mut self) {
        self.is_recorded = true;
        let seconds = self.started.elapsed().as_secs_f64();
        self.model.duration.record(seconds);
    }
}

impl Drop for CallMetrics {
    fn drop(&mut self) {
        if !self.is_recorded {
            self.model.cancelled.increment(1);
            self.record_duration();
        }
    }
}

/// The time-outs of a model call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// Maximum time from sending the request to the first piece of any part.
    pub(super) first_token: Duration,
    /// Maximum time between two chunks after the first piece.
    pub(super) idle: Duration,
}

/// How far an answer has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Neither a piece of a part nor the finish reason has arrived.
    Waiting,
    /// The parts are arriving.
    Receiving,
    /// The finish reason has arrived; the usage may follow.
    Finishing,
    /// `[DONE]` has arrived after the finish reason.
    Closing,
    /// The answer is complete or has failed. Nothing more is read.
    Ended,
}

/// The state of a [`ModelStream`], which returns the events of one model call.
pub(super) struct AnswerStream {
    events: BoxStream<'static, Result<SseEvent, StreamError>>,
    timeouts: Timeouts,
    phase: Phase,
    /// Time at which the current phase ends if nothing arrives.
    deadline: Instant,
    /// Events that the stream has to return before it reads on.
    pending_events: VecDeque<ModelEvent>,
    tool_calls: ToolCallNumbers,
    finish_reason: String,
    model: Option<String>,
    usage: Option<Usage>,
    metrics: CallMetrics,
    throttle: Arc<Throttle>,
    permit: CallPermit,
}

impl AnswerStream {
    /// Converts the server-sent events of a call into model events. The first piece must arrive by
    /// `first_token_by`.
    pub(super) fn start(
        events: BoxStream<'static, Result<SseEvent, StreamError>>,
        timeouts: Timeouts,
        first_token_by: Instant,
        metrics: CallMetrics,
        throttle: Arc<Throttle>,
        permit: CallPermit,
    ) -> ModelStream {
        let state = Self {
            events,
            timeouts,
            phase: Phase::Waiting,
            deadline: first_token_by,
            pending_events: VecDeque::new(),
            tool_calls: ToolCallNumbers::default(),
            finish_reason: String::new(),
            model: None,
            usage: None,
            metrics,
            throttle,
            permit,
        };
        // Boxed, because each event moves the state twice.
        stream::unfold(Box::new(state), |mut state| async move {
            let event = state.next().await?;
            Some((event, state))
        })
        .boxed()
    }

    /// Returns the next event of the answer; `None` after the last event.
    async fn next(&mut self) -> Option<Result<ModelEvent, ModelError>> {
        loop {
            if let Some(event) = self.pending_events.pop_front() {
                return Some(Ok(event));
            }
            if self.phase == Phase::Ended {
                return None;
            }
            let next = timeout_at(self.deadline, self.events.next()).await;
            let result = match next {
                Ok(Some(Ok(event))) => self.on_event(&event),
                // The answer is complete, so an error or a time-out of the connection is ignored.
                _ if self.is_finished() => {
                    self.finish();
                    Ok(())
                }
                Ok(Some(Err(StreamError::Connection(detail)))) => {
                    Err(error::invalid_answer_error(kind::CONNECTION, detail))
                }
                Ok(Some(Err(StreamError::Malformed(detail)))) => {
                    Err(error::invalid_answer_error(kind::MALFORMED, detail))
                }
                Ok(None) => Err(error::invalid_answer_error(
                    kind::CUT_OFF,
                    "the stream ended without a finish reason",
                )),
                Err(_) => Err(self.timeout_error()),
            };
            if let Err(error) = result {
                return Some(Err(self.fail(error)));
            }
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finishing | Phase::Closing)
    }

    fn on_event(&mut self, event: &SseEvent) -> Result<(), ModelError> {
        if self.phase == Phase::Closing {
            return Ok(());
        }
        match ParsedEvent::parse(event) {
            ParsedEvent::Chunk(chunk) => self.on_chunk(chunk),
            ParsedEvent::Error(api_error) => {
                tracing::debug!(
                    message = api_error.message(),
                    "the model API reported an error in the stream"
                );
                Err(error::stream_error(&api_error))
            }
            ParsedEvent::Done if self.phase == Phase::Finishing => {
                self.phase = Phase::Closing;
                self.deadline = self.deadline.min(Instant::now() + END_GRACE);
                Ok(())
            }
            ParsedEvent::Done => Err(error::invalid_answer_error(
                kind::CUT_OFF,
                "[DONE] without a finish reason",
            )),
            // The answer is complete, so a malformed chunk after it, such as a truncated usage, is
            // ignored.
            ParsedEvent::Malformed if self.phase == Phase::Finishing => Ok(()),
            ParsedEvent::Malformed => Err(error::invalid_answer_error(
                kind::MALFORMED,
                "a chunk is not JSON",
            )),
        }
    }

    fn on_chunk(&mut self, chunk: Chunk) -> Result<(), ModelError> {
        let now = Instant::now();
        self.model = self.model.take().or(chunk.model);
        // Some servers send the usage so far with every chunk, so the last usage counts.
        self.usage = chunk.usage.or(self.usage);
        let has_deltas = !chunk.deltas.is_empty();
        if has_deltas && self.phase == Phase::Waiting {
            self.metrics.record_first_token();
        }
        for delta in chunk.deltas {
            let delta = self.tool_calls.assign(delta);
            self.pending_events.push_back(ModelEvent::Delta(delta));
        }
        match (self.phase, chunk.finish_reason) {
            (Phase::Waiting | Phase::Receiving, Some(reason)) => {
                self.finish_reason = reason;
                self.phase = Phase::Finishing;
                self.deadline = now + self.timeouts.idle.min(USAGE_GRACE);
            }
            (Phase::Waiting, None) if has_deltas => {
                self.phase = Phase::Receiving;
                self.deadline = now + self.timeouts.idle;
            }
            (Phase::Receiving, None) => self.deadline = now + self.timeouts.idle,
            // `timeout_at` does not check its timer while the stream always has an event ready, so
            // the deadline is checked here.
            (Phase::Waiting, None) if now >= self.deadline => return Err(self.timeout_error()),
            _ => {}
        }
        Ok(())
    }

    fn timeout_error(&self) -> ModelError {
        if self.phase == Phase::Waiting {
            error::timeout_error(kind::FIRST_TOKEN_TIMEOUT, self.timeouts.first_token)
        } else {
            error::timeout_error(kind::IDLE_TIMEOUT, self.timeouts.idle)
        }
    }

    /// Completes the answer: its last events become pending.
    fn finish(&mut self) {
        self.metrics.record_success(self.usage);
        self.pending_events
            .extend(self.usage.map(ModelEvent::Usage));
        self.pending_events.push_back(ModelEvent::Finished {
            reason: std::mem::take(&mut self.finish_reason),
            model: self.model.take(),
        });
        self.end();
    }

    /// Ends the stream with an error, and informs the throttle of a refusal for the call's rate.
    fn fail(&mut self, error: ModelError) -> ModelError {
        if error.kind == kind::RATE_LIMITED && error.code == ErrorCode::ProviderRateLimited {
            self.throttle
                .on_rate_limited(self.permit, error.retry_after, rand::random());
        }
        self.metrics.record_failure(&error);
        self.end();
        error
    }

    /// Stops reading. Dropping the body closes the connection unless the body was read to its end.
    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.events = stream::empty().boxed();
    }
}
