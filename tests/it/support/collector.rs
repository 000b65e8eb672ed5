//! A minimal OpenTelemetry collector. It receives spans as OTLP over HTTP with protobuf.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A span that the collector received.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// The attribute `service.name` of the sender.
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) trace_id: String,
    pub(crate) id: String,
    /// Empty for a root span.
    pub(crate) parent_id: String,
    pub(crate) trace_state: String,
    /// The number of the kind in protobuf: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub(crate) kind: i32,
    /// Time of the start in nanoseconds since 1970.
    pub(crate) start_ns: u64,
    /// Time of the end in nanoseconds since 1970.
    pub(crate) end_ns: u64,
    pub(crate) attributes: HashMap<String, String>,
    /// The names of the events.
    pub(crate) events: Vec<String>,
    /// Whether the status is an error.
    pub(crate) failed: bool,
}

#[derive(Default)]
struct State {
    spans: Vec<Span>,
    /// The headers of each request.
    headers: Vec<HashMap<String, String>>,
}

/// The running collector. Drop stops it.
pub(crate) struct TraceCollector {
    port: u16,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl TraceCollector {
    pub(crate) async fn start() -> Self {
        Self::start_with(true).await
    }

    /// Starts a collector that receives requests and never answers.
    pub(crate) async fn start_hanging() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(answers: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared_state = state.clone();
        let server = tokio::spawn(async move {
            // Dropping this set with the server closes all connections.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared_state.clone();
                let service =
                    service_fn(move |request| receive_spans(request, state.clone(), answers));
                connections.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self {
            port,
            state,
            server,
        }
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The number of received requests.
    pub(crate) fn request_count(&self) -> usize {
        let state = self.state.lock();
        state.headers.len()
    }

    /// A header of the first request.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let state = self.state.lock();
        state.headers.first()?.get(name).cloned()
    }

    /// The received spans of a trace.
    pub(crate) fn trace_spans(&self, trace_id: &str) -> Vec<Span> {
        let state = self.state.lock();
        let spans = state.spans.iter().filter(|span| span.trace_id == trace_id);
        spans.cloned().collect()
    }
}

impl Drop for TraceCollector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive_spans(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    answers: bool,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    let headers = headers.collect();
    let body = request
        .into_body()
        .collect()
        .await
        .expect("a complete body");
    let body = ExportTraceServiceRequest::decode(body.to_bytes()).expect("OTLP");
    {
        let mut state = state.lock();
        state.headers.push(headers);
        state.spans.extend(spans(body));
    }
    if !answers {
        std::future::pending::<()>().await;
    }
    Ok(Response::new(Full::default()))
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = resource_spans.resource.expect("a resource");
        let service = attributes(resource.attributes)
            .remove("service.name")
            .expect("a service.name");
        for span in resource_spans.scope_spans.into_iter().flat_map(|s| s.spans) {
            spans.push(Span {
                service: service.clone(),
                name: span.name,
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                trace_state: span.trace_state,
                kind: span.kind,
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
                attributes: attributes(span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                failed: span.status.is_some_and(|status| status.code == 2),
            });
        }
    }
    spans
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("write to a string");
        text
    })
}

fn attributes(list: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    list.into_iter()
        .map(|attribute| (attribute.key, text(attribute.value)))
        .collect()
}
