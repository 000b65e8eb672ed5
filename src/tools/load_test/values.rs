//! Values of a result by their names, what conditions make of them, and what there is to say.

use super::plan::{Pace, Plan};
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
    /// From the first message to the last answer, and no less than was planned.
    pub(super) seconds: f64,
    /// The user ended the test.
    pub(super) interrupted: bool,
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

    /// Whether each answer could be told to be some message's. Classic frames don't say it, only
    /// the text does, where the model repeats the message's.
    pub(super) fn tells_apart(&self) -> bool {
        self.plan.v1
            || self.plan.pace == Pace::Idle
            || (self.stats.guessed == 0 && self.stats.recognised > 0)
    }

    /// A count, where answers can be told apart.
    pub(super) fn told(&self, number: u64) -> Option<u64> {
        self.tells_apart().then_some(number)
    }

    pub(super) fn get(&self, name: &str) -> Option<f64> {
        let stats = self.stats;
        match name {
            "delivered" => {
                let all = stats.sent.saturating_sub(stats.open) + stats.not_sent;
                (all > 0).then(|| stats.delivered as f64 * 100.0 / all as f64)
            }
            "throughput" => self.a_second(stats.delivered).or(Some(0.0)),
            "tokens" => self.a_second(stats.deltas),
            "loss" => Some((stats.lost + stats.not_sent) as f64),
            "doubles" => self.told(stats.doubles).map(|number| number as f64),
            "order" => self.told(stats.out_of_order).map(|number| number as f64),
            "mixed_up" => self.told(stats.mixed_up).map(|number| number as f64),
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
        self.endings(&mut notes);
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
        let late = stats.late.percentile_ms(99.0).unwrap_or(0.0);
        if late > LATE_MS && stats.late.count() >= 100 {
            notes.push(format!(
                "1 % of the messages were sent more than {late:.0} ms late, which counts as their \
                 latency: the server was away or did not read them, or this machine is too busy for \
                 both (more --threads, or another machine)"
            ));
        }
        if stats.delivered > 0 && !self.tells_apart() {
            notes.push(
                "the answers don't all repeat their messages, and classic ones don't name them: \
                 order, doubles and mixed up were not measured, and times are counted as if answers \
                 came in order. Use the demo model, mock-openai --echo, or leave out --classic"
                    .to_owned(),
            );
        }
        if stats.strange > 0 {
            notes.push(format!("{} frames were not understood", stats.strange));
        }
        notes
    }
}

impl Values<'_> {
    /// What ended before its time.
    fn endings(&self, notes: &mut Vec<String>) {
        let stats = self.stats;
        if self.interrupted {
            notes.push(format!(
                "the test was interrupted {} s after its beginning: {} messages without an answer \
                 were still open, and none counts as lost",
                short(self.seconds),
                stats.open
            ));
        } else if self.nothing_was_delivered() {
            notes.push("not a single message was delivered".to_owned());
        }
        if let Some((first, last)) = stats.closed_at {
            let reasons: Vec<String> = stats
                .closed
                .iter()
                .map(|(reason, number)| format!("{number} {reason}"))
                .collect();
            let number: u64 = stats.closed.values().sum();
            let at = match [first, last].map(|at| short(at.as_secs_f64())) {
                [first, last] if first == last => format!("{first} s after the beginning"),
                [first, last] => format!("{first} to {last} s after the beginning"),
            };
            let (returned, again) = (stats.returned, stats.sent_again);
            let again = match again {
                0 => String::new(),
                again => format!(" and sent {again} messages again"),
            };
            notes.push(format!(
                "{number} connections ended early, {at} ({}); clients came back {returned} \
                 times{again}",
                reasons.join(", ")
            ));
        }
        for (reason, number) in &stats.away {
            notes.push(format!(
                "{number} clients were not back when the test ended ({reason})"
            ));
        }
        if stats.not_sent > 0 {
            notes.push(format!(
                "{} messages were to be sent and could not be: they count as not delivered",
                stats.not_sent
            ));
        }
    }

    /// A test without any answer shows nothing, whatever was not lost in it.
    pub(super) fn nothing_was_delivered(&self) -> bool {
        self.plan.pace != Pace::Idle && self.stats.delivered == 0 && !self.interrupted
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
        // Who lifts the one meets the other.
        let also = match setting {
            "USER_RATE_LIMIT_MAX_REQUESTS=0" => " and USER_MAX_PENDING=0",
            _ => "",
        };
        notes.push(format!(
            "{number} of {} messages were refused by the server's limit for one user (\"{text}\"): \
             that limit was measured, not the server. Start the gateways with {setting}{also}, or \
             use more --clients with fewer messages each",
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
