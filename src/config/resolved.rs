//! The resolved configuration: one value with its source for every setting, validated as a whole.

use std::collections::BTreeMap;
use std::fmt;

use config::ValueKind;

use super::error::{ConfigErrors, Problem};
use super::keys::{self, Key};
use super::kind::{Kind, Value};
use super::layers::{self, DEFAULT, Sources};
use super::{Role, checks};

/// The effective value of one setting.
#[derive(Clone)]
pub(super) struct ResolvedValue {
    pub(super) value: Value,
    /// The source of the value, in words.
    pub(super) source: String,
    /// Of a map, the source of each entry: maps of several sources are merged by name.
    pub(super) entry_sources: BTreeMap<String, String>,
}

impl ResolvedValue {
    fn parse(key: &Key, raw: &ValueKind, source: String) -> Option<Self> {
        let value = key.kind.parse(raw)?;
        let entry_sources = entry_sources(raw);
        Some(Self {
            value,
            source: join_distinct(&entry_sources).unwrap_or(source),
            entry_sources,
        })
    }
}

/// The configuration of one role, validated as a whole.
#[derive(Clone)]
pub struct Config {
    role: Role,
    pub(super) values: BTreeMap<&'static str, ResolvedValue>,
    notices: Vec<String>,
}

// Not derived, because the values contain secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

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

    /// The role whose settings these are.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Sentences for the operator, logged as warnings at the start. They contain no secrets.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// `SERVER_ID`, or a name derived from the host name, the role and the process id.
    pub fn server_id(&self) -> String {
        if let Some(id) = self.text(&keys::SERVER_ID) {
            return id.to_owned();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let is_valid = |name: &str| Kind::Name.parse(&name.into()).is_some();
        match host.trim() {
            // In a container the host name is unique. Elsewhere two processes of a role may run on
            // one machine, such as a developer's, and must not share a name.
            host if is_valid(host) && std::process::id() == 1 => host.to_owned(),
            host if is_valid(host) && host.len() < 100 => {
                format!("{host}-{}-{}", self.role, std::process::id())
            }
            _ => format!("{}-{}", self.role, std::process::id()),
        }
    }
}

/// The source of each entry of a table; empty for other values.
fn entry_sources(raw: &ValueKind) -> BTreeMap<String, String> {
    let ValueKind::Table(table) = raw else {
        return BTreeMap::new();
    };
    table
        .iter()
        .map(|(name, value)| (name.clone(), value.origin().unwrap_or(DEFAULT).to_owned()))
        .collect()
}

fn join_distinct(sources: &BTreeMap<String, String>) -> Option<String> {
    let mut distinct: Vec<&str> = sources.values().map(String::as_str).collect();
    distinct.sort_unstable();
    distinct.dedup();
    (!distinct.is_empty()).then(|| distinct.join(", "))
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
