//! `config show` and `config default`: the effective values with their sources, and the commented
//! file that is the documentation.

use std::fmt::Write as _;

use serde::Serialize;

use super::Config;
use super::build::Setting;
use super::keys::{self, Default, Key};
use super::kind::Value;

/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";

/// A key as `config show` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// In the file.
    pub key: String,
    /// The environment variable.
    pub variable: &'static str,
    /// What holds, secrets hidden; `null` where nothing does.
    pub value: serde_json::Value,
    /// Who said so.
    pub source: String,
}

impl Config {
    /// What this role uses, secrets hidden.
    pub fn shown(&self) -> Vec<Shown> {
        let used = keys::TABLE
            .iter()
            .filter(|key| key.roles.contains(&self.role));
        used.flat_map(|key| self.shown_key(key)).collect()
    }

    /// One line, or of a map one for each name, since each has its own source.
    fn shown_key(&self, key: &'static Key) -> Vec<Shown> {
        let (value, source) = match self.settings.get(key.name) {
            Some(Setting {
                value: Value::Map(map),
                sources,
                ..
            }) if !map.is_empty() => {
                let hidden = |name: &str| key.secret || looks_secret(name);
                let row = |(name, value): (&String, &String)| Shown {
                    key: format!("{}.{name}", key.name),
                    variable: key.var,
                    value: if hidden(name) { HIDDEN } else { value }.into(),
                    source: sources.get(name).cloned().unwrap_or_default(),
                };
                return map.iter().map(row).collect();
            }
            Some(setting) => (visible(key, &setting.value), setting.source.clone()),
            None => self.worked_out(key),
        };
        vec![Shown {
            key: key.name.to_owned(),
            variable: key.var,
            value,
            source,
        }]
    }

    /// What follows from other values.
    fn worked_out(&self, key: &Key) -> (serde_json::Value, String) {
        let words = match key.default {
            Default::Worked(words) => format!("default: {words}"),
            Default::Is(_) | Default::By(_) => "default".to_owned(),
        };
        let text = match key.name {
            "server.id" => self.server_id(),
            "log.app_name" => self.logging().app_name,
            "redis.url" => redacted_url(&self.redis_plain_url()),
            "auth.mode" => match self.auth_mode() {
                super::settings::AuthMode::Stored => "stored".into(),
                super::settings::AuthMode::Open => "open".into(),
                super::settings::AuthMode::Jwt => "jwt".into(),
            },
            "auth.token_endpoint" => match self.token_endpoint() {
                super::settings::TokenEndpoint::Off => "off".into(),
                super::settings::TokenEndpoint::Admin(_) => "admin".into(),
                super::settings::TokenEndpoint::Open => "open".into(),
            },
            "model.base_url" => match self.worker().model {
                Some(model) => model.base_url.to_string(),
                None => return (serde_json::Value::Null, words),
            },
            _ => return (serde_json::Value::Null, words),
        };
        (text.into(), words)
    }

    fn redis_plain_url(&self) -> String {
        use secrecy::ExposeSecret;
        self.redis().url.expose_secret().to_owned()
    }

    /// For people: a line a key, aligned.
    pub fn show_text(&self) -> String {
        let rows = self.shown();
        let width = rows.iter().map(|row| row.key.len()).max().unwrap_or(0);
        let mut out = format!("# {}: key = value  # source\n", self.role);
        for row in rows {
            let _ = writeln!(
                out,
                "{:width$} = {}  # {}",
                row.key,
                one_line(&row.value),
                row.source
            );
        }
        out
    }

    /// For programs: role, settings and notices.
    pub fn show_json(&self) -> String {
        let document = serde_json::json!({
            "role": self.role.as_str(),
            "settings": self.shown(),
            "notices": self.notices,
        });
        format!("{document:#}\n")
    }
}

fn one_line(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "(none)".to_owned(),
        other => other.to_string(),
    }
}

fn visible(key: &Key, value: &Value) -> serde_json::Value {
    match value {
        // A URL is mostly worth seeing: only what it holds of credentials is hidden.
        Value::Text(text) if key.name.ends_with("url") => redacted_url(text).into(),
        Value::Text(_) if key.secret => HIDDEN.into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::List(items) => items.clone().into(),
        // What is in it is shown name by name.
        Value::Map(_) => serde_json::Value::Null,
    }
}

/// Whether a librdkafka property's value must not be seen.
fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = [
        "password",
        "secret",
        "token",
        "credential",
        "jaas",
        "passphrase",
    ];
    let key_material = name.contains("pem") || name.contains("ssl.key");
    words.iter().any(|word| name.contains(word))
        || key_material
        || name == "sasl.oauthbearer.config"
}

/// Without user's name and password (either may be the secret), and without the values of
/// parameters that look secret.
fn redacted_url(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return HIDDEN.to_owned();
    };
    let hidden = (url.password().is_none() || url.set_password(Some("hidden")).is_ok())
        && (url.username().is_empty() || url.set_username("hidden").is_ok());
    if !hidden {
        return HIDDEN.to_owned();
    }
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let mut query = url.query_pairs_mut();
        query.clear();
        for (name, value) in &pairs {
            let lower = name.to_ascii_lowercase();
            let secret = lower.contains("pass") || lower.contains("key") || looks_secret(&lower);
            query.append_pair(name, if secret { "hidden" } else { value });
        }
        drop(query);
    }
    url.into()
}

/// The commented configuration file with every default. As it stands it sets nothing.
pub fn default_file() -> String {
    let mut out = String::from(
        "# chatmesh configuration. Every key with its default; what is commented out holds anyway.\n\
         # Later wins: default, this file, .env, environment, flag. Every variable may also be\n\
         # written with CHATMESH_ in front. An empty variable counts as unset.\n",
    );
    let mut section = "";
    for key in keys::TABLE {
        let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if of != section {
            section = of;
            let _ = write!(out, "\n[{section}]\n");
        }
        let roles: Vec<&str> = key.roles.iter().map(|role| role.as_str()).collect();
        let _ = writeln!(out, "\n# {}", key.help);
        let _ = writeln!(
            out,
            "# Allowed: {}. Variable: {}.",
            key.kind.allowed(),
            key.var
        );
        let _ = writeln!(out, "# Used by: {}.", roles.join(", "));
        match key.default {
            Default::Is(text) => {
                let _ = writeln!(out, "#{name} = {}", literal(key, text));
            }
            Default::By(by) => {
                for (role, text) in by {
                    let _ = writeln!(out, "#{name} = {} # {role}", literal(key, text));
                }
            }
            Default::Worked(words) => {
                let _ = writeln!(out, "# Default: {words}.\n#{name} = \"\"");
            }
        }
    }
    out
}

/// A default as TOML has it.
fn literal(key: &Key, text: &str) -> String {
    match key.kind.read(&text.into()) {
        Some(Value::Int(value)) => value.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Float(value)) => value.to_string(),
        Some(Value::List(items)) => serde_json::Value::from(items).to_string(),
        Some(Value::Map(_)) => "{}".to_owned(),
        Some(Value::Text(_)) | None => format!("{text:?}"),
    }
}
