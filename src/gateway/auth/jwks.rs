//! A set of keys that is changed while gateways run: a file, or what a URL answers.
//!
//! A key is good as long as the set lists it, so the set is read again every five minutes; and at
//! once where a token names a key that it lacks, but not more often than once a minute, since
//! anybody can name a key. What can't be read again leaves the keys as they were.
//!
//! A reading is a task of its own: whoever caused it may go away, which is no reason to end it.

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

use crate::http_client;

use super::jwt::{Key, KeyError, TokenError, read_file};

/// After that the set is read again.
const AGE: Duration = Duration::from_secs(300);

/// Between two readings because of unknown keys.
const PAUSE: Duration = Duration::from_secs(60);

/// Between two readings while there has been no success at all.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// One reading, and the longest that anybody waits for one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a set.
const MAX_SET_BYTES: usize = 1 << 20;

/// Keys of a set; the others are left out.
const MAX_KEYS: usize = 100;

enum Source {
    File(PathBuf),
    Url(reqwest::Client, url::Url),
}

#[derive(Default)]
struct Times {
    /// The last reading began, whether or not it succeeded.
    tried: Option<Instant>,
    /// The last success.
    read: Option<Instant>,
    /// The last reading began that was caused by an unknown key.
    unknown: Option<Instant>,
    /// Closed when the reading that goes on is over.
    running: Option<watch::Receiver<()>>,
}

impl Times {
    fn running(&self) -> Option<watch::Receiver<()>> {
        let running = self.running.as_ref();
        running.filter(|it| it.has_changed().is_ok()).cloned()
    }

    fn fresh(&self) -> bool {
        self.read.is_some_and(|at| at.elapsed() < AGE)
    }

    /// Whether a reading is due, which is noted; `unknown`: a token names a key that is not there.
    fn due(&mut self, unknown: bool) -> bool {
        let over = |at: Option<Instant>, pause| at.is_none_or(|at| at.elapsed() >= pause);
        let pause = if self.read.is_some() {
            PAUSE
        } else {
            FIRST_PAUSE
        };
        if !self.fresh() && over(self.tried, pause) {
            self.tried = Some(Instant::now());
            return true;
        }
        // What was read for other reasons does not count: the key may have been listed since.
        if unknown && self.read.is_some() && over(self.unknown, PAUSE) {
            self.tried = Some(Instant::now());
            self.unknown = self.tried;
            return true;
        }
        false
    }
}

/// The set as it was read last.
pub(super) struct Jwks(Arc<Shared>);

struct Shared {
    source: Source,
    keys: ArcSwap<Vec<Arc<Key>>>,
    times: Mutex<Times>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// What a set holds.
struct Parsed {
    keys: Vec<Arc<Key>>,
    /// Keys that it lists, good for something or not.
    listed: usize,
    /// How many of them are secrets.
    secrets: usize,
}

impl Parsed {
    /// What is wrong with a set that nothing can be checked with.
    fn fault(&self) -> Option<String> {
        const WANTED: &str = "wanted are public keys of RSA, P-256 or Ed25519 for signatures";
        match (self.keys.len(), self.listed, self.secrets) {
            (1.., ..) => None,
            (0, 0, _) => Some(format!("lists no key at all: {WANTED}")),
            (0, listed, 0) => Some(format!(
                "lists {listed} keys, and none that can be used: {WANTED}"
            )),
            (0, listed, secrets) => Some(format!(
                "lists {listed} keys, and none that can be used; {secrets} of them are secrets \
                 (`kty: oct`), which are not taken from a key set: {WANTED}"
            )),
        }
    }
}

fn parse(text: &[u8]) -> Option<Parsed> {
    let set: Set = serde_json::from_slice(text).ok()?;
    let listed = set.keys.len();
    let secret = |key: &&serde_json::Value| key.get("kty").is_some_and(|kty| kty == "oct");
    let secrets = set.keys.iter().filter(secret).count();
    // One key that is not understood does not spoil the others.
    let keys = set.keys.into_iter().filter_map(|key| {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        Key::from_jwk(&jwk).map(Arc::new)
    });
    Some(Parsed {
        keys: keys.take(MAX_KEYS).collect(),
        listed,
        secrets,
    })
}

impl Jwks {
    fn new(source: Source, keys: Vec<Arc<Key>>, read: Option<Instant>) -> Self {
        Self(Arc::new(Shared {
            source,
            keys: ArcSwap::from_pointee(keys),
            times: Mutex::new(Times {
                read,
                ..Times::default()
            }),
        }))
    }

    /// # Errors
    /// It can't be read, or no key in it can be used.
    pub(super) fn file(path: &Path) -> Result<Self, KeyError> {
        let shown = || path.display().to_string();
        let parsed = parse(&read_file(path)?).ok_or_else(|| KeyError::NoSet(shown()))?;
        if let Some(fault) = parsed.fault() {
            return Err(KeyError::Useless(shown(), fault));
        }
        let source = Source::File(path.to_owned());
        Ok(Self::new(source, parsed.keys, Some(Instant::now())))
    }

    /// # Errors
    /// The client can't be made.
    pub(super) fn url(url: &url::Url) -> Result<Self, KeyError> {
        let client = http_client::for_server(url)
            .connect_timeout(TIMEOUT)
            .build()
            .map_err(|error| KeyError::Client(error.to_string()))?;
        Ok(Self::new(
            Source::Url(client, url.clone()),
            Vec::new(),
            None,
        ))
    }

    /// Begins to read what was never read, without waiting for it: what is wrong with it is in
    /// the log then before the first token comes.
    pub(super) fn prefetch_keys(&self) {
        let mut times = self.0.times();
        if times.read.is_none() && times.running().is_none() && times.due(false) {
            Shared::read_apart(&self.0, &mut times);
        }
    }

    /// Reads the set once, without using it: how many keys of it can be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) async fn check_keys(&self) -> Result<usize, String> {
        let parsed = self.0.read().await?;
        parsed.fault().map_or(Ok(parsed.keys.len()), Err)
    }

    /// The keys that may have signed a token.
    ///
    /// # Errors
    /// [`TokenError::KeysUnavailable`] where none were ever read.
    pub(super) async fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<Key>>, TokenError> {
        let found = self.0.known(kid, algorithm);
        let over = {
            let mut times = self.0.times();
            match times.running() {
                // Who is at it already will be done for the next one.
                Some(running) => found.is_empty().then_some(running),
                None if times.due(found.is_empty()) => {
                    Some(Shared::read_apart(&self.0, &mut times))
                }
                None => None,
            }
        };
        if let Some(mut over) = over {
            // It ends by its sender being dropped, so what comes is always an error.
            let _ = tokio::time::timeout(TIMEOUT, over.changed()).await;
        }
        if self.0.times().read.is_none() {
            return Err(TokenError::KeysUnavailable);
        }
        Ok(self.0.known(kid, algorithm))
    }
}

impl Shared {
    fn times(&self) -> parking_lot::MutexGuard<'_, Times> {
        self.times.lock()
    }

    fn known(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<Arc<Key>> {
        let fits = |key: &&Arc<Key>| {
            // A token without a key's name may be any key's.
            key.algorithm == algorithm && (kid.is_none() || key.id.as_deref() == kid)
        };
        self.keys.load().iter().filter(fits).cloned().collect()
    }

    /// Reads the set in a task of its own; what is returned is closed at its end.
    fn read_apart(shared: &Arc<Self>, times: &mut Times) -> watch::Receiver<()> {
        let (ended, running) = watch::channel(());
        times.running = Some(running.clone());
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let _ended = ended;
            match shared.read().await {
                Ok(parsed) => {
                    if let Some(fault) = parsed.fault() {
                        tracing::warn!("no token can be good: the key set of JWT_JWKS {fault}");
                    } else {
                        tracing::info!(keys = parsed.keys.len(), "the keys of tokens were read");
                    }
                    shared.keys.store(Arc::new(parsed.keys));
                    shared.times().read = Some(Instant::now());
                }
                Err(error) => {
                    tracing::warn!(
                        error,
                        "the keys of tokens (JWT_JWKS) can't be read, they stay as they are"
                    );
                }
            }
        });
        running
    }

    async fn read(&self) -> Result<Parsed, String> {
        let text = tokio::time::timeout(TIMEOUT, self.text()).await;
        let text = text.unwrap_or_else(|_| Err("no answer in time".into()))?;
        parse(&text).ok_or_else(|| "it is no JSON Web Key Set".into())
    }

    async fn text(&self) -> Result<Vec<u8>, String> {
        match &self.source {
            Source::File(path) => tokio::fs::read(path).await.map_err(|e| e.to_string()),
            Source::Url(client, url) => {
                let answer = client.get(url.clone()).send().await;
                let mut answer = answer
                    .and_then(reqwest::Response::error_for_status)
                    .map_err(|error| told(&error.without_url()))?;
                let mut text = Vec::new();
                while let Some(chunk) = answer
                    .chunk()
                    .await
                    .map_err(|error| told(&error.without_url()))?
                {
                    if text.len() + chunk.len() > MAX_SET_BYTES {
                        return Err("the answer is too large".into());
                    }
                    text.extend_from_slice(&chunk);
                }
                Ok(text)
            }
        }
    }
}

/// With its causes, which are what says why.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key whose fields have any of the values that fields of keys have.
    fn nearly_a_key() -> impl Strategy<Value = serde_json::Value> {
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
        fn no_key_set_breaks_a_gateway_and_only_public_keys_are_taken(
            keys in prop::collection::vec(nearly_a_key(), 0..6),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = parse(&bytes);
            let text = serde_json::json!({"keys": keys}).to_string();
            let read = parse(text.as_bytes()).expect("it is a set");
            prop_assert!(read.keys.len() <= keys.len());
            prop_assert_eq!(read.fault().is_none(), !read.keys.is_empty());
            let public = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
            prop_assert!(read.keys.iter().all(|key| public.contains(&key.algorithm)));
        }
    }
}
