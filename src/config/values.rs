//! A configuration's values by key, as plain types. What has the kind asked for is the table's
//! affair; the fallbacks here are never reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;

use super::Config;
use super::keys::Key;
use super::kind::{self, Kind, Value};
use super::layers::DEFAULT;

impl Config {
    /// Whether somebody set it, and did not leave it to its default.
    pub(super) fn is_set(&self, key: &Key) -> bool {
        self.settings
            .get(key.name)
            .is_some_and(|setting| setting.source != DEFAULT)
    }

    pub(super) fn source(&self, key: &Key) -> &str {
        self.settings
            .get(key.name)
            .map_or(DEFAULT, |setting| &setting.source)
    }

    pub(super) fn text(&self, key: &Key) -> Option<&str> {
        match self.settings.get(key.name).map(|setting| &setting.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn owned(&self, key: &Key) -> String {
        self.text(key).unwrap_or_default().to_owned()
    }

    pub(super) fn secret(&self, key: &Key) -> Option<SecretString> {
        self.text(key).map(SecretString::from)
    }

    pub(super) fn int(&self, key: &Key) -> u64 {
        match self.settings.get(key.name).map(|setting| &setting.value) {
            Some(Value::Int(value)) => *value,
            _ => 0,
        }
    }

    pub(super) fn size(&self, key: &Key) -> usize {
        usize::try_from(self.int(key)).unwrap_or(usize::MAX)
    }

    pub(super) fn narrow<T: TryFrom<u64> + Default>(&self, key: &Key) -> T {
        // The table's bounds are within the type's; the test of the table holds them to it.
        T::try_from(self.int(key)).unwrap_or_default()
    }

    pub(super) fn bool(&self, key: &Key) -> bool {
        let value = self.settings.get(key.name).map(|setting| &setting.value);
        matches!(value, Some(Value::Bool(true)))
    }

    pub(super) fn float(&self, key: &Key) -> f64 {
        match self.settings.get(key.name).map(|setting| &setting.value) {
            Some(Value::Float(value)) => *value,
            _ => 0.0,
        }
    }

    pub(super) fn list(&self, key: &Key) -> Vec<String> {
        match self.settings.get(key.name).map(|setting| &setting.value) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn map(&self, key: &Key) -> BTreeMap<String, String> {
        match self.settings.get(key.name).map(|setting| &setting.value) {
            Some(Value::Map(map)) => map.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// Milliseconds or seconds, as the key's kind says.
    pub(super) fn duration(&self, key: &Key) -> Duration {
        match key.kind {
            Kind::Seconds { .. } => Duration::from_secs(self.int(key)),
            _ => Duration::from_millis(self.int(key)),
        }
    }

    pub(super) fn address(&self, host: &Key, port: &Key) -> SocketAddr {
        let ip = self.text(host).and_then(kind::host);
        let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        SocketAddr::new(ip, self.narrow(port))
    }
}
