//! Authentication (protocol.md section 5): decides whether a token admits its bearer as a user. The
//! WebSocket handshake and the HTTP routes call it.
//!
//! - [`token`] finds the token of a request, creates random tokens and compares secrets.
//! - [`check`] decides by `AUTH_MODE` whether a token is valid, and returns a
//!   [`Grant`](super::session::Grant).
//! - [`jwt`] verifies and issues signed tokens; [`jwks`] keeps a key set up to date; [`key`] reads
//!   keys.

mod check;
mod error;
mod jwks;
pub(crate) mod jwt;
mod key;
mod token;

pub(super) use check::{check_token, close_on_expiry, unverified_user};
pub use error::TokenError;
pub use key::KeyError;
pub(super) use token::{bearer_token, token_from_request};
pub(crate) use token::{random_token, same_secret};
