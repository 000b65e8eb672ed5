//! The worker consumes messages, calls the model, and appends the terminal record of each message.
//! `app` starts it with [`run`].
//!
//! The steps of a message: `begin`, read the conversation's context, build the prompt, stream the
//! model's answer while publishing its parts with `open_part` and `append`, `keep` the outcome,
//! append the terminal record, commit the offset. The outcome that `begin` or `keep` returns is
//! authoritative, so a redelivered message is answered from its stored outcome without another
//! model call (ARCHITECTURE.md, step 3).

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::settings::WorkerSettings;
use crate::fanout::WorkerFanout;
use crate::log::{Log, LogError};
use crate::pipeline::DeadLetterWriter;
use crate::pipeline::driver;
use crate::pipeline::metrics::PipelineMetrics;

mod answer_parts;
mod attempt;
mod cancel_watch;
mod coalesce;
mod context_cache;
mod generation;
mod handler;
mod json_len;
mod live;
mod live_state;
pub(crate) mod metrics;
mod outcome;
pub mod prompt;
pub mod provider;
mod publisher;
#[cfg(test)]
mod tests;

use self::metrics::WorkerMetrics;
use context_cache::ContextCache;
use generation::Generator;
use handler::WorkerHandler;

/// The components and settings of a worker.
pub struct Dependencies {
    /// The log that the worker consumes messages from, and appends terminal records and dead
    /// letters to.
    pub log: Arc<dyn Log>,
    /// The fan-out, which stores leases, the text so far, outcomes and the history.
    pub fanout: Arc<dyn WorkerFanout>,
    /// The model provider, which generates the answers.
    pub provider: Arc<dyn provider::Provider>,
    /// The worker's settings: topics, limits, the prompt and the model's API.
    pub settings: WorkerSettings,
}

/// Runs the worker until `drain` fires. Returns when the answers in progress are complete and their
/// offsets are committed, or when the drain deadline is exceeded. Fails only if the log's consumer
/// cannot be created.
pub async fn run(dependencies: Dependencies, drain: CancellationToken) -> Result<(), LogError> {
    let Dependencies {
        log,
        fanout,
        provider,
        settings,
    } = dependencies;
    let pipeline = settings.pipeline.clone();
    let consumer = log.consumer(&pipeline.group, &pipeline.topic)?;
    let handler = WorkerHandler {
        log: Arc::clone(&log),
        fanout: Arc::clone(&fanout),
        contexts: ContextCache::default(),
        generator: Generator::new(provider, fanout, settings.clone()),
        metrics: WorkerMetrics::new(&settings.responses_topic),
        settings,
    };
    let dependencies = driver::Dependencies {
        consumer,
        handler: Arc::new(handler),
        rewind_policy: None,
        rewind_requests: None,
        dead_letters: DeadLetterWriter::new(log, pipeline.dead_letter_topic.clone()),
        metrics: PipelineMetrics::for_worker(&pipeline.topic),
        settings: pipeline,
    };
    driver::run(dependencies, drain).await;
    Ok(())
}
