//! Composes the settings of authentication: how tokens are verified, and who may request tokens.

use crate::config::settings::{AuthMode, JwtKeys, JwtSettings, TokenEndpoint};
use crate::config::{Config, Role, keys};

impl Config {
    /// How the gateway checks tokens. The default depends on the role and its address.
    pub(in crate::config) fn auth_mode(&self) -> AuthMode {
        match self.text(&keys::AUTH_MODE) {
            Some("open") => AuthMode::Open,
            Some("jwt") => AuthMode::Jwt,
            None if self.role() == Role::AllInOne && self.listen().ip().is_loopback() => {
                AuthMode::Open
            }
            _ => AuthMode::Stored,
        }
    }

    /// The keys and claims for the verification of signed tokens. `None` unless `AUTH_MODE` is
    /// `jwt`.
    pub(in crate::config) fn jwt(&self) -> Option<JwtSettings> {
        if self.auth_mode() != AuthMode::Jwt {
            return None;
        }
        let keys = if let Some(secret) = self.secret(&keys::JWT_SECRET) {
            JwtKeys::Secret(secret)
        } else if let Some(path) = self.text(&keys::JWT_PUBLIC_KEY_FILE) {
            JwtKeys::PublicKeyFile(path.into())
        } else {
            let location = self.text(&keys::JWT_JWKS)?;
            match url::Url::parse(location) {
                Ok(url) if matches!(url.scheme(), "http" | "https") => JwtKeys::JwksUrl(url),
                _ => JwtKeys::JwksFile(location.into()),
            }
        };
        Some(JwtSettings {
            keys,
            audience: self.list(&keys::JWT_AUDIENCE),
            issuer: self.list(&keys::JWT_ISSUER),
        })
    }

    /// Who may call `POST /token`. By default, callers with the admin key, if it is set.
    pub(in crate::config) fn token_endpoint(&self) -> TokenEndpoint {
        let key = self.secret(&keys::ADMIN_KEY);
        match (self.text(&keys::TOKEN_ENDPOINT), key) {
            (Some("open"), _) => TokenEndpoint::Open,
            (Some("admin") | None, Some(key)) => TokenEndpoint::Admin(key),
            _ => TokenEndpoint::Off,
        }
    }
}
