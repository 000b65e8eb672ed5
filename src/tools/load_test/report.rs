//! What a test has shown, as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::conductor::Outcome;
use super::plan::{Pace, Plan};
use super::require::Condition;
use super::stats::{Counts, Times};
use super::values::{Judged, Values, of_times, short};

/// A kind of time.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) times: Times,
}

/// The whole result.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) head: String,
    pub(super) rows: Vec<Row>,
    pub(super) criteria: Vec<Judged>,
    pub(super) required: Vec<Judged>,
    pub(super) notes: Vec<String>,
    pub(super) facts: Vec<(&'static str, String)>,
    idle: bool,
    /// A test without connections is none.
    pub(super) somebody_got_in: bool,
    nothing_was_delivered: bool,
    json: Value,
}

impl Report {
    pub(super) fn new(plan: &Plan, conditions: &[Condition], outcome: &Outcome) -> Self {
        let stats = &outcome.stats;
        let values = Values {
            plan,
            stats,
            seconds: outcome.length.as_secs_f64(),
            interrupted: outcome.interrupted.is_some(),
        };
        let idle = plan.pace == Pace::Idle;
        let rows = [
            ("connect", "connected", &stats.connecting),
            ("accepted", "accepted", &stats.acceptance),
            ("first_token", "first token", &stats.first_token),
            ("whole", "whole answer", &stats.whole),
            ("token", "token since its writing", &stats.token),
        ];
        let rows = rows.into_iter().filter(|(.., times)| times.count() > 0);
        let mut report = Self {
            head: head(plan),
            rows: rows
                .map(|(name, title, times)| Row {
                    name,
                    title,
                    times: times.clone(),
                })
                .collect(),
            criteria: if idle { Vec::new() } else { values.original() },
            required: values.required(conditions),
            notes: values.notes(),
            facts: facts(&values, idle),
            idle,
            somebody_got_in: stats.connected > 0,
            nothing_was_delivered: values.nothing_was_delivered(),
            json: Value::Null,
        };
        report.json = report.to_json(&values);
        report
    }

    /// Whether everything that was required is so, and there is something that was measured.
    pub(super) fn holds(&self) -> bool {
        let met = self.required.iter().all(|judged| judged.met);
        met && self.somebody_got_in && !self.nothing_was_delivered
    }

    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    fn to_json(&self, values: &Values<'_>) -> Value {
        let (plan, stats) = (values.plan, values.stats);
        let judged = |all: &[Judged]| -> Vec<Value> {
            all.iter()
                .map(|j| json!({"condition": j.text, "value": rounded(j.value), "met": j.met}))
                .collect()
        };
        let mut latencies = Map::new();
        for row in &self.rows {
            let mut times = Map::new();
            times.insert("count".into(), row.times.count().into());
            for of in super::require::OF_TIMES {
                times.insert(of.into(), rounded(of_times(&row.times, of)));
            }
            latencies.insert(row.name.into(), times.into());
        }
        let targets: Vec<&str> = plan.targets.iter().map(|t| t.url.as_str()).collect();
        let (mode, rate, in_flight) = match plan.pace {
            Pace::Idle => ("idle", None, None),
            Pace::Open(rate) => ("open-loop", Some(rate), None),
            Pace::Closed(in_flight) => ("closed-loop", None, Some(in_flight)),
        };
        json!({
            "urls": targets,
            "protocol": if plan.v1 { "chatmesh.v1" } else { "classic" },
            "mode": mode,
            "rate": rate,
            "in_flight": in_flight,
            "clients": plan.clients,
            "connections": stats.connected,
            "not_connected": counts(&stats.not_connected),
            "closed_early": counts(&stats.closed),
            "came_back": stats.returned,
            "not_back": counts(&stats.away),
            "interrupted": values.interrupted,
            "seconds": rounded(Some(values.seconds)),
            "sent": stats.sent,
            "not_sent": stats.not_sent,
            "sent_again": stats.sent_again,
            "accepted": stats.accepted,
            "delivered": stats.delivered,
            "delivered_percent": rounded(values.get("delivered")),
            "throughput": rounded(values.get("throughput")),
            "failed": stats.failed,
            "refused": stats.refused,
            "errors": counts(&stats.errors),
            "lost": stats.lost,
            "open": stats.open,
            "doubles": values.told(stats.doubles),
            "out_of_order": values.told(stats.out_of_order),
            "mixed_up": values.told(stats.mixed_up),
            "not_understood": stats.strange,
            "deltas": stats.deltas,
            "deltas_per_second": rounded(values.get("tokens")),
            "restarted": stats.restarted,
            "latency_ms": latencies,
            "sent_late_p99_ms": rounded(stats.late.percentile_ms(99.0)),
            "original_criteria": judged(&self.criteria),
            "required": judged(&self.required),
            "notes": self.notes,
            "met": self.holds(),
        })
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}\n", self.head)?;
        for (name, value) in &self.facts {
            writeln!(out, "  {name:<16} {value}")?;
        }
        if !self.rows.is_empty() {
            let heads = super::require::OF_TIMES.map(|of| format!("{of:>9}"));
            writeln!(out, "\n  {:<24}{}  ms", "", heads.concat())?;
        }
        for row in &self.rows {
            write!(out, "  {:<24}", row.title)?;
            for of in super::require::OF_TIMES {
                let value = of_times(&row.times, of).map_or("–".to_owned(), short);
                write!(out, "{value:>9}")?;
            }
            writeln!(out)?;
        }
        if !self.idle {
            writeln!(out, "\nThe original's criteria")?;
            write_judged(out, &self.criteria)?;
        }
        if !self.required.is_empty() {
            writeln!(out, "\nRequired")?;
            write_judged(out, &self.required)?;
        }
        for note in &self.notes {
            writeln!(out, "\nNote: {note}.")?;
        }
        Ok(())
    }
}

fn write_judged(out: &mut String, all: &[Judged]) -> std::fmt::Result {
    for judged in all {
        let value = judged.shown();
        let sign = if judged.met { "✓" } else { "✗" };
        writeln!(out, "  {sign} {:<32} {value}", judged.text)?;
    }
    Ok(())
}

fn head(plan: &Plan) -> String {
    let protocol = if plan.v1 { "chatmesh.v1" } else { "classic" };
    let targets: Vec<&str> = plan.targets.iter().map(|t| t.url.authority()).collect();
    let (clients, targets) = (plan.clients, targets.join(", "));
    let does = match plan.pace {
        Pace::Idle => "connected only".to_owned(),
        Pace::Open(rate) => format!("{} messages a second together (open loop)", short(rate)),
        Pace::Closed(1) => "each waiting for its answer (closed loop)".to_owned(),
        Pace::Closed(n) => format!("each with {n} messages under way (closed loop)"),
    };
    format!("{clients} clients of {targets} ({protocol}), {does}")
}

fn facts(values: &Values<'_>, idle: bool) -> Vec<(&'static str, String)> {
    let (stats, plan) = (values.stats, values.plan);
    let value = |name: &str| values.get(name).map_or("–".to_owned(), short);
    let mut facts = vec![(
        "connections",
        format!("{} of {}", stats.connected, plan.clients),
    )];
    let closed: u64 = stats.closed.values().sum();
    if idle {
        facts.push(("held for", format!("{} s", short(values.seconds))));
        facts.push(("ended early", closed.to_string()));
        return facts;
    }
    facts.push(("sent", stats.sent.to_string()));
    if stats.not_sent > 0 {
        facts.push(("not sent", stats.not_sent.to_string()));
    }
    facts.extend([
        (
            "delivered",
            format!("{} ({} %)", stats.delivered, value("delivered")),
        ),
        (
            "throughput",
            format!(
                "{} answers/s over {} s",
                value("throughput"),
                short(values.seconds)
            ),
        ),
    ]);
    if stats.deltas > 0 {
        facts.push((
            "deltas",
            format!("{} ({}/s)", stats.deltas, value("tokens")),
        ));
    }
    let told = |number: u64| {
        let number = values.told(number);
        number.map_or("not measured".to_owned(), |number| number.to_string())
    };
    facts.push(("lost", stats.lost.to_string()));
    if values.interrupted {
        facts.push(("open", stats.open.to_string()));
    }
    facts.extend([
        ("doubles", told(stats.doubles)),
        ("out of order", told(stats.out_of_order)),
    ]);
    if stats.mixed_up > 0 || !values.tells_apart() {
        facts.push(("mixed up", told(stats.mixed_up)));
    }
    for (name, number) in [
        ("failed", stats.failed),
        ("refused", stats.refused),
        ("begun anew", stats.restarted),
        ("ended early", closed),
        ("came back", stats.returned),
        ("sent again", stats.sent_again),
    ] {
        if number > 0 {
            facts.push((name, number.to_string()));
        }
    }
    for (code, number) in &stats.errors {
        // Codes are few, and say most.
        facts.push(("error", format!("{code} {number}")));
    }
    facts
}

fn counts(counts: &Counts) -> Value {
    let all = counts.iter();
    all.map(|(name, number)| (name.clone(), Value::from(*number)))
        .collect::<Map<_, _>>()
        .into()
}

/// Three digits after the point are more than is measured.
fn rounded(value: Option<f64>) -> Value {
    value.map_or(Value::Null, |v| json!((v * 1e3).round() / 1e3))
}
