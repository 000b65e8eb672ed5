//! The HTTP server of the mock: accepts connections, routes requests, and decides the random
//! outcome of each call.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::body::ResponseBody;
use super::call::{Call, Decision, MockState};
use super::request::ChatRequest;
use super::stats::add_to_counter;

/// Maximum size of a request body in bytes. It is larger than any request that a worker sends.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Delay after a failed `accept`. `accept` fails when no file descriptors are left, and succeeds
/// again after open connections have been closed.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Serves until `stop` is cancelled. Responses in progress are cut off then, because no accepted
/// work depends on the mock.
pub(super) async fn serve(listener: TcpListener, state: Arc<MockState>, stop: CancellationToken) {
    loop {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            return;
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        // If this fails, Nagle's algorithm stays enabled, which only makes the connection slower.
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(route(&state, request).await) }
            });
            // An error means that the client hung up or that the stream was cut off on purpose.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn route(state: &Arc<MockState>, request: Request<Incoming>) -> Response<ResponseBody> {
    let path = request.uri().path();
    match (request.method(), path.strip_prefix("/v1").unwrap_or(path)) {
        (&Method::POST, "/chat/completions") => complete_chat(state, request).await,
        (&Method::GET, "/models") => {
            let model =
                json!({"id": state.model, "object": "model", "created": 0, "owned_by": "mock"});
            json_response(StatusCode::OK, &json!({"object": "list", "data": [model]}))
        }
        (&Method::GET, "/stats") => json_response(StatusCode::OK, &state.stats.to_json()),
        _ => error_response(StatusCode::NOT_FOUND, "not_found", "no such route"),
    }
}

/// Answers a chat completion request, unless a random decision makes the call fail.
async fn complete_chat(
    state: &Arc<MockState>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let mut call = Call::start(state);
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES);
    let parsed = match body.collect().await {
        Ok(body) => ChatRequest::parse(&body.to_bytes()),
        Err(error) => Err(error.to_string()),
    };
    let request = match parsed {
        Ok(request) => request,
        Err(error) => {
            call.record_outcome(|stats| &stats.invalid);
            let message = format!("the request is invalid: {error}");
            return error_response(StatusCode::BAD_REQUEST, "invalid_request_error", &message);
        }
    };
    if state
        .rate_limit_share
        .selects(call.random_bits(Decision::RateLimit))
    {
        call.record_outcome(|stats| &stats.rate_limited);
        let text = "Rate limit reached, as set by --rate-limit-share";
        let mut response =
            error_response(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", text);
        let seconds = HeaderValue::from(state.retry_after_seconds);
        response.headers_mut().insert(RETRY_AFTER, seconds);
        return response;
    }
    if state.error_share.selects(call.random_bits(Decision::Error)) {
        call.record_outcome(|stats| &stats.errors);
        let statuses = [
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        let status = statuses[(call.random_bits(Decision::ErrorStatus) % 3) as usize];
        return error_response(status, "server_error", "failed, as set by --error-share");
    }
    let latency_ms = state.latency_ms.pick(call.random_bits(Decision::Latency));
    if latency_ms > 0 {
        sleep(Duration::from_millis(latency_ms)).await;
    }
    let mut tokens = state.encoder.choose_tokens(&request);
    if !request.stream {
        call.record_outcome(|stats| &stats.answered);
        add_to_counter(&state.stats.tokens, tokens.total());
        return json_response(StatusCode::OK, &state.encoder.completion(&request, &tokens));
    }
    add_to_counter(&state.stats.streamed, 1);
    let is_cut = state.cut_share.selects(call.random_bits(Decision::Cut));
    let body = if is_cut || state.tokens_per_second > 0.0 {
        ResponseBody::stream(call, request, tokens, is_cut)
    } else {
        call.record_outcome(|stats| &stats.answered);
        add_to_counter(&state.stats.tokens, tokens.total());
        ResponseBody::whole(state.encoder.encode_stream(&request, &mut tokens))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Returns an error response in the format of OpenAI's API.
fn error_response(status: StatusCode, kind: &str, message: &str) -> Response<ResponseBody> {
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": kind}});
    json_response(status, &body)
}
