//! Values of a result by their names, what conditions make of them, and what there is to say.

use super::client::Plan;
use super::require::Condition;
use super::stats::{Stats, Times};

/// A condition and what became of it.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) text: String,
    pub(super) value: Option<f64>,
    unit: &'static str,
    pub(super) met: bool,
}

impl Judged {
    /// The value, for people.
    pub(super) fn shown(&self) -> String {
        let value = self.value.map(|value| short(value) + self.unit);
        value.unwrap_or("not measured".to_owned())
    }
}

/// The original system's own criteria for its load test.
const ORIGINAL: [(&str, &str); 3] = [
    ("connections>=100", "100 connections or more"),
    ("throughput>=100", "100 messages a second or more"),
    ("delivered>95%", "more than 95 % delivered"),
];

/// Late by this much at p99, the schedule was not kept.
const LATE_MS: f64 = 20.0;

/// Values by the names that conditions know.
pub(super) struct Values<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stats: &'a Stats,
    /// From the first message to the last answer.
    pub(super) seconds: f64,
}

impl Values<'_> {
    fn times(&self, name: &str) -> Option<&Times> {
        Some(match name {
            "whole" => &self.stats.whole,
            "accepted" => &self.stats.acceptance,
            "first_token" => &self.stats.first_token,
            "token" => &self.stats.token,
            "connect" => &self.stats.connecting,
            _ => return None,
        })
    }

    fn a_second(&self, number: u64) -> Option<f64> {
        (self.seconds > 0.0).then(|| number as f64 / self.seconds)
    }

    pub(super) fn get(&self, name: &str) -> Option<f64> {
        let stats = self.stats;
        match name {
            "delivered" => {
                (stats.sent > 0).then(|| stats.delivered as f64 * 100.0 / stats.sent as f64)
            }
            "throughput" => self.a_second(stats.delivered).or(Some(0.0)),
            "tokens" => self.a_second(stats.deltas),
            "loss" => Some(stats.lost as f64),
            "doubles" => Some(stats.doubles as f64),
            "order" => Some(stats.out_of_order as f64),
            "mixed_up" => Some(stats.mixed_up as f64),
            "errors" => Some((stats.failed + stats.refused) as f64),
            "connections" => Some(stats.connected as f64),
            _ => {
                let (time, of) = name.split_once('.').unwrap_or(("whole", name));
                match self.times(time) {
                    Some(times) => of_times(times, of),
                    // p99.9 has a dot of its own.
                    None => of_times(&stats.whole, name),
                }
            }
        }
    }

    fn judge(&self, text: &str, says: &str) -> Option<Judged> {
        match text.parse() {
            Ok(Condition::Value(comparison)) => {
                let value = self.get(&comparison.name);
                Some(Judged {
                    text: says.to_owned(),
                    met: comparison.holds(value),
                    unit: comparison.unit(),
                    value,
                })
            }
            _ => None,
        }
    }

    pub(super) fn original(&self) -> Vec<Judged> {
        let judged = ORIGINAL.iter();
        judged
            .filter_map(|(text, says)| self.judge(text, says))
            .collect()
    }

    pub(super) fn required(&self, conditions: &[Condition]) -> Vec<Judged> {
        let mut required = Vec::new();
        for condition in conditions {
            match condition {
                Condition::Original => required.extend(self.original()),
                Condition::Value(comparison) => {
                    let value = self.get(&comparison.name);
                    required.push(Judged {
                        text: comparison.to_string(),
                        met: comparison.holds(value),
                        unit: comparison.unit(),
                        value,
                    });
                }
            }
        }
        required
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let (stats, mut notes) = (self.stats, Vec::new());
        limits(stats, &mut notes);
        for (reason, number) in &stats.not_connected {
            let advice = match reason.as_str() {
                "HTTP 401" | "close 4401" => {
                    ": the server wants tokens; give --token or --admin-key, or start it with \
                     AUTH_MODE=open or TOKEN_ENDPOINT=open for this test"
                }
                "HTTP 503" => {
                    ": the server is stopping, or at a limit of its own; MAX_CONNECTIONS, \
                     MAX_NEW_CONNECTIONS and ADDRESS_MAX_CONNECTIONS set them (0 lifts one), and \
                     --ramp-up connects more slowly"
                }
                _ => "",
            };
            notes.push(format!(
                "{number} clients could not connect ({reason}){advice}"
            ));
        }
        for (reason, number) in &stats.closed {
            notes.push(format!("{number} connections ended early ({reason})"));
        }
        let late = stats.late.percentile_ms(99.0).unwrap_or(0.0);
        if late > LATE_MS {
            notes.push(format!(
                "1 % of the messages were sent more than {late:.0} ms late, which counts as their \
                 latency: the server did not read them, or this machine is too busy for both (more \
                 --threads, or another machine)"
            ));
        }
        if !self.plan.v1 && stats.delivered > 0 && stats.recognised < stats.delivered {
            notes.push(
                "the answers don't repeat the messages, and classic ones don't name them: order and \
                 doubles are not known, and times are counted as if answers came in order. Use the \
                 demo model, mock-openai --echo, or leave out --classic"
                    .to_owned(),
            );
        }
        if stats.strange > 0 {
            notes.push(format!("{} frames were not understood", stats.strange));
        }
        notes
    }
}

/// Says when it was the server's limits that were measured.
fn limits(stats: &Stats, notes: &mut Vec<String>) {
    for (text, number) in &stats.limits {
        let setting = match text.as_str() {
            text if text.contains("budget") => "USER_DAILY_TOKENS=0",
            text if text.contains("wait for their answers") => "USER_MAX_PENDING=0",
            text if text.contains("conversation") => "USER_MAX_CONVERSATIONS=0",
            _ => "USER_RATE_LIMIT_MAX_REQUESTS=0",
        };
        notes.push(format!(
            "{number} of {} messages were refused by the server's limit for one user (\"{text}\"): \
             that limit was measured, not the server. Start the gateways with {setting}, or use more \
             --clients with fewer messages each",
            stats.sent
        ));
    }
    if let Some(number) = stats.closed.get("close 4429") {
        notes.push(format!(
            "{number} clients were closed for going on after the rate limit (4429)"
        ));
    }
}

pub(super) fn of_times(times: &Times, of: &str) -> Option<f64> {
    match of {
        "max" => times.max_ms(),
        "mean" => times.mean_ms(),
        percentile => {
            let percent = percentile.strip_prefix('p')?.parse().ok()?;
            times.percentile_ms(percent)
        }
    }
}

/// As many digits as mean something.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v.fract() < 1e-9 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}
