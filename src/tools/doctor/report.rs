//! The results of the checks, and their output.

use std::fmt::Write as _;

use serde::Serialize;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Nothing is wrong.
    Ok,
    /// Not checked, on request or because an earlier check failed.
    Skipped,
    /// Works, but needs attention.
    Warning,
    /// Does not work, or violates a guarantee.
    Problem,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    /// `configuration`, `keys`, `kafka`, `redis`, `model` or `data`.
    pub(super) area: &'static str,
    pub(super) status: Status,
    /// What was found. Contains no secrets.
    pub(super) text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

/// The checks of one area.
#[derive(Debug)]
pub(super) struct Findings {
    area: &'static str,
    pub(super) checks: Vec<Check>,
}

impl Findings {
    pub(super) fn new(area: &'static str) -> Self {
        Self {
            area,
            checks: Vec::new(),
        }
    }

    fn add(&mut self, status: Status, text: String, advice: Option<String>) {
        self.checks.push(Check {
            area: self.area,
            status,
            text,
            advice,
        });
    }

    pub(super) fn add_ok(&mut self, text: impl Into<String>) {
        self.add(Status::Ok, text.into(), None);
    }

    pub(super) fn add_skipped(&mut self, text: impl Into<String>) {
        self.add(Status::Skipped, text.into(), None);
    }

    pub(super) fn add_warning(&mut self, text: impl Into<String>, advice: impl Into<String>) {
        self.add(Status::Warning, text.into(), Some(advice.into()));
    }

    pub(super) fn add_problem(&mut self, text: impl Into<String>, advice: impl Into<String>) {
        self.add(Status::Problem, text.into(), Some(advice.into()));
    }

    /// Adds a check from a sentence of the form "what is wrong; what to do".
    pub(super) fn add_sentence(&mut self, status: Status, sentence: &str) {
        let (text, advice) = match sentence.rsplit_once("; ") {
            Some((text, advice)) => (text.to_owned(), Some(advice.to_owned())),
            None => (sentence.to_owned(), None),
        };
        self.add(status, text, advice);
    }
}

/// The report of all checks.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// No check found a problem.
    pub(super) ok: bool,
    /// The checked roles.
    pub(super) deployment: String,
    pub(super) checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(deployment: String, checks: Vec<Check>) -> Self {
        let ok = checks.iter().all(|check| check.status != Status::Problem);
        Self {
            ok,
            deployment,
            checks,
        }
    }

    pub(super) fn problems(&self) -> usize {
        let problems = self.checks.iter();
        problems
            .filter(|check| check.status == Status::Problem)
            .count()
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("checked: {}\n\n", self.deployment);
        for check in &self.checks {
            let mark = match check.status {
                Status::Ok => "ok     ",
                Status::Skipped => "skipped",
                Status::Warning => "WARNING",
                Status::Problem => "PROBLEM",
            };
            let _ = writeln!(text, "{mark}  {:13}  {}", check.area, check.text);
            if let Some(advice) = &check.advice {
                let _ = writeln!(text, "{:24}-> {advice}", "");
            }
        }
        text
    }
}
