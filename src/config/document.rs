//! Generates `docs/settings.md` from the table of settings.

use std::fmt::Write as _;

use super::Role;
use super::keys::{self, DefaultValue, Key};
use super::kind::Kind;

/// The text of `docs/settings.md` above the tables.
const INTRODUCTION: &str = include_str!("document.md");

/// Generates the content of `docs/settings.md`. A test compares it with the file.
pub fn settings_document() -> String {
    let mut out = String::from(INTRODUCTION);
    for section in keys::SECTIONS {
        let _ = write!(
            out,
            "\n## {}\n\n| variable | key | default | unit | roles | description |\n\
             | --- | --- | --- | --- | --- | --- |\n",
            section.title
        );
        let is_in_section = |key: &&&Key| {
            let name = key.name.split_once('.').map_or(key.name, |(name, _)| name);
            name == section.name
        };
        for key in keys::TABLE.iter().filter(is_in_section) {
            let cells = [
                format!("`{}`", key.variable),
                format!("`{}`", key.name),
                default_cell(key),
                unit_cell(key.kind),
                roles_cell(key.roles),
                description_cell(key),
            ];
            let cells = cells.map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
    }
    out
}

fn default_cell(key: &Key) -> String {
    match key.default {
        DefaultValue::Fixed("") => "empty".to_owned(),
        DefaultValue::Fixed(text) => format!("`{text}`"),
        DefaultValue::PerRole(texts) => {
            let texts = texts
                .iter()
                .map(|(role, text)| format!("`{text}` ({role})"));
            texts.collect::<Vec<_>>().join(", ")
        }
        DefaultValue::Derived(description) => description.to_owned(),
    }
}

/// The unit of a setting with a number, or the kind of any other setting.
fn unit_cell(kind: Kind) -> String {
    match kind {
        Kind::Int { unit, .. } => match unit.symbol() {
            "" => "number".to_owned(),
            symbol => symbol.to_owned(),
        },
        Kind::Float { min, max } => format!("number, {min} to {max}"),
        Kind::Choice(choices) => {
            let choices = choices.iter().map(|choice| format!("`{choice}`"));
            choices.collect::<Vec<_>>().join(" or ")
        }
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Text | Kind::TextOrEmpty => "text".to_owned(),
        Kind::Name => "name".to_owned(),
        Kind::Topic => "topic".to_owned(),
        Kind::Host => "IP address or `localhost`".to_owned(),
        Kind::List => "list".to_owned(),
        Kind::Map => "map".to_owned(),
        Kind::LogLevel => "log level".to_owned(),
        Kind::HttpUrl | Kind::RedisUrl => "URL".to_owned(),
    }
}

fn roles_cell(roles: &[Role]) -> String {
    if roles.len() == Role::ALL.len() {
        return "all".to_owned();
    }
    let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    roles.join(", ")
}

fn description_cell(key: &Key) -> String {
    // Markdown would take an asterisk for the beginning of emphasis.
    let description = key.description.replace("* ", "\\* ");
    if key.secret {
        format!("{description} Secret: never printed.")
    } else {
        description
    }
}
