//! The routes, and what the dice say of each call.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
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

use super::MockArgs;
use super::answer::Chunks;
use super::body::Answer;
use super::request::Asked;
use super::stats::{Stats, add};
use crate::tools::span::{Share, Span, mix};

/// More than any history that a worker sends.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// The server's state.
pub(super) struct Mock {
    pub(super) chunks: Chunks,
    pub(super) stats: Stats,
    pub(super) tokens_per_second: f64,
    latency_ms: Span,
    error_share: Share,
    rate_limit_share: Share,
    cut_share: Share,
    retry_after: u32,
    seed: u64,
    model: String,
}

impl Mock {
    pub(super) fn new(args: &MockArgs) -> Self {
        Self {
            chunks: Chunks::new(args),
            stats: Stats::default(),
            tokens_per_second: args.tokens_per_second,
            latency_ms: args.latency_ms,
            error_share: args.error_share,
            rate_limit_share: args.rate_limit_share,
            cut_share: args.cut_share,
            retry_after: args.retry_after,
            seed: args.seed,
            model: args.model.clone(),
        }
    }
}

/// One call, from its request to the end of its answer.
pub(super) struct Call {
    pub(super) mock: Arc<Mock>,
    number: u64,
    ended: bool,
}

impl Call {
    fn begin(mock: &Arc<Mock>) -> Self {
        Self {
            mock: Arc::clone(mock),
            number: mock.stats.begun(),
            ended: false,
        }
    }

    /// How it ended. What has not ended so when it is dropped is a client that hung up.
    pub(super) fn end(&mut self, counter: impl Fn(&Stats) -> &AtomicU64) {
        add(counter(&self.mock.stats), 1);
        self.ended = true;
    }

    /// Random bits, the same for the same seed and number of the call.
    fn dice(&self, n: u64) -> u64 {
        mix(self.mock.seed ^ mix(self.number.wrapping_mul(8).wrapping_add(n)))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.mock.stats.ended();
        if !self.ended {
            add(&self.mock.stats.hung_up, 1);
        }
    }
}

/// Serves until `stop`. Answers under way are cut off then: nobody's work depends on them.
pub(super) async fn serve(listener: TcpListener, mock: Arc<Mock>, stop: CancellationToken) {
    loop {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            return;
        };
        let Ok((stream, _)) = accepted else {
            // No descriptors left: those who wait get their turn when others hang up.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Only slower without it.
        let _ = stream.set_nodelay(true);
        let mock = Arc::clone(&mock);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let mock = Arc::clone(&mock);
                async move { Ok::<_, Infallible>(route(&mock, request).await) }
            });
            // It ends when the client hangs up, or by a cut.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn route(mock: &Arc<Mock>, request: Request<Incoming>) -> Response<Answer> {
    let path = request.uri().path();
    match (request.method(), path.strip_prefix("/v1").unwrap_or(path)) {
        (&Method::POST, "/chat/completions") => complete(mock, request).await,
        (&Method::GET, "/models") => {
            let model =
                json!({"id": mock.model, "object": "model", "created": 0, "owned_by": "mock"});
            answer(StatusCode::OK, &json!({"object": "list", "data": [model]}))
        }
        (&Method::GET, "/stats") => answer(StatusCode::OK, &mock.stats.json()),
        _ => refusal(StatusCode::NOT_FOUND, "not_found", "there is no such route"),
    }
}

async fn complete(mock: &Arc<Mock>, request: Request<Incoming>) -> Response<Answer> {
    let mut call = Call::begin(mock);
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES);
    let asked = match body.collect().await {
        Ok(body) => Asked::parse(&body.to_bytes()),
        Err(error) => Err(error.to_string()),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            call.end(|stats| &stats.invalid);
            let message = format!("the request can't be read: {error}");
            return refusal(StatusCode::BAD_REQUEST, "invalid_request_error", &message);
        }
    };
    if mock.rate_limit_share.holds(call.dice(0)) {
        call.end(|stats| &stats.rate_limited);
        let text = "Rate limit reached, as asked by --rate-limit-share";
        let mut response = refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", text);
        let after = HeaderValue::from(mock.retry_after);
        response.headers_mut().insert(RETRY_AFTER, after);
        return response;
    }
    if mock.error_share.holds(call.dice(1)) {
        call.end(|stats| &stats.errors);
        let statuses = [
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        let status = statuses[(call.dice(2) % 3) as usize];
        return refusal(status, "server_error", "failed, as asked by --error-share");
    }
    let latency = mock.latency_ms.pick(call.dice(3));
    if latency > 0 {
        sleep(Duration::from_millis(latency)).await;
    }
    let mut tokens = mock.chunks.tokens(&asked);
    if !asked.stream {
        call.end(|stats| &stats.answered);
        add(&mock.stats.tokens, tokens.count());
        return answer(StatusCode::OK, &mock.chunks.whole(&asked, &tokens));
    }
    add(&mock.stats.streamed, 1);
    let cut = mock.cut_share.holds(call.dice(4));
    let body = if cut || mock.tokens_per_second > 0.0 {
        Answer::stream(call, asked, tokens, cut)
    } else {
        call.end(|stats| &stats.answered);
        add(&mock.stats.tokens, tokens.count());
        Answer::whole(mock.chunks.all(&asked, &mut tokens))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn answer(status: StatusCode, body: &Value) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// An error as the API words it.
fn refusal(status: StatusCode, kind: &str, message: &str) -> Response<Answer> {
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": kind}});
    answer(status, &body)
}
