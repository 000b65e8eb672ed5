//! Implements `config default`: prints a configuration file with every setting, its description and
//! its default.

use std::fmt::Write as _;

use super::keys::{self, DefaultValue, Key};
use super::kind::Value;

/// Maximum width of a comment line, in characters.
const MAX_LINE_WIDTH: usize = 100;

/// Returns the configuration file with every setting, its description and its default. All settings
/// are commented out, so the unchanged file has no effect.
pub fn default_config_file() -> String {
    let mut out = String::from(
        "# chatmesh configuration: every key with its default. Keys that are commented out have their\n\
         # defaults. Precedence, lowest first: default, this file, .env, environment, flag. Every\n\
         # variable may also be written with the prefix CHATMESH_. An empty variable counts as unset.\n",
    );
    let mut section = "";
    for key in keys::TABLE {
        let (key_section, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if key_section != section {
            section = key_section;
            let _ = write!(out, "\n[{section}]\n");
        }
        let roles: Vec<&str> = key.roles.iter().map(|role| role.as_str()).collect();
        out.push('\n');
        write_comment(&mut out, key.description);
        let allowed = key.kind.allowed();
        write_comment(
            &mut out,
            &format!("Allowed: {allowed}. Variable: {}.", key.variable),
        );
        write_comment(&mut out, &format!("Used by: {}.", roles.join(", ")));
        match key.default {
            DefaultValue::Fixed(text) => {
                let _ = writeln!(out, "#{name} = {}", toml_literal(key, text));
            }
            DefaultValue::PerRole(texts) => {
                for (role, text) in texts {
                    let _ = writeln!(out, "#{name} = {} # {role}", toml_literal(key, text));
                }
            }
            DefaultValue::Derived(description) => {
                write_comment(&mut out, &format!("Default: {description}."));
                let _ = writeln!(out, "#{name} = \"\"");
            }
        }
    }
    out
}

/// Writes a text as comment lines, which are broken between words.
fn write_comment(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split(' ') {
        if width == 0 || width + 1 + word.chars().count() > MAX_LINE_WIDTH {
            out.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        let _ = write!(out, " {word}");
        width += 1 + word.chars().count();
    }
    out.push('\n');
}

/// The default `text` of a setting as a TOML value.
fn toml_literal(key: &Key, text: &str) -> String {
    match key.kind.parse(&text.into()) {
        Some(Value::Int(value)) => value.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Float(value)) => value.to_string(),
        Some(Value::List(items)) => serde_json::Value::from(items).to_string(),
        Some(Value::Map(_)) => "{}".to_owned(),
        Some(Value::Text(_)) | None => format!("{text:?}"),
    }
}
