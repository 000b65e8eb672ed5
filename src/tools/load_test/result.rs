//! Computes the named values of a finished test, and the verdicts on conditions.

use super::condition::Condition;
use super::format::format_number;
use super::plan::{Plan, SendMode};
use super::stats::{LatencyHistogram, Stats};

/// A condition, the measured value, and whether the value meets the condition.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The condition in words.
    pub(super) text: String,
    /// The measured value; `None` when it was not measured.
    pub(super) value: Option<f64>,
    unit: &'static str,
    pub(super) is_met: bool,
}

impl Verdict {
    /// Returns the value with its unit, or "not measured".
    pub(super) fn value_text(&self) -> String {
        let value = self.value.map(|value| format_number(value) + self.unit);
        value.unwrap_or("not measured".to_owned())
    }
}

/// The criteria of the original system's load test, as a condition and in words.
const ORIGINAL_CRITERIA: [(&str, &str); 3] = [
    ("connections>=100", "100 connections or more"),
    ("throughput>=100", "100 messages a second or more"),
    ("delivered>95%", "more than 95 % delivered"),
];

/// The measurements of a finished test.
pub(super) struct TestResult<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stats: &'a Stats,
    /// Length of the test in seconds: from the start of the schedule to the last answer, and at
    /// least the planned length. If the test was idle or the user ended it: at least until its end.
    pub(super) length_seconds: f64,
    /// Whether the user ended the test early.
    pub(super) is_interrupted: bool,
}

impl TestResult<'_> {
    fn latency(&self, name: &str) -> Option<&LatencyHistogram> {
        Some(match name {
            "whole" => &self.stats.whole_answer,
            "accepted" => &self.stats.accept_time,
            "first_token" => &self.stats.first_token,
            "token" => &self.stats.token_latency,
            "connect" => &self.stats.connect_time,
            _ => return None,
        })
    }

    fn per_second(&self, count: u64) -> Option<f64> {
        (self.length_seconds > 0.0).then(|| count as f64 / self.length_seconds)
    }

    /// Whether it is known for each answer which message it belongs to. The answers of classic
    /// frames do not name their message, so it is known only if the model repeats the text of the
    /// message.
    pub(super) fn answers_are_identified(&self) -> bool {
        self.plan.is_v1
            || self.plan.mode == SendMode::Idle
            || (self.stats.guessed_outcomes == 0 && self.stats.marked_answers > 0)
    }

    /// Returns the count, or `None` if it is not known which message each answer belongs to,
    /// because the count is meaningless then.
    pub(super) fn count_if_answers_are_identified(&self, count: u64) -> Option<u64> {
        self.answers_are_identified().then_some(count)
    }

    /// Returns the value that a condition names; `None` when it was not measured.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let stats = self.stats;
        let identified_count = |count: u64| {
            let count = self.count_if_answers_are_identified(count);
            count.map(|count| count as f64)
        };
        match name {
            "delivered" => {
                let expected = stats.sent.saturating_sub(stats.pending) + stats.not_sent;
                (expected > 0).then(|| stats.delivered as f64 * 100.0 / expected as f64)
            }
            "throughput" => self.per_second(stats.delivered).or(Some(0.0)),
            "tokens" => self.per_second(stats.deltas),
            "loss" => Some((stats.lost + stats.not_sent) as f64),
            "doubles" => identified_count(stats.duplicates),
            "order" => identified_count(stats.out_of_order),
            "mixed_up" => identified_count(stats.mixed_up),
            "errors" => Some((stats.failed + stats.rejected) as f64),
            "connections" => Some(stats.connected as f64),
            _ => {
                let (latency, statistic) = name.split_once('.').unwrap_or(("whole", name));
                match self.latency(latency) {
                    Some(histogram) => statistic_ms(histogram, statistic),
                    // The dot in p99.9 does not separate a latency from a statistic.
                    None => statistic_ms(&stats.whole_answer, name),
                }
            }
        }
    }

    /// Returns the verdicts on the original system's criteria.
    pub(super) fn judge_original(&self) -> Vec<Verdict> {
        let criteria = ORIGINAL_CRITERIA.iter();
        criteria
            .filter_map(|(condition, words)| match condition.parse() {
                Ok(Condition::Value(comparison)) => {
                    let value = self.value(&comparison.name);
                    Some(Verdict {
                        text: (*words).to_owned(),
                        is_met: comparison.is_met(value),
                        unit: comparison.unit(),
                        value,
                    })
                }
                _ => None,
            })
            .collect()
    }

    /// Returns the verdicts on the conditions of `--require`.
    pub(super) fn judge(&self, conditions: &[Condition]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for condition in conditions {
            match condition {
                Condition::Original => verdicts.extend(self.judge_original()),
                Condition::Value(comparison) => {
                    let value = self.value(&comparison.name);
                    verdicts.push(Verdict {
                        text: comparison.to_string(),
                        is_met: comparison.is_met(value),
                        unit: comparison.unit(),
                        value,
                    });
                }
            }
        }
        verdicts
    }

    /// Whether no message was delivered although messages were to be sent and the user did not end
    /// the test. Such a test proves nothing, whatever its conditions say.
    pub(super) fn is_without_delivery(&self) -> bool {
        self.plan.mode != SendMode::Idle && self.stats.delivered == 0 && !self.is_interrupted
    }
}

/// Returns a statistic (`p99`, `max`, `mean`, …) of a histogram in milliseconds; `None` if nothing
/// was measured or the name is unknown.
pub(super) fn statistic_ms(histogram: &LatencyHistogram, statistic: &str) -> Option<f64> {
    match statistic {
        "max" => histogram.max_ms(),
        "mean" => histogram.mean_ms(),
        percentile => {
            let percent = percentile.strip_prefix('p')?.parse().ok()?;
            histogram.percentile_ms(percent)
        }
    }
}
