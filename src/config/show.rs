//! Implements `config show`: prints the effective values with their sources, without secrets.

use std::fmt::Write as _;

use serde::Serialize;

use super::Config;
use super::keys::{self, DefaultValue, Key};
use super::kind::Value;
use super::resolved::ResolvedValue;
use super::settings::{AuthMode, TokenEndpoint};

/// The text that is printed in place of a secret.
const HIDDEN_TEXT: &str = "(hidden)";

/// A setting as `config show` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct EffectiveSetting {
    /// The setting's key in the file. If the setting is a map, followed by a dot and the entry's
    /// name.
    pub key: String,
    /// The environment variable that sets the value.
    pub variable: &'static str,
    /// The effective value, or a placeholder for a secret. `null` if the setting has no value.
    pub value: serde_json::Value,
    /// The source of the value in words.
    pub source: String,
}

impl Config {
    /// The values of all settings that the role uses, without secrets.
    pub fn effective_settings(&self) -> Vec<EffectiveSetting> {
        let used = keys::TABLE
            .iter()
            .filter(|key| key.roles.contains(&self.role()));
        used.flat_map(|key| self.effective_key(key)).collect()
    }

    /// The value of one setting. A map that is not empty results in one value for each entry,
    /// because each entry has its own source.
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
                    value: if is_hidden(name) { HIDDEN_TEXT } else { value }.into(),
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

    /// The value of a setting that no source sets and that has no fixed default, and its source.
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

    /// The settings as text for people: one aligned line for each setting.
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

    /// The settings as JSON, with the role and the notices.
    pub fn show_json(&self) -> String {
        let document = serde_json::json!({
            "role": self.role().as_str(),
            "settings": self.effective_settings(),
            "notices": self.notices(),
        });
        format!("{document:#}\n")
    }
}

/// A value as text on one line.
fn one_line(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "(none)".to_owned(),
        other => other.to_string(),
    }
}

/// A setting's value in JSON, without secrets.
fn visible_value(key: &Key, value: &Value) -> serde_json::Value {
    match value {
        // A URL is shown without its credentials, even if the setting is secret, because scheme,
        // host and path help to find mistakes.
        Value::Text(text) if key.name.ends_with("url") => redacted_url(text).into(),
        Value::Text(_) if key.secret => HIDDEN_TEXT.into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::List(items) => items.clone().into(),
        // The map is empty: `effective_key` shows any other map entry by entry.
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
    let is_key_material = name.contains("pem") || name.contains("ssl.key");
    parts.iter().any(|part| name.contains(part))
        || is_key_material
        || name == "sasl.oauthbearer.config"
}

/// Replaces user name, password, and the values of parameters that may be secret in a URL by
/// `hidden`. Returns `(hidden)` if the text is no URL.
fn redacted_url(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return HIDDEN_TEXT.to_owned();
    };
    let is_redacted = (url.password().is_none() || url.set_password(Some("hidden")).is_ok())
        && (url.username().is_empty() || url.set_username("hidden").is_ok());
    if !is_redacted {
        return HIDDEN_TEXT.to_owned();
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
