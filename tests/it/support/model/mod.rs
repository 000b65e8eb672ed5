//! A local server of the OpenAI API whose answers and faults a test scripts.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

mod answer_script;
mod script;

pub(crate) use answer_script::AnswerScript;
use script::Step;
pub(crate) use script::{Answer, Gate, Script, StreamErrorFormat};

/// A request that the server received.
#[derive(Debug, Clone)]
pub(crate) struct ModelRequest {
    /// Content of the last message, by which a test recognises its requests.
    pub(crate) prompt: String,
    /// The complete body.
    pub(crate) body: Value,
    /// The `Authorization` header.
    pub(crate) authorization: Option<String>,
    /// The path, such as `/v1/chat/completions`.
    pub(crate) path: String,
    pub(crate) received_at: Instant,
    /// Number of earlier requests with the same prompt.
    pub(crate) previous_requests: usize,
}

impl ModelRequest {
    /// Role and content of every message of the request.
    pub(crate) fn messages(&self) -> Vec<(String, String)> {
        let text = |message: &Value, name: &str| message[name].as_str().unwrap_or("").to_owned();
        self.body["messages"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|message| (text(message, "role"), text(message, "content")))
            .collect()
    }
}

type Rule = Arc<dyn Fn(&ModelRequest) -> Answer + Send + Sync>;

struct State {
    requests: Vec<ModelRequest>,
    /// Whether the bodies of requests are stored.
    stores_bodies: bool,
    request_counts: HashMap<String, usize>,
    queued_answers: HashMap<String, VecDeque<Answer>>,
    aborted_prompts: Vec<String>,
    open_requests: usize,
    max_open_requests: usize,
    rule: Rule,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

/// The running server. Drop stops it.
pub(crate) struct ScriptedModel {
    port: u16,
    shared: Shared,
    server: JoinHandle<()>,
}

impl ScriptedModel {
    /// Starts a server that answers every request with `echo: ` followed by the prompt.
    pub(crate) async fn start() -> Self {
        Self::start_with(|request| Script::echo(request).into()).await
    }

    /// Starts a server that answers by a rule. Answers queued for a prompt take precedence.
    pub(crate) async fn start_with<F>(rule: F) -> Self
    where
        F: Fn(&ModelRequest) -> Answer + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let shared = Shared(Arc::new(Mutex::new(State {
            requests: Vec::new(),
            stores_bodies: true,
            request_counts: HashMap::new(),
            queued_answers: HashMap::new(),
            aborted_prompts: Vec::new(),
            open_requests: 0,
            max_open_requests: 0,
            rule: Arc::new(rule),
        })));
        let server = tokio::spawn(serve(listener, shared.clone()));
        Self {
            port,
            shared,
            server,
        }
    }

    /// The value for `OPENAI_BASE_URL`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Queues an answer for the next request with this prompt.
    pub(crate) fn queue_answer(&self, prompt: &str, answer: impl Into<Answer>) {
        let mut state = self.shared.lock();
        let queue = state.queued_answers.entry(prompt.to_owned()).or_default();
        queue.push_back(answer.into());
    }

    /// Stops storing request bodies. They contain whole conversations, which would exhaust the
    /// memory in a long run.
    pub(crate) fn discard_bodies(&self) {
        self.shared.lock().stores_bodies = false;
    }

    /// All requests so far, in order.
    pub(crate) fn requests(&self) -> Vec<ModelRequest> {
        self.shared.lock().requests.clone()
    }

    /// The requests with this prompt so far, in order.
    pub(crate) fn requests_for(&self, prompt: &str) -> Vec<ModelRequest> {
        let state = self.shared.lock();
        let requests = state
            .requests
            .iter()
            .filter(|request| request.prompt == prompt);
        requests.cloned().collect()
    }

    /// The number of all requests.
    pub(crate) fn request_count(&self) -> usize {
        self.shared.lock().requests.len()
    }

    /// The number of requests with this prompt.
    pub(crate) fn request_count_for(&self, prompt: &str) -> usize {
        self.shared
            .lock()
            .request_counts
            .get(prompt)
            .copied()
            .unwrap_or(0)
    }

    /// The prompts of requests whose client closed the connection before the answer was complete.
    pub(crate) fn aborted_prompts(&self) -> Vec<String> {
        self.shared.lock().aborted_prompts.clone()
    }

    /// The number of requests that are being answered.
    pub(crate) fn open_requests(&self) -> usize {
        self.shared.lock().open_requests
    }

    /// The highest number of requests that were being answered at the same time.
    pub(crate) fn max_open_requests(&self) -> usize {
        self.shared.lock().max_open_requests
    }
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, shared: Shared) {
    // Dropping this set with the server closes all connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // While no file descriptor is free, accepting at once would be a busy loop.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, shared.clone()));
                    // A scripted disconnect ends the connection with an error on purpose.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, ScriptedDisconnect>>>;

/// The error that makes hyper close the connection in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("scripted disconnect")]
struct ScriptedDisconnect;

/// A request that is being answered. If it is dropped before the answer is complete, the client has
/// closed the connection.
struct OpenRequest {
    shared: Shared,
    prompt: String,
    is_complete: bool,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.open_requests -= 1;
        if !self.is_complete {
            state.aborted_prompts.push(self.prompt.clone());
        }
    }
}

async fn answer(request: Request<Incoming>, shared: Shared) -> Result<Response<Body>, Infallible> {
    let received_at = Instant::now();
    let path = request.uri().path().to_owned();
    let authorization = request
        .headers()
        .get(hyper::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let Ok(body) = request.into_body().collect().await else {
        return Ok(respond(400, &[], plain_body(Bytes::new())));
    };
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
    let prompt = body["messages"]
        .as_array()
        .and_then(|messages| messages.last())
        .and_then(|message| message["content"].as_str())
        .unwrap_or("")
        .to_owned();

    let (answer, open_request) =
        record_request(&shared, prompt, body, authorization, path, received_at);
    match answer {
        Answer::Status {
            status,
            headers,
            body,
        } => {
            let mut open_request = open_request;
            open_request.is_complete = true;
            Ok(respond(status, &headers, plain_body(body.into())))
        }
        Answer::Hang => {
            // hyper drops this future, and `open_request` with it, when the client closes the
            // connection.
            let _open_request = open_request;
            std::future::pending().await
        }
        Answer::Stream(script) => {
            let steps = VecDeque::from(script.steps());
            let body = stream::unfold((steps, open_request), run_step).boxed();
            let headers = [("content-type".to_owned(), "text/event-stream".to_owned())];
            Ok(respond(200, &headers, StreamBody::new(body)))
        }
    }
}

/// Records the request and chooses its answer.
fn record_request(
    shared: &Shared,
    prompt: String,
    body: Value,
    authorization: Option<String>,
    path: String,
    received_at: Instant,
) -> (Answer, OpenRequest) {
    let mut state = shared.lock();
    let request_count = state.request_counts.entry(prompt.clone()).or_default();
    let previous_requests = *request_count;
    *request_count += 1;
    let request = ModelRequest {
        prompt: prompt.clone(),
        body,
        authorization,
        path,
        received_at,
        previous_requests,
    };
    let mut stored_request = request.clone();
    if !state.stores_bodies {
        stored_request.body = Value::Null;
    }
    state.requests.push(stored_request);
    state.open_requests += 1;
    state.max_open_requests = state.max_open_requests.max(state.open_requests);
    let queued_answer = state
        .queued_answers
        .get_mut(&prompt)
        .and_then(VecDeque::pop_front);
    let rule = state.rule.clone();
    drop(state);
    let open_request = OpenRequest {
        shared: shared.clone(),
        prompt,
        is_complete: false,
    };
    let answer = match queued_answer {
        Some(answer) => answer,
        None if request.path == "/v1/chat/completions" => rule(&request),
        None => Answer::error(404, "not_found", "no such route"),
    };
    (answer, open_request)
}

/// The remaining steps of a stream, and its request.
type StreamState = (VecDeque<Step>, OpenRequest);

async fn run_step(
    (mut steps, mut open_request): StreamState,
) -> Option<(Result<Frame<Bytes>, ScriptedDisconnect>, StreamState)> {
    loop {
        match steps.pop_front() {
            Some(Step::Bytes(bytes)) => {
                // The client may close the connection once it has the last byte.
                open_request.is_complete |= steps.is_empty();
                return Some((Ok(Frame::data(bytes)), (steps, open_request)));
            }
            Some(Step::Wait(time)) => tokio::time::sleep(time).await,
            Some(Step::WaitFor(gate)) => gate.wait_until_open().await,
            Some(Step::Hang) => std::future::pending().await,
            Some(Step::Disconnect) => {
                open_request.is_complete = true;
                steps.clear();
                // Earlier chunks must be sent before the connection is closed.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Some((Err(ScriptedDisconnect), (steps, open_request)));
            }
            None => {
                open_request.is_complete = true;
                return None;
            }
        }
    }
}

fn plain_body(bytes: Bytes) -> Body {
    StreamBody::new(stream::once(async { Ok(Frame::data(bytes)) }).boxed())
}

fn respond(status: u16, headers: &[(String, String)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(body).expect("a response")
}
