//! A set of keys that is changed while gateways run: a file, or what a URL answers.
//!
//! A key is good as long as the set lists it, so the set is read again every five minutes; and at
//! once where a token names a key that it lacks, but not more often than once a minute, since
//! anybody can name a key. What can't be read again leaves the keys as they were.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::jwt::{Denied, Key, KeyError, read_file};

/// After that the set is read again.
const AGE: Duration = Duration::from_secs(300);

/// Between two readings because of unknown keys.
const PAUSE: Duration = Duration::from_secs(60);

/// Between two readings while there has been no success at all.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// One reading.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a set.
const LARGEST: usize = 1 << 20;

/// Keys of a set; the others are left out.
const MOST: usize = 100;

enum Source {
    File(PathBuf),
    Url(reqwest::Client, url::Url),
}

#[derive(Default)]
struct Times {
    tried: Option<Instant>,
    read: Option<Instant>,
}

/// The set as it was read last.
pub(super) struct Jwks {
    source: Source,
    keys: ArcSwap<Vec<Arc<Key>>>,
    /// Held while it is read: who needs it meanwhile waits for that reading.
    times: Mutex<Times>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

fn parse(text: &[u8]) -> Option<Vec<Arc<Key>>> {
    let set: Set = serde_json::from_slice(text).ok()?;
    // One key that is not understood does not spoil the others.
    let keys = set.keys.into_iter().filter_map(|key| {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        Key::from_jwk(&jwk).map(Arc::new)
    });
    Some(keys.take(MOST).collect())
}

impl Jwks {
    /// # Errors
    /// It can't be read.
    pub(super) fn file(path: &Path) -> Result<Self, KeyError> {
        let keys =
            parse(&read_file(path)?).ok_or_else(|| KeyError::NoSet(path.display().to_string()))?;
        let now = Some(Instant::now());
        Ok(Self {
            source: Source::File(path.to_owned()),
            keys: ArcSwap::from_pointee(keys),
            times: Mutex::new(Times {
                tried: None,
                read: now,
            }),
        })
    }

    /// # Errors
    /// The client can't be made.
    pub(super) fn url(url: &url::Url) -> Result<Self, KeyError> {
        let client = reqwest::Client::builder()
            .connect_timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| KeyError::Client(error.to_string()))?;
        Ok(Self {
            source: Source::Url(client, url.clone()),
            keys: ArcSwap::default(),
            times: Mutex::default(),
        })
    }

    fn known(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<Arc<Key>> {
        let fits = |key: &&Arc<Key>| {
            // A token without a key's name may be any key's.
            key.algorithm == algorithm && (kid.is_none() || key.id.as_deref() == kid)
        };
        self.keys.load().iter().filter(fits).cloned().collect()
    }

    /// The keys that may have signed a token.
    ///
    /// # Errors
    /// [`Denied::KeysAway`] where none were ever read.
    pub(super) async fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<Key>>, Denied> {
        let found = self.known(kid, algorithm);
        let fresh = |times: &Times| times.read.is_some_and(|at| at.elapsed() < AGE);
        let mut times = if found.is_empty() {
            self.times.lock().await
        } else {
            // Who is at it already will be done for the next one.
            match self.times.try_lock() {
                Ok(times) if !fresh(&times) => times,
                _ => return Ok(found),
            }
        };
        let found = self.known(kid, algorithm);
        if !found.is_empty() && fresh(&times) {
            return Ok(found);
        }
        let pause = if times.read.is_some() {
            PAUSE
        } else {
            FIRST_PAUSE
        };
        if times.tried.is_none_or(|at| at.elapsed() >= pause) {
            times.tried = Some(Instant::now());
            let read = tokio::time::timeout(TIMEOUT, self.read()).await;
            match read.unwrap_or_else(|_| Err("no answer in time".into())) {
                Ok(keys) => {
                    tracing::info!(keys = keys.len(), "the keys of tokens were read");
                    self.keys.store(Arc::new(keys));
                    times.read = Some(Instant::now());
                }
                Err(error) => {
                    tracing::warn!(
                        error,
                        "the keys of tokens can't be read, they stay as they are"
                    );
                }
            }
        }
        if times.read.is_none() {
            return Err(Denied::KeysAway);
        }
        Ok(self.known(kid, algorithm))
    }

    async fn read(&self) -> Result<Vec<Arc<Key>>, String> {
        let text = match &self.source {
            Source::File(path) => tokio::fs::read(path).await.map_err(|e| e.to_string())?,
            Source::Url(client, url) => {
                let answer = client.get(url.clone()).send().await;
                let mut answer = answer
                    .and_then(reqwest::Response::error_for_status)
                    .map_err(|error| error.without_url().to_string())?;
                let mut text = Vec::new();
                while let Some(chunk) = answer
                    .chunk()
                    .await
                    .map_err(|error| error.without_url().to_string())?
                {
                    if text.len() + chunk.len() > LARGEST {
                        return Err("the answer is too large".into());
                    }
                    text.extend_from_slice(&chunk);
                }
                text
            }
        };
        parse(&text).ok_or_else(|| "it is no JSON Web Key Set".into())
    }
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
            prop_assert!(read.len() <= keys.len());
            let public = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
            prop_assert!(read.iter().all(|key| public.contains(&key.algorithm)));
        }
    }
}
