//! Loads a configuration: merges the sources, parses every value, and validates the whole.

use std::collections::BTreeMap;

use config::ValueKind;

use super::error::{ConfigErrors, Problem};
use super::keys::{self, Key};
use super::layers::{self, DEFAULT, Sources};
use super::resolved::{Config, ResolvedValue};
use super::{Role, checks};

impl Config {
    /// Reads the sources for `role` and validates all settings that the role uses. Other settings
    /// only have to exist.
    ///
    /// # Errors
    /// Returns all errors at once.
    pub fn load(role: Role, sources: &Sources) -> Result<Self, ConfigErrors> {
        let merged = layers::merge(role, sources);
        let mut problems = merged.problems;
        let mut values = BTreeMap::new();
        for key in keys::TABLE {
            let Some(raw) = merged.values.get(key.name) else {
                continue;
            };
            let source = raw.origin().unwrap_or(DEFAULT).to_owned();
            let mut resolved = ResolvedValue::parse(key, &raw.kind, source.clone());
            if resolved.is_none() {
                if key.roles.contains(&role) {
                    problems.push(not_allowed(key, &raw.kind, source));
                }
                let default = key.default_text(role).map(ValueKind::from);
                resolved =
                    default.and_then(|text| ResolvedValue::parse(key, &text, DEFAULT.into()));
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

fn not_allowed(key: &Key, raw: &ValueKind, source: String) -> Problem {
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
