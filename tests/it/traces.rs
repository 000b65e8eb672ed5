//! Traces: one per message over all roles, exported to a real OTLP collector; without a collector,
//! no message is lost or delayed.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::classic::ClassicClient;
use crate::support::collector::{Span, TraceCollector};
use crate::support::machine::reserve_machine;
use crate::support::model::{Answer, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec, free_port};
use crate::support::stack::Stack;
use crate::support::v1::V1Client;
use crate::support::{TEST_TIMEOUT, http, wait_until};

/// The trace and the span of the client that sends the message.
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN_ID: &str = "b7ad6b7169203331";
const USER: &str = "secretive-alice";
const PROMPT: &str = "a confidential question";

/// The client's trace context; `flags` is `01` if the trace is sampled, and `00` if it is not.
fn traceparent(flags: &str) -> String {
    format!("00-{TRACE_ID}-{CLIENT_SPAN_ID}-{flags}")
}

/// The trace id in the trace context of a frame.
fn trace_id(frame: &Value) -> &str {
    let field = frame["traceparent"].as_str();
    let field = field.unwrap_or_else(|| panic!("no traceparent: {frame}"));
    assert_eq!(field.len(), 55, "{field}");
    &field[3..35]
}

/// Configures the export of spans to the collector.
fn with_traces(spec: ProcessSpec, collector: &TraceCollector) -> ProcessSpec {
    spec.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20key")
        .env("LOG_FORMAT", "json")
}

/// Sends a message with the client's trace context. The first call of the model fails, and a second
/// device of the user receives the answer too.
async fn send_traced_message(port: u16, model: &ScriptedModel) -> Value {
    model.queue_answer(PROMPT, Answer::error(500, "server_error", "for a moment"));
    let mut phone = V1Client::open(port, USER).await;
    let mut laptop = V1Client::open(port, USER).await;
    let frame = json!({
        "type": "message", "id": "1", "content": PROMPT, "conversation_id": "hidden-conversation",
        "traceparent": traceparent("01"), "tracestate": "vendor=x",
    });
    laptop.send_message_frame(&frame).await;
    let answer = laptop.wait_for_terminal_frame("1").await;
    assert_eq!(answer["type"], "response", "{answer}");
    phone.wait_for_type("response").await;
    answer
}

/// A span of the trace: the role that exports it, its name, its kind, and the name of its parent.
type ExpectedSpan = (&'static str, &'static str, i32, &'static str);

const EXPECTED_SPANS: [ExpectedSpan; 17] = [
    ("gateway", "receive message", 2, "client"),
    ("gateway", "admit", 1, "receive message"),
    ("gateway", "send incoming_messages", 4, "receive message"),
    (
        "ai-worker",
        "log wait incoming_messages",
        1,
        "send incoming_messages",
    ),
    (
        "ai-worker",
        "process incoming_messages",
        5,
        "send incoming_messages",
    ),
    ("ai-worker", "lane wait", 1, "process incoming_messages"),
    ("ai-worker", "begin", 1, "process incoming_messages"),
    (
        "ai-worker",
        "chat gpt-3.5-turbo",
        3,
        "process incoming_messages",
    ),
    (
        "ai-worker",
        "chat gpt-3.5-turbo",
        3,
        "process incoming_messages",
    ),
    ("ai-worker", "keep", 1, "process incoming_messages"),
    (
        "ai-worker",
        "send responses",
        4,
        "process incoming_messages",
    ),
    ("relay", "log wait responses", 1, "send responses"),
    ("relay", "process responses", 5, "send responses"),
    ("relay", "lane wait", 1, "process responses"),
    ("relay", "publish", 4, "process responses"),
    ("gateway", "deliver to socket", 5, "publish"),
    ("gateway", "deliver to socket", 5, "publish"),
];

/// Waits until the trace is complete and asserts that each span has its parent.
async fn wait_for_complete_trace(
    collector: &TraceCollector,
    service_name: fn(&str) -> String,
) -> Vec<Span> {
    let span_count = EXPECTED_SPANS.len();
    let description = format!("{span_count} spans");
    wait_until(&description, TEST_TIMEOUT, || async {
        let spans = collector.trace_spans(TRACE_ID);
        assert!(
            spans.len() <= span_count,
            "more spans than expected: {spans:#?}"
        );
        spans.len() == span_count
    })
    .await;
    let spans = collector.trace_spans(TRACE_ID);
    let name_of = |id: &str| match spans.iter().find(|span| span.id == id) {
        Some(span) => span.name.as_str(),
        None if id == CLIENT_SPAN_ID => "client",
        None => "unknown",
    };
    let mut actual: Vec<(String, &str, i32, &str)> = spans
        .iter()
        .map(|span| {
            let parent = name_of(&span.parent_id);
            (span.service.clone(), span.name.as_str(), span.kind, parent)
        })
        .collect();
    let mut expected: Vec<(String, &str, i32, &str)> = EXPECTED_SPANS
        .iter()
        .map(|(role, name, kind, parent)| (service_name(role), *name, *kind, *parent))
        .collect();
    actual.sort_unstable();
    expected.sort_unstable();
    assert_eq!(actual, expected);
    spans
}

/// Asserts the attributes of the spans, and that they hold no private data.
fn assert_span_contents(spans: &[Span], answer: &Value) {
    let ids: HashSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    assert_eq!(ids.len(), spans.len());
    for span in spans {
        assert!(span.start_ns <= span.end_ns, "{span:?}");
        // This span continues the trace of the published frame, which has no `tracestate`.
        if span.name != "deliver to socket" {
            assert_eq!(span.trace_state, "vendor=x", "{span:?}");
        }
        let text = format!("{span:?}");
        for private in [USER, PROMPT, "hidden-conversation", "sk-test", "any-token"] {
            assert!(!text.contains(private), "{private} in {span:?}");
        }
    }
    let mut calls: Vec<&Span> = spans
        .iter()
        .filter(|s| s.name.starts_with("chat"))
        .collect();
    calls.sort_by_key(|span| span.start_ns);
    assert_eq!(calls[0].attributes["chatmesh.attempt"], "1");
    assert!(calls[0].failed && calls[0].events.is_empty(), "{calls:#?}");
    assert!(calls[0].attributes.contains_key("error.type"));
    assert_eq!(calls[1].attributes["chatmesh.attempt"], "2");
    assert_eq!(calls[1].events, ["first token"]);
    assert_eq!(calls[1].attributes["gen_ai.operation.name"], "chat");
    assert!(
        calls[1]
            .attributes
            .contains_key("gen_ai.usage.output_tokens")
    );
    let failed = spans.iter().filter(|span| span.failed);
    assert_eq!(failed.count(), 1, "only the first call failed");
    let span_named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let received = span_named("receive message");
    assert_eq!(
        received.attributes["messaging.message.id"],
        answer["message_id"]
    );
    assert_eq!(
        received.attributes["correlation_id"],
        answer["correlation_id"]
    );
    // The spans along the path of the message start in this order.
    let mut previous_start = 0;
    for name in [
        "receive message",
        "send incoming_messages",
        "process incoming_messages",
        "send responses",
        "process responses",
        "publish",
        "deliver to socket",
    ] {
        let start = span_named(name).start_ns;
        assert!(start >= previous_start, "{name} started too early");
        previous_start = start;
    }
    let log_wait = span_named("log wait incoming_messages");
    assert_eq!(
        log_wait.end_ns,
        span_named("process incoming_messages").start_ns
    );
    // The frame that the client receives names the span that published it.
    let publish = &span_named("publish").id;
    assert_eq!(answer["traceparent"], format!("00-{TRACE_ID}-{publish}-01"));
}

async fn assert_logs_trace_id(process: &ChatmeshProcess, text: &str) {
    process.wait_for_log(TRACE_ID, TEST_TIMEOUT).await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains(text));
    let line = line.unwrap_or_else(|| panic!("{text} is not logged: {log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["trace_id"], TRACE_ID, "{line}");
    assert!(line["correlation_id"].is_string(), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_covers_a_message_over_three_processes() {
    let collector = TraceCollector::start().await;
    let stack = Stack::start().await;
    let gateway = with_traces(stack.gateway("server_1"), &collector)
        .start()
        .await;
    let worker = with_traces(stack.worker("worker_1"), &collector)
        .start()
        .await;
    let relay = with_traces(stack.relay("relay_1"), &collector)
        .start()
        .await;
    let answer = send_traced_message(gateway.port(), &stack.model).await;
    assert_eq!(trace_id(&answer), TRACE_ID);
    let spans = wait_for_complete_trace(&collector, |role| format!("chatmesh-{role}")).await;
    assert_span_contents(&spans, &answer);
    assert_eq!(collector.header("x-key").as_deref(), Some("a key"));
    let system = |name: &str| {
        let span = spans.iter().find(|span| span.name == name).unwrap();
        span.attributes["messaging.system"].clone()
    };
    assert_eq!(system("process incoming_messages"), "kafka");
    assert_eq!(system("publish"), "redis");
    assert_logs_trace_id(&gateway, "message accepted").await;
    assert_logs_trace_id(&worker, "terminal record produced").await;
    assert_logs_trace_id(&relay, "delivered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_in_one_exports_the_same_trace_and_no_unsampled_one() {
    let collector = TraceCollector::start().await;
    let model = ScriptedModel::start().await;
    let mut process = with_traces(ProcessSpec::ephemeral(), &collector)
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
        .env("OTEL_SERVICE_NAME", "my chat")
        .start()
        .await;
    let answer = send_traced_message(process.port(), &model).await;
    let spans = wait_for_complete_trace(&collector, |_| "my chat".to_owned()).await;
    assert_span_contents(&spans, &answer);
    assert_logs_trace_id(&process, "message accepted").await;

    let mut device = V1Client::open(process.port(), "bob").await;
    let unsampled_trace = "11111111111111111111111111111111";
    let unsampled = format!("00-{unsampled_trace}-{CLIENT_SPAN_ID}-00");
    let frame = json!({"type": "message", "id": "1", "content": "x", "traceparent": unsampled});
    device.send_message_frame(&frame).await;
    let answer = device.wait_for_terminal_frame("1").await;
    assert_eq!(trace_id(&answer), unsampled_trace);
    assert!(answer["traceparent"].as_str().unwrap().ends_with("-00"));
    // An invalid trace context is ignored, and the gateway starts a trace.
    let frame = json!({"type": "message", "id": "2", "content": "y", "traceparent": 7});
    device.send_message_frame(&frame).await;
    let answer = device.wait_for_terminal_frame("2").await;
    let new_trace = trace_id(&answer).to_owned();
    assert!(new_trace != unsampled_trace && new_trace != TRACE_ID);
    // A drain exports the queued spans.
    process.drain().await;
    let spans = collector.trace_spans(&new_trace);
    let root = spans.iter().find(|span| span.parent_id.is_empty()).unwrap();
    assert_eq!(root.name, "receive message");
    assert!(spans.iter().any(|span| span.name == "deliver to socket"));
    assert!(collector.trace_spans(unsampled_trace).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_context_is_propagated_when_traces_are_off() {
    let process = ProcessSpec::ephemeral().start().await;
    let mut device = V1Client::new(USER);
    let path = format!("/ws?token=t&userid={USER}");
    let context = traceparent("01");
    let headers = [("traceparent", context.as_str())];
    device
        .upgrade(process.port(), &path, &headers)
        .await
        .unwrap();
    device.wait_for_type("welcome").await;
    assert_eq!(
        device.send_and_wait("1", "hello").await["traceparent"],
        context
    );
    // A client that sends no trace context receives none, and a classic client never receives one.
    let mut other = V1Client::open(process.port(), "bob").await;
    assert_eq!(
        other.send_and_wait("1", "hello").await.get("traceparent"),
        None
    );
    let mut classic = ClassicClient::connect_with(process.port(), &path, &headers, USER)
        .await
        .unwrap();
    assert_eq!(
        classic.send_and_wait("hello").await.get("traceparent"),
        None
    );
    let metrics = http::get(&process.url("/metrics")).await.body;
    assert!(metrics.contains("chatmesh_trace_spans_exported_total 0"));
}

/// Asserts that messages are answered and the process drains within the usual time, although no
/// span is exported. `after_first_answer` waits until an export has failed or hangs.
async fn assert_answers_and_drains(
    endpoint: &str,
    after_first_answer: impl AsyncFnOnce(&ChatmeshProcess),
) {
    let _machine = reserve_machine().await;
    let mut process = ProcessSpec::ephemeral()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")
        .start()
        .await;
    let mut device = V1Client::open(process.port(), USER).await;
    assert_eq!(device.send_and_wait("0", "first").await["type"], "response");
    after_first_answer(&process).await;
    let start = Instant::now();
    for n in 1..=20 {
        let answer = device.send_and_wait(&n.to_string(), "hello").await;
        assert_eq!(answer["type"], "response");
    }
    let duration = start.elapsed();
    assert!(
        duration < Duration::from_secs(15),
        "20 answers took {duration:?}"
    );
    device.drop_connection();
    process.terminate();
    let status = process.wait_exit(Duration::from_secs(12)).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_collector_delays_neither_answers_nor_drain() {
    let collector = TraceCollector::start_hanging().await;
    assert_answers_and_drains(&collector.endpoint(), async |_| {
        wait_until("an export hangs", TEST_TIMEOUT, || async {
            collector.request_count() == 1
        })
        .await;
    })
    .await;
    assert_eq!(
        collector.request_count(),
        1,
        "only one export may run at a time"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_dropped_without_a_collector_are_counted_and_logged_once() {
    let missing_collector = format!("http://127.0.0.1:{}", free_port());
    assert_answers_and_drains(&missing_collector, async |process| {
        let url = process.url("/metrics");
        let dropped_spans = r#"chatmesh_trace_spans_dropped_total{reason="export_failed"}"#;
        wait_until("the loss is counted", TEST_TIMEOUT, || async {
            let metrics = http::get(&url).await.body;
            let line = metrics.lines().find(|line| line.starts_with(dropped_spans));
            line.is_some_and(|line| !line.ends_with(" 0"))
        })
        .await;
        let warning = "spans dropped: the collector rejects them";
        assert_eq!(process.log().matches(warning).count(), 1);
    })
    .await;
}
