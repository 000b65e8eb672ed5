//! Runs a gateway from its start to the end of its drain. `app` calls [`serve`].

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::jwt::JwtVerifier;
use super::context::{Dependencies, Gateway, GatewayError};
use super::http::page::Page;
use super::http::server;
use super::http::slots::HttpConnections;
use super::limits::ConnectionLimiter;
use super::metrics::GatewayMetrics;
use super::revocation::Revocations;
use super::sessions::SessionRegistry;
use super::{feed, mailbox_sync};
use crate::config::settings::AuthMode;

/// Time within which the tasks of connections must end after the abort token was cancelled.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `drain` is cancelled, then drains: accepts no new connections, confirms the
/// messages that were read once the log has acknowledged them, and closes the connections spread
/// over time. Returns when all connections are closed, or soon after `drain_timeout` has passed.
///
/// # Errors
/// The listener has no local address, the keys of signed tokens can't be loaded, or the fan-out's
/// subscription ended unexpectedly.
pub async fn serve(
    listener: TcpListener,
    dependencies: Dependencies,
    drain: CancellationToken,
) -> Result<(), GatewayError> {
    let is_loopback = listener.local_addr()?.ip().is_loopback();
    let gateway = Arc::new(Gateway::new(dependencies, is_loopback, drain.clone())?);
    if let Some(verifier) = &gateway.verifier {
        verifier.prefetch_keys();
    }
    gateway
        .health
        .set(feed::SUBSCRIPTIONS, Err("not open yet".into()));
    // If the caller drops this future, the guard ends all tasks of the gateway.
    let _abort = gateway.abort.clone().drop_guard();
    let mut feed = tokio::spawn(feed::run(gateway.clone()));
    let mailbox_sync = tokio::spawn(mailbox_sync::run(gateway.clone()));
    let result = tokio::select! {
        () = server::accept(&gateway, &listener) => Ok(()),
        () = drain.cancelled() => Ok(()),
        feed_result = &mut feed => feed_result.unwrap_or(Err(GatewayError::FeedEnded)),
    };
    gateway.health.drain();
    gateway.tasks.close();
    if result.is_ok() {
        drain_connections(&gateway, &listener).await;
    }
    drop(listener);
    gateway.abort.cancel();
    if timeout(ABORT_TIMEOUT, gateway.tasks.wait()).await.is_err() {
        tracing::error!(
            "connection tasks did not end in time and are aborted with the process; no action is \
             needed"
        );
    }
    // The mailbox sync and the feed end because the abort token is cancelled.
    let _ = mailbox_sync.await;
    if !feed.is_finished() {
        let _ = feed.await;
    }
    result
}

/// Waits until all connections are closed, for `drain_timeout` at most.
async fn drain_connections(gateway: &Arc<Gateway>, listener: &TcpListener) {
    let connections = gateway.registry.connections();
    tracing::info!(connections, "drain started");
    let drained = timeout(gateway.settings.drain_timeout, gateway.tasks.wait());
    // New requests are answered with 503, so that a load balancer notices that this gateway is not
    // ready.
    let drained = tokio::select! {
        drained = drained => drained,
        () = server::reject_connections(gateway, listener) => Ok(()),
    };
    if drained.is_err() {
        let connections = gateway.registry.connections();
        tracing::warn!(
            connections,
            "drain timed out, closing the remaining connections; raise DRAIN_TIMEOUT_MS if clients \
             need more time"
        );
    }
}

impl Gateway {
    fn new(
        dependencies: Dependencies,
        is_loopback: bool,
        drain: CancellationToken,
    ) -> Result<Self, GatewayError> {
        let settings = dependencies.settings;
        let verifier = match &settings.jwt {
            Some(jwt) if settings.auth == AuthMode::Jwt => Some(JwtVerifier::new(jwt)?),
            _ => None,
        };
        Ok(Self {
            verifier,
            metrics: GatewayMetrics::new(&settings.server_id, &settings.messages_topic),
            log: dependencies.log,
            fanout: dependencies.fanout,
            health: dependencies.health,
            admin: dependencies.admin,
            dead_letters: dependencies.dead_letters,
            registry: SessionRegistry::default(),
            limits: ConnectionLimiter::new(settings.limits.clone()),
            http_connections: HttpConnections::new(
                settings.limits.http,
                settings.limits.per_address,
                settings.head_timeout,
            ),
            revocations: Revocations::new(settings.auth),
            page: settings.chat_page.then(|| Page::new(&settings)),
            is_loopback,
            next_message_number: AtomicU64::new(1),
            drain_closes: AtomicU64::new(0),
            drain,
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
            settings,
        })
    }
}
