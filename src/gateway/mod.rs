//! The gateway: clients' WebSockets on one side, the log and the fan-out on the other.
//!
//! A message's way in: [`http`] accepts a connection and routes its request,
//! [`handshake`] checks who it is, [`connection`] owns the socket ([`wire`] and [`websocket`] are
//! below it, [`drain`] is its end where the gateway stops), [`inbound`] admits, produces and waits
//! for the log. An answer's way out: [`feed`] takes what is published, [`registry`] finds the user,
//! [`user`] decides what each socket still has to get, [`outbound`] is its bounded queue. What was
//! published and did not arrive is found by [`repair`]. Sockets of `chatmesh.v1` also see answers
//! grow, come back with a position and catch up by a read: [`v1`]. [`http`] also has the
//! routes for history, tokens, dead letters and the chat page.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::http::Method;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::settings::GatewaySettings;
use crate::fanout::GatewayFanout;
use crate::health::Health;
use crate::log::Log;
use crate::pipeline::letters::Letters;

pub(crate) mod auth;
mod awaited;
#[doc(hidden)]
pub mod bench;
mod connection;
mod counters;
mod drain;
mod feed;
mod handshake;
mod http;
mod inbound;
mod lifecycle;
mod limits;
mod outbound;
mod registry;
mod repair;
mod revocation;
mod session;
mod user;
mod v1;
mod websocket;
mod wire;

pub use auth::KeyError;
pub use auth::jwt::{JwtVerifier, TokenError, VerifiedToken};
pub use lifecycle::serve;

/// Answers the routes that every role has (`/metrics`, `/health/live`, `/health/ready`); `None`
/// for any other.
pub type Admin = dyn Fn(&Method, &str) -> Option<Response<Full<Bytes>>> + Send + Sync;

/// The dead letters of a process whose log has no other reader, and who may settle them.
pub struct DeadLetterAccess {
    /// Reads and settles the dead letters.
    pub letters: Letters,
    /// A key that is accepted beside the admin key. It is written into the data directory, so it
    /// proves that its bearer may read that directory.
    pub local_key: Option<SecretString>,
}

/// What a gateway is made of.
pub struct Parts {
    /// Takes the messages.
    pub log: Arc<dyn Log>,
    /// Brings the answers.
    pub fanout: Arc<dyn GatewayFanout>,
    /// The settings.
    pub settings: GatewaySettings,
    /// Told when the gateway drains. Checking the dependencies is up to who made it.
    pub health: Arc<Health>,
    /// The routes that every role has.
    pub admin: Arc<Admin>,
    /// The dead letters, where this process alone can reach them: then it serves them to who
    /// brings the admin key, or the desk's.
    pub dead_letters: Option<DeadLetterAccess>,
}

/// Why the gateway ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listener has no address.
    #[error("the listening socket is unusable: {0}")]
    Listener(#[from] std::io::Error),
    /// No token could be checked.
    #[error("the keys of tokens can't be used: {0}")]
    Keys(#[from] KeyError),
    /// No more events will come from the fan-out.
    #[error("the subscription to the fan-out ended, restart the gateway")]
    FeedEnded,
}

/// What all connections share.
struct Gateway {
    /// Checks the tokens where they are signed.
    verifier: Option<JwtVerifier>,
    log: Arc<dyn Log>,
    fanout: Arc<dyn GatewayFanout>,
    settings: GatewaySettings,
    health: Arc<Health>,
    admin: Arc<Admin>,
    dead_letters: Option<DeadLetterAccess>,
    counters: counters::Counters,
    registry: registry::Registry,
    limits: Arc<limits::ConnectionLimiter>,
    /// Connections that are no WebSocket, or not yet.
    http_connections: Arc<http::slots::HttpConnections>,
    revocations: revocation::Revocations,
    /// The chat page, unless it is switched off.
    page: Option<http::page::Page>,
    /// Whether only this machine can reach the listener.
    loopback: bool,
    /// Numbers messages in correlation ids. One for the process, not one per connection: a client
    /// may bring the same correlation id twice, and an answer of an original worker is matched by
    /// nothing else.
    messages: AtomicU64,
    /// Numbers sockets in their order of closing.
    closing: AtomicU64,
    /// Accept nothing new; finish.
    drain: CancellationToken,
    /// The time to finish is over.
    force: CancellationToken,
    /// Every task of a connection.
    tasks: TaskTracker,
}
