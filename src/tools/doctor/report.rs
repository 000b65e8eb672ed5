//! Collects the results of the checks, and formats them as a report.

use std::fmt::Write as _;

use serde::Serialize;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// The check found nothing wrong.
    Ok,
    /// Nothing was checked, because an option excludes the check.
    Skipped,
    /// What was checked works, but needs attention.
    Warning,
    /// What was checked does not work, or violates a guarantee of chatmesh.
    Problem,
}

/// A check with its result.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    /// What was checked: `configuration`, `keys`, `kafka`, `redis`, `model` or `data`.
    pub(super) area: &'static str,
    pub(super) status: Status,
    /// What the check found. Contains no secrets.
    pub(super) text: String,
    /// What the operator can do about the finding; `None` if there is nothing to do.
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

    /// Adds a check from a sentence of the form "what is wrong; what to do". Without a semicolon
    /// the check has no advice.
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
    /// Whether no check found a problem.
    pub(super) ok: bool,
    /// Names of the checked roles, separated by commas.
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

    pub(super) fn problem_count(&self) -> usize {
        let checks = self.checks.iter();
        checks
            .filter(|check| check.status == Status::Problem)
            .count()
    }

    /// Formats the report as text for a person.
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
