//! The relay: brings terminal records from the log to their users' mailboxes and channels, once.
//!
//! The fan-out is a cache of the log. Whenever it may have lost data (a partition comes to this
//! relay, a reconnect, a failover, a marker that is gone) the partition goes back a while in
//! `responses` and everything is delivered again; what was delivered before changes nothing
//! (protocol.md section 3, "Redis lost or rolled back").

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::metrics::RelayMetrics;
use crate::config::settings::RelaySettings;
use crate::fanout::Deliveries;
use crate::log::{Log, LogError};
use crate::pipeline::dead_letter::DeadLetters;
use crate::pipeline::driver;
use crate::pipeline::metrics::PipelineMetrics;

mod handler;
pub(crate) mod metrics;
mod rewind;

use handler::RelayHandler;
use rewind::Rewind;

const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What a relay works with.
pub struct Parts {
    /// Terminal records come from here.
    pub log: Arc<dyn Log>,
    /// And go there.
    pub fanout: Arc<dyn Deliveries>,
    /// Bounds and names.
    pub settings: RelaySettings,
}

/// Runs until `drain` fires; returns when everything at work is delivered and committed, or the
/// drain deadline is over.
pub async fn run(parts: Parts, drain: CancellationToken) -> Result<(), LogError> {
    let Parts {
        log,
        fanout,
        settings,
    } = parts;
    let Some(cluster) = cluster_id(&log, &drain).await else {
        return Ok(());
    };
    let pipeline = &settings.pipeline;
    let consumer = log.consumer(&pipeline.group, &pipeline.topic)?;
    let (commands, orders) = mpsc::channel(16);
    let rewind = Arc::new(Rewind::new(
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
    let watching = tokio::spawn(Arc::clone(&rewind).watch(commands));
    let parts = driver::Parts {
        consumer,
        handler,
        go_back: Some(rewind),
        commands: Some(orders),
        dead_letters: DeadLetters::new(log, pipeline.dead_letter_topic.clone()),
        settings: pipeline.clone(),
        metrics: PipelineMetrics::for_relay(&pipeline.group, &pipeline.topic),
    };
    driver::run(parts, drain).await;
    watching.abort();
    Ok(())
}

/// Positions need the log's own name, so nothing is delivered before it is known.
async fn cluster_id(log: &Arc<dyn Log>, drain: &CancellationToken) -> Option<String> {
    loop {
        match log.cluster_id().await {
            Ok(id) => return Some(id),
            Err(error) => tracing::debug!(%error, "the log's id is not known yet"),
        }
        tokio::select! {
            () = drain.cancelled() => return None,
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    }
}
