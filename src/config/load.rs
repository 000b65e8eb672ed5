//! Loads a configuration: merges the sources, parses every value, and validates the whole.

use std::collections::BTreeMap;

use config::ValueKind;

use super::error::{ConfigErrors, Problem};
use super::keys::{self, Key};
use super::layers::{self, DEFAULT_SOURCE, Sources};
use super::resolved::{Config, ResolvedValue};
use super::{Role, checks};

impl Config {
    /// Reads the sources for `role` and validates all settings that the role uses. Of the settings
    /// that only other roles use, a value that is not allowed is ignored, except that maps must be
    /// readable.
    ///
    /// # Errors
    /// The configuration is invalid. The error contains all problems, not only the first.
    pub fn load(role: Role, sources: &Sources) -> Result<Self, ConfigErrors> {
        let merged = layers::merge(role, sources);
        let mut problems = merged.problems;
        let mut values = BTreeMap::new();
        for key in keys::TABLE {
            let Some(raw) = merged.values.get(key.name) else {
                continue;
            };
            let source = raw.origin().unwrap_or(DEFAULT_SOURCE).to_owned();
            let mut resolved = ResolvedValue::parse(key, &raw.kind, source.clone());
            if resolved.is_none() {
                if key.roles.contains(&role) {
                    problems.push(disallowed_value(key, &raw.kind, source));
                }
                let default = key.default_text(role).map(ValueKind::from);
                resolved = default
                    .and_then(|text| ResolvedValue::parse(key, &text, DEFAULT_SOURCE.into()));
            }
            if let Some(resolved) = resolved {
                values.insert(key.name, resolved);
            }
        }
        let mut config = Self {
            role,
            values,
            notices: Vec::new(),
        };
        problems.extend(checks::contradictions(&config));
        if !problems.is_empty() {
            return Err(ConfigErrors { problems });
        }
        config.notices = checks::notices(&config, &merged.variables);
        Ok(config)
    }
}

/// The problem of a value that is not allowed. Secrets are not printed.
fn disallowed_value(key: &Key, raw: &ValueKind, source: String) -> Problem {
    let value = match raw {
        _ if key.secret => "the value (hidden)".to_owned(),
        // A URL with an @ may contain a user name and a password.
        ValueKind::String(text) if key.name.ends_with("url") && text.contains('@') => {
            "the value (hidden)".to_owned()
        }
        ValueKind::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    Problem {
        key: key.name.into(),
        source,
        text: format!("{value} is not allowed; allowed: {}", key.kind.allowed()),
    }
}
