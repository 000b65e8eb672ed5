//! The state that all tasks of a gateway share, and the dependencies from which `app` builds it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::http::Method;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::KeyError;
use super::auth::jwt::JwtVerifier;
use super::http::page::Page;
use super::http::slots::HttpConnections;
use super::limits::ConnectionLimiter;
use super::metrics::GatewayMetrics;
use super::revocation::Revocations;
use super::sessions::SessionRegistry;
use crate::config::settings::GatewaySettings;
use crate::dead_letters::DeadLetterQueue;
use crate::fanout::GatewayFanout;
use crate::health::Health;
use crate::log::Log;

/// Answers the routes that every role serves (`/metrics`, `/health/live`, `/health/ready`); `None`
/// for any other path.
pub type AdminRoutes = dyn Fn(&Method, &str) -> Option<Response<Full<Bytes>>> + Send + Sync;

/// Access to the dead letters, in a process that no other process shares the log with.
pub struct DeadLetterAccess {
    /// Reads and settles the dead letters.
    pub queue: DeadLetterQueue,
    /// A key that authorizes requests for dead letters, as the admin key does. It is stored in the
    /// data directory, so a request with it proves that its sender may read that directory.
    pub local_key: Option<SecretString>,
}

/// Everything that a gateway needs from its composition root.
pub struct Dependencies {
    /// The log to which messages are appended.
    pub log: Arc<dyn Log>,
    /// The fan-out from which answers are received.
    pub fanout: Arc<dyn GatewayFanout>,
    /// The gateway's part of the configuration.
    pub settings: GatewaySettings,
    /// The gateway reports here that its subscriptions are open and that it drains. The health of
    /// the log and the fan-out is checked by the composition root.
    pub health: Arc<Health>,
    /// The routes that every role serves.
    pub admin: Arc<AdminRoutes>,
    /// Access to the dead letters, which the gateway serves to requests with the admin key or the
    /// local key. `None` in a process that shares its log with other processes.
    pub dead_letters: Option<DeadLetterAccess>,
}

/// Why the gateway could not start, or exited unexpectedly.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listener has no local address.
    #[error("the listening socket is unusable: {0}")]
    Listener(#[from] std::io::Error),
    /// The keys that verify signed tokens could not be loaded.
    #[error("the keys of tokens can't be used: {0}")]
    Keys(#[from] KeyError),
    /// The fan-out closed the subscription, so no more answers would arrive.
    #[error("the subscription to the fan-out ended, restart the gateway")]
    FeedEnded,
}

/// The state that all connections and tasks of one gateway share.
pub(super) struct Gateway {
    /// Verifies signed tokens; `None` unless `AUTH_MODE` is `jwt`.
    pub(super) verifier: Option<JwtVerifier>,
    pub(super) log: Arc<dyn Log>,
    pub(super) fanout: Arc<dyn GatewayFanout>,
    pub(super) settings: GatewaySettings,
    pub(super) health: Arc<Health>,
    pub(super) admin: Arc<AdminRoutes>,
    pub(super) dead_letters: Option<DeadLetterAccess>,
    pub(super) metrics: GatewayMetrics,
    pub(super) registry: SessionRegistry,
    pub(super) limits: Arc<ConnectionLimiter>,
    /// Counts the connections that have not been upgraded to a WebSocket.
    pub(super) http_connections: Arc<HttpConnections>,
    pub(super) revocations: Revocations,
    /// The chat page; `None` where it is switched off.
    pub(super) page: Option<Page>,
    /// Whether the listener is bound to a loopback address.
    pub(super) is_loopback: bool,
    /// The number of the next message's correlation id. It is unique in the process, not in the
    /// connection: two clients may send the same correlation id, and an original worker's answer is
    /// matched only by its correlation id.
    pub(super) next_message_number: AtomicU64,
    /// Number of connections that have begun to close because of the drain. The next connection
    /// computes its delay from it.
    pub(super) drain_closes: AtomicU64,
    /// Cancelled when the gateway begins to drain: it accepts no new connection and reads no more
    /// frames, and completes the frames that it has read.
    pub(super) drain: CancellationToken,
    /// Cancelled when the drain has ended or timed out: every task that is left ends at once.
    pub(super) abort: CancellationToken,
    /// Tracks the task of every connection.
    pub(super) tasks: TaskTracker,
}
