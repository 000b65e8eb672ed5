//! Exports the process's metrics in Prometheus' text format.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{KeyName, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Metric, MetricKind};

/// Interval of the recorder's upkeep. Without it, histograms grow in memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const SECOND_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
const MILLISECOND_BUCKETS: [f64; 12] = [
    1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10_000.0, 60_000.0,
];
const BYTE_BUCKETS: [f64; 9] = [
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
];
const COUNT_BUCKETS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0, 20_000.0,
];

/// Returns the upper bounds of the buckets of a histogram with this unit.
fn buckets(unit: Unit) -> &'static [f64] {
    match unit {
        Unit::Seconds => &SECOND_BUCKETS,
        Unit::Milliseconds => &MILLISECOND_BUCKETS,
        Unit::Bytes => &BYTE_BUCKETS,
        _ => &COUNT_BUCKETS,
    }
}

/// The metrics recorder can't be installed.
#[derive(Debug, thiserror::Error)]
#[error("the metrics recorder can't be installed: {0}")]
pub struct ExporterError(String);

impl From<BuildError> for ExporterError {
    fn from(error: BuildError) -> Self {
        Self(error.to_string())
    }
}

type Collector = Arc<dyn Fn() + Send + Sync>;

/// Renders the recorded metrics. A process has one recorder; clones share it.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
    collector: Option<Collector>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    /// Installs the metrics recorder of the process and describes the `declared` metrics. A later
    /// call returns the same exporter and only adds descriptions. Handles that were created before
    /// the first call record nothing.
    ///
    /// # Errors
    /// A recorder was installed by other code.
    pub fn install(declared: &[&[&'static Metric]]) -> Result<Self, ExporterError> {
        static INSTALLED: OnceLock<Exporter> = OnceLock::new();
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _guard = INSTALLING.lock();
        let all_metrics = || declared.iter().copied().flatten();
        let exporter = if let Some(exporter) = INSTALLED.get() {
            exporter
        } else {
            // A histogram without buckets would become a summary. So default buckets are set for
            // the histograms that a later call declares.
            let mut builder = PrometheusBuilder::new().set_buckets(&SECOND_BUCKETS)?;
            for metric in all_metrics().filter(|metric| metric.kind == MetricKind::Histogram) {
                let name = Matcher::Full(metric.name.to_owned());
                builder = builder.set_buckets_for_metric(name, buckets(metric.unit))?;
            }
            let handle = builder.install_recorder()?;
            INSTALLED.get_or_init(|| Self {
                handle,
                collector: None,
            })
        };
        for metric in all_metrics() {
            metric.describe();
        }
        Ok(exporter.clone())
    }

    /// Calls `collector` before each rendering, to update gauges whose values are read on demand.
    #[must_use]
    pub fn with_collector(mut self, collector: impl Fn() + Send + Sync + 'static) -> Self {
        self.collector = Some(Arc::new(collector));
        self
    }

    /// Renders all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        if let Some(collect) = &self.collector {
            collect();
        }
        self.handle.render()
    }

    /// Runs the recorder's periodic upkeep until `stop` is cancelled. Call it once in a process.
    pub async fn run_upkeep(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

impl Metric {
    fn describe(&self) {
        let name = KeyName::from_const_str(self.name);
        let unit = Some(self.unit);
        metrics::with_recorder(|recorder| match self.kind {
            MetricKind::Counter => recorder.describe_counter(name, unit, self.help.into()),
            MetricKind::Gauge => recorder.describe_gauge(name, unit, self.help.into()),
            MetricKind::Histogram => recorder.describe_histogram(name, unit, self.help.into()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_WAIT: Metric = Metric {
        name: "test_wait_seconds",
        kind: MetricKind::Histogram,
        unit: Unit::Seconds,
        help: "For this test.",
        labels: &["kind"],
    };
    const TEST_GAUGE: Metric = Metric {
        name: "test_gauge",
        kind: MetricKind::Gauge,
        unit: Unit::Count,
        help: "For this test.",
        labels: &[],
    };

    #[test]
    fn histogram_has_buckets_and_second_install_returns_the_same_exporter() {
        let declared: &[&[&Metric]] = &[&[&TEST_WAIT, &TEST_GAUGE]];
        let first = Exporter::install(declared).unwrap();
        TEST_WAIT.histogram(&["a"]).record(0.02);
        let gauge = TEST_GAUGE.gauge(&[]);
        let second = Exporter::install(declared)
            .unwrap()
            .with_collector(move || gauge.set(7.0));

        let texts = [second.render(), first.render()];

        for text in texts {
            for expected in [
                "# TYPE test_wait_seconds histogram",
                "# HELP test_wait_seconds For this test.",
                r#"test_wait_seconds_bucket{kind="a",le="0.025"} 1"#,
                "test_gauge 7",
            ] {
                assert!(text.contains(expected), "{expected} is not in {text}");
            }
        }
    }
}
