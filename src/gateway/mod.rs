//! The gateway: clients' WebSockets on one side, the log and the fan-out on the other.
//!
//! A message's way in: [`server`] accepts, [`waiting`] bounds who says nothing, [`routes`] picks,
//! [`handshake`] checks who it is, [`connection`] owns the socket ([`wire`] and [`websocket`] are
//! below it, [`drain`] is its end where the gateway stops), [`inbound`] admits, produces and waits
//! for the log. An answer's way out: [`feed`] takes what is published, [`registry`] finds the user,
//! [`user`] decides what each socket still has to get, [`outbound`] is its bounded queue. What was
//! published and did not arrive is found by [`repair`]. Sockets of `chatmesh.v1` also see answers
//! grow, come back with a position and catch up by a read: [`v1`]. [`history`] is what was said,
//! over HTTP, and [`page`] the chat page for people with a browser.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::http::Method;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::settings::GatewaySettings;
use crate::fanout::GatewayFanout;
use crate::health::Health;
use crate::log::Log;

pub(crate) mod auth;
mod awaited;
#[doc(hidden)]
pub mod bench;
mod connection;
mod counters;
mod drain;
mod feed;
mod handshake;
mod history;
mod inbound;
mod letters;
mod limits;
mod origin;
mod outbound;
mod page;
mod registry;
mod repair;
mod reply;
mod revocation;
mod routes;
mod server;
mod token;
mod user;
mod v1;
mod waiting;
mod websocket;
mod wire;

pub use auth::KeyError;
pub use auth::jwt::{Denied, Verified, Verifier};
pub use letters::Desk;
pub use server::serve;

/// Answers the routes that every role has (`/metrics`, `/health/live`, `/health/ready`); `None`
/// for any other.
pub type Admin = dyn Fn(&Method, &str) -> Option<Response<Full<Bytes>>> + Send + Sync;

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
    pub letters: Option<Desk>,
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
    verifier: Option<Verifier>,
    log: Arc<dyn Log>,
    fanout: Arc<dyn GatewayFanout>,
    settings: GatewaySettings,
    health: Arc<Health>,
    admin: Arc<Admin>,
    letters: Option<Desk>,
    counters: counters::Counters,
    registry: registry::Registry,
    limits: Arc<limits::Limits>,
    /// Connections that are no WebSocket, or not yet.
    waiting: Arc<waiting::Waiting>,
    revocations: revocation::Revocations,
    /// The chat page, unless it is switched off.
    page: Option<page::Page>,
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
