//! Reads the keys that verify signed tokens: a secret, a PEM file, or an entry of a key set.

use std::path::Path;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use secrecy::{ExposeSecret as _, SecretString};

/// Why the configured keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file does not exist or is not readable.
    #[error("{path} can't be read: {error}")]
    File {
        /// The file's path.
        path: String,
        /// The operating system's error.
        error: std::io::Error,
    },
    /// The file holds no usable public key. The field is the file's path.
    #[error("{0} holds no public key of RSA, P-256 or Ed25519 in PEM")]
    NoKey(String),
    /// The file is not a key set. The field is the file's path.
    #[error("{0} is no JSON Web Key Set")]
    NotAKeySet(String),
    /// No key of the set can verify tokens. The fields are the path and the reason.
    #[error("{0} {1}")]
    NoUsableKey(String, String),
    /// The HTTP client for the key set's URL could not be created.
    #[error("keys can't be fetched: {0}")]
    Client(String),
}

/// A key, and the only algorithm whose signatures it verifies.
pub(super) struct Key {
    /// The `kid` by which a token's header selects this key; `None` if the key has no `kid`.
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding_key: DecodingKey,
}

impl Key {
    pub(super) fn from_secret(secret: &SecretString) -> Self {
        Self {
            id: None,
            algorithm: Algorithm::HS256,
            decoding_key: DecodingKey::from_secret(secret.expose_secret().as_bytes()),
        }
    }

    /// Reads a public key of RSA, P-256 or Ed25519. `None` if `pem` holds no such key.
    pub(super) fn from_pem(pem: &[u8]) -> Option<Self> {
        let with_algorithm = |algorithm, decoding_key| Self {
            id: None,
            algorithm,
            decoding_key,
        };
        let rsa = DecodingKey::from_rsa_pem(pem).map(|key| with_algorithm(Algorithm::RS256, key));
        let ec = || DecodingKey::from_ec_pem(pem).map(|key| with_algorithm(Algorithm::ES256, key));
        let ed = || DecodingKey::from_ed_pem(pem).map(|key| with_algorithm(Algorithm::EdDSA, key));
        rsa.or_else(|_| ec()).or_else(|_| ed()).ok()
    }

    /// Converts a key of a key set. `None` if the key is a secret, is not meant for signatures, or
    /// has an algorithm that is not supported.
    pub(super) fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let (algorithm, jwk_algorithm) = match &jwk.algorithm {
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
        let is_for_signatures = common
            .public_key_use
            .as_ref()
            .is_none_or(|key_use| *key_use == PublicKeyUse::Signature);
        let algorithm_matches = common
            .key_algorithm
            .as_ref()
            .is_none_or(|declared| *declared == jwk_algorithm);
        (is_for_signatures && algorithm_matches).then_some(())?;
        Some(Self {
            id: common.key_id.clone(),
            algorithm,
            decoding_key: DecodingKey::from_jwk(jwk).ok()?,
        })
    }
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, KeyError> {
    std::fs::read(path).map_err(|error| KeyError::File {
        path: path.display().to_string(),
        error,
    })
}
