//! The process's metrics as Prometheus reads them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{KeyName, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::process::{self, Process};
use super::{Kind, Metric};

/// The recorder does its housekeeping that often; histograms grow in memory without it.
const UPKEEP: Duration = Duration::from_secs(5);

const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
const MILLISECONDS: [f64; 12] = [
    1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10_000.0, 60_000.0,
];
const BYTES: [f64; 9] = [
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
const COUNTS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0, 20_000.0,
];

fn buckets(unit: Unit) -> &'static [f64] {
    match unit {
        Unit::Seconds => &SECONDS,
        Unit::Milliseconds => &MILLISECONDS,
        Unit::Bytes => &BYTES,
        _ => &COUNTS,
    }
}

/// The metrics could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics can't be exported: {0}")]
pub struct ExporterError(String);

impl From<BuildError> for ExporterError {
    fn from(error: BuildError) -> Self {
        Self(error.to_string())
    }
}

/// Renders what was counted. There is one in a process; clones are the same.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
    process: Arc<Process>,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    /// Installs the recorder, once in a process, with the metrics of this file's neighbours and
    /// those declared by others; a later call returns the same exporter and describes what is
    /// new. Handles taken before the first call count nothing.
    ///
    /// # Errors
    /// Another recorder is installed already.
    pub fn install(declared: &[&[&'static Metric]]) -> Result<Self, ExporterError> {
        static INSTALLED: OnceLock<Exporter> = OnceLock::new();
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = INSTALLING.lock();
        let all = || {
            [process::ALL]
                .into_iter()
                .chain(declared.iter().copied())
                .flatten()
        };
        let exporter = if let Some(exporter) = INSTALLED.get() {
            exporter
        } else {
            // The fallback keeps a histogram that was described late from being a summary.
            let mut builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
            for metric in all().filter(|metric| metric.kind == Kind::Histogram) {
                let name = Matcher::Full(metric.name.to_owned());
                builder = builder.set_buckets_for_metric(name, buckets(metric.unit))?;
            }
            let handle = builder.install_recorder()?;
            let process = Arc::new(Process::new());
            INSTALLED.get_or_init(|| Self { handle, process })
        };
        for metric in all() {
            metric.describe();
        }
        Ok(exporter.clone())
    }

    /// Says what runs here: `chatmesh_build_info`.
    pub fn build_info(&self, role: &str) {
        let info = process::BUILD_INFO.gauge(&[env!("CARGO_PKG_VERSION"), role]);
        info.set(1.0);
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.process.update();
        self.handle.render()
    }

    /// The housekeeping, until `stop`. One task of a process runs it.
    pub async fn upkeep(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP);
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
            Kind::Counter => recorder.describe_counter(name, unit, self.help.into()),
            Kind::Gauge => recorder.describe_gauge(name, unit, self.help.into()),
            Kind::Histogram => recorder.describe_histogram(name, unit, self.help.into()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITED: Metric = Metric {
        name: "test_waited_seconds",
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        help: "For this test",
        labels: &["of"],
    };

    #[test]
    fn a_histogram_has_buckets_and_a_second_install_is_the_same_exporter() {
        let first = Exporter::install(&[&[&WAITED]]).unwrap();
        WAITED.histogram(&["a"]).record(0.02);
        let second = Exporter::install(&[&[&WAITED]]).unwrap();
        second.build_info("test");
        for text in [first.render(), second.render()] {
            assert!(
                text.contains("# TYPE test_waited_seconds histogram"),
                "{text}"
            );
            assert!(
                text.contains("# HELP test_waited_seconds For this test"),
                "{text}"
            );
            assert!(
                text.contains(r#"test_waited_seconds_bucket{of="a",le="0.025"} 1"#),
                "{text}"
            );
            assert!(text.contains(r#"role="test""#), "{text}");
        }
    }
}
