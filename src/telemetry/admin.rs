//! Serves health and metrics over HTTP. Worker and relay have no other HTTP server. The gateway
//! passes requests for these routes to [`respond`], except for `/health`, which has more fields
//! there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::metrics::Exporter;
use crate::health::{Health, NotReady};

/// Maximum time that a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of concurrent connections: enough for a scraper, probes and a few operators.
const MAX_CONNECTIONS: usize = 64;
/// Maximum size of the head of a request, in bytes. It is the smallest limit that hyper allows;
/// requests to these routes are far smaller.
const MAX_HEAD_BYTES: usize = 8192;
/// Delay after a failed accept, because the usual reason, a lack of file descriptors, persists for
/// a while.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Maximum time to finish requests in progress when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// The state from which a process answers the routes for health and metrics.
pub struct AdminState {
    /// The field `service` of `/health`: the role's name in the original system.
    service: &'static str,
    server_id: String,
    health: Arc<Health>,
    exporter: Exporter,
}

impl AdminState {
    /// Creates the state. `service` and `server_id` are fields of `/health`.
    pub fn new(
        service: &'static str,
        server_id: impl Into<String>,
        health: Arc<Health>,
        exporter: Exporter,
    ) -> Self {
        Self {
            service,
            server_id: server_id.into(),
            health,
            exporter,
        }
    }
}

/// Answers `/metrics`, `/metrics/`, `/health`, `/health/live` and `/health/ready`; `None` for any
/// other path.
pub fn respond(path: &str, method: &Method, state: &AdminState) -> Option<Response<Full<Bytes>>> {
    let is_served = matches!(
        path,
        "/metrics" | "/metrics/" | "/health" | "/health/live" | "/health/ready"
    );
    if !is_served {
        return None;
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some(method_not_allowed("GET, HEAD"));
    }
    Some(match path {
        "/health" => health(state),
        "/health/live" => json_response(StatusCode::OK, &json!({"status": "alive"})),
        "/health/ready" => readiness(&state.health),
        _ => {
            let mut response = Response::new(Full::from(state.exporter.render()));
            let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            response
        }
    })
}

fn health(state: &AdminState) -> Response<Full<Bytes>> {
    let body = json!({
        "status": "healthy", "service": state.service, "server_id": state.server_id,
    });
    json_response(StatusCode::OK, &body)
}

fn readiness(health: &Health) -> Response<Full<Bytes>> {
    match health.ready() {
        Ok(()) => json_response(StatusCode::OK, &json!({"status": "ready"})),
        Err(NotReady::Draining) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"status": "unavailable", "reason": "draining"}),
        ),
        Err(NotReady::Dependency(name, reason)) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"status": "unavailable", "dependency": name, "reason": reason}),
        ),
    }
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Creates the 404 with which worker and relay answer a path without a route. Its body is that of
/// an `error` frame.
pub fn not_found() -> Response<Full<Bytes>> {
    let body = json!({"type": "error", "code": "not_found", "message": "there is no such route"});
    json_response(StatusCode::NOT_FOUND, &body)
}

/// Creates a 405. `allowed` is the value of its header `Allow`.
pub fn method_not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let body = json!({
        "type": "error",
        "code": "method_not_allowed",
        "message": format!("this route knows {allowed} only"),
    });
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &body);
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, allowed);
    response
}

/// Serves the routes until `stop` is cancelled, then finishes requests in progress within
/// [`SHUTDOWN_GRACE`]. Cancel `stop` last when a role shuts down, so that its health can be
/// observed during the drain.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    loop {
        // While all slots are taken, new connections wait in the kernel's bounded backlog.
        let accepting = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let Some((slot, accepted)) = stop.run_until_cancelled(accepting).await else {
            break;
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for health and metrics failed, retrying");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let state = Arc::clone(&state);
        let service = hyper::service::service_fn(move |request: Request<_>| {
            let response = handle(&request, &state);
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection for health and metrics failed");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_GRACE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::debug!("client of health and metrics did not read its response in time");
    }
}

fn handle(request: &Request<hyper::body::Incoming>, state: &AdminState) -> Response<Full<Bytes>> {
    respond(request.uri().path(), request.method(), state).unwrap_or_else(not_found)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn state(health: &Arc<Health>) -> AdminState {
        let exporter = Exporter::install(&[]).unwrap();
        AdminState::new("ai-consumer", "w1", Arc::clone(health), exporter)
    }

    async fn get(path: &str, state: &AdminState) -> (StatusCode, Value) {
        let response = respond(path, &Method::GET, state).unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_the_unavailable_dependency_and_fails_during_drain() {
        let health = Arc::new(Health::new(&["redis"]));
        let state = state(&health);
        health.set("redis", Err("connection refused".into()));
        let (status, body) = get("/health/ready", &state).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let expected = json!({
            "status": "unavailable", "dependency": "redis", "reason": "connection refused",
        });
        assert_eq!(body, expected);
        health.set("redis", Ok(()));
        assert_eq!(get("/health/ready", &state).await.0, StatusCode::OK);
        health.drain();
        let (status, body) = get("/health/ready", &state).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["reason"], "draining");
        assert_eq!(get("/health/live", &state).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn health_has_the_original_fields() {
        let state = state(&Arc::new(Health::new(&[])));
        let (_, body) = get("/health", &state).await;
        let expected = json!({
            "status": "healthy", "service": "ai-consumer", "server_id": "w1",
        });
        assert_eq!(body, expected);
    }

    async fn send_raw(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn silent_connection_blocks_neither_requests_nor_shutdown() {
        let state = Arc::new(state(&Arc::new(Health::new(&[]))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, state, stop.clone()));
        let silent = TcpStream::connect(address).await.unwrap();

        let close = "Host: a\r\nConnection: close\r\n\r\n";
        let text = send_raw(address, &format!("GET /metrics/ HTTP/1.1\r\n{close}")).await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let text = send_raw(address, &format!("GET /nowhere HTTP/1.1\r\n{close}")).await;
        assert!(text.starts_with("HTTP/1.1 404"), "{text}");
        assert!(text.contains(r#""type":"error""#), "{text}");
        let text = send_raw(address, &format!("POST /health HTTP/1.1\r\n{close}")).await;
        assert!(text.starts_with("HTTP/1.1 405"), "{text}");

        stop.cancel();
        tokio::time::timeout(SHUTDOWN_GRACE * 2, server)
            .await
            .unwrap()
            .unwrap();
        drop(silent);
    }
}
