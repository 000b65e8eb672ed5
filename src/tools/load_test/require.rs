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
        let wanted = if is_time(name) {
            let wanted = milliseconds(value)?;
            if wanted <= 0.0 && operator == Operator::Less {
                return Err(format!("{value:?}: that can never be"));
            }
            wanted
        } else if VALUES.contains(&name) {
            number(name, value, operator)?
        } else {
            return Err(unknown(name));
        };
        Ok(Self::Value(Comparison {
            name: name.to_owned(),
            operator,
            wanted,
            text: text.trim().to_owned(),
        }))
    }
}

/// What a name might have been.
fn unknown(name: &str) -> String {
    let (of, values) = (OF_TIMES.join(", "), VALUES.join(", "));
    match name.split_once('.') {
        Some((time, _)) if TIMES.contains(&time) => {
            format!("{name:?} is not known: {time} has {of}")
        }
        _ if name.starts_with('p') => {
            format!("{name:?} is not known: the whole answer's times are {of}, or accepted.p99 …")
        }
        _ if TIMES.contains(&name) => format!("{name:?} needs one of {of}, like {name}.p99"),
        _ => format!("{name:?} is not known: {values}, {of}, or accepted.p99 …"),
    }
}

/// A time of a condition. Unlike elsewhere, its unit must be there: nobody could tell whether 5 is
/// milliseconds or seconds.
fn milliseconds(value: &str) -> Result<f64, String> {
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
        Ok(number) if number < 0.0 => Err(format!("{value:?}: a time is not below 0")),
        Ok(number) if !number.is_finite() => Err(format!("{value:?} is no time")),
        Ok(_) if found.is_none() => Err(format!("{value:?} needs a unit: ms, s, m or h")),
        Ok(number) => Ok(number * factor),
        Err(_) => Err(format!("{value:?} is no time, which is like 200ms or 1.5s")),
    }
}

/// A value of a condition that is no time.
fn number(name: &str, value: &str, operator: Operator) -> Result<f64, String> {
    let unit = match name {
        "delivered" => "%",
        "throughput" | "tokens" => "/s",
        _ => "",
    };
    let digits = value.strip_suffix(unit).unwrap_or(value).trim();
    let wanted = match digits.parse::<f64>() {
        Ok(wanted) if wanted.is_finite() => wanted,
        _ if unit.is_empty() => return Err(format!("{value:?} is no number")),
        _ => return Err(format!("{value:?} is no number, with or without {unit}")),
    };
    let counted = unit.is_empty();
    if wanted < 0.0 {
        return Err(format!("{value:?}: {name} is not below 0"));
    }
    if name == "delivered" && wanted > 100.0 {
        return Err(format!("{value:?}: no more than 100 % can be delivered"));
    }
    if counted && operator == Operator::Equal && wanted.fract() != 0.0 {
        return Err(format!("{value:?}: {name} is a whole number"));
    }
    let never = match operator {
        Operator::More => name == "delivered" && wanted >= 100.0,
        Operator::Less => wanted <= 0.0,
        _ => false,
    };
    if never {
        return Err(format!("{value:?}: that can never be"));
    }
    Ok(wanted)
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
        assert!(holds("p99<1m", 59_999.0) && !holds("p99<1m", 60_000.0));
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
    fn what_is_wrong_with_a_condition_is_said() {
        for (wrong, says) in [
            ("p99<-5", "below 0"),
            ("p99<abc", "no time"),
            ("p99<5%", "no time"),
            ("p99<5", "needs a unit"),
            ("p98<1ms", "p50, p90, p99, p99.9"),
            ("accepted.p98<1ms", "p50, p90, p99, p99.9"),
            ("accepted<1ms", "accepted.p99"),
            ("delivered>200", "100 %"),
            ("loss=0.5", "whole number"),
            ("loss<abc", "no number"),
        ] {
            let error = wrong.parse::<Condition>().unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
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
            "delivered>200",
            "delivered>100%",
            "loss=0.5",
            "loss<0",
            "loss=1%",
            "errors>=-1",
            "p99<-5ms",
            "p99<0ms",
        ] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong}");
        }
    }
}
