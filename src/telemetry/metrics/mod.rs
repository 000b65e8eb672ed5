//! Metrics: the exporter for Prometheus, and [`declare_metrics`], with which every component
//! declares its metrics beside the code that records them.
//!
//! A component creates its handles ([`Metric::counter`], [`Metric::gauge`], [`Metric::histogram`])
//! once and keeps them: recording through a handle costs nanoseconds, a lookup by labels hundreds.
//! The recording macros of the `metrics` crate are not used.

mod exporter;

pub use exporter::{Exporter, ExporterError};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Unit};

/// Declares the metrics of a component: one constant each, and `ALL`, which lists them in order.
///
/// ```ignore
/// declare_metrics! {
///     ACTIVE: Gauge in Count = "chatmesh_pipeline_active", ["group"], "Records in progress.";
/// }
/// ```
macro_rules! declare_metrics {
    ($($constant:ident: $kind:ident in $unit:ident = $name:literal, $labels:expr, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub(crate) const $constant: $crate::telemetry::metrics::Metric =
                $crate::telemetry::metrics::Metric {
                    name: $name,
                    kind: $crate::telemetry::metrics::MetricKind::$kind,
                    unit: ::metrics::Unit::$unit,
                    help: $help,
                    labels: &$labels,
                };
        )+

        /// Every metric that this component records.
        pub(crate) const ALL: &[&$crate::telemetry::metrics::Metric] = &[$(&$constant),+];
    };
}
pub(crate) use declare_metrics;

/// The kind of a metric, as Prometheus defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// The value only grows. The name of the metric ends in `_total`.
    Counter,
    /// The value goes up and down.
    Gauge,
    /// The metric counts observations in buckets.
    Histogram,
}

/// The declaration of a metric.
#[derive(Debug)]
pub struct Metric {
    /// The name that Prometheus stores. For a histogram, Prometheus stores three names: with the
    /// suffixes `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// Whether the metric is a counter, a gauge or a histogram.
    pub kind: MetricKind,
    /// The unit of the metric's values. The unit also selects the buckets of a histogram.
    pub unit: Unit,
    /// The help text that the exporter prints: one or two complete sentences.
    pub help: &'static str,
    /// The names of the labels, in the order in which [`Metric::counter`], [`Metric::gauge`] and
    /// [`Metric::histogram`] take the values. No label holds an id of a user, a conversation or a
    /// message.
    pub labels: &'static [&'static str],
}

/// Returns the time that has passed since `moment_ms`, in milliseconds since the Unix epoch. Zero
/// if that moment is in the future, as it can be when another machine's clock is ahead.
pub(crate) fn elapsed_since_unix_ms(moment_ms: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let moment = Duration::from_millis(u64::try_from(moment_ms).unwrap_or_default());
    now.unwrap_or_default().saturating_sub(moment)
}

/// The metadata that the `metrics` crate requires to create a handle; all handles have the same.
const METADATA: Metadata<'static> = Metadata::new("chatmesh", Level::INFO, Some(module_path!()));

impl Metric {
    fn key(&self, label_values: &[&str]) -> Key {
        debug_assert_eq!(
            label_values.len(),
            self.labels.len(),
            "labels of {}",
            self.name
        );
        let labels: Vec<Label> = self
            .labels
            .iter()
            .zip(label_values)
            .map(|(name, value)| Label::new(*name, (*value).to_owned()))
            .collect();
        Key::from_parts(KeyName::from_const_str(self.name), labels)
    }

    /// Creates a handle of this counter with the given label values. Cache it on hot paths.
    pub fn counter(&self, label_values: &[&str]) -> Counter {
        debug_assert_eq!(self.kind, MetricKind::Counter, "{}", self.name);
        metrics::with_recorder(|recorder| {
            recorder.register_counter(&self.key(label_values), &METADATA)
        })
    }

    /// Creates a handle of this gauge with the given label values. Cache it on hot paths.
    pub fn gauge(&self, label_values: &[&str]) -> Gauge {
        debug_assert_eq!(self.kind, MetricKind::Gauge, "{}", self.name);
        metrics::with_recorder(|recorder| {
            recorder.register_gauge(&self.key(label_values), &METADATA)
        })
    }

    /// Creates a handle of this histogram with the given label values. Cache it on hot paths.
    pub fn histogram(&self, label_values: &[&str]) -> Histogram {
        debug_assert_eq!(self.kind, MetricKind::Histogram, "{}", self.name);
        metrics::with_recorder(|recorder| {
            recorder.register_histogram(&self.key(label_values), &METADATA)
        })
    }
}
