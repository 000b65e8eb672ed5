//! Verifies and issues signed tokens: JSON Web Tokens (RFC 7519).
//!
//! The key determines the algorithm, never the token: each key verifies one algorithm, which
//! follows from the key's type. So a token with `alg: none`, or a token that is signed with a
//! public key as its HMAC secret, is never accepted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation, decode, decode_header, encode};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::error::TokenError;
use super::jwks::Jwks;
use super::key::{Key, KeyError, read_file};
use crate::config::settings::{JwtKeys, JwtSettings};
use crate::protocol::ids::UserId;

/// Tolerated difference between the clocks of the issuer and of this process.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Maximum size of a token in bytes. A larger token is refused without being decoded.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Lifetime that is assumed for a token whose `exp` is beyond the range of [`SystemTime`].
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(366 * 86_400);

/// When a verified token was issued and when it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedToken {
    /// When the token expires, including the tolerated clock skew.
    pub expires_at: SystemTime,
    /// When the token was issued (`iat`), in milliseconds since the Unix epoch; `None` if the token
    /// does not say so.
    pub issued_at_ms: Option<i64>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default)]
    iat: Option<f64>,
}

enum Keys {
    Single(Key),
    Set(Jwks),
}

/// Verifies signed tokens with the configured keys.
pub struct JwtVerifier {
    keys: Keys,
    /// The accepted values of `aud`; empty if `aud` is not checked.
    accepted_audiences: Vec<String>,
    /// The accepted values of `iss`; empty if `iss` is not checked.
    accepted_issuers: Vec<String>,
}

impl JwtVerifier {
    /// Reads the configured keys. A key set behind a URL is fetched when a key is first needed.
    ///
    /// # Errors
    /// A file can't be read or holds no usable key, or the HTTP client for the URL can't be
    /// created.
    pub fn new(settings: &JwtSettings) -> Result<Self, KeyError> {
        let keys = match &settings.keys {
            JwtKeys::Secret(secret) => Keys::Single(Key::from_secret(secret)),
            JwtKeys::PublicKeyFile(path) => {
                let key = Key::from_pem(&read_file(path)?);
                Keys::Single(key.ok_or_else(|| KeyError::NoKey(path.display().to_string()))?)
            }
            JwtKeys::JwksFile(path) => Keys::Set(Jwks::from_file(path)?),
            JwtKeys::JwksUrl(url) => Keys::Set(Jwks::from_url(url)?),
        };
        Ok(Self {
            keys,
            accepted_audiences: settings.audience.clone(),
            accepted_issuers: settings.issuer.clone(),
        })
    }

    /// Starts to fetch a key set behind a URL, so that a problem with it is logged at the start of
    /// the process and not at the first token.
    pub(crate) fn prefetch_keys(&self) {
        if let Keys::Set(set) = &self.keys {
            set.prefetch_keys();
        }
    }

    /// Reads a key set from its file or URL once more, and returns the number of its usable keys.
    /// Returns 1 if a single key is configured.
    ///
    /// # Errors
    /// The key set can't be read or has no usable key; the text says why.
    pub(crate) async fn check_keys(&self) -> Result<usize, String> {
        match &self.keys {
            Keys::Single(_) => Ok(1),
            Keys::Set(set) => set.check_keys().await,
        }
    }

    /// Verifies that `token` is valid and belongs to `user`.
    ///
    /// # Errors
    /// The token is not accepted; the error says why.
    pub async fn verify(&self, token: &str, user: &UserId) -> Result<VerifiedToken, TokenError> {
        const MALFORMED: TokenError =
            TokenError::Invalid("`token` is not a token that is accepted here");
        if token.len() > MAX_TOKEN_BYTES {
            return Err(MALFORMED);
        }
        let header = decode_header(token).map_err(|_| MALFORMED)?;
        // No extension is implemented, so a token with a critical extension must be refused.
        if header.crit.is_some_and(|crit| !crit.is_empty()) {
            return Err(MALFORMED);
        }
        match &self.keys {
            Keys::Single(key) => self.verify_with(token, key, user),
            Keys::Set(set) => {
                let mut last_error = MALFORMED;
                for key in set.find(header.kid.as_deref(), header.alg).await? {
                    match self.verify_with(token, &key, user) {
                        Err(error @ TokenError::Invalid(_)) => last_error = error,
                        other => return other,
                    }
                }
                Err(last_error)
            }
        }
    }

    fn verify_with(
        &self,
        token: &str,
        key: &Key,
        user: &UserId,
    ) -> Result<VerifiedToken, TokenError> {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = CLOCK_SKEW.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if self.accepted_audiences.is_empty() {
            validation.validate_aud = false;
        } else {
            validation.set_audience(&self.accepted_audiences);
            required.push("aud");
        }
        if !self.accepted_issuers.is_empty() {
            validation.set_issuer(&self.accepted_issuers);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        let claims = match decode::<Claims>(token, &key.decoding_key, &validation) {
            Ok(token) => token.claims,
            Err(error) => {
                return Err(TokenError::Invalid(rejection_text(error.kind())));
            }
        };
        if claims.sub != user.as_str() {
            return Err(TokenError::WrongUser);
        }
        // A token with an `iat` in the future would survive every revocation before that time.
        let latest_iat = SystemTime::now() + CLOCK_SKEW;
        let latest_iat = latest_iat.duration_since(UNIX_EPOCH).unwrap_or_default();
        if claims.iat.is_some_and(|iat| iat > latest_iat.as_secs_f64()) {
            return Err(TokenError::Invalid(
                "`token` was issued in the future (`iat`): check the issuer's clock",
            ));
        }
        let seconds = claims.exp + CLOCK_SKEW.as_secs_f64();
        let since_epoch = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(VerifiedToken {
            expires_at: UNIX_EPOCH
                .checked_add(since_epoch)
                .unwrap_or(SystemTime::now() + MAX_TOKEN_LIFETIME),
            issued_at_ms: claims.iat.map(|seconds| (seconds * 1000.0) as i64),
        })
    }
}

/// Says why a token was rejected, for the client and for `chatmesh token verify`.
fn rejection_text(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "`token` has expired",
        ErrorKind::ImmatureSignature => "`token` is not valid yet (`nbf`)",
        ErrorKind::InvalidAudience => "`token` is meant for another service (`aud`)",
        ErrorKind::InvalidIssuer => "`token` has an issuer that is not accepted here (`iss`)",
        ErrorKind::InvalidSignature => "`token` is not signed with a key that is accepted here",
        ErrorKind::InvalidAlgorithm => {
            "`token` is signed with an algorithm that is not accepted here"
        }
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "aud" => "`token` has no audience (`aud`)",
            "iss" => "`token` has no issuer (`iss`)",
            _ => "`token` lacks a required claim",
        },
        ErrorKind::Json(_) => "`token` lacks `exp` or `sub`, or has a claim of the wrong type",
        _ => "`token` is not valid",
    }
}

/// Returns the subject (`sub`) of a token without verifying the token. `None` if the token is
/// malformed or too large.
pub(super) fn unverified_subject(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct UnverifiedClaims {
        sub: String,
    }
    (token.len() <= MAX_TOKEN_BYTES).then_some(())?;
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<UnverifiedClaims>(token);
    claims.ok().map(|claims| claims.sub)
}

#[derive(Serialize)]
struct NewClaims<'a> {
    sub: &'a str,
    /// Seconds with a fraction, so that the `iat` of a token issued just after a revocation is
    /// later than the revocation.
    iat: f64,
    exp: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// Issues a token for `user` that is valid for `ttl`, signed with `JWT_SECRET`. `None` if the
/// configured keys can't sign.
pub(crate) fn issue(settings: &JwtSettings, user: &UserId, ttl: Duration) -> Option<String> {
    let JwtKeys::Secret(secret) = &settings.keys else {
        return None;
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let claims = NewClaims {
        sub: user.as_str(),
        // The time is rounded up to the next millisecond, so that `iat` is never earlier than the
        // request.
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
