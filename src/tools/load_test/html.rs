//! Renders the report of a test as one HTML file without external resources, and writes the file.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use super::condition::STATISTIC_NAMES;
use super::format::format_number;
use super::plot::{Line, Plot};
use super::report::{LatencyRow, Report};
use super::result::Verdict;
use super::stats::TimeSeries;

const STYLE: &str = "
:root{color-scheme:light dark;--k0:#1d6fd1;--k1:#d9480f;--k2:#5f3dc4;--k3:#868e96;--line:#8884}
@media(prefers-color-scheme:dark){:root{--k0:#6cb0ff;--k1:#ff9b66;--k2:#b197fc;--k3:#adb5bd}}
body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em;margin-bottom:0}h2{font-size:1.1em;margin:1.6em 0 .4em}
table{border-collapse:collapse}td,th{padding:.2em .8em .2em 0;text-align:right;border-bottom:1px solid var(--line)}
td:first-child,th:first-child{text-align:left}th{font-weight:600}
figure{margin:1.2em 0}svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:currentColor;opacity:.75}
.grid{stroke:var(--line);fill:none}.line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.line.k0{stroke:var(--k0)}.line.k1{stroke:var(--k1)}.line.k2{stroke:var(--k2)}.line.k3{stroke:var(--k3)}
.key::before{content:'';display:inline-block;width:1em;height:3px;margin:0 .4em .25em 1em}
.key.k0::before{background:var(--k0)}.key.k1::before{background:var(--k1)}
.key.k2::before{background:var(--k2)}.key.k3::before{background:var(--k3)}
.hint{fill:transparent}.hint:hover{fill:var(--line)}
.met::before{content:'✓ ';color:#2b8a3e}.missed::before{content:'✗ ';color:#e03131}.note{border-left:3px solid var(--k1);padding-left:.8em}
";

/// The file of the report. It is opened before the test starts, so that a wrong path is found
/// before there is a result to lose. A file that was created and not written is removed again.
#[derive(Debug)]
pub(super) struct ReportFile {
    file: File,
    path: PathBuf,
    /// Whether the file was created by this process and has not been written.
    remove_on_drop: bool,
}

impl ReportFile {
    /// Opens or creates the file. The content of an existing file stays until [`Self::write`].
    pub(super) fn open(path: PathBuf) -> std::io::Result<Self> {
        let remove_on_drop = !path.exists();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            remove_on_drop,
        })
    }

    /// Replaces the content of the file.
    pub(super) fn write(mut self, page: &str) -> std::io::Result<()> {
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(page.as_bytes())?;
        self.remove_on_drop = false;
        Ok(())
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if self.remove_on_drop {
            // An error is ignored, because an empty file that stays does no harm.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Renders the report and its plots.
pub(super) fn render_page(report: &Report, series: &TimeSeries) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write_page(&mut out, report, series);
    out
}

fn write_page(out: &mut String, report: &Report, series: &TimeSeries) -> std::fmt::Result {
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>chatmesh load test</title><style>{STYLE}</style>\n\
         <h1>Load test</h1>\n<p>{}</p>",
        escape(&report.head)
    )?;
    for note in &report.notes {
        writeln!(out, "<p class=\"note\">{}.</p>", escape(note))?;
    }
    write_verdicts(out, "Required", &report.required_verdicts)?;
    write_verdicts(out, "The original’s criteria", &report.original_verdicts)?;
    writeln!(out, "<h2>Result</h2><table>")?;
    for (name, value) in &report.facts {
        writeln!(out, "<tr><td>{name}<td>{}", escape(value))?;
    }
    writeln!(out, "</table>")?;
    if !report.latency_rows.is_empty() {
        write_latencies(out, &report.latency_rows)?;
    }
    if series.buckets.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Over time</h2>")?;
    for plot in plots(series) {
        out.push_str(&plot.render());
    }
    let width = format_number(series.bucket_width.as_secs_f64());
    writeln!(
        out,
        "<p>Each point is {width} s. Latency counts from the time at which a message was scheduled.</p>"
    )
}

fn write_verdicts(out: &mut String, title: &str, verdicts: &[Verdict]) -> std::fmt::Result {
    if verdicts.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>{title}</h2><table>")?;
    for verdict in verdicts {
        let class = if verdict.is_met { "met" } else { "missed" };
        let value = verdict.value_text();
        let text = escape(&verdict.text);
        writeln!(out, "<tr><td class=\"{class}\">{text}<td>{value}")?;
    }
    writeln!(out, "</table>")
}

fn write_latencies(out: &mut String, rows: &[LatencyRow]) -> std::fmt::Result {
    write!(out, "<h2>Latency in milliseconds</h2><table><tr><th>")?;
    for statistic in STATISTIC_NAMES {
        write!(out, "<th>{statistic}")?;
    }
    for row in rows {
        write!(out, "\n<tr><td>{}", row.title)?;
        let latency = &row.latency;
        for value in [
            latency.percentile_ms(50.0),
            latency.percentile_ms(90.0),
            latency.percentile_ms(99.0),
            latency.percentile_ms(99.9),
            latency.max_ms(),
            latency.mean_ms(),
        ] {
            write!(out, "<td>{}", value.map_or("–".to_owned(), format_number))?;
        }
    }
    writeln!(out, "</table>")
}

/// The plots of the report: the number of messages, and the latency of the whole answer.
fn plots(series: &TimeSeries) -> [Plot; 2] {
    let step_seconds = series.bucket_width.as_secs_f64();
    let buckets = &series.buckets;
    let line = |name, values: Vec<Option<f64>>| Line { name, values };
    let percentile = |percent: f64| -> Vec<Option<f64>> {
        let buckets = buckets.iter();
        buckets
            .map(|bucket| bucket.percentile_ms(percent))
            .collect()
    };
    let per_second = |number: u64| Some(number as f64 / step_seconds);
    [
        Plot {
            title: "Messages a second",
            unit: "/s",
            step_seconds,
            lines: vec![
                line(
                    "answered",
                    buckets.iter().map(|b| per_second(b.answered)).collect(),
                ),
                line("sent", buckets.iter().map(|b| per_second(b.sent)).collect()),
            ],
            is_logarithmic: false,
        },
        Plot {
            title: "Whole answer, ms",
            unit: "ms",
            step_seconds,
            lines: vec![
                line("p50", percentile(50.0)),
                line("p99", percentile(99.0)),
                line("p99.9", percentile(99.9)),
                line("max", percentile(100.0)),
            ],
            is_logarithmic: true,
        },
    ]
}

/// Escapes text so that HTML shows it unchanged.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
