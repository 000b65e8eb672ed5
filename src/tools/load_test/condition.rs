//! Parses the conditions on the result of a test that `--require` gives, like `p99<200ms`.

use std::fmt;
use std::str::FromStr;

/// A condition of `--require`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Condition {
    /// The three criteria of the original system's load test.
    Original,
    /// A comparison of one measured value with a limit.
    Value(Comparison),
}

/// A comparison of a named value with a limit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    /// Name of the value, like `p99`, `accepted.p99` or `loss`.
    pub(super) name: String,
    operator: Operator,
    /// The limit in the unit of the value; in milliseconds if the value is a latency.
    limit: f64,
    /// The condition as the user wrote it.
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

/// Names of the values that are not latencies.
pub(super) const VALUE_NAMES: [&str; 9] = [
    "delivered",
    "throughput",
    "loss",
    "doubles",
    "order",
    "mixed_up",
    "errors",
    "connections",
    "tokens",
];
/// Names of the latencies.
pub(super) const LATENCY_NAMES: [&str; 5] =
    ["whole", "accepted", "first_token", "token", "connect"];
/// Names of the statistics of each latency.
pub(super) const STATISTIC_NAMES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "max", "mean"];

impl Comparison {
    /// The unit of the value, as text that is appended to a number.
    pub(super) fn unit(&self) -> &'static str {
        match self.name.as_str() {
            "delivered" => " %",
            "throughput" | "tokens" => "/s",
            name if is_latency(name) => " ms",
            _ => "",
        }
    }

    /// Whether a value satisfies the condition; false for a value that was not measured.
    pub(super) fn is_met(&self, value: Option<f64>) -> bool {
        value.is_some_and(|value| match self.operator {
            Operator::Less => value < self.limit,
            Operator::AtMost => value <= self.limit,
            Operator::Equal => (value - self.limit).abs() < 1e-9,
            Operator::AtLeast => value >= self.limit,
            Operator::More => value > self.limit,
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "original" {
            return Ok(Self::Original);
        }
        // Operators of two characters come first, because < is a prefix of <=.
        let operators = [
            ("<=", Operator::AtMost),
            (">=", Operator::AtLeast),
            ("==", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::More),
            ("=", Operator::Equal),
        ];
        let found = operators
            .iter()
            .find_map(|(sign, operator)| Some((text.split_once(sign)?, *operator)));
        let Some(((name, value), operator)) = found else {
            return Err("needs NAME<VALUE, with <, <=, =, >= or >".to_owned());
        };
        let (name, value) = (name.trim(), value.trim());
        let limit = if is_latency(name) {
            let limit = parse_milliseconds(value)?;
            if limit <= 0.0 && operator == Operator::Less {
                return Err(format!("{value:?}: that can never hold"));
            }
            limit
        } else if VALUE_NAMES.contains(&name) {
            parse_number(name, value, operator)?
        } else {
            return Err(unknown_name(name));
        };
        Ok(Self::Value(Comparison {
            name: name.to_owned(),
            operator,
            limit,
            text: text.trim().to_owned(),
        }))
    }
}

/// Returns the error for an unknown name, with the names that are allowed instead.
fn unknown_name(name: &str) -> String {
    let (statistics, values) = (STATISTIC_NAMES.join(", "), VALUE_NAMES.join(", "));
    match name.split_once('.') {
        Some((latency, _)) if LATENCY_NAMES.contains(&latency) => {
            format!("{name:?} is not known: {latency} has {statistics}")
        }
        _ if name.starts_with('p') => {
            format!(
                "{name:?} is not known: the whole answer has {statistics}; or use accepted.p99 …"
            )
        }
        _ if LATENCY_NAMES.contains(&name) => {
            format!("{name:?} needs one of {statistics}, like {name}.p99")
        }
        _ => format!("{name:?} is not known: use {values}, {statistics}, or accepted.p99 …"),
    }
}

/// Parses a time with its unit. A unit is required, because 5 could mean milliseconds or seconds.
fn parse_milliseconds(value: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 6] = [
        ("ms", 1.0),
        ("us", 0.001),
        ("µs", 0.001),
        ("s", 1e3),
        ("m", 60e3),
        ("h", 3600e3),
    ];
    let mut units = UNITS.iter();
    let found = units.find_map(|(unit, factor)| Some((value.strip_suffix(unit)?, *factor)));
    let (digits, factor) = found.unwrap_or((value, 1.0));
    match digits.trim().parse::<f64>() {
        Ok(number) if number < 0.0 => Err(format!("{value:?}: a time can't be below 0")),
        Ok(number) if !number.is_finite() => Err(format!("{value:?} is not a time")),
        Ok(_) if found.is_none() => Err(format!("{value:?} needs a unit: ms, s, m or h")),
        Ok(number) => Ok(number * factor),
        Err(_) => Err(format!("{value:?} is not a time like 200ms or 1.5s")),
    }
}

/// Parses the limit of a value that is not a latency. Fails if no result could meet the condition.
fn parse_number(name: &str, value: &str, operator: Operator) -> Result<f64, String> {
    let unit = match name {
        "delivered" => "%",
        "throughput" | "tokens" => "/s",
        _ => "",
    };
    let digits = value.strip_suffix(unit).unwrap_or(value).trim();
    let limit = match digits.parse::<f64>() {
        Ok(limit) if limit.is_finite() => limit,
        _ if unit.is_empty() => return Err(format!("{value:?} is not a number")),
        _ => return Err(format!("{value:?} is not a number, with or without {unit}")),
    };
    let is_count = unit.is_empty();
    if limit < 0.0 {
        return Err(format!("{value:?}: {name} can't be below 0"));
    }
    if name == "delivered" && limit > 100.0 {
        return Err(format!("{value:?}: no more than 100 % can be delivered"));
    }
    if is_count && operator == Operator::Equal && limit.fract() != 0.0 {
        return Err(format!("{value:?}: {name} is a whole number"));
    }
    let is_impossible = match operator {
        Operator::More => name == "delivered" && limit >= 100.0,
        Operator::Less => limit <= 0.0,
        _ => false,
    };
    if is_impossible {
        return Err(format!("{value:?}: that can never hold"));
    }
    Ok(limit)
}

fn is_latency(name: &str) -> bool {
    match name.split_once('.') {
        Some((latency, statistic)) if LATENCY_NAMES.contains(&latency) => {
            STATISTIC_NAMES.contains(&statistic)
        }
        _ => STATISTIC_NAMES.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_met(text: &str, value: f64) -> bool {
        match text.parse().unwrap() {
            Condition::Value(comparison) => comparison.is_met(Some(value)),
            Condition::Original => panic!("{text}"),
        }
    }

    #[test]
    fn conditions_are_parsed_with_their_units() {
        assert!(is_met("p99<200ms", 199.9) && !is_met("p99<200ms", 200.0));
        assert!(is_met("p99<1m", 59_999.0) && !is_met("p99<1m", 60_000.0));
        assert!(is_met("p99.9 <= 1.5s", 1500.0) && !is_met("accepted.max<=1s", 1000.1));
        assert!(is_met("loss=0", 0.0) && !is_met("loss==0", 1.0));
        assert!(is_met("delivered>95%", 95.1) && !is_met("delivered>95%", 95.0));
        assert!(is_met("throughput>=100/s", 100.0) && is_met("connections>99", 100.0));
        assert_eq!("original".parse(), Ok(Condition::Original));
    }

    #[test]
    fn unmeasured_value_does_not_meet_a_condition() {
        let Ok(Condition::Value(condition)) = "first_token.p50<1s".parse() else {
            panic!("a condition");
        };
        assert!(!condition.is_met(None));
    }

    #[test]
    fn error_says_what_is_wrong_with_a_condition() {
        for (invalid, expected) in [
            ("p99<-5", "below 0"),
            ("p99<abc", "not a time"),
            ("p99<5%", "not a time"),
            ("p99<5", "needs a unit"),
            ("p98<1ms", "p50, p90, p99, p99.9"),
            ("accepted.p98<1ms", "p50, p90, p99, p99.9"),
            ("accepted<1ms", "accepted.p99"),
            ("delivered>200", "100 %"),
            ("loss=0.5", "whole number"),
            ("loss<abc", "not a number"),
        ] {
            let error = invalid.parse::<Condition>().unwrap_err();
            assert!(error.contains(expected), "{invalid}: {error}");
        }
    }

    #[test]
    fn invalid_conditions_are_rejected() {
        for invalid in [
            "",
            "p99",
            "p98<1ms",
            "p99<5",
            "p99<ms",
            "loss<x",
            "speed>1",
            "whole<1s",
            "p99<5%",
            "x.p99<1s",
            "throughput>inf",
            "delivered>200",
            "delivered>100%",
            "loss=0.5",
            "loss<0",
            "loss=1%",
            "errors>=-1",
            "p99<-5ms",
            "p99<0ms",
        ] {
            assert!(invalid.parse::<Condition>().is_err(), "{invalid}");
        }
    }
}
