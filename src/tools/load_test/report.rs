//! Compiles the report of a test, and formats it as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::condition::{Condition, STATISTIC_NAMES};
use super::format::format_number;
use super::notes::notes;
use super::plan::{Plan, SendMode};
use super::result::{TestResult, Verdict, statistic_ms};
use super::runner::TestMeasurements;
use super::stats::{Counts, LatencyHistogram};

/// One measured latency, as a row of the table.
#[derive(Debug)]
pub(super) struct LatencyRow {
    /// Name of the latency in conditions and in JSON.
    pub(super) name: &'static str,
    /// Name of the latency in the tables.
    pub(super) title: &'static str,
    pub(super) latency: LatencyHistogram,
}

/// The report of a test, with everything that its text, JSON and HTML show.
#[derive(Debug)]
pub(super) struct Report {
    /// One line that describes the test.
    pub(super) head: String,
    /// The latencies that were measured.
    pub(super) latency_rows: Vec<LatencyRow>,
    /// Verdicts on the original system's criteria; empty for an idle test.
    pub(super) original_verdicts: Vec<Verdict>,
    /// Verdicts on the conditions of `--require`.
    pub(super) required_verdicts: Vec<Verdict>,
    pub(super) notes: Vec<String>,
    /// Names and values of the counters, in the order in which they are shown.
    pub(super) facts: Vec<(&'static str, String)>,
    is_idle: bool,
    /// Whether at least one client connected; otherwise there was no test.
    pub(super) has_connected_client: bool,
    is_without_delivery: bool,
    json: Value,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        conditions: &[Condition],
        measurements: &TestMeasurements,
    ) -> Self {
        let stats = &measurements.stats;
        let result = TestResult {
            plan,
            stats,
            length_seconds: measurements.length.as_secs_f64(),
            is_interrupted: measurements.interrupt_exit_code.is_some(),
        };
        let is_idle = plan.mode == SendMode::Idle;
        let rows = [
            ("connect", "connected", &stats.connect_time),
            ("accepted", "accepted", &stats.accept_time),
            ("first_token", "first token", &stats.first_token),
            ("whole", "whole answer", &stats.whole_answer),
            ("token", "token delivery", &stats.token_latency),
        ];
        let rows = rows.into_iter().filter(|(.., latency)| latency.count() > 0);
        let mut report = Self {
            head: head(plan),
            latency_rows: rows
                .map(|(name, title, latency)| LatencyRow {
                    name,
                    title,
                    latency: latency.clone(),
                })
                .collect(),
            original_verdicts: if is_idle {
                Vec::new()
            } else {
                result.judge_original()
            },
            required_verdicts: result.judge(conditions),
            notes: notes(&result),
            facts: facts(&result, is_idle),
            is_idle,
            has_connected_client: stats.connected > 0,
            is_without_delivery: result.is_without_delivery(),
            json: Value::Null,
        };
        report.json = report.to_json(&result);
        report
    }

    /// Whether all required conditions are met, a client connected, and a message was delivered. An
    /// idle or interrupted test needs no delivered message.
    pub(super) fn is_success(&self) -> bool {
        let all_met = self.required_verdicts.iter().all(|verdict| verdict.is_met);
        all_met && self.has_connected_client && !self.is_without_delivery
    }

    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    fn to_json(&self, result: &TestResult<'_>) -> Value {
        let (plan, stats) = (result.plan, result.stats);
        let verdicts = |verdicts: &[Verdict]| -> Vec<Value> {
            let verdicts = verdicts.iter();
            verdicts
                .map(|v| {
                    let value = rounded_json(v.value);
                    json!({"condition": v.text, "value": value, "met": v.is_met})
                })
                .collect()
        };
        let mut latencies = Map::new();
        for row in &self.latency_rows {
            let mut statistics = Map::new();
            statistics.insert("count".into(), row.latency.count().into());
            for statistic in STATISTIC_NAMES {
                let value = rounded_json(statistic_ms(&row.latency, statistic));
                statistics.insert(statistic.into(), value);
            }
            latencies.insert(row.name.into(), statistics.into());
        }
        let targets: Vec<&str> = plan.targets.iter().map(|t| t.url.as_str()).collect();
        let (mode, rate, in_flight) = match plan.mode {
            SendMode::Idle => ("idle", None, None),
            SendMode::OpenLoop(rate) => ("open-loop", Some(rate), None),
            SendMode::ClosedLoop(in_flight) => ("closed-loop", None, Some(in_flight)),
        };
        json!({
            "urls": targets,
            "protocol": if plan.is_v1 { "chatmesh.v1" } else { "classic" },
            "mode": mode,
            "rate": rate,
            "in_flight": in_flight,
            "clients": plan.client_count,
            "connections": stats.connected,
            "not_connected": counts_json(&stats.not_connected),
            "closed_early": counts_json(&stats.closed_early),
            "came_back": stats.reconnections,
            "not_back": counts_json(&stats.not_reconnected),
            "interrupted": result.is_interrupted,
            "seconds": rounded_json(Some(result.length_seconds)),
            "sent": stats.sent,
            "not_sent": stats.not_sent,
            "sent_again": stats.resent,
            "accepted": stats.accepted,
            "delivered": stats.delivered,
            "delivered_percent": rounded_json(result.value("delivered")),
            "throughput": rounded_json(result.value("throughput")),
            "failed": stats.failed,
            "refused": stats.rejected,
            "errors": counts_json(&stats.errors),
            "lost": stats.lost,
            "open": stats.pending,
            "doubles": result.count_if_answers_are_identified(stats.duplicates),
            "out_of_order": result.count_if_answers_are_identified(stats.out_of_order),
            "mixed_up": result.count_if_answers_are_identified(stats.mixed_up),
            "not_understood": stats.unexpected_frames,
            "deltas": stats.deltas,
            "deltas_per_second": rounded_json(result.value("tokens")),
            "restarted": stats.restarted,
            "latency_ms": latencies,
            "sent_late_p99_ms": rounded_json(stats.send_delay.percentile_ms(99.0)),
            "original_criteria": verdicts(&self.original_verdicts),
            "required": verdicts(&self.required_verdicts),
            "notes": self.notes,
            "met": self.is_success(),
        })
    }

    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a string can't fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}\n", self.head)?;
        for (name, value) in &self.facts {
            writeln!(out, "  {name:<16} {value}")?;
        }
        if !self.latency_rows.is_empty() {
            let header = STATISTIC_NAMES.map(|statistic| format!("{statistic:>9}"));
            writeln!(out, "\n  {:<24}{}  ms", "", header.concat())?;
        }
        for row in &self.latency_rows {
            write!(out, "  {:<24}", row.title)?;
            for statistic in STATISTIC_NAMES {
                let value = statistic_ms(&row.latency, statistic);
                let value = value.map_or("–".to_owned(), format_number);
                write!(out, "{value:>9}")?;
            }
            writeln!(out)?;
        }
        if !self.is_idle {
            writeln!(out, "\nThe original's criteria")?;
            write_verdicts(out, &self.original_verdicts)?;
        }
        if !self.required_verdicts.is_empty() {
            writeln!(out, "\nRequired")?;
            write_verdicts(out, &self.required_verdicts)?;
        }
        for note in &self.notes {
            writeln!(out, "\nNote: {note}.")?;
        }
        Ok(())
    }
}

fn write_verdicts(out: &mut String, verdicts: &[Verdict]) -> std::fmt::Result {
    for verdict in verdicts {
        let value = verdict.value_text();
        let sign = if verdict.is_met { "✓" } else { "✗" };
        writeln!(out, "  {sign} {:<32} {value}", verdict.text)?;
    }
    Ok(())
}

/// Returns the line that describes the test.
fn head(plan: &Plan) -> String {
    let protocol = if plan.is_v1 { "chatmesh.v1" } else { "classic" };
    let targets: Vec<&str> = plan.targets.iter().map(|t| t.url.authority()).collect();
    let (clients, targets) = (plan.client_count, targets.join(", "));
    let activity = match plan.mode {
        SendMode::Idle => "connected only".to_owned(),
        SendMode::OpenLoop(rate) => format!(
            "{} messages a second together (open loop)",
            format_number(rate)
        ),
        SendMode::ClosedLoop(1) => "each waiting for its answer (closed loop)".to_owned(),
        SendMode::ClosedLoop(n) => format!("each with {n} messages in flight (closed loop)"),
    };
    format!("{clients} clients of {targets} ({protocol}), {activity}")
}

/// Returns the names and values of the counters in the order in which the report shows them.
/// Counters of rare events are left out if they are 0.
fn facts(result: &TestResult<'_>, is_idle: bool) -> Vec<(&'static str, String)> {
    let (stats, plan) = (result.stats, result.plan);
    let value_text = |name: &str| result.value(name).map_or("–".to_owned(), format_number);
    let mut facts = vec![(
        "connections",
        format!("{} of {}", stats.connected, plan.client_count),
    )];
    let ended_early: u64 = stats.closed_early.values().sum();
    if is_idle {
        facts.push((
            "held for",
            format!("{} s", format_number(result.length_seconds)),
        ));
        facts.push(("ended early", ended_early.to_string()));
        return facts;
    }
    facts.push(("sent", stats.sent.to_string()));
    if stats.not_sent > 0 {
        facts.push(("not sent", stats.not_sent.to_string()));
    }
    facts.extend([
        (
            "delivered",
            format!("{} ({} %)", stats.delivered, value_text("delivered")),
        ),
        (
            "throughput",
            format!(
                "{} answers/s over {} s",
                value_text("throughput"),
                format_number(result.length_seconds)
            ),
        ),
    ]);
    if stats.deltas > 0 {
        facts.push((
            "deltas",
            format!("{} ({}/s)", stats.deltas, value_text("tokens")),
        ));
    }
    let count_or_not_measured = |count: u64| {
        let count = result.count_if_answers_are_identified(count);
        count.map_or("not measured".to_owned(), |count| count.to_string())
    };
    facts.push(("lost", stats.lost.to_string()));
    if result.is_interrupted {
        facts.push(("open", stats.pending.to_string()));
    }
    facts.extend([
        ("doubles", count_or_not_measured(stats.duplicates)),
        ("out of order", count_or_not_measured(stats.out_of_order)),
    ]);
    if stats.mixed_up > 0 || !result.answers_are_identified() {
        facts.push(("mixed up", count_or_not_measured(stats.mixed_up)));
    }
    for (name, count) in [
        ("failed", stats.failed),
        ("refused", stats.rejected),
        ("restarted", stats.restarted),
        ("ended early", ended_early),
        ("reconnected", stats.reconnections),
        ("sent again", stats.resent),
    ] {
        if count > 0 {
            facts.push((name, count.to_string()));
        }
    }
    for (code, count) in &stats.errors {
        facts.push(("error", format!("{code} {count}")));
    }
    facts
}

fn counts_json(counts: &Counts) -> Value {
    let counts = counts.iter();
    counts
        .map(|(name, count)| (name.clone(), Value::from(*count)))
        .collect::<Map<_, _>>()
        .into()
}

/// Returns a value as JSON, rounded to three decimals, which is more precise than the measurement;
/// null for a value that was not measured.
fn rounded_json(value: Option<f64>) -> Value {
    value.map_or(Value::Null, |v| json!((v * 1e3).round() / 1e3))
}
