//! The kinds of setting values: parses a value of the file or the text of a variable, and describes
//! the allowed values.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use config::ValueKind;
use tracing_subscriber::EnvFilter;

/// The unit of a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A count, or a number such as a port.
    None,
    Bytes,
    Characters,
    Tokens,
    Milliseconds,
    Seconds,
}

impl Unit {
    /// The unit in documents. Empty for a number without a unit.
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Bytes => "bytes",
            Self::Characters => "characters",
            Self::Tokens => "tokens",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
        }
    }

    /// The unit in error texts.
    fn noun(self) -> &'static str {
        match self {
            Self::None => "number",
            Self::Milliseconds => "milliseconds",
            Self::Seconds => "seconds",
            Self::Bytes | Self::Characters | Self::Tokens => self.symbol(),
        }
    }
}

/// The kind of a setting's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A text that is not empty.
    Text,
    /// A text that may be empty.
    TextOrEmpty,
    /// Letters, digits and some punctuation: safe in metric labels, HTTP headers and file names.
    Name,
    /// The name of a Kafka topic.
    Topic,
    /// An IP address, or localhost.
    Host,
    /// True or false.
    Bool,
    /// A whole number from `min` to `max`, both included.
    Int { min: u64, max: u64, unit: Unit },
    /// A number from `min` to `max`, both included.
    Float { min: f64, max: f64 },
    /// One of these texts. Case is ignored.
    Choice(&'static [&'static str]),
    /// A list of texts: an array in the file; separated by commas, or a JSON list, in a variable.
    List,
    /// Values by name: a table in the file; `key=value,key=value` in a variable.
    Map,
    /// A log level or a filter of `tracing`.
    LogLevel,
    /// A URL with the scheme http or https.
    HttpUrl,
    /// A URL with a host and one of [`REDIS_SCHEMES`]. With the scheme of a sentinel, the URL must
    /// name the master.
    RedisUrl,
}

/// A parsed value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Int(u64),
    Float(f64),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
}

/// The URL schemes of Redis servers, clusters and sentinels, with and without TLS.
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
    /// Describes the allowed values in error texts and documents.
    pub(super) fn allowed(self) -> String {
        match self {
            Self::Text => "a text".into(),
            Self::TextOrEmpty => "a text, possibly empty".into(),
            Self::Name => "1 to 128 of letters, digits, '.', '_', ':' and '-'".into(),
            Self::Topic => "1 to 240 of letters, digits, '.', '_' and '-'".into(),
            Self::Host => "an IP address or localhost".into(),
            Self::Bool => "true or false".into(),
            Self::Int { min, max, unit } => match unit {
                Unit::None => format!("a whole number from {min} to {max}"),
                unit => format!("whole {} from {min} to {max}", unit.noun()),
            },
            Self::Float { min, max } => format!("a number from {min} to {max}"),
            Self::Choice(choices) => choices.join(", "),
            Self::List => "a list: a,b or [\"a\",\"b\"]".into(),
            Self::Map => "key=value,key=value, or a table in the file".into(),
            Self::LogLevel => "trace, debug, info, warn, error, off, one of Python's levels, or a \
                            filter such as info,chatmesh=debug"
                .into(),
            Self::HttpUrl => "an http:// or https:// URL".into(),
            Self::RedisUrl => "a redis://, rediss://, redis-cluster://, rediss-cluster://, \
                               redis-sentinel:// or rediss-sentinel:// URL with a host; behind \
                               sentinel also with ?sentinelServiceName=NAME"
                .into(),
        }
    }

    /// Parses a value of any source. `None` if the value is not allowed.
    pub(super) fn parse(self, raw: &ValueKind) -> Option<Value> {
        match (self, raw) {
            (_, ValueKind::String(text)) => self.parse_text(text),
            (Self::Bool, ValueKind::Boolean(value)) => Some(Value::Bool(*value)),
            (Self::Float { .. }, ValueKind::Float(value)) => self.parse_text(&value.to_string()),
            (Self::Bool | Self::Map | Self::List, ValueKind::I64(_)) => None,
            (_, ValueKind::I64(value)) => self.parse_text(&value.to_string()),
            (Self::List, ValueKind::Array(items)) => items
                .iter()
                .map(|item| match &item.kind {
                    ValueKind::String(text) => Some(text.clone()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .and_then(non_empty_list),
            (Self::Map, ValueKind::Table(_)) => {
                let mut map = BTreeMap::new();
                flatten("", raw, &mut map)?;
                Some(Value::Map(map))
            }
            _ => None,
        }
    }

    /// Parses a text, such as a variable's value. `None` if the value is not allowed.
    fn parse_text(self, text: &str) -> Option<Value> {
        let trimmed = text.trim();
        match self {
            Self::Text => (!trimmed.is_empty()).then(|| Value::Text(trimmed.to_owned())),
            Self::TextOrEmpty => Some(Value::Text(text.to_owned())),
            Self::Name => parse_name(trimmed, 128, ".:_-"),
            Self::Topic => parse_name(trimmed, 240, "._-"),
            Self::Host => parse_host(trimmed).map(|_| Value::Text(trimmed.to_owned())),
            Self::Bool => parse_bool(trimmed).map(Value::Bool),
            Self::Int { min, max, .. } => {
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
                non_empty_list(items)
            }
            Self::Map => parse_properties(trimmed).map(Value::Map),
            Self::LogLevel => parse_level(trimmed).map(Value::Text),
            Self::HttpUrl => {
                let url = url::Url::parse(trimmed).ok()?;
                let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
                is_http.then(|| Value::Text(trimmed.to_owned()))
            }
            Self::RedisUrl => {
                let url = url::Url::parse(trimmed).ok()?;
                let has_redis_scheme = REDIS_SCHEMES.contains(&url.scheme());
                let has_host = url.host_str().is_some_and(|host| !host.is_empty());
                let names_master = !url.scheme().ends_with("sentinel")
                    || url
                        .query_pairs()
                        .any(|(name, value)| name == "sentinelServiceName" && !value.is_empty());
                (has_redis_scheme && has_host && names_master)
                    .then(|| Value::Text(trimmed.to_owned()))
            }
        }
    }
}

fn parse_name(text: &str, max_length: usize, punctuation: &str) -> Option<Value> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
    let is_valid = (1..=max_length).contains(&text.len()) && text.chars().all(is_allowed);
    is_valid.then(|| Value::Text(text.to_owned()))
}

/// Parses the IP address of a host setting, in brackets or not. `None` if the text is neither an IP
/// address nor `localhost`.
pub(super) fn parse_host(text: &str) -> Option<IpAddr> {
    if text.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    text.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// Parses a boolean. Accepts the texts that pydantic accepts, the settings library of the original
/// system.
fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

fn non_empty_list(items: Vec<String>) -> Option<Value> {
    let is_valid = !items.is_empty() && items.iter().all(|item| !item.trim().is_empty());
    is_valid.then_some(Value::List(items))
}

/// Translates a level name of Python or `tracing` to the name in `tracing`. Any other text is
/// returned unchanged if it is a filter of `tracing`; otherwise returns `None`.
fn parse_level(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let level = match lower.as_str() {
        "notset" | "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" | "fatal" => "error",
        "off" => "off",
        _ => {
            // A single word is refused: `tracing` would take it for the name of a target, and log
            // nothing else.
            let is_filter = text.contains('=') || text.contains(',');
            return (is_filter && EnvFilter::builder().parse(text).is_ok())
                .then(|| text.to_owned());
        }
    };
    Some(level.to_owned())
}

/// Parses `key=value,key=value`. `\,` stands for a comma and `\\` for a backslash. `None` if a pair
/// has no equals sign or no key.
fn parse_properties(text: &str) -> Option<BTreeMap<String, String>> {
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

/// Adds the entries of nested tables to `entries` under dotted names, because TOML reads `a.b = 1`
/// as a table in a table. `None` if a value is neither text, number, boolean nor table.
fn flatten(prefix: &str, raw: &ValueKind, entries: &mut BTreeMap<String, String>) -> Option<()> {
    let text = match raw {
        ValueKind::Table(table) => {
            for (name, value) in table {
                let name = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&name, &value.kind, entries)?;
            }
            return Some(());
        }
        ValueKind::String(text) => text.clone(),
        ValueKind::I64(value) => value.to_string(),
        ValueKind::Float(value) => value.to_string(),
        ValueKind::Boolean(value) => value.to_string(),
        _ => return None,
    };
    entries.insert(prefix.to_owned(), text);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: Kind, value: &str) -> Option<Value> {
        kind.parse(&ValueKind::String(value.to_owned()))
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
    fn lists_in_the_notation_of_the_original_system_are_read() {
        let star = Some(Value::List(vec!["*".into()]));
        assert_eq!(text(Kind::List, r#"["*"]"#), star);
        assert_eq!(text(Kind::List, "*"), star);
        let two = Some(Value::List(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(text(Kind::List, "a:1, b:2"), two);
        assert_eq!(text(Kind::List, r#"["a:1"#), None);
        assert_eq!(text(Kind::List, "a,,b"), None);
    }

    #[test]
    fn misspelt_level_is_rejected() {
        assert_eq!(
            text(Kind::LogLevel, "CRITICAL"),
            Some(Value::Text("error".into()))
        );
        assert_eq!(
            text(Kind::LogLevel, "Warning"),
            Some(Value::Text("warn".into()))
        );
        assert_eq!(text(Kind::LogLevel, "inof"), None);
        assert!(text(Kind::LogLevel, "info,chatmesh=debug").is_some());
        assert_eq!(text(Kind::LogLevel, "info,chatmesh=loud"), None);
    }

    #[test]
    fn number_is_not_converted_from_another_type() {
        let port = Kind::Int {
            min: 0,
            max: 65535,
            unit: Unit::None,
        };
        assert_eq!(port.parse(&ValueKind::Boolean(true)), None);
        assert_eq!(port.parse(&ValueKind::I64(-1)), None);
        assert_eq!(text(port, "65536"), None);
        assert_eq!(Kind::Bool.parse(&ValueKind::I64(1)), None);
        // A text of digits, such as a password, may stand in the file without quotes.
        assert_eq!(
            Kind::Text.parse(&ValueKind::I64(123)),
            Some(Value::Text("123".into()))
        );
    }
}
