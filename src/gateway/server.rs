//! Accepts connections, and ends them when the gateway is told to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::jwt::Verifier;
use super::counters::Counters;
use super::limits::{Limits, Peer, counted};
use super::page::Page;
use super::registry::Registry;
use super::revocation::Revocations;
use super::waiting::{Seat, Waiting};
use super::{Gateway, GatewayError, Parts, feed, repair, routes};
use crate::backoff::Backoff;
use crate::config::settings::AuthMode;

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// A request under way when the gateway stops is still answered within this. Not longer: a
/// connection that a client only opened beforehand would hold up the drain.
const HTTP_GRACE: Duration = Duration::from_secs(3);

/// Connections at once that are turned away while the gateway stops.
const LATE: usize = 256;

/// What the tasks get to notice that their time is over.
const FORCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `drain` is cancelled, then finishes: nothing new is accepted, what was read is
/// acknowledged, and the sockets are closed at a pace within `drain_timeout`. Returns when all are
/// gone or that time is over.
pub async fn serve(
    listener: TcpListener,
    parts: Parts,
    drain: CancellationToken,
) -> Result<(), GatewayError> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    let settings = parts.settings;
    let verifier = match &settings.jwt {
        Some(jwt) if settings.auth == AuthMode::Jwt => Some(Verifier::new(jwt)?),
        _ => None,
    };
    if let Some(verifier) = &verifier {
        verifier.begin();
    }
    let gateway = Arc::new(Gateway {
        verifier,
        counters: Counters::new(&settings.server_id, &settings.messages_topic),
        log: parts.log,
        fanout: parts.fanout,
        health: parts.health,
        admin: parts.admin,
        letters: parts.letters,
        registry: Registry::default(),
        limits: Limits::new(settings.limits.clone()),
        waiting: Waiting::new(
            settings.limits.http,
            settings.limits.per_address,
            settings.head_timeout,
        ),
        revocations: Revocations::default(),
        page: settings.chat_page.then(|| Page::new(&settings)),
        loopback,
        messages: AtomicU64::new(1),
        closing: AtomicU64::new(0),
        drain: drain.clone(),
        force: CancellationToken::new(),
        tasks: TaskTracker::new(),
        settings,
    });
    gateway
        .health
        .set(feed::SUBSCRIPTIONS, Err("not open yet".into()));
    // Whatever ends this future ends its tasks.
    let _force = gateway.force.clone().drop_guard();
    let mut feed = tokio::spawn(feed::run(gateway.clone()));
    let repair = tokio::spawn(repair::run(gateway.clone()));
    let result = tokio::select! {
        () = accept(&gateway, &listener) => Ok(()),
        () = drain.cancelled() => Ok(()),
        ended = &mut feed => ended.unwrap_or(Err(GatewayError::FeedEnded)),
    };
    gateway.health.drain();
    gateway.tasks.close();
    if result.is_ok() {
        tracing::info!(connections = gateway.registry.connections(), "draining");
        let drained = timeout(gateway.settings.drain_timeout, gateway.tasks.wait());
        // Whoever comes meanwhile is told so: a balancer sees that this gateway is not ready.
        let drained = tokio::select! {
            drained = drained => drained,
            () = turn_away(&gateway, &listener) => Ok(()),
        };
        if drained.is_err() {
            let connections = gateway.registry.connections();
            tracing::warn!(
                connections,
                "connections are cut off, the drain took too long"
            );
        }
    }
    drop(listener);
    gateway.force.cancel();
    if timeout(FORCE_TIMEOUT, gateway.tasks.wait()).await.is_err() {
        tracing::error!("connections did not end");
    }
    // Both end by the force token.
    let _ = repair.await;
    if !feed.is_finished() {
        let _ = feed.await;
    }
    result
}

/// Accepts for ever. A failure is mostly a lack of descriptors, which goes on failing: it backs
/// off instead of spinning.
async fn accept(gateway: &Arc<Gateway>, listener: &TcpListener) {
    loop {
        gateway.waiting.room().await;
        let (stream, peer) = next_stream(gateway, listener).await;
        let address = peer.0.ip();
        let is_proxy = gateway.limits.is_proxy(address);
        let Some(seat) = gateway.waiting.enter(counted(address), is_proxy) else {
            gateway.counters.refused(503);
            continue;
        };
        gateway
            .tasks
            .spawn(serve_http(gateway.clone(), stream, peer, Arc::new(seat)));
    }
}

async fn next_stream(gateway: &Gateway, listener: &TcpListener) -> (TcpStream, Peer) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, Peer(peer)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                gateway.waiting.give_way();
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Accepts for ever while the gateway stops: one request a connection, which readiness and
/// upgrades answer with 503. These hold up nothing: they end with this future.
async fn turn_away(gateway: &Arc<Gateway>, listener: &TcpListener) {
    let mut late = JoinSet::new();
    loop {
        tokio::select! {
            (stream, peer) = next_stream(gateway, listener), if late.len() < LATE => {
                let gateway = gateway.clone();
                late.spawn(async move {
                    let service =
                        service_fn(move |mut request: Request<Incoming>| {
                            request.extensions_mut().insert(peer);
                            routes::route(gateway.clone(), request)
                        });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HTTP_GRACE)
                        .max_buf_size(HEAD_BYTES)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    if let Ok(Err(error)) = timeout(HTTP_GRACE, connection).await {
                        tracing::debug!(%error, "http connection ended");
                    }
                });
            }
            Some(_) = late.join_next(), if !late.is_empty() => {}
        }
    }
}

async fn serve_http(gateway: Arc<Gateway>, stream: TcpStream, peer: Peer, seat: Arc<Seat>) {
    // Only slower without it.
    let _ = stream.set_nodelay(true);
    let service = {
        let (gateway, seat) = (gateway.clone(), seat.clone());
        service_fn(move |mut request| {
            seat.spoke();
            request.extensions_mut().insert(peer);
            let (gateway, seat) = (gateway.clone(), seat.clone());
            async move {
                let reply = routes::route(gateway, request).await;
                seat.answered();
                reply
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gateway.settings.head_timeout)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = seat.over() => {
            if !seat.has_spoken() {
                gateway.counters.refused(408);
            }
            return;
        }
        () = gateway.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = sleep(HTTP_GRACE) => return,
                () = gateway.force.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        if error.is_timeout() && !seat.has_spoken() {
            gateway.counters.refused(408);
        }
        tracing::debug!(%error, "http connection ended");
    }
}
