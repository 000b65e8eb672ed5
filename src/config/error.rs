//! The errors of a configuration, which are reported all at once.

use std::fmt;

/// One error in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What the error is about: a key, several keys, a variable, or a source as a whole.
    pub key: String,
    /// Where the value was set: in a file, a variable or a flag.
    pub source: String,
    /// What is wrong, and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.source, self.text)
    }
}

/// All errors in a configuration. The text has one line for each problem and contains no secrets.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ConfigErrors {
    /// The errors, at least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = match self.problems.len() {
            1 => "1 problem",
            count => &format!("{count} problems"),
        };
        write!(f, "the configuration can't be used: {noun}")?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}
