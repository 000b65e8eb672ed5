//! Reads resolved values as plain types, for `sections` and `checks`. Each method expects a key of
//! the kind in its name. For a key of another kind it would return an empty value or 0.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;

use super::Config;
use super::keys::Key;
use super::kind::{self, Kind, Unit, Value};
use super::layers::DEFAULT_SOURCE;

impl Config {
    /// Whether a file, variable or flag sets the value. False if the setting has its default.
    pub(super) fn is_explicit(&self, key: &Key) -> bool {
        self.values
            .get(key.name)
            .is_some_and(|resolved| resolved.source != DEFAULT_SOURCE)
    }

    /// The source of the value in words, such as `file chatmesh.toml`.
    pub(super) fn source(&self, key: &Key) -> &str {
        self.values
            .get(key.name)
            .map_or(DEFAULT_SOURCE, |resolved| &resolved.source)
    }

    fn value(&self, key: &Key) -> Option<&Value> {
        self.values.get(key.name).map(|resolved| &resolved.value)
    }

    pub(super) fn text(&self, key: &Key) -> Option<&str> {
        match self.value(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The text, or an empty text if the setting has no value.
    pub(super) fn text_or_empty(&self, key: &Key) -> String {
        self.text(key).unwrap_or_default().to_owned()
    }

    pub(super) fn secret(&self, key: &Key) -> Option<SecretString> {
        self.text(key).map(SecretString::from)
    }

    pub(super) fn int(&self, key: &Key) -> u64 {
        match self.value(key) {
            Some(Value::Int(value)) => *value,
            _ => 0,
        }
    }

    pub(super) fn size(&self, key: &Key) -> usize {
        usize::try_from(self.int(key)).unwrap_or(usize::MAX)
    }

    /// The number as a smaller integer type.
    pub(super) fn int_as<T: TryFrom<u64> + Default>(&self, key: &Key) -> T {
        // Cannot fail: a test verifies that the largest allowed number fits the type.
        T::try_from(self.int(key)).unwrap_or_default()
    }

    pub(super) fn bool(&self, key: &Key) -> bool {
        matches!(self.value(key), Some(Value::Bool(true)))
    }

    pub(super) fn float(&self, key: &Key) -> f64 {
        match self.value(key) {
            Some(Value::Float(value)) => *value,
            _ => 0.0,
        }
    }

    pub(super) fn list(&self, key: &Key) -> Vec<String> {
        match self.value(key) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn map(&self, key: &Key) -> BTreeMap<String, String> {
        match self.value(key) {
            Some(Value::Map(map)) => map.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// The number as a duration, in the unit of the key's kind: seconds or milliseconds.
    pub(super) fn duration(&self, key: &Key) -> Duration {
        match key.kind {
            Kind::Int {
                unit: Unit::Seconds,
                ..
            } => Duration::from_secs(self.int(key)),
            _ => Duration::from_millis(self.int(key)),
        }
    }

    /// The socket address of a setting with a host and a setting with a port.
    pub(super) fn address(&self, host: &Key, port: &Key) -> SocketAddr {
        let ip = self.text(host).and_then(kind::parse_host);
        let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        SocketAddr::new(ip, self.int_as(port))
    }
}
