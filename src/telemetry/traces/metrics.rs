//! Metrics of the span export: spans that the collector accepted and spans that were dropped.

use crate::telemetry::metrics::declare_metrics;

/// Values of the label `reason` of [`DROPPED`].
pub(super) mod reason {
    /// The queue of finished spans was full, because the collector is slower than the spans.
    pub(in crate::telemetry::traces) const QUEUE_FULL: &str = "queue_full";
    /// The collector rejected the spans or did not respond.
    pub(in crate::telemetry::traces) const EXPORT_FAILED: &str = "export_failed";
    pub(in crate::telemetry::traces) const ALL: [&str; 2] = [QUEUE_FULL, EXPORT_FAILED];
}

declare_metrics! {
    EXPORTED: Counter in Count = "chatmesh_trace_spans_exported_total", [],
        "Spans that the collector accepted.";
    DROPPED: Counter in Count = "chatmesh_trace_spans_dropped_total", ["reason"],
        "Spans dropped because the collector is unavailable or too slow. Messages are not affected.";
}
