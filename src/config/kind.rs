//! What a value may be, and reading it from a file's value or from a variable's text.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use config::ValueKind;
use tracing_subscriber::EnvFilter;

/// The kind of a key's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Any text that is not empty.
    Text,
    /// Any text, the empty one too.
    Prose,
    /// Letters, digits and a little punctuation: safe in labels, headers and file names.
    Name,
    /// A Kafka topic.
    Topic,
    /// An IP address, or localhost.
    Host,
    Bool,
    Int {
        min: u64,
        max: u64,
    },
    /// Whole milliseconds.
    Millis {
        min: u64,
        max: u64,
    },
    /// Whole seconds.
    Seconds {
        min: u64,
        max: u64,
    },
    Float {
        min: f64,
        max: f64,
    },
    Choice(&'static [&'static str]),
    /// Texts, with commas or as a JSON list.
    List,
    /// Names with values.
    Map,
    /// A level or a filter of `tracing`.
    Level,
    HttpUrl,
    RedisUrl,
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Int(u64),
    Float(f64),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
}

const REDIS_SCHEMES: [&str; 12] = [
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
    "valkey",
    "valkeys",
    "valkey-cluster",
    "valkeys-cluster",
    "valkey-sentinel",
    "valkeys-sentinel",
];

impl Kind {
    /// What is allowed, for people.
    pub(super) fn allowed(self) -> String {
        match self {
            Self::Text => "a text".into(),
            Self::Prose => "a text, possibly empty".into(),
            Self::Name => "1 to 128 of letters, digits, '.', '_', ':' and '-'".into(),
            Self::Topic => "1 to 240 of letters, digits, '.', '_' and '-'".into(),
            Self::Host => "an IP address or localhost".into(),
            Self::Bool => "true or false".into(),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Millis { min, max } => format!("whole milliseconds from {min} to {max}"),
            Self::Seconds { min, max } => format!("whole seconds from {min} to {max}"),
            Self::Float { min, max } => format!("a number from {min} to {max}"),
            Self::Choice(choices) => choices.join(", "),
            Self::List => "a list: a,b or [\"a\",\"b\"]".into(),
            Self::Map => "key=value,key=value, or a table in the file".into(),
            Self::Level => "trace, debug, info, warn, error, off, one of Python's levels, or a \
                            filter such as info,chatmesh=debug"
                .into(),
            Self::HttpUrl => "an http:// or https:// URL".into(),
            Self::RedisUrl => "a redis://, rediss://, redis-cluster://, rediss-cluster://, \
                               redis-sentinel:// or rediss-sentinel:// URL with a host"
                .into(),
        }
    }

    /// Reads a value; `None` where it is not allowed.
    pub(super) fn read(self, raw: &ValueKind) -> Option<Value> {
        match (self, raw) {
            (_, ValueKind::String(text)) => self.read_text(text),
            (Self::Bool, ValueKind::Boolean(value)) => Some(Value::Bool(*value)),
            (Self::Float { .. }, ValueKind::Float(value)) => self.read_text(&value.to_string()),
            (Self::Bool | Self::Map | Self::List, ValueKind::I64(_)) => None,
            (_, ValueKind::I64(value)) => self.read_text(&value.to_string()),
            (Self::List, ValueKind::Array(items)) => items
                .iter()
                .map(|item| match &item.kind {
                    ValueKind::String(text) => Some(text.clone()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .and_then(list),
            (Self::Map, ValueKind::Table(_)) => {
                let mut map = BTreeMap::new();
                flatten("", raw, &mut map)?;
                Some(Value::Map(map))
            }
            _ => None,
        }
    }

    fn read_text(self, text: &str) -> Option<Value> {
        let trimmed = text.trim();
        match self {
            Self::Text => (!trimmed.is_empty()).then(|| Value::Text(trimmed.to_owned())),
            Self::Prose => Some(Value::Text(text.to_owned())),
            Self::Name => named(trimmed, 128, ".:_-"),
            Self::Topic => named(trimmed, 240, "._-"),
            Self::Host => host(trimmed).map(|_| Value::Text(trimmed.to_owned())),
            Self::Bool => boolean(trimmed).map(Value::Bool),
            Self::Int { min, max } | Self::Millis { min, max } | Self::Seconds { min, max } => {
                let digits = trimmed.strip_prefix('+').unwrap_or(trimmed);
                let value: u64 = digits.parse().ok()?;
                (min..=max).contains(&value).then_some(Value::Int(value))
            }
            Self::Float { min, max } => {
                let value: f64 = trimmed.parse().ok()?;
                (min..=max).contains(&value).then_some(Value::Float(value))
            }
            Self::Choice(choices) => {
                let lower = trimmed.to_ascii_lowercase();
                choices
                    .contains(&lower.as_str())
                    .then_some(Value::Text(lower))
            }
            Self::List => {
                let items = if trimmed.starts_with('[') {
                    serde_json::from_str(trimmed).ok()?
                } else {
                    trimmed
                        .split(',')
                        .map(|item| item.trim().to_owned())
                        .collect()
                };
                list(items)
            }
            Self::Map => properties(trimmed).map(Value::Map),
            Self::Level => level(trimmed).map(Value::Text),
            Self::HttpUrl => {
                let url = url::Url::parse(trimmed).ok()?;
                let http = matches!(url.scheme(), "http" | "https") && url.has_host();
                http.then(|| Value::Text(trimmed.to_owned()))
            }
            Self::RedisUrl => {
                let url = url::Url::parse(trimmed).ok()?;
                let known = REDIS_SCHEMES.contains(&url.scheme());
                let host = url.host_str().is_some_and(|host| !host.is_empty());
                (known && host).then(|| Value::Text(trimmed.to_owned()))
            }
        }
    }
}

fn named(text: &str, longest: usize, punctuation: &str) -> Option<Value> {
    let safe = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
    let fits = (1..=longest).contains(&text.len()) && text.chars().all(safe);
    fits.then(|| Value::Text(text.to_owned()))
}

/// The address that a host setting stands for.
pub(super) fn host(text: &str) -> Option<IpAddr> {
    if text.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    text.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// What pydantic takes for a truth value.
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

fn list(items: Vec<String>) -> Option<Value> {
    let good = !items.is_empty() && items.iter().all(|item| !item.trim().is_empty());
    good.then_some(Value::List(items))
}

/// Python's level names in tracing's words; anything else must be a filter.
fn level(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let known = match lower.as_str() {
        "notset" | "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" | "fatal" => "error",
        "off" => "off",
        _ => {
            // A bare word would be taken for a target's name, and log nothing.
            let filter = text.contains('=') || text.contains(',');
            return (filter && EnvFilter::builder().parse(text).is_ok()).then(|| text.to_owned());
        }
    };
    Some(known.to_owned())
}

/// `key=value,key=value`; `\,` is a comma in a value, `\\` a backslash.
fn properties(text: &str) -> Option<BTreeMap<String, String>> {
    let mut pairs = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(&next @ (',' | '\\'))) => {
                chars.next();
                if let Some(pair) = pairs.last_mut() {
                    pair.push(next);
                }
            }
            (',', _) => pairs.push(String::new()),
            _ => {
                if let Some(pair) = pairs.last_mut() {
                    pair.push(c);
                }
            }
        }
    }
    let mut map = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| !pair.trim().is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let key = key.trim();
        if key.is_empty() {
            return None;
        }
        map.insert(key.to_owned(), value.trim().to_owned());
    }
    Some(map)
}

/// A file's table as names with dots: TOML reads `a.b = 1` as a table in a table.
fn flatten(prefix: &str, raw: &ValueKind, into: &mut BTreeMap<String, String>) -> Option<()> {
    let text = match raw {
        ValueKind::Table(table) => {
            for (name, value) in table {
                let name = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&name, &value.kind, into)?;
            }
            return Some(());
        }
        ValueKind::String(text) => text.clone(),
        ValueKind::I64(value) => value.to_string(),
        ValueKind::Float(value) => value.to_string(),
        ValueKind::Boolean(value) => value.to_string(),
        _ => return None,
    };
    into.insert(prefix.to_owned(), text);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: Kind, value: &str) -> Option<Value> {
        kind.read(&ValueKind::String(value.to_owned()))
    }

    #[test]
    fn property_values_keep_equals_signs_and_escaped_commas() {
        let value = text(
            Kind::Map,
            r"sasl.jaas.config=a=b\,c;,security.protocol=SASL_SSL,x=\\d",
        );
        let expected = [
            ("sasl.jaas.config", "a=b,c;"),
            ("security.protocol", "SASL_SSL"),
            ("x", "\\d"),
        ];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(value, Some(Value::Map(expected.into())));
        assert_eq!(text(Kind::Map, "no equals sign"), None);
    }

    #[test]
    fn lists_of_the_original_are_read() {
        let star = Some(Value::List(vec!["*".into()]));
        assert_eq!(text(Kind::List, r#"["*"]"#), star);
        assert_eq!(text(Kind::List, "*"), star);
        let two = Some(Value::List(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(text(Kind::List, "a:1, b:2"), two);
        assert_eq!(text(Kind::List, r#"["a:1"#), None);
        assert_eq!(text(Kind::List, "a,,b"), None);
    }

    #[test]
    fn a_misspelt_level_is_not_taken_for_a_target() {
        assert_eq!(
            text(Kind::Level, "CRITICAL"),
            Some(Value::Text("error".into()))
        );
        assert_eq!(
            text(Kind::Level, "Warning"),
            Some(Value::Text("warn".into()))
        );
        assert_eq!(text(Kind::Level, "inof"), None);
        assert!(text(Kind::Level, "info,chatmesh=debug").is_some());
        assert_eq!(text(Kind::Level, "info,chatmesh=loud"), None);
    }

    #[test]
    fn numbers_are_not_guessed_from_other_types() {
        let port = Kind::Int { min: 0, max: 65535 };
        assert_eq!(port.read(&ValueKind::Boolean(true)), None);
        assert_eq!(port.read(&ValueKind::I64(-1)), None);
        assert_eq!(text(port, "65536"), None);
        assert_eq!(Kind::Bool.read(&ValueKind::I64(1)), None);
        // A password of digits only, written without quotes in the file.
        assert_eq!(
            Kind::Text.read(&ValueKind::I64(123)),
            Some(Value::Text("123".into()))
        );
    }
}
