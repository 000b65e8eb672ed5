//! Tokens that say themselves whose they are: JSON Web Tokens.
//!
//! Which algorithm a signature is checked with is the key's affair, never the token's: each key
//! is for one algorithm, from what the key is. So neither `alg: none` nor a public key taken for
//! an HMAC secret can open anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::jwks::Jwks;
use crate::config::settings::{JwtKeys, JwtSettings};
use crate::protocol::ids::UserId;

/// How far the clock of who made a token may be from ours.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Bytes of a token; above it nothing is decoded.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The keys can't be used as they are configured.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file that is not there, or may not be read.
    #[error("{path} can't be read: {error}")]
    File {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A file without a key that can be used.
    #[error("{0} holds no public key of RSA, P-256 or Ed25519 in PEM")]
    NoKey(String),
    /// A file that is no key set.
    #[error("{0} is no JSON Web Key Set")]
    NoSet(String),
    /// A key set with which no token can be checked.
    #[error("{0} {1}")]
    Useless(String, String),
    /// The client for a key set's URL can't be made.
    #[error("keys can't be fetched: {0}")]
    Client(String),
}

/// A key, and the one algorithm that it is for.
pub(super) struct Key {
    /// `kid`.
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    fn secret(secret: &SecretString) -> Self {
        Self {
            id: None,
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(secret.expose_secret().as_bytes()),
        }
    }

    fn from_pem(pem: &[u8]) -> Option<Self> {
        let with = |algorithm, key| Self {
            id: None,
            algorithm,
            key,
        };
        let rsa = DecodingKey::from_rsa_pem(pem).map(|key| with(Algorithm::RS256, key));
        let ec = || DecodingKey::from_ec_pem(pem).map(|key| with(Algorithm::ES256, key));
        let ed = || DecodingKey::from_ed_pem(pem).map(|key| with(Algorithm::EdDSA, key));
        rsa.or_else(|_| ec()).or_else(|_| ed()).ok()
    }

    /// A key of a set; nothing where it is for something else, secret, or of an algorithm that is
    /// not taken here.
    pub(super) fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(ed) if ed.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        let common = &jwk.common;
        let signs = common
            .public_key_use
            .as_ref()
            .is_none_or(|it| *it == PublicKeyUse::Signature);
        let fits = common.key_algorithm.as_ref().is_none_or(|it| *it == named);
        (signs && fits).then_some(())?;
        Some(Self {
            id: common.key_id.clone(),
            algorithm,
            key: DecodingKey::from_jwk(jwk).ok()?,
        })
    }
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// No token that is good here.
    Invalid(&'static str),
    /// Good, but another user's.
    WrongUser,
    /// The keys can't be fetched.
    KeysUnavailable,
}

/// What a good token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedToken {
    /// When it ends, with the skew that is granted to it.
    pub expires_at: SystemTime,
    /// When it was made, milliseconds since the Unix epoch.
    pub issued_ms: Option<i64>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default)]
    iat: Option<f64>,
}

enum Keys {
    One(Key),
    Set(Jwks),
}

/// Checks tokens.
pub struct JwtVerifier {
    keys: Keys,
    audience: Vec<String>,
    issuer: Vec<String>,
}

pub(super) fn read_file(path: &std::path::Path) -> Result<Vec<u8>, KeyError> {
    std::fs::read(path).map_err(|error| KeyError::File {
        path: path.display().to_string(),
        error,
    })
}

impl JwtVerifier {
    /// Reads the keys, but those behind a URL: they are fetched when they are first needed.
    ///
    /// # Errors
    /// A file that can't be used.
    pub fn new(settings: &JwtSettings) -> Result<Self, KeyError> {
        let keys = match &settings.keys {
            JwtKeys::Secret(secret) => Keys::One(Key::secret(secret)),
            JwtKeys::PublicKeyFile(path) => {
                let key = Key::from_pem(&read_file(path)?);
                Keys::One(key.ok_or_else(|| KeyError::NoKey(path.display().to_string()))?)
            }
            JwtKeys::JwksFile(path) => Keys::Set(Jwks::file(path)?),
            JwtKeys::JwksUrl(url) => Keys::Set(Jwks::url(url)?),
        };
        Ok(Self {
            keys,
            audience: settings.audience.clone(),
            issuer: settings.issuer.clone(),
        })
    }

    /// Begins to fetch what is behind a URL, so that the log tells early what is wrong with it.
    pub(crate) fn prefetch_keys(&self) {
        if let Keys::Set(set) = &self.keys {
            set.prefetch_keys();
        }
    }

    /// Looks whether the keys can be had now; how many there are.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn check_keys(&self) -> Result<usize, String> {
        match &self.keys {
            Keys::One(_) => Ok(1),
            Keys::Set(set) => set.check_keys().await,
        }
    }

    /// Whether `token` is good, and this user's.
    ///
    /// # Errors
    /// Why not.
    pub async fn verify(&self, token: &str, user: &UserId) -> Result<VerifiedToken, TokenError> {
        const BROKEN: TokenError =
            TokenError::Invalid("`token` is not a token that is accepted here");
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BROKEN);
        }
        let header = decode_header(token).map_err(|_| BROKEN)?;
        // None of the extensions that a token may declare critical is understood here.
        if header.crit.is_some_and(|crit| !crit.is_empty()) {
            return Err(BROKEN);
        }
        match &self.keys {
            Keys::One(key) => self.check(token, key, user),
            Keys::Set(set) => {
                let mut denied = BROKEN;
                for key in set.find(header.kid.as_deref(), header.alg).await? {
                    match self.check(token, &key, user) {
                        Err(error @ TokenError::Invalid(_)) => denied = error,
                        other => return other,
                    }
                }
                Err(denied)
            }
        }
    }

    fn check(&self, token: &str, key: &Key, user: &UserId) -> Result<VerifiedToken, TokenError> {
        let mut rules = Validation::new(key.algorithm);
        rules.leeway = CLOCK_SKEW.as_secs();
        rules.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if self.audience.is_empty() {
            rules.validate_aud = false;
        } else {
            rules.set_audience(&self.audience);
            required.push("aud");
        }
        if !self.issuer.is_empty() {
            rules.set_issuer(&self.issuer);
            required.push("iss");
        }
        rules.set_required_spec_claims(&required);
        let claims = match decode::<Claims>(token, &key.key, &rules) {
            Ok(token) => token.claims,
            Err(error) => {
                return Err(TokenError::Invalid(match error.kind() {
                    ErrorKind::ExpiredSignature => "`token` has expired",
                    ErrorKind::ImmatureSignature => "`token` is not good yet",
                    ErrorKind::InvalidAudience => "`token` is meant for another service",
                    ErrorKind::InvalidIssuer => "`token` was not issued by who may",
                    _ => "`token` is not valid",
                }));
            }
        };
        if claims.sub != user.as_str() {
            return Err(TokenError::WrongUser);
        }
        // A date to come would outlive every revocation until then.
        let latest = SystemTime::now() + CLOCK_SKEW;
        let latest = latest.duration_since(UNIX_EPOCH).unwrap_or_default();
        if claims.iat.is_some_and(|iat| iat > latest.as_secs_f64()) {
            return Err(TokenError::Invalid("`token` is not good yet"));
        }
        let seconds = claims.exp + CLOCK_SKEW.as_secs_f64();
        let since_epoch = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(VerifiedToken {
            // A date beyond what the clock can say is no end at all.
            expires_at: UNIX_EPOCH
                .checked_add(since_epoch)
                .unwrap_or(SystemTime::now() + Duration::from_secs(366 * 86_400)),
            issued_ms: claims.iat.map(|seconds| (seconds * 1000.0) as i64),
        })
    }
}

/// Whose a token says that it is; nothing of it has been checked.
pub(super) fn claimed_subject(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claimed {
        sub: String,
    }
    (token.len() <= MAX_TOKEN_BYTES).then_some(())?;
    let claimed = jsonwebtoken::dangerous::insecure_decode_claims::<Claimed>(token);
    claimed.ok().map(|claimed| claimed.sub)
}

#[derive(Serialize)]
struct NewClaims<'a> {
    sub: &'a str,
    /// With a fraction, so that a token made just after a revocation is not taken for an older one.
    iat: f64,
    exp: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// A token for `user`, good for `ttl`, signed with `JWT_SECRET`; `None` where there is no secret.
pub(crate) fn issue(settings: &JwtSettings, user: &UserId, ttl: Duration) -> Option<String> {
    let JwtKeys::Secret(secret) = &settings.keys else {
        return None;
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let claims = NewClaims {
        sub: user.as_str(),
        // Rounded up: never before the moment at which it was asked for.
        iat: now.as_millis().saturating_add(1) as f64 / 1000.0,
        exp: now.as_secs().saturating_add(ttl.as_secs().max(1)),
        jti: uuid::Uuid::new_v4().simple().to_string(),
        aud: settings.audience.first().map(String::as_str),
        iss: settings.issuer.first().map(String::as_str),
    };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).ok()
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
