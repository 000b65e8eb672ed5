//! The composition root: builds what a role needs, starts it, and ends it.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Role};
use crate::health::Health;
use crate::signals::Signals;
use crate::telemetry::admin::{self, AdminState};
use crate::telemetry::logs;
use crate::telemetry::metrics::Exporter;

/// Runs a role until a signal ends it.
///
/// # Errors
/// It could not be started.
pub async fn run(role: Role, config: Config) -> anyhow::Result<()> {
    let _logs = logs::init(&config.logging())?;
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    let signals = tokio::spawn(Signals::new()?.watch(drain.clone()));
    let exporter = Exporter::install(&[])?;
    exporter.build_info(role.as_str());
    let upkeep = tokio::spawn(exporter.clone().upkeep(stop.clone()));
    for notice in config.notices() {
        tracing::warn!("{notice}");
    }
    let health = Arc::new(Health::new(&["kafka", "redis"]));
    let state = AdminState::new(
        role.service(),
        config.server_id(),
        Arc::clone(&health),
        exporter,
    );
    let address = config.health_listen();
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} can't be listened on"))?;
    let server = tokio::spawn(admin::serve(listener, Arc::new(state), stop.clone()));
    stop.cancel();
    signals.abort();
    server.await?;
    upkeep.await?;
    anyhow::bail!("not composed yet")
}
