//! The values of a finished test by their names, and the verdicts on conditions.

use super::condition::Condition;
use super::format::format_number;
use super::plan::{Plan, SendMode};
use super::stats::{LatencyHistogram, Stats};

/// A condition, the measured value, and whether the value meets the condition.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The condition in words.
    pub(super) text: String,
    /// `None` when the value was not measured.
    pub(super) value: Option<f64>,
    unit: &'static str,
    pub(super) is_met: bool,
}

impl Verdict {
    /// The value with its unit.
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
    /// From the first scheduled message to the last answer, and at least the planned duration.
    pub(super) seconds: f64,
    /// The user ended the test.
    pub(super) is_interrupted: bool,
}

impl TestResult<'_> {
    fn latency(&self, name: &str) -> Option<&LatencyHistogram> {
        Some(match name {
            "whole" => &self.stats.whole_answer,
            "accepted" => &self.stats.accept_time,
            "first_token" => &self.stats.first_token,
            "token" => &self.stats.token,
            "connect" => &self.stats.connect_time,
            _ => return None,
        })
    }

    fn per_second(&self, count: u64) -> Option<f64> {
        (self.seconds > 0.0).then(|| count as f64 / self.seconds)
    }

    /// Whether each answer is known to belong to a certain message. Classic frames have no message
    /// id, so there it is known only when the model repeats the text of the message.
    pub(super) fn answers_are_identified(&self) -> bool {
        self.plan.is_v1
            || self.plan.mode == SendMode::Idle
            || (self.stats.guessed_outcomes == 0 && self.stats.marked_answers > 0)
    }

    /// The count, or `None` when answers are not identified and the count is therefore meaningless.
    pub(super) fn if_identified(&self, count: u64) -> Option<u64> {
        self.answers_are_identified().then_some(count)
    }

    /// The value that a condition names; `None` when it was not measured.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let stats = self.stats;
        let count = |count: u64| self.if_identified(count).map(|count| count as f64);
        match name {
            "delivered" => {
                let expected = stats.sent.saturating_sub(stats.pending) + stats.not_sent;
                (expected > 0).then(|| stats.delivered as f64 * 100.0 / expected as f64)
            }
            "throughput" => self.per_second(stats.delivered).or(Some(0.0)),
            "tokens" => self.per_second(stats.deltas),
            "loss" => Some((stats.lost + stats.not_sent) as f64),
            "doubles" => count(stats.duplicates),
            "order" => count(stats.out_of_order),
            "mixed_up" => count(stats.mixed_up),
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

    /// Verdicts on the original system's criteria.
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

    /// Verdicts on the conditions of the user.
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

    /// Whether no message was delivered although the test ran to its end: such a test proves
    /// nothing, whatever its conditions say.
    pub(super) fn is_without_delivery(&self) -> bool {
        self.plan.mode != SendMode::Idle && self.stats.delivered == 0 && !self.is_interrupted
    }
}

/// A statistic (`p99`, `max`, `mean`, …) of a histogram in milliseconds.
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
