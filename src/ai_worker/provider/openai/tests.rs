//! Tests of the client against a scripted server: responses as compatible servers really send them,
//! and every way in which a call can fail.

use futures_util::StreamExt;

use self::server::{Server, ServerEvent, Step, reply, write};
use super::*;
use crate::ai_worker::provider::{ModelEvent, PartDelta, PartKey, Role};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Usage;

mod failures;
mod server;

const HELLO: &str = r#"{"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#;
const WORLD: &str = r#"{"choices":[{"index":0,"delta":{"content":" world"}}],"usage":null}"#;
const STOP: &str = r#"{"model":"m-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
/// Start of a response head. A header that delimits the body, and an empty line, must follow.
const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

/// The head of a response whose stream ends when the connection is closed.
fn stream_head() -> Step {
    write(format!("{STREAM}connection: close\r\n\r\n"))
}

/// A step that sends these events.
fn data(events: &[&str]) -> Step {
    write(format!("data: {}\n\n", events.join("\n\ndata: ")))
}

/// A script that sends a stream with this body, then closes the connection.
fn body(text: impl Into<String>) -> Vec<Step> {
    vec![stream_head(), write(text), Step::Close]
}

fn api(base: &str) -> OpenAi {
    api_with_timeouts(base, Duration::from_secs(20), Duration::from_secs(20))
}

fn api_with_timeouts(base: &str, first_token: Duration, idle: Duration) -> OpenAi {
    OpenAi::new(&ModelApiSettings {
        base_url: base.parse().unwrap(),
        api_key: Some("sk-very-secret".into()),
        first_token_timeout: first_token,
        idle_timeout: idle,
        max_attempts: 3,
    })
    .unwrap()
}

fn request() -> ModelRequest {
    ModelRequest {
        model: "m".to_owned(),
        messages: vec![ChatMessage {
            role: Role::User,
            content: "my secret diary".to_owned(),
        }],
        max_tokens: 500,
        temperature: 0.7,
    }
}

#[derive(Debug, PartialEq)]
struct RecordedAnswer {
    text: String,
    usage: Option<Usage>,
    reason: String,
    model: Option<String>,
}

fn recorded(text: &str, usage: bool, reason: &str, model: Option<&str>) -> RecordedAnswer {
    RecordedAnswer {
        text: text.to_owned(),
        usage: usage.then_some(Usage {
            prompt_tokens: 7,
            completion_tokens: 2,
            total_tokens: 9,
        }),
        reason: reason.to_owned(),
        model: model.map(str::to_owned),
    }
}

async fn collect(mut stream: ModelStream) -> Result<RecordedAnswer, (String, ModelError)> {
    let mut answer = recorded("", false, "", None);
    let mut finished = false;
    while let Some(event) = stream.next().await {
        assert!(!finished, "an event after the end");
        match event {
            Ok(ModelEvent::Delta(delta)) => {
                assert!(answer.usage.is_none());
                if delta.key == PartKey::Text {
                    answer.text.push_str(&delta.text);
                }
            }
            Ok(ModelEvent::Usage(usage)) => assert!(answer.usage.replace(usage).is_none()),
            Ok(ModelEvent::Finished { reason, model }) => {
                (answer.reason, answer.model) = (reason, model);
                finished = true;
            }
            Err(error) => {
                assert!(stream.next().await.is_none());
                return Err((answer.text, error));
            }
        }
    }
    assert!(finished, "the stream ended without Finished");
    Ok(answer)
}

async fn ask(api: &OpenAi) -> Result<RecordedAnswer, (String, ModelError)> {
    match api.call(&request()).await {
        Ok(stream) => collect(stream).await,
        Err(error) => Err((String::new(), error)),
    }
}

/// Makes one call to a server that plays `script`. Checks that an error quotes neither prompt nor
/// key.
async fn ask_once(script: Vec<Step>) -> Result<RecordedAnswer, (String, ModelError)> {
    let server = Server::start(vec![script]).await;
    let result = ask(&api(&server.base)).await;
    if let Err((_, error)) = &result {
        let text = format!("{error:?}");
        assert!(
            !text.contains("diary") && !text.contains("sk-very"),
            "{text}"
        );
    }
    result
}

/// Makes one call to a server that plays `script`. Returns the error's code, whether the call may
/// be retried, and the metric label.
async fn error_of(script: Vec<Step>) -> (ErrorCode, bool, &'static str) {
    let (_, error) = ask_once(script).await.unwrap_err();
    (error.code, error.retryable, error.kind)
}

#[tokio::test]
async fn an_answer_is_read_and_the_request_has_the_expected_form() {
    let script = vec![
        stream_head(),
        data(&[HELLO, WORLD, STOP, USAGE, "[DONE]"]),
        Step::Close,
    ];
    let mut server = Server::start(vec![script]).await;
    let result = ask(&api(&server.base)).await.unwrap();
    assert_eq!(result, recorded("Hello world", true, "stop", Some("m-1")));
    let (head, sent) = server.next_request().await;
    assert!(
        head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("authorization: Bearer sk-very-secret\r\n"),
        "{head}"
    );
    let expected = serde_json::json!({
        "model": "m", "messages": [{"role": "user", "content": "my secret diary"}],
        "stream": true, "stream_options": {"include_usage": true},
        "max_tokens": 500, "temperature": 0.7,
    });
    assert_eq!(sent, expected);
}

#[test]
fn every_form_of_the_base_url_leads_to_the_endpoint() {
    for (base, url) in [
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
        ("http://h:1", "http://h:1/chat/completions"),
        ("http://h/a/b?v=1", "http://h/a/b/chat/completions?v=1"),
    ] {
        assert_eq!(api(base).url.as_str(), url);
    }
}

#[test]
fn invalid_settings_are_refused_with_a_reason() {
    let settings = |base: &str, key: &str| ModelApiSettings {
        base_url: base.parse().unwrap(),
        api_key: Some(key.into()),
        first_token_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(10),
        max_attempts: 3,
    };
    let error = OpenAi::new(&settings("ftp://h", "k"))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "OPENAI_BASE_URL must begin with http:// or https://");
    let error = OpenAi::new(&settings("http://h", "sk-a\nb"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("OPENAI_API_KEY contains") && !error.contains("sk-a"),
        "{error}"
    );
}

#[tokio::test]
async fn deviations_of_compatible_servers_are_accepted() {
    let role = r#"{"choices":[{"delta":{"role":"assistant","content":null}}],"error":null}"#;
    let reasoning = r#"{"choices":[{"delta":{"reasoning_content":"hm","content":""}}]}"#;
    let parts = r#"{"choices":[{"delta":{"content":[{"type":"thinking","text":"x"},{"type":"text","text":"Hello"}]}}]}"#;
    let legacy =
        r#"{"choices":[{"delta":{"function_call":null,"tool_calls":[]},"finish_reason":""}]}"#;
    let other = r#"{"choices":[{"index":1,"delta":{"content":"no"}}]}"#;
    let abort = r#"{"choices":[{"delta":{"content":" world"},"finish_reason":"abort"}]}"#;
    let lines = [role, reasoning, parts, legacy, other, abort].map(|e| format!("data:{e}\r\n\r\n"));
    let text = format!(": hi\n\nevent: ping\n\nretry: 5\n\n{}", lines.concat());
    // The body has neither `[DONE]` nor usage. Trimming removes the empty line after the last
    // event.
    let text = text.trim_end();
    assert_eq!(
        ask_once(body(text)).await.unwrap(),
        recorded("Hello world", false, "abort", None)
    );
}

#[tokio::test]
async fn a_response_without_streaming_is_accepted() {
    let json = r#"{"model":"m-1",
        "choices":[{"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
    let script = reply("200 OK", "content-type: application/json\r\n", json);
    assert_eq!(
        ask_once(script).await.unwrap(),
        recorded("Hello", true, "stop", Some("m-1"))
    );
    let json = r#"{"error":{"message":"my secret diary","code":503}}"#;
    let script = reply("200 OK", "content-type: application/json\r\n", json);
    assert_eq!(
        error_of(script).await,
        (ErrorCode::ProviderFailed, true, kind::SERVER)
    );
}

#[tokio::test]
async fn an_empty_answer_with_a_finish_reason_is_an_answer() {
    let script = vec![stream_head(), data(&[STOP, "[DONE]"]), Step::Close];
    assert_eq!(
        ask_once(script).await.unwrap(),
        recorded("", false, "stop", Some("m-1"))
    );
}

#[tokio::test]
async fn the_last_usage_counts_if_every_chunk_has_one() {
    let first = r#"{"choices":[{"delta":{"content":"Hello"}}],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#;
    let script = vec![
        stream_head(),
        data(&[first, STOP, USAGE, "[DONE]"]),
        Step::Close,
    ];
    assert_eq!(
        ask_once(script).await.unwrap(),
        recorded("Hello", true, "stop", Some("m-1"))
    );
}

#[tokio::test]
async fn an_unclosed_connection_does_not_delay_the_answer() {
    for events in [&[HELLO, STOP, USAGE][..], &[HELLO, STOP, USAGE, "[DONE]"]] {
        let mut server = Server::start(vec![vec![stream_head(), data(events), Step::Hang]]).await;
        let api = api_with_timeouts(
            &server.base,
            Duration::from_secs(20),
            Duration::from_millis(200),
        );
        assert_eq!(
            ask(&api).await.unwrap(),
            recorded("Hello", true, "stop", Some("m-1"))
        );
        server.wait_until_closed().await;
    }
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    let script = vec![stream_head(), data(&[HELLO]), Step::Hang];
    let mut server = Server::start(vec![script]).await;
    let api = api(&server.base);
    let mut stream = api.call(&request()).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    let hello = PartDelta::new(PartKey::Text, "Hello");
    assert_eq!(first, ModelEvent::Delta(hello));
    drop(stream);
    server.wait_until_closed().await;
}

#[tokio::test]
async fn the_parts_of_a_chunk_become_one_event_each() {
    let first = r#"{"choices":[{"delta":{"reasoning_content":"hm","content":"Hello"}}]}"#;
    let call = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]}}]}"#;
    let end = r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#;
    let script = vec![
        stream_head(),
        data(&[first, call, end, "[DONE]"]),
        Step::Close,
    ];
    let server = Server::start(vec![script]).await;
    let stream = api(&server.base).call(&request()).await.unwrap();
    let events: Vec<_> = stream.map(Result::unwrap).collect().await;
    let keys: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ModelEvent::Delta(delta) => Some(delta.key),
            _ => None,
        })
        .collect();
    assert_eq!(
        keys,
        [PartKey::Reasoning, PartKey::Text, PartKey::ToolCall(0)]
    );
    assert!(
        matches!(&events[3..], [ModelEvent::Finished { reason, .. }] if reason == "tool_calls"),
        "{events:?}"
    );
}

#[tokio::test]
async fn an_answer_of_tool_calls_only_is_an_answer() {
    let call = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]},"finish_reason":"tool_calls"}]}"#;
    let script = vec![stream_head(), data(&[call, "[DONE]"]), Step::Close];
    assert_eq!(
        ask_once(script).await.unwrap(),
        recorded("", false, "tool_calls", None)
    );
}

#[tokio::test]
async fn reasoning_ends_the_wait_for_the_first_token() {
    let reasoning = r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#;
    let script = vec![stream_head(), data(&[reasoning]), Step::Hang];
    let server = Server::start(vec![script]).await;
    let api = api_with_timeouts(
        &server.base,
        Duration::from_secs(20),
        Duration::from_millis(100),
    );
    let (_, error) = ask(&api).await.unwrap_err();
    assert_eq!(error.kind, kind::IDLE_TIMEOUT);
}

#[tokio::test]
async fn a_connection_is_reused_after_a_complete_answer() {
    let events = format!("data: {HELLO}\n\ndata: {STOP}\n\ndata: [DONE]\n\n");
    let answer = write(format!(
        "{STREAM}transfer-encoding: chunked\r\n\r\n{:x}\r\n{events}\r\n0\r\n\r\n",
        events.len()
    ));
    let mut server = Server::start(vec![vec![answer.clone()], vec![answer]]).await;
    let api = api(&server.base);
    for _ in 0..2 {
        ask(&api).await.unwrap();
        let event = server.events.recv().await.unwrap();
        assert!(
            matches!(event, ServerEvent::Request { connection: 0, .. }),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn every_call_is_counted_once_however_it_ends() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let server = Server::start(vec![
        vec![
            stream_head(),
            data(&[HELLO, STOP, USAGE, "[DONE]"]),
            Step::Close,
        ],
        vec![stream_head(), data(&[HELLO]), Step::Close],
        reply("503 X", "", "{}"),
        vec![stream_head(), data(&[HELLO]), Step::Hang],
    ])
    .await;
    let api = api(&server.base);
    ask(&api).await.unwrap();
    ask(&api).await.unwrap_err();
    ask(&api).await.unwrap_err();
    drop(api.call(&request()).await.unwrap());
    let page = recorder.handle().render();
    for line in [
        r#"ai_consumer_openai_requests_total{model="m",status="success"} 1"#,
        r#"ai_consumer_openai_requests_total{model="m",status="error"} 2"#,
        r#"ai_consumer_openai_requests_total{model="m",status="cancelled"} 1"#,
        r#"ai_consumer_openai_errors_total{error_type="cut_off"} 1"#,
        r#"ai_consumer_openai_errors_total{error_type="server_error"} 1"#,
        r#"ai_consumer_openai_tokens_total{model="m",type="prompt"} 7"#,
        r#"ai_consumer_openai_tokens_total{model="m",type="completion"} 2"#,
        r#"ai_consumer_openai_tokens_total{model="m",type="total"} 9"#,
        r#"ai_consumer_openai_duration_seconds_count{model="m"} 4"#,
        "ai_consumer_openai_throttled_calls 0",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line}\nnot in\n{page}"
        );
    }
}

#[tokio::test]
async fn request_fields_that_a_server_refuses_are_omitted_from_then_on() {
    let refuse = |param: &str, code: &str, text: &str| {
        let error = serde_json::json!({"error":{"message":text,"param":param,"code":code}});
        reply("400 X", "", &error.to_string())
    };
    let success = || vec![stream_head(), data(&[HELLO, STOP, "[DONE]"]), Step::Close];
    let mut server = Server::start(vec![
        reply("400 X", "", r#"{"detail":"unknown field stream_options"}"#),
        refuse(
            "max_tokens",
            "unsupported_parameter",
            "use 'max_completion_tokens' instead",
        ),
        refuse("temperature", "unsupported_value", "only the default"),
        success(),
        success(),
    ])
    .await;
    let api = api(&server.base);
    ask(&api).await.unwrap();
    ask(&api).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..5 {
        let (_, body) = server.next_request().await;
        let keys = [
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
        ];
        sent.push(keys.map(|key| u8::from(body.get(key).is_some())));
    }
    let accepted = [0, 0, 1, 0];
    assert_eq!(
        sent,
        [[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], accepted, accepted]
    );
}
