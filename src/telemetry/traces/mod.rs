//! Traces: records spans that follow one message through all roles, and exports them over OTLP.
//!
//! Without `OTEL_EXPORTER_OTLP_ENDPOINT`, a [`Span`] only propagates the incoming trace context and
//! allocates nothing. Otherwise, a sampled span is recorded, and put into a bounded queue when it
//! ends. If the queue is full, the span is dropped and counted. Only [`TraceExport::finish`] waits
//! for the collector.

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
pub use span::{Span, SpanKind};

/// Maximum time to export the last spans when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The values of the attribute `messaging.system`.
#[derive(Debug, Clone, Copy)]
pub struct MessagingSystems {
    /// The value in spans about the log.
    pub log: &'static str,
    /// The value in spans about the fan-out.
    pub fanout: &'static str,
}

#[derive(Debug)]
struct TracerState {
    tracer: SdkTracer,
    systems: MessagingSystems,
}

static TRACER: OnceLock<TracerState> = OnceLock::new();

/// The task that exports the spans of this process.
#[derive(Debug)]
pub struct TraceExport {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

/// Starts the export of spans; `None` if traces are off. Call it inside a tokio runtime, after the
/// metrics recorder is installed.
///
/// # Errors
/// The exporter can't be built from the settings.
pub fn start(
    settings: &TraceSettings,
    systems: MessagingSystems,
) -> Result<Option<TraceExport>, TracesError> {
    // The counters are created at the start, so that a rate over them begins at zero.
    for reason in reason::ALL {
        DROPPED.counter(&[reason]).increment(0);
    }
    EXPORTED.counter(&[]).increment(0);
    let Some(endpoint) = &settings.endpoint else {
        return Ok(None);
    };
    let resource = exporter::resource(settings);
    let exporter = exporter::build_exporter(settings, endpoint, &resource)?;
    let (queue, spans) = queue::create_queue();
    let tracer = exporter::build_tracer(settings, resource, queue);
    let stop = CancellationToken::new();
    let task = tokio::spawn(queue::run_export(spans, exporter, stop.clone()));
    // `set` fails only in tests, which start several exports in one process. All spans then go to
    // the first export.
    let _ = TRACER.set(TracerState { tracer, systems });
    tracing::info!(endpoint = %exporter::redacted_endpoint(endpoint), "exporting traces");
    Ok(Some(TraceExport { task, stop }))
}

impl TraceExport {
    /// Exports the queued spans, for [`FLUSH_TIMEOUT`] at most.
    pub async fn finish(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(FLUSH_TIMEOUT, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
            tracing::warn!(
                "the last spans were not exported: the collector does not respond; messages are not affected"
            );
        }
    }
}

/// Whether traces are exported.
pub fn are_enabled() -> bool {
    TRACER.get().is_some()
}

/// The value of `messaging.system` for the log; empty if traces are off.
pub fn log_system() -> &'static str {
    TRACER.get().map_or("", |tracer| tracer.systems.log)
}

/// The value of `messaging.system` for the fan-out; empty if traces are off.
pub fn fanout_system() -> &'static str {
    TRACER.get().map_or("", |tracer| tracer.systems.fanout)
}
