//! Accepts TCP connections and serves HTTP on them, also while the gateway drains.

use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::routes;
use super::slots::HttpSlot;
use crate::backoff::Backoff;
use crate::gateway::context::Gateway;
use crate::gateway::limits::{PeerAddress, limit_key};

/// Maximum size of the head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Time after which an HTTP connection is closed during the drain. It counts from the beginning of
/// the drain, or from the acceptance of a connection that is accepted later. Short, because a
/// connection on which the client sends no request would otherwise delay the end of the drain.
const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// Maximum number of connections that are served at the same time during the drain.
const MAX_DRAIN_CONNECTIONS: usize = 256;

/// Delay after the first failure to accept a connection. Each further failure in a row doubles the
/// delay, up to [`MAX_ACCEPT_DELAY`].
const FIRST_ACCEPT_DELAY: Duration = Duration::from_millis(10);

/// Maximum delay after a failure to accept a connection.
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// Accepts connections and spawns a task that serves each. If the connection's address has reached
/// its limit, closes the connection without a response. Never returns.
pub(in crate::gateway) async fn accept(gateway: &Arc<Gateway>, listener: &TcpListener) {
    loop {
        gateway.http_connections.wait_for_capacity().await;
        let (stream, peer) = next_stream(gateway, listener).await;
        let address = peer.0.ip();
        let is_proxy = gateway.limits.is_trusted_proxy(address);
        let connections = &gateway.http_connections;
        let Some(slot) = connections.acquire(limit_key(address), is_proxy) else {
            gateway.metrics.count_refusal(503);
            continue;
        };
        let connection = serve_connection(gateway.clone(), stream, peer, Arc::new(slot));
        gateway.tasks.spawn(connection);
    }
}

/// Accepts the next connection, and retries until that succeeds. The usual cause of a failure is a
/// lack of file descriptors, which lasts for a while. So each failure evicts an idle connection and
/// delays the next attempt.
async fn next_stream(gateway: &Gateway, listener: &TcpListener) -> (TcpStream, PeerAddress) {
    let mut backoff = Backoff::new(FIRST_ACCEPT_DELAY, MAX_ACCEPT_DELAY);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, PeerAddress(peer)),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "accepting a connection failed, retrying; if the process is out of file \
                     descriptors, raise its limit (ulimit -n)"
                );
                gateway.http_connections.evict_oldest_idle();
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Accepts connections during the drain and serves one request on each connection. Upgrades and
/// `/health/ready` are answered with 503. Never returns. Dropping the future closes the
/// connections, so that they don't delay the end of the drain.
pub(in crate::gateway) async fn reject_connections(gateway: &Arc<Gateway>, listener: &TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, peer) = next_stream(gateway, listener),
                if connections.len() < MAX_DRAIN_CONNECTIONS =>
            {
                connections.spawn(serve_one_request(gateway.clone(), stream, peer));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve_one_request(gateway: Arc<Gateway>, stream: TcpStream, peer: PeerAddress) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        routes::dispatch(gateway.clone(), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DRAIN_GRACE)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(DRAIN_GRACE, connection).await {
        tracing::debug!(%error, "http connection ended");
    }
}

/// Serves HTTP on one connection until it is closed, upgraded to a WebSocket, idle for too long or
/// evicted, or until [`DRAIN_GRACE`] after the drain has begun.
async fn serve_connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    peer: PeerAddress,
    slot: Arc<HttpSlot>,
) {
    // A failure is ignored: without `TCP_NODELAY`, small writes are only delayed.
    let _ = stream.set_nodelay(true);
    let service = {
        let (gateway, slot) = (gateway.clone(), slot.clone());
        service_fn(move |mut request: Request<Incoming>| {
            slot.stop_idle_timer();
            request.extensions_mut().insert(peer);
            let (gateway, slot) = (gateway.clone(), slot.clone());
            async move {
                let response = routes::dispatch(gateway, request).await;
                slot.restart_idle_timer();
                response
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gateway.settings.head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = slot.wait_until_expired() => {
            if !slot.has_received_request() {
                gateway.metrics.count_refusal(408);
            }
            return;
        }
        () = gateway.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = sleep(DRAIN_GRACE) => return,
                () = gateway.abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        if error.is_timeout() && !slot.has_received_request() {
            gateway.metrics.count_refusal(408);
        }
        tracing::debug!(%error, "http connection ended");
    }
}
