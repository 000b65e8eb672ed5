//! Traces: what became of the spans.

use metrics::Unit;

use super::{Kind, Metric};

/// Values of `reason`.
pub mod reason {
    /// The collector is slower than the spans.
    pub const QUEUE_FULL: &str = "queue_full";
    /// The collector did not take them.
    pub const EXPORT_FAILED: &str = "export_failed";
    /// Both.
    pub const ALL: [&str; 2] = [QUEUE_FULL, EXPORT_FAILED];
}

/// Taken by the collector.
pub const EXPORTED: Metric = Metric {
    name: "chatmesh_trace_spans_exported_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Spans that the collector took",
    labels: &[],
};

/// Not taken.
pub const DROPPED: Metric = Metric {
    name: "chatmesh_trace_spans_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Spans lost because the collector is away or too slow; messages are not affected",
    labels: &["reason"],
};

/// All of them.
pub const ALL: &[&Metric] = &[&EXPORTED, &DROPPED];
