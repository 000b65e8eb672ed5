//! Keeps the keys of a key set up to date. A key set is a file or the response of a URL, and may
//! change while the gateway runs. [`jwt`](super::jwt) looks up the keys of each token here.
//!
//! A key is valid while the set lists it, so a lookup fetches the set again once its keys are older
//! than [`MAX_KEYS_AGE`]. A lookup of an unknown key fetches the set at once, but at most once in
//! [`UNKNOWN_KEY_INTERVAL`], because any client can name a key. After a failed fetch, the previous
//! keys stay in use.
//!
//! Each fetch is a task of its own, so that it is not cancelled with the request that started it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::Jwk;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::TokenError;
use super::key::{Key, KeyError, read_file};
use crate::http_client;

/// Age of the keys from which a lookup fetches the set again.
const MAX_KEYS_AGE: Duration = Duration::from_secs(300);

/// Minimum time between two fetches that unknown keys cause. Also the minimum time between a failed
/// fetch and its retry, once a fetch has succeeded.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(60);

/// Minimum time between two fetches while no fetch has succeeded.
const INITIAL_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time that a fetch takes, and that a lookup waits for a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size in bytes of a key set behind a URL.
const MAX_SET_BYTES: usize = 1 << 20;

/// Maximum number of usable keys of a set. The set's keys above the maximum are ignored.
const MAX_KEYS: usize = 100;

/// The place from which a key set is read.
enum Source {
    File(PathBuf),
    Url(reqwest::Client, url::Url),
}

/// The times of the last fetches, and the fetch in progress.
#[derive(Default)]
struct FetchState {
    /// Start of the last fetch, successful or not.
    last_fetch_at: Option<Instant>,
    /// End of the last successful fetch.
    last_success_at: Option<Instant>,
    /// Start of the last fetch that an unknown key caused.
    last_unknown_key_fetch_at: Option<Instant>,
    /// The channel of the last fetch. It closes when that fetch has ended.
    in_progress: Option<watch::Receiver<()>>,
}

impl FetchState {
    /// Returns the channel of the fetch in progress, or `None` if no fetch is in progress.
    fn in_progress(&self) -> Option<watch::Receiver<()>> {
        let fetch = self.in_progress.as_ref();
        fetch.filter(|fetch| fetch.has_changed().is_ok()).cloned()
    }

    fn is_fresh(&self) -> bool {
        self.last_success_at
            .is_some_and(|success| success.elapsed() < MAX_KEYS_AGE)
    }

    /// Returns whether to fetch the set now, and if so, records that the fetch starts now.
    /// `is_key_unknown` means that a token needs a key that the set lacks.
    fn try_begin_fetch(&mut self, is_key_unknown: bool) -> bool {
        let has_passed = |moment: Option<Instant>, interval| {
            moment.is_none_or(|moment| moment.elapsed() >= interval)
        };
        let retry_interval = if self.last_success_at.is_some() {
            UNKNOWN_KEY_INTERVAL
        } else {
            INITIAL_RETRY_INTERVAL
        };
        if !self.is_fresh() && has_passed(self.last_fetch_at, retry_interval) {
            self.last_fetch_at = Some(Instant::now());
            return true;
        }
        // Only the last fetch for an unknown key counts here: a key may have been added to the set
        // after a later fetch for another reason.
        if is_key_unknown
            && self.last_success_at.is_some()
            && has_passed(self.last_unknown_key_fetch_at, UNKNOWN_KEY_INTERVAL)
        {
            self.last_fetch_at = Some(Instant::now());
            self.last_unknown_key_fetch_at = self.last_fetch_at;
            return true;
        }
        false
    }
}

/// A key set that is fetched again when its keys are too old or lack a key.
pub(super) struct Jwks(Arc<KeySet>);

/// The state that [`Jwks`] shares with the tasks that fetch.
struct KeySet {
    source: Source,
    keys: ArcSwap<Vec<Arc<Key>>>,
    fetch_state: Mutex<FetchState>,
}

/// The JSON of a key set (RFC 7517), with keys that are not parsed yet.
#[derive(Deserialize)]
struct KeySetJson {
    keys: Vec<serde_json::Value>,
}

/// The usable keys of a key set, and the counts that explain why no key is usable.
struct ParsedKeySet {
    keys: Vec<Arc<Key>>,
    /// Number of keys that the set lists, usable or not.
    listed_count: usize,
    /// Number of secrets (`kty: oct`) that the set lists.
    secret_count: usize,
}

impl ParsedKeySet {
    /// Returns what is wrong with the set if it has no usable key, otherwise `None`.
    fn problem(&self) -> Option<String> {
        const EXPECTED: &str = "expected public signature keys of type RSA, P-256 or Ed25519";
        match (self.keys.len(), self.listed_count, self.secret_count) {
            (1.., ..) => None,
            (0, 0, _) => Some(format!("lists no key at all: {EXPECTED}")),
            (0, listed, 0) => Some(format!(
                "lists {listed} keys, and none that can be used: {EXPECTED}"
            )),
            (0, listed, secrets) => Some(format!(
                "lists {listed} keys, and none that can be used; {secrets} of them are secrets \
                 (`kty: oct`), which are not taken from a key set: {EXPECTED}"
            )),
        }
    }
}

/// Parses a key set. `None` if `json` is not a JSON Web Key Set.
fn parse(json: &[u8]) -> Option<ParsedKeySet> {
    let set: KeySetJson = serde_json::from_slice(json).ok()?;
    let listed_count = set.keys.len();
    let is_secret = |key: &&serde_json::Value| key.get("kty").is_some_and(|kty| kty == "oct");
    let secret_count = set.keys.iter().filter(is_secret).count();
    // An unsupported key is skipped, so that it does not invalidate the set's other keys.
    let keys = set.keys.into_iter().filter_map(|key| {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        Key::from_jwk(&jwk).map(Arc::new)
    });
    Some(ParsedKeySet {
        keys: keys.take(MAX_KEYS).collect(),
        listed_count,
        secret_count,
    })
}

impl Jwks {
    fn new(source: Source, keys: Vec<Arc<Key>>, last_success_at: Option<Instant>) -> Self {
        Self(Arc::new(KeySet {
            source,
            keys: ArcSwap::from_pointee(keys),
            fetch_state: Mutex::new(FetchState {
                last_success_at,
                ..FetchState::default()
            }),
        }))
    }

    /// Reads a key set from a file.
    ///
    /// # Errors
    /// The file can't be read, or no key in it is usable.
    pub(super) fn from_file(path: &Path) -> Result<Self, KeyError> {
        let path_text = || path.display().to_string();
        let parsed = parse(&read_file(path)?).ok_or_else(|| KeyError::NotAKeySet(path_text()))?;
        if let Some(problem) = parsed.problem() {
            return Err(KeyError::NoUsableKey(path_text(), problem));
        }
        let source = Source::File(path.to_owned());
        Ok(Self::new(source, parsed.keys, Some(Instant::now())))
    }

    /// Creates a key set that is fetched from `url` when it is first needed.
    ///
    /// # Errors
    /// The HTTP client can't be created.
    pub(super) fn from_url(url: &url::Url) -> Result<Self, KeyError> {
        let client = http_client::builder_for(url)
            .connect_timeout(FETCH_TIMEOUT)
            .build()
            .map_err(|error| KeyError::Client(error.to_string()))?;
        Ok(Self::new(
            Source::Url(client, url.clone()),
            Vec::new(),
            None,
        ))
    }

    /// Starts the first fetch without waiting for it, so that a problem is logged before the first
    /// token arrives.
    pub(super) fn prefetch_keys(&self) {
        let mut fetch_state = self.0.fetch_state();
        if fetch_state.last_success_at.is_none()
            && fetch_state.in_progress().is_none()
            && fetch_state.try_begin_fetch(false)
        {
            KeySet::spawn_fetch(&self.0, &mut fetch_state);
        }
    }

    /// Fetches the set once without replacing the keys in use, and returns the number of usable
    /// keys in it.
    ///
    /// # Errors
    /// The set can't be fetched or has no usable key; the text says why.
    pub(super) async fn check_keys(&self) -> Result<usize, String> {
        let parsed = self.0.fetch().await?;
        parsed.problem().map_or(Ok(parsed.keys.len()), Err)
    }

    /// Returns the keys that may have signed a token whose header has this `kid` and algorithm. If
    /// the keys are too old or there is no such key, the set is fetched before, unless
    /// the last fetch was too recent.
    ///
    /// # Errors
    /// [`TokenError::KeysUnavailable`] if no fetch has ever succeeded.
    pub(super) async fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<Key>>, TokenError> {
        let matching_keys = self.0.matching_keys(kid, algorithm);
        let fetch = {
            let mut fetch_state = self.0.fetch_state();
            match fetch_state.in_progress() {
                // If no key matches, wait for the fetch in progress, which may add the key.
                Some(in_progress) => matching_keys.is_empty().then_some(in_progress),
                None if fetch_state.try_begin_fetch(matching_keys.is_empty()) => {
                    Some(KeySet::spawn_fetch(&self.0, &mut fetch_state))
                }
                None => None,
            }
        };
        if let Some(mut fetch) = fetch {
            // The result is always an error, because no value is sent: `changed` returns when the
            // channel closes at the end of the fetch, or the wait times out. In both cases the keys
            // are looked up again.
            let _ = tokio::time::timeout(FETCH_TIMEOUT, fetch.changed()).await;
        }
        if self.0.fetch_state().last_success_at.is_none() {
            return Err(TokenError::KeysUnavailable);
        }
        Ok(self.0.matching_keys(kid, algorithm))
    }
}

impl KeySet {
    fn fetch_state(&self) -> parking_lot::MutexGuard<'_, FetchState> {
        self.fetch_state.lock()
    }

    /// Returns the keys of the algorithm; if `kid` is given, only those that have this `kid`.
    fn matching_keys(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<Arc<Key>> {
        let matches = |key: &&Arc<Key>| {
            key.algorithm == algorithm && (kid.is_none() || key.id.as_deref() == kid)
        };
        self.keys.load().iter().filter(matches).cloned().collect()
    }

    /// Fetches the set in a task of its own. The returned channel closes when the fetch has ended.
    fn spawn_fetch(key_set: &Arc<Self>, fetch_state: &mut FetchState) -> watch::Receiver<()> {
        let (ended, in_progress) = watch::channel(());
        fetch_state.in_progress = Some(in_progress.clone());
        let key_set = Arc::clone(key_set);
        tokio::spawn(async move {
            let _ended = ended;
            match key_set.fetch().await {
                Ok(parsed) => {
                    if let Some(problem) = parsed.problem() {
                        tracing::warn!(
                            problem,
                            "JWT_JWKS has no usable key, every token is refused; add a public key \
                             to the key set"
                        );
                    } else {
                        tracing::info!(keys = parsed.keys.len(), "key set of JWT_JWKS read");
                    }
                    key_set.keys.store(Arc::new(parsed.keys));
                    key_set.fetch_state().last_success_at = Some(Instant::now());
                }
                Err(error) => {
                    tracing::warn!(
                        error,
                        "reading the key set of JWT_JWKS failed, keeping the previous keys"
                    );
                }
            }
        });
        in_progress
    }

    async fn fetch(&self) -> Result<ParsedKeySet, String> {
        let json = tokio::time::timeout(FETCH_TIMEOUT, self.read_source()).await;
        let json = json.unwrap_or_else(|_| Err("no answer in time".into()))?;
        parse(&json).ok_or_else(|| "it is no JSON Web Key Set".into())
    }

    /// Reads the file, or the response of the URL up to [`MAX_SET_BYTES`].
    async fn read_source(&self) -> Result<Vec<u8>, String> {
        match &self.source {
            Source::File(path) => tokio::fs::read(path).await.map_err(|e| e.to_string()),
            Source::Url(client, url) => {
                let response = client.get(url.clone()).send().await;
                let mut response = response
                    .and_then(reqwest::Response::error_for_status)
                    .map_err(|error| with_causes(&error.without_url()))?;
                let mut body = Vec::new();
                while let Some(chunk) = response
                    .chunk()
                    .await
                    .map_err(|error| with_causes(&error.without_url()))?
                {
                    if body.len() + chunk.len() > MAX_SET_BYTES {
                        return Err("the answer is too large".into());
                    }
                    body.extend_from_slice(&chunk);
                }
                Ok(body)
            }
        }
    }
}

/// Returns the error's text followed by the texts of its causes, because only the causes name the
/// reason.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Generates JSON objects that resemble keys. Most fields have a value that is valid for some
    /// field of a key, but often not for this field.
    fn key_like_json() -> impl Strategy<Value = serde_json::Value> {
        let names = [
            "kty", "crv", "x", "y", "n", "e", "k", "kid", "use", "alg", "key_ops",
        ];
        let values = [
            "RSA",
            "EC",
            "OKP",
            "oct",
            "P-256",
            "Ed25519",
            "AQAB",
            "",
            "sig",
            "enc",
            "RS256",
            "HS256",
            "none",
            "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            "!",
            "\u{e9}",
        ];
        let value = prop_oneof![
            8 => prop::sample::select(values.to_vec()).prop_map(Into::into),
            1 => any::<i32>().prop_map(Into::into),
            1 => Just(serde_json::Value::Null),
        ];
        let field = (prop::sample::select(names.to_vec()), value);
        prop::collection::vec(field, 0..8).prop_map(|fields| {
            let mut key = serde_json::json!({});
            for (name, value) in fields {
                key[name] = value;
            }
            key
        })
    }

    proptest! {
        #[test]
        fn no_key_set_panics_and_only_public_keys_are_used(
            keys in prop::collection::vec(key_like_json(), 0..6),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = parse(&bytes);
            let text = serde_json::json!({"keys": keys}).to_string();
            let parsed = parse(text.as_bytes()).expect("a key set");
            prop_assert!(parsed.keys.len() <= keys.len());
            prop_assert_eq!(parsed.problem().is_none(), !parsed.keys.is_empty());
            let public = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
            prop_assert!(parsed.keys.iter().all(|key| public.contains(&key.algorithm)));
        }
    }
}
