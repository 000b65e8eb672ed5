//! Access to resolved values as plain types. The table of settings guarantees that every value has
//! the kind of its key, so the fallbacks for other kinds are never reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;

use super::Config;
use super::keys::Key;
use super::kind::{self, Kind, Unit, Value};
use super::layers::DEFAULT;

impl Config {
    /// Whether a source sets the value, so it is not the default.
    pub(super) fn is_set(&self, key: &Key) -> bool {
        self.values
            .get(key.name)
            .is_some_and(|resolved| resolved.source != DEFAULT)
    }

    /// The source of the value, in words.
    pub(super) fn source(&self, key: &Key) -> &str {
        self.values
            .get(key.name)
            .map_or(DEFAULT, |resolved| &resolved.source)
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

    /// The text, or an empty one if there is none.
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

    /// The number as a smaller type.
    pub(super) fn int_as<T: TryFrom<u64> + Default>(&self, key: &Key) -> T {
        // The bounds in the table are within those of the type, which a test verifies.
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

    /// A duration, in the unit of the key's kind.
    pub(super) fn duration(&self, key: &Key) -> Duration {
        match key.kind {
            Kind::Int {
                unit: Unit::Seconds,
                ..
            } => Duration::from_secs(self.int(key)),
            _ => Duration::from_millis(self.int(key)),
        }
    }

    pub(super) fn address(&self, host: &Key, port: &Key) -> SocketAddr {
        let ip = self.text(host).and_then(kind::parse_host);
        let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        SocketAddr::new(ip, self.int_as(port))
    }
}
