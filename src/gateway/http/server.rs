//! Accepts connections and serves HTTP on them.

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

/// Time to answer a request that is in progress when the gateway drains. Short, because a
/// connection that a client only opened in advance would otherwise delay the end of the drain.
const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// Connections that are refused concurrently during the drain.
const MAX_REJECTIONS: usize = 256;

/// Delay before accepting again after a failure; it doubles up to the maximum.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const MAX_ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Accepts connections and spawns a task for each. Never returns.
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

/// Accepts the next connection. A failure usually means that the process is out of descriptors and
/// persists for a while, so an idle connection is evicted and the next attempt is delayed.
async fn next_stream(gateway: &Gateway, listener: &TcpListener) -> (TcpStream, PeerAddress) {
    let mut backoff = Backoff::new(ACCEPT_BACKOFF, MAX_ACCEPT_BACKOFF);
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

/// Accepts connections during the drain and serves one request on each: readiness and upgrades are
/// answered with 503. Never returns. The connections end when this future is dropped, so they don't
/// delay the end of the drain.
pub(in crate::gateway) async fn reject_connections(gateway: &Arc<Gateway>, listener: &TcpListener) {
    let mut rejections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, peer) = next_stream(gateway, listener), if rejections.len() < MAX_REJECTIONS => {
                rejections.spawn(serve_one_request(gateway.clone(), stream, peer));
            }
            Some(_) = rejections.join_next(), if !rejections.is_empty() => {}
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

/// Serves one connection until it is closed, upgraded, evicted or drained.
async fn serve_connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    peer: PeerAddress,
    slot: Arc<HttpSlot>,
) {
    // Without it, small writes are delayed; nothing else changes.
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
