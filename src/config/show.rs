//! `config show`: the effective values with their sources, without secrets.

use std::fmt::Write as _;

use serde::Serialize;

use super::Config;
use super::keys::{self, DefaultValue, Key};
use super::kind::Value;
use super::resolved::ResolvedValue;
use super::settings::{AuthMode, TokenEndpoint};

/// Text in place of a secret.
const HIDDEN: &str = "(hidden)";

/// A setting as `config show` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct EffectiveSetting {
    /// The key in the file. An entry of a map has its name appended.
    pub key: String,
    /// The environment variable.
    pub variable: &'static str,
    /// The effective value, or a placeholder for a secret. `null` if there is none.
    pub value: serde_json::Value,
    /// The source of the value, in words.
    pub source: String,
}

impl Config {
    /// The settings that the role uses, without secrets.
    pub fn effective_settings(&self) -> Vec<EffectiveSetting> {
        let used = keys::TABLE
            .iter()
            .filter(|key| key.roles.contains(&self.role()));
        used.flat_map(|key| self.effective_key(key)).collect()
    }

    /// One row, or for a map one for each entry, because each entry has its own source.
    fn effective_key(&self, key: &'static Key) -> Vec<EffectiveSetting> {
        let (value, source) = match self.values.get(key.name) {
            Some(ResolvedValue {
                value: Value::Map(map),
                entry_sources,
                ..
            }) if !map.is_empty() => {
                let is_hidden = |name: &str| key.secret || is_secret_name(name);
                let row = |(name, value): (&String, &String)| EffectiveSetting {
                    key: format!("{}.{name}", key.name),
                    variable: key.variable,
                    value: if is_hidden(name) { HIDDEN } else { value }.into(),
                    source: entry_sources.get(name).cloned().unwrap_or_default(),
                };
                return map.iter().map(row).collect();
            }
            Some(resolved) => (visible_value(key, &resolved.value), resolved.source.clone()),
            None => self.derived_value(key),
        };
        vec![EffectiveSetting {
            key: key.name.to_owned(),
            variable: key.variable,
            value,
            source,
        }]
    }

    /// The value of a setting with a derived default, and its source.
    fn derived_value(&self, key: &Key) -> (serde_json::Value, String) {
        let source = match key.default {
            DefaultValue::Derived(description) => format!("default: {description}"),
            DefaultValue::Fixed(_) | DefaultValue::PerRole(_) => "default".to_owned(),
        };
        let text = match key.name {
            "server.id" => self.server_id(),
            "log.app_name" => self.logging().app_name,
            "redis.url" => redacted_url(&self.redis_url()),
            "auth.mode" => match self.auth_mode() {
                AuthMode::Stored => "stored".into(),
                AuthMode::Open => "open".into(),
                AuthMode::Jwt => "jwt".into(),
            },
            "auth.token_endpoint" => match self.token_endpoint() {
                TokenEndpoint::Off => "off".into(),
                TokenEndpoint::Admin(_) => "admin".into(),
                TokenEndpoint::Open => "open".into(),
            },
            "model.base_url" => match self.worker().model {
                Some(model) => model.base_url.to_string(),
                None => return (serde_json::Value::Null, source),
            },
            _ => return (serde_json::Value::Null, source),
        };
        (text.into(), source)
    }

    /// The settings for people: one aligned line each.
    pub fn show_text(&self) -> String {
        let rows = self.effective_settings();
        let width = rows.iter().map(|row| row.key.len()).max().unwrap_or(0);
        let mut out = format!("# {}: key = value  # source\n", self.role());
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

    /// The settings as JSON: role, settings and notices.
    pub fn show_json(&self) -> String {
        let document = serde_json::json!({
            "role": self.role().as_str(),
            "settings": self.effective_settings(),
            "notices": self.notices(),
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

fn visible_value(key: &Key, value: &Value) -> serde_json::Value {
    match value {
        // Of a URL, only the credentials are hidden, because the rest helps to find mistakes.
        Value::Text(text) if key.name.ends_with("url") => redacted_url(text).into(),
        Value::Text(_) if key.secret => HIDDEN.into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::List(items) => items.clone().into(),
        // Only an empty map: others are shown entry by entry.
        Value::Map(_) => serde_json::Value::Null,
    }
}

/// Whether the value of a librdkafka property or URL parameter may be a secret, judged by its name.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = [
        "password",
        "secret",
        "token",
        "credential",
        "jaas",
        "passphrase",
    ];
    let key_material = name.contains("pem") || name.contains("ssl.key");
    parts.iter().any(|part| name.contains(part))
        || key_material
        || name == "sasl.oauthbearer.config"
}

/// A URL without user name and password, either of which may be the secret, and without the values
/// of parameters that may be secret.
fn redacted_url(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return HIDDEN.to_owned();
    };
    let is_redacted = (url.password().is_none() || url.set_password(Some("hidden")).is_ok())
        && (url.username().is_empty() || url.set_username("hidden").is_ok());
    if !is_redacted {
        return HIDDEN.to_owned();
    }
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let mut query = url.query_pairs_mut();
        query.clear();
        for (name, value) in &pairs {
            let lower = name.to_ascii_lowercase();
            let is_secret =
                lower.contains("pass") || lower.contains("key") || is_secret_name(&lower);
            query.append_pair(name, if is_secret { "hidden" } else { value });
        }
        drop(query);
    }
    url.into()
}
