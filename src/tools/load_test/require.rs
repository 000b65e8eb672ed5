//! Conditions on a result, like `p99<200ms`.

use std::fmt;
use std::str::FromStr;

/// A condition as the user wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Condition {
    /// The original system's three criteria.
    Original,
    /// One value.
    Value(Comparison),
}

/// A value's name, and what it must be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    pub(super) name: String,
    operator: Operator,
    wanted: f64,
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

/// Names of values that are no times.
pub(super) const VALUES: [&str; 9] = [
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
/// Names of what is measured.
pub(super) const TIMES: [&str; 5] = ["whole", "accepted", "first_token", "token", "connect"];
/// Names of what is told of each time.
pub(super) const OF_TIMES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "max", "mean"];

impl Comparison {
    /// What its value is counted in.
    pub(super) fn unit(&self) -> &'static str {
        match self.name.as_str() {
            "delivered" => " %",
            "throughput" | "tokens" => "/s",
            name if is_time(name) => " ms",
            _ => "",
        }
    }

    /// Whether a value is as wanted. One that was not measured is not.
    pub(super) fn holds(&self, value: Option<f64>) -> bool {
        value.is_some_and(|value| match self.operator {
            Operator::Less => value < self.wanted,
            Operator::AtMost => value <= self.wanted,
            Operator::Equal => (value - self.wanted).abs() < 1e-9,
            Operator::AtLeast => value >= self.wanted,
            Operator::More => value > self.wanted,
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
        // Two characters first: < is also the beginning of <=.
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
        let is_time = is_time(name);
        if !is_time && !VALUES.contains(&name) {
            let values = VALUES.join(", ");
            return Err(format!(
                "{name:?} is not known: {values}, p99, accepted.p99 …"
            ));
        }
        let units: &[(&str, f64)] = if is_time {
            &[("ms", 1.0), ("us", 0.001), ("µs", 0.001), ("s", 1000.0)]
        } else {
            &[("%", 1.0), ("/s", 1.0)]
        };
        let found = units
            .iter()
            .find_map(|(unit, factor)| Some((value.strip_suffix(unit)?, *factor)));
        if is_time && found.is_none() {
            return Err(format!("{value:?} needs a unit: ms or s"));
        }
        let (number, factor) = found.unwrap_or((value, 1.0));
        let number: Result<f64, _> = number.trim().parse();
        let wanted = number.map_err(|_| format!("{value:?} is no value"))? * factor;
        if !wanted.is_finite() {
            return Err(format!("{value:?} is no value"));
        }
        Ok(Self::Value(Comparison {
            name: name.to_owned(),
            operator,
            wanted,
            text: text.trim().to_owned(),
        }))
    }
}

fn is_time(name: &str) -> bool {
    match name.split_once('.') {
        Some((time, of)) if TIMES.contains(&time) => OF_TIMES.contains(&of),
        _ => OF_TIMES.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, value: f64) -> bool {
        match text.parse().unwrap() {
            Condition::Value(comparison) => comparison.holds(Some(value)),
            Condition::Original => panic!("{text}"),
        }
    }

    #[test]
    fn conditions_are_read_with_their_units() {
        assert!(holds("p99<200ms", 199.9) && !holds("p99<200ms", 200.0));
        assert!(holds("p99.9 <= 1.5s", 1500.0) && !holds("accepted.max<=1s", 1000.1));
        assert!(holds("loss=0", 0.0) && !holds("loss==0", 1.0));
        assert!(holds("delivered>95%", 95.1) && !holds("delivered>95%", 95.0));
        assert!(holds("throughput>=100/s", 100.0) && holds("connections>99", 100.0));
        assert_eq!("original".parse(), Ok(Condition::Original));
    }

    #[test]
    fn what_was_not_measured_holds_nothing() {
        let Ok(Condition::Value(condition)) = "first_token.p50<1s".parse() else {
            panic!("a condition");
        };
        assert!(!condition.holds(None));
    }

    #[test]
    fn wrong_conditions_are_refused() {
        for wrong in [
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
        ] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong}");
        }
    }
}
