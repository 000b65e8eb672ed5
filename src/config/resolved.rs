//! [`Config`], the resolved configuration of a role: the value of each setting, with its source.

use std::collections::BTreeMap;
use std::fmt;

use config::ValueKind;

use super::Role;
use super::keys::{self, Key};
use super::kind::{Kind, Value};
use super::layers::DEFAULT_SOURCE;

/// The effective value of one setting.
#[derive(Clone)]
pub(super) struct ResolvedValue {
    pub(super) value: Value,
    /// The source of the value in words, such as `environment variable PORT`.
    pub(super) source: String,
    /// The source of each entry, if the value is a map: maps from several sources are merged entry
    /// by entry. Empty for other values.
    pub(super) entry_sources: BTreeMap<String, String>,
}

impl ResolvedValue {
    /// Parses the value of a source. `None` if the value is not allowed.
    pub(super) fn parse(key: &Key, raw: &ValueKind, source: String) -> Option<Self> {
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
    pub(super) role: Role,
    /// The values by key. A setting without value and default is absent.
    pub(super) values: BTreeMap<&'static str, ResolvedValue>,
    /// See [`Config::notices`].
    pub(super) notices: Vec<String>,
}

// Not derived: a derived implementation would print the values, which contain secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The role whose settings these are.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Warnings for the operator, which are logged at the start. They contain no secrets.
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
            // In a container, where the process has the id 1, the host name is unique. On another
            // host, two processes of a role may run and must not share a name.
            host if is_valid(host) && std::process::id() == 1 => host.to_owned(),
            host if is_valid(host) && host.len() < 100 => {
                format!("{host}-{}-{}", self.role, std::process::id())
            }
            _ => format!("{}-{}", self.role, std::process::id()),
        }
    }
}

/// The source of each entry of a table, by name. Empty for values that are no table.
fn entry_sources(raw: &ValueKind) -> BTreeMap<String, String> {
    let ValueKind::Table(table) = raw else {
        return BTreeMap::new();
    };
    table
        .iter()
        .map(|(name, value)| {
            (
                name.clone(),
                value.origin().unwrap_or(DEFAULT_SOURCE).to_owned(),
            )
        })
        .collect()
}

/// The distinct sources of a map's entries, as one text. `None` if there are no entries.
fn join_distinct(sources: &BTreeMap<String, String>) -> Option<String> {
    let mut distinct: Vec<&str> = sources.values().map(String::as_str).collect();
    distinct.sort_unstable();
    distinct.dedup();
    (!distinct.is_empty()).then(|| distinct.join(", "))
}
