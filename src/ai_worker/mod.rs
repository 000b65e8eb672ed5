//! The worker: takes messages from the log, asks the model, writes the answer.
//!
//! Per message: `begin` → history → prompt → the provider's stream, with `live` beside it →
//! `keep` → terminal record → offset. What `begin` or `keep` returns is what counts, so a message
//! that is delivered again is answered from its outcome and never paid twice (architecture,
//! step 3).

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::metrics::WorkerMetrics;
use crate::config::settings::WorkerSettings;
use crate::fanout::WorkerFanout;
use crate::log::{Log, LogError};
use crate::pipeline::dead_letter::DeadLetters;
use crate::pipeline::driver;
use crate::pipeline::metrics::PipelineMetrics;

mod answer;
mod cancels;
pub mod coalesce;
mod ending;
mod handler;
mod live;
pub(crate) mod metrics;
pub mod prompt;
pub mod provider;
mod recent;
#[cfg(test)]
mod tests;

/// What a worker works with.
pub struct Parts {
    /// Messages come from here, and their terminal records go there.
    pub log: Arc<dyn Log>,
    /// Ownership, text so far, outcomes, history.
    pub fanout: Arc<dyn WorkerFanout>,
    /// Answers.
    pub provider: Arc<dyn provider::Provider>,
    /// Bounds and names.
    pub settings: WorkerSettings,
}

/// Runs until `drain` fires; returns when what is being answered has ended and is committed, or
/// the drain deadline is over.
pub async fn run(parts: Parts, drain: CancellationToken) -> Result<(), LogError> {
    let Parts {
        log,
        fanout,
        provider,
        settings,
    } = parts;
    let pipeline = settings.pipeline.clone();
    let consumer = log.consumer(&pipeline.group, &pipeline.topic)?;
    let handler = handler::WorkerHandler {
        log: Arc::clone(&log),
        fanout: Arc::clone(&fanout),
        recent: recent::Recent::default(),
        model: answer::Model::new(provider, fanout, settings.clone()),
        metrics: WorkerMetrics::new(&settings.responses_topic),
        settings,
    };
    let parts = driver::Parts {
        consumer,
        handler: Arc::new(handler),
        go_back: None,
        commands: None,
        dead_letters: DeadLetters::new(log, pipeline.dead_letter_topic.clone()),
        metrics: PipelineMetrics::for_worker(&pipeline.topic),
        settings: pipeline,
    };
    driver::run(parts, drain).await;
    Ok(())
}
