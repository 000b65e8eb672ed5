//! Traces: spans that follow one message through all roles, exported over OTLP.
//!
//! Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set: then a [`Span`] only carries the trace context
//! that came in, so that it is passed on, and nothing is allocated. On, a span that the sampler
//! takes is recorded and handed to a bounded queue when it ends; what finds no room there is
//! counted and gone. Nothing here ever waits for the collector but [`Exporting::finish`].

mod client;
mod exporter;
pub(crate) mod metrics;
mod queue;
mod span;

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::metrics::{DROPPED, EXPORTED, reason};
use crate::config::settings::TraceSettings;

pub use exporter::TracesError;
pub use span::{Kind, Span};

/// How long the end of a process waits for the last spans to be exported.
const FLUSH: Duration = Duration::from_secs(2);

/// What the log and the fan-out are called in `messaging.system`.
#[derive(Debug, Clone, Copy)]
pub struct Systems {
    /// Of the two topics.
    pub log: &'static str,
    /// Of the users' channels.
    pub fanout: &'static str,
}

#[derive(Debug)]
struct Tracing {
    tracer: SdkTracer,
    systems: Systems,
}

static TRACING: OnceLock<Tracing> = OnceLock::new();

/// The exporting task of a process.
#[derive(Debug)]
pub struct Exporting {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

/// Sets traces up for the process; `None` where they are off. Must be called inside a tokio
/// runtime, after the metrics' recorder is installed.
///
/// # Errors
/// Settings that make no exporter.
pub fn start(settings: &TraceSettings, systems: Systems) -> Result<Option<Exporting>, TracesError> {
    // There from the start, so that a rate over them begins at zero.
    for reason in reason::ALL {
        DROPPED.counter(&[reason]).increment(0);
    }
    EXPORTED.counter(&[]).increment(0);
    let Some(endpoint) = &settings.endpoint else {
        return Ok(None);
    };
    let resource = exporter::resource(settings);
    let exporter = exporter::build(settings, endpoint, &resource)?;
    let (queue, spans) = queue::new();
    let tracer = exporter::tracer(settings, resource, queue);
    let stop = CancellationToken::new();
    let task = tokio::spawn(queue::export(spans, exporter, stop.clone()));
    // A second one in the same process would be a fault of the tests only.
    let _ = TRACING.set(Tracing { tracer, systems });
    tracing::info!(endpoint = %exporter::shown(endpoint), "traces are exported");
    Ok(Some(Exporting { task, stop }))
}

impl Exporting {
    /// Exports what is queued, for a few seconds at most.
    pub async fn finish(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(FLUSH, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the last spans were not exported: the collector does not answer");
        }
    }
}

/// Whether spans are recorded at all.
pub fn are_on() -> bool {
    TRACING.get().is_some()
}

/// The name of the log's system.
pub fn log_system() -> &'static str {
    TRACING.get().map_or("", |tracing| tracing.systems.log)
}

/// The name of the fan-out's system.
pub fn fanout_system() -> &'static str {
    TRACING.get().map_or("", |tracing| tracing.systems.fanout)
}
