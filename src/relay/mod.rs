//! The relay delivers each terminal record of the log once: into the user's mailbox and history,
//! and to the gateways that are subscribed to the user. `app` starts it with [`run`].
//!
//! The fan-out is a cache of the log. Whenever it may have lost data (after an assignment, a
//! reconnect, a failover, or when a marker is missing), the relay rewinds the partition in
//! `responses` and delivers the records again. Delivering a frame twice has no effect
//! (docs/consistency.md, "Rewind after a loss").

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::metrics::RelayMetrics;
use crate::config::settings::RelaySettings;
use crate::fanout::Deliveries;
use crate::log::{Log, LogError};
use crate::pipeline::DeadLetterWriter;
use crate::pipeline::driver;
use crate::pipeline::metrics::PipelineMetrics;

mod frame;
mod handler;
pub(crate) mod metrics;
mod rewind;

use handler::RelayHandler;
use rewind::RewindController;

/// Delay before the log is asked for its cluster id again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The components and settings of a relay.
pub struct Dependencies {
    /// The log that the relay consumes terminal records from, and appends dead letters to.
    pub log: Arc<dyn Log>,
    /// The fan-out that the relay delivers frames to.
    pub fanout: Arc<dyn Deliveries>,
    /// The relay's settings: topics, rewind windows and limits.
    pub settings: RelaySettings,
}

/// Runs the relay until `drain` fires. Returns when the records in progress are delivered and their
/// offsets are committed, or when the drain deadline is exceeded. Fails only if the log's consumer
/// cannot be created.
pub async fn run(dependencies: Dependencies, drain: CancellationToken) -> Result<(), LogError> {
    let Dependencies {
        log,
        fanout,
        settings,
    } = dependencies;
    let Some(cluster) = cluster_id(&log, &drain).await else {
        return Ok(());
    };
    let pipeline = &settings.pipeline;
    let consumer = log.consumer(&pipeline.group, &pipeline.topic)?;
    let (request_sender, rewind_requests) = mpsc::channel(16);
    let rewind = Arc::new(RewindController::new(
        Arc::clone(&log),
        Arc::clone(&fanout),
        cluster.clone(),
        &settings,
    ));
    let handler = Arc::new(RelayHandler::new(
        fanout,
        cluster,
        &settings,
        Arc::clone(&rewind),
        RelayMetrics::new(),
    ));
    let watch = tokio::spawn(Arc::clone(&rewind).watch(request_sender));
    let dependencies = driver::Dependencies {
        consumer,
        handler,
        rewind_policy: Some(rewind),
        rewind_requests: Some(rewind_requests),
        dead_letters: DeadLetterWriter::new(log, pipeline.dead_letter_topic.clone()),
        settings: pipeline.clone(),
        metrics: PipelineMetrics::for_relay(&pipeline.group, &pipeline.topic),
    };
    driver::run(dependencies, drain).await;
    watch.abort();
    Ok(())
}

/// Waits for the log's cluster id, which is part of every position. `None` where `drain` fires
/// before the log has responded.
async fn cluster_id(log: &Arc<dyn Log>, drain: &CancellationToken) -> Option<String> {
    loop {
        match log.cluster_id().await {
            Ok(id) => return Some(id),
            Err(error) => {
                tracing::debug!(%error, "reading the log's cluster id failed, it is retried");
            }
        }
        tokio::select! {
            () = drain.cancelled() => return None,
            () = tokio::time::sleep(RETRY_DELAY) => {}
        }
    }
}
