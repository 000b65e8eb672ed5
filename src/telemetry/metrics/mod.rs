//! Every metric, declared once: name, kind, unit, help and labels.
//!
//! A component declares its metrics as constants in a file of its own here and takes handles
//! from them once ([`Metric::counter`] and the others; a cached handle costs nanoseconds, a
//! look-up by labels hundreds). The macros of the `metrics` crate are used nowhere else.

mod exporter;
pub mod pipeline;
pub mod process;
pub mod provider;
pub mod relay;
pub mod traces;
pub mod worker;

pub use exporter::{Exporter, ExporterError};
pub mod gateway;
pub mod kafka;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Unit};

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution, in buckets.
    Histogram,
}

/// A declaration.
#[derive(Debug)]
pub struct Metric {
    /// As Prometheus sees it.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// In what.
    pub unit: Unit,
    /// A sentence for the person who reads it.
    pub help: &'static str,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// Time since a moment in milliseconds of the Unix epoch; zero where the other clock is ahead.
fn since(moment_ms: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let moment = Duration::from_millis(u64::try_from(moment_ms).unwrap_or_default());
    now.unwrap_or_default().saturating_sub(moment)
}

const METADATA: Metadata<'static> = Metadata::new("chatmesh", Level::INFO, Some(module_path!()));

impl Metric {
    fn key(&self, values: &[&str]) -> Key {
        debug_assert_eq!(values.len(), self.labels.len(), "labels of {}", self.name);
        let labels: Vec<Label> = self
            .labels
            .iter()
            .zip(values)
            .map(|(name, value)| Label::new(*name, (*value).to_owned()))
            .collect();
        Key::from_parts(KeyName::from_const_str(self.name), labels)
    }

    /// A handle with these label values. Cache it where it is used often.
    pub fn counter(&self, values: &[&str]) -> Counter {
        debug_assert_eq!(self.kind, Kind::Counter, "{}", self.name);
        metrics::with_recorder(|recorder| recorder.register_counter(&self.key(values), &METADATA))
    }

    /// As [`Metric::counter`].
    pub fn gauge(&self, values: &[&str]) -> Gauge {
        debug_assert_eq!(self.kind, Kind::Gauge, "{}", self.name);
        metrics::with_recorder(|recorder| recorder.register_gauge(&self.key(values), &METADATA))
    }

    /// As [`Metric::counter`].
    pub fn histogram(&self, values: &[&str]) -> Histogram {
        debug_assert_eq!(self.kind, Kind::Histogram, "{}", self.name);
        metrics::with_recorder(|recorder| recorder.register_histogram(&self.key(values), &METADATA))
    }
}
