//! The client against a scripted server, byte by byte: what other servers really send, and every
//! way in which they break off.

use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::ai_worker::provider::{ModelEvent, Role};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::record::Usage;

const HELLO: &str = r#"{"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#;
const WORLD: &str = r#"{"choices":[{"index":0,"delta":{"content":" world"}}],"usage":null}"#;
const STOP: &str = r#"{"model":"m-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

/// What the server does with a request.
#[derive(Clone)]
enum Step {
    /// Writes these bytes.
    Write(String),
    /// Does nothing until the client closes.
    Hang,
    /// Closes the connection.
    Close,
}

#[derive(Debug)]
enum Seen {
    Request {
        /// Counted from 0.
        connection: usize,
        head: String,
        body: serde_json::Value,
    },
    Closed,
}

struct Server {
    base: String,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Server {
    /// One script a request, in their order; connections are kept where the script doesn't close.
    async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::unbounded_channel();
        let scripts = Arc::new(std::sync::Mutex::new(scripts.into_iter()));
        tokio::spawn(async move {
            let mut connections = 0..;
            while let Ok((socket, _)) = listener.accept().await {
                let connection = connections.next().unwrap();
                let (sender, scripts) = (sender.clone(), Arc::clone(&scripts));
                tokio::spawn(async move {
                    let next = || scripts.lock().unwrap().next();
                    serve(connection, socket, &sender, next).await;
                    let _ = sender.send(Seen::Closed);
                });
            }
        });
        Self { base, seen }
    }

    async fn request(&mut self) -> (String, serde_json::Value) {
        loop {
            if let Seen::Request { head, body, .. } = self.seen.recv().await.unwrap() {
                return (head, body);
            }
        }
    }

    async fn closed(&mut self) {
        while !matches!(self.seen.recv().await.unwrap(), Seen::Closed) {}
    }
}

async fn serve(
    connection: usize,
    mut socket: TcpStream,
    seen: &mpsc::UnboundedSender<Seen>,
    next: impl Fn() -> Option<Vec<Step>>,
) {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer.drain(..head_end).collect()).unwrap();
        let lower = head.to_lowercase();
        let length = lower.split("content-length: ").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        while buffer.len() < length {
            assert_ne!(socket.read_buf(&mut buffer).await.unwrap(), 0);
        }
        let body: Vec<u8> = buffer.drain(..length).collect();
        let body = serde_json::from_slice(&body).unwrap();
        let request = Seen::Request {
            connection,
            head,
            body,
        };
        seen.send(request).unwrap();
        for step in next().expect("more requests than scripts") {
            match step {
                Step::Write(text) => {
                    if socket.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Step::Hang => while socket.read(&mut [0; 64]).await.unwrap_or(0) > 0 {},
                Step::Close => return,
            }
        }
    }
}

fn write(text: impl Into<String>) -> Step {
    Step::Write(text.into())
}

/// The head of a stream that ends with the connection.
fn open() -> Step {
    write(format!("{STREAM}connection: close\r\n\r\n"))
}

fn data(events: &[&str]) -> Step {
    write(format!("data: {}\n\n", events.join("\n\ndata: ")))
}

fn reply(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n");
    vec![write(head + body)]
}

/// A whole stream with this body, closed at its end.
fn body(text: impl Into<String>) -> Vec<Step> {
    vec![open(), write(text), Step::Close]
}

fn api(base: &str) -> OpenAi {
    patient(base, Duration::from_secs(20), Duration::from_secs(20))
}

fn patient(base: &str, first_token: Duration, idle: Duration) -> OpenAi {
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
struct Told {
    text: String,
    usage: Option<Usage>,
    reason: String,
    model: Option<String>,
}

fn told(text: &str, usage: bool, reason: &str, model: Option<&str>) -> Told {
    Told {
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

async fn collect(mut stream: ModelStream) -> Result<Told, (String, ModelError)> {
    let mut told = told("", false, "", None);
    let mut finished = false;
    while let Some(event) = stream.next().await {
        assert!(!finished, "something after the end");
        match event {
            Ok(ModelEvent::Text(text)) => {
                assert!(!text.is_empty() && told.usage.is_none());
                told.text.push_str(&text);
            }
            Ok(ModelEvent::Usage(usage)) => assert!(told.usage.replace(usage).is_none()),
            Ok(ModelEvent::Finished { reason, model }) => {
                (told.reason, told.model) = (reason, model);
                finished = true;
            }
            Err(error) => {
                assert!(stream.next().await.is_none());
                return Err((told.text, error));
            }
        }
    }
    assert!(finished, "an end without a word");
    Ok(told)
}

async fn ask(api: &OpenAi) -> Result<Told, (String, ModelError)> {
    match api.call(&request()).await {
        Ok(stream) => collect(stream).await,
        Err(error) => Err((String::new(), error)),
    }
}

async fn ask_once(script: Vec<Step>) -> Result<Told, (String, ModelError)> {
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

async fn error_of(script: Vec<Step>) -> (ErrorCode, bool, &'static str) {
    let (_, error) = ask_once(script).await.unwrap_err();
    (error.code, error.retryable, error.kind)
}

#[tokio::test]
async fn a_whole_answer_and_what_is_sent_for_it() {
    let script = vec![
        open(),
        data(&[HELLO, WORLD, STOP, USAGE, "[DONE]"]),
        Step::Close,
    ];
    let mut server = Server::start(vec![script]).await;
    let result = ask(&api(&server.base)).await.unwrap();
    assert_eq!(result, told("Hello world", true, "stop", Some("m-1")));
    let (head, sent) = server.request().await;
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
fn any_form_of_base_url_is_the_same_address() {
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
fn settings_that_make_no_client_say_why() {
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
        error.starts_with("OPENAI_API_KEY holds") && !error.contains("sk-a"),
        "{error}"
    );
}

#[tokio::test]
async fn what_other_servers_send_is_understood() {
    let role = r#"{"choices":[{"delta":{"role":"assistant","content":null}}],"error":null}"#;
    let reasoning = r#"{"choices":[{"delta":{"reasoning_content":"hm","content":""}}]}"#;
    let parts = r#"{"choices":[{"delta":{"content":[{"type":"thinking","text":"x"},{"type":"text","text":"Hello"}]}}]}"#;
    let legacy =
        r#"{"choices":[{"delta":{"function_call":null,"tool_calls":[]},"finish_reason":""}]}"#;
    let other = r#"{"choices":[{"index":1,"delta":{"content":"no"}}]}"#;
    let abort = r#"{"choices":[{"delta":{"content":" world"},"finish_reason":"abort"}]}"#;
    let lines = [role, reasoning, parts, legacy, other, abort].map(|e| format!("data:{e}\r\n\r\n"));
    let text = format!(": hi\n\nevent: ping\n\nretry: 5\n\n{}", lines.concat());
    // No [DONE], no usage, no last empty line.
    let text = text.trim_end();
    assert_eq!(
        ask_once(body(text)).await.unwrap(),
        told("Hello world", false, "abort", None)
    );
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood() {
    let json = r#"{"model":"m-1",
        "choices":[{"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
    let script = reply("200 OK", "content-type: application/json\r\n", json);
    assert_eq!(
        ask_once(script).await.unwrap(),
        told("Hello", true, "stop", Some("m-1"))
    );
    let json = r#"{"error":{"message":"my secret diary","code":503}}"#;
    let script = reply("200 OK", "content-type: application/json\r\n", json);
    assert_eq!(
        error_of(script).await,
        (ErrorCode::ProviderFailed, true, kind::SERVER)
    );
}

#[tokio::test]
async fn an_empty_answer_with_a_reason_is_an_answer() {
    let script = vec![open(), data(&[STOP, "[DONE]"]), Step::Close];
    assert_eq!(
        ask_once(script).await.unwrap(),
        told("", false, "stop", Some("m-1"))
    );
}

#[tokio::test]
async fn the_last_usage_counts_where_every_chunk_has_one() {
    let first = r#"{"choices":[{"delta":{"content":"Hello"}}],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#;
    let script = vec![open(), data(&[first, STOP, USAGE, "[DONE]"]), Step::Close];
    assert_eq!(
        ask_once(script).await.unwrap(),
        told("Hello", true, "stop", Some("m-1"))
    );
}

#[tokio::test]
async fn an_end_without_a_finish_reason_is_a_failure() {
    let cut_off = (ErrorCode::ProviderFailed, true, kind::CUT_OFF);
    assert_eq!(
        error_of(vec![open(), data(&[HELLO]), Step::Close]).await,
        cut_off
    );
    assert_eq!(
        error_of(vec![open(), data(&[HELLO, "[DONE]"]), Step::Close]).await,
        cut_off
    );
    assert_eq!(error_of(vec![open(), Step::Close]).await, cut_off);
}

#[tokio::test]
async fn a_broken_connection_is_a_failure() {
    let chunked = write(format!("{STREAM}transfer-encoding: chunked\r\n\r\n"));
    let half = write("ffff\r\ndata: ");
    let script = vec![chunked, half, Step::Close];
    assert_eq!(
        error_of(script).await,
        (ErrorCode::ProviderFailed, true, kind::CONNECTION)
    );
    let script = vec![Step::Close];
    assert_eq!(
        error_of(script).await,
        (ErrorCode::ProviderFailed, true, kind::CONNECTION)
    );
}

#[tokio::test]
async fn a_break_after_the_finish_reason_loses_nothing() {
    let chunked = write(format!("{STREAM}transfer-encoding: chunked\r\n\r\n"));
    let events = format!("data: {HELLO}\n\ndata: {STOP}\n\n");
    let piece = write(format!(
        "{:x}\r\n{events}\r\nff\r\ndata: {{\"cho",
        events.len()
    ));
    let script = vec![chunked, piece, Step::Close];
    assert_eq!(
        ask_once(script).await.unwrap(),
        told("Hello", false, "stop", Some("m-1"))
    );
}

#[tokio::test]
async fn an_error_in_the_stream_is_an_error_in_every_form() {
    let failed = (ErrorCode::ProviderFailed, true, kind::STREAM_ERROR);
    for error in [
        r#"data: {"error":{"message":"my secret diary","type":"server_error"}}"#,
        r#"data: {"object":"error","message":"my secret diary","type":"x"}"#,
        r#"data: {"message":"my secret diary","code":"x"}"#,
        r#"data: {"choices":[{"delta":{},"finish_reason":"error"}]}"#,
        "event: error\ndata: my secret diary",
        r#"error: {"message":"my secret diary","type":"server_error"}"#,
    ] {
        let script = body(format!("data: {HELLO}\n\n{error}\n\n"));
        let (text, problem) = ask_once(script).await.unwrap_err();
        assert_eq!(
            (problem.code, problem.retryable, problem.kind),
            failed,
            "{error}"
        );
        assert_eq!(text, "Hello");
        // Also where the finish reason has come before it.
        let script = body(format!("data: {HELLO}\n\ndata: {STOP}\n\n{error}\n\n"));
        assert_eq!(error_of(script).await, failed, "{error}");
    }
    let overload = r#"error: {"code":500,"message":"my secret diary","type":"server_error"}"#;
    let server = (ErrorCode::ProviderFailed, true, kind::SERVER);
    assert_eq!(error_of(body(overload)).await, server);
}

#[tokio::test]
async fn what_is_no_event_stream_is_a_failure() {
    let malformed = (ErrorCode::ProviderFailed, true, kind::MALFORMED);
    assert_eq!(error_of(body("data: <html>\n\n")).await, malformed);
    assert_eq!(
        error_of(body(format!("data: {}", "x".repeat(MAX_EVENT_BYTES)))).await,
        malformed
    );
}

#[tokio::test]
async fn refusals_are_classified() {
    let quota = r#"{"error":{"message":"my secret diary","code":"insufficient_quota"}}"#;
    let other = r#"{"error":{"message":"my secret diary"}}"#;
    for (status, headers, text, expected) in [
        (
            "500 X",
            "",
            "<html>my secret diary",
            (ErrorCode::ProviderFailed, true, kind::SERVER),
        ),
        (
            "503 X",
            "x-should-retry: false\r\n",
            other,
            (ErrorCode::ProviderFailed, false, kind::SERVER),
        ),
        (
            "408 X",
            "",
            other,
            (ErrorCode::ProviderTimeout, true, kind::TIMEOUT_STATUS),
        ),
        (
            "409 X",
            "",
            other,
            (ErrorCode::ProviderFailed, true, kind::SERVER),
        ),
        (
            "429 X",
            "",
            other,
            (ErrorCode::ProviderRateLimited, true, kind::RATE_LIMITED),
        ),
        (
            "429 X",
            "",
            quota,
            (ErrorCode::ProviderRateLimited, false, kind::QUOTA),
        ),
        (
            "400 X",
            "",
            other,
            (ErrorCode::ProviderRejected, false, kind::REJECTED),
        ),
        (
            "400 X",
            "x-should-retry: true\r\n",
            other,
            (ErrorCode::ProviderRejected, true, kind::REJECTED),
        ),
        (
            "401 X",
            "",
            other,
            (ErrorCode::ProviderRejected, false, kind::AUTH),
        ),
        (
            "404 X",
            "",
            "",
            (ErrorCode::ProviderRejected, false, kind::REJECTED),
        ),
        (
            "307 X",
            "location: /elsewhere\r\n",
            "",
            (ErrorCode::ProviderFailed, false, kind::REJECTED),
        ),
    ] {
        assert_eq!(
            error_of(reply(status, headers, text)).await,
            expected,
            "{status}"
        );
    }
    let script = reply("503 X", "retry-after: 7\r\n", other);
    let (_, error) = ask_once(script).await.unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_refusal_whose_body_never_ends_is_still_a_refusal() {
    let head = write("HTTP/1.1 503 X\r\ncontent-length: 9999999\r\n\r\n{");
    let script = vec![head, Step::Hang];
    assert_eq!(
        error_of(script).await,
        (ErrorCode::ProviderFailed, true, kind::SERVER)
    );
    let head = "HTTP/1.1 400 X\r\ncontent-length: 9999999\r\n\r\n".to_owned();
    let script = vec![write(head + &"x".repeat(MAX_ERROR_BYTES + 1)), Step::Hang];
    assert_eq!(
        error_of(script).await,
        (ErrorCode::ProviderRejected, false, kind::REJECTED)
    );
}

#[tokio::test]
async fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_, error) = ask(&api(&base)).await.unwrap_err();
    let row = (error.code, error.retryable, error.kind);
    assert_eq!(row, (ErrorCode::ProviderFailed, true, kind::CONNECT));
    assert!(!error.detail.contains("127.0.0.1/"), "{}", error.detail);
}

#[tokio::test]
async fn the_first_token_is_waited_for_only_so_long() {
    let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    for script in [
        vec![Step::Hang],
        vec![open(), Step::Hang],
        vec![open(), data(&[role]), Step::Hang],
        vec![
            write(format!("{STREAM}content-type: application/json\r\n\r\n{{")),
            Step::Hang,
        ],
    ] {
        let mut server = Server::start(vec![script]).await;
        let api = patient(
            &server.base,
            Duration::from_millis(150),
            Duration::from_secs(20),
        );
        let (_, error) = ask(&api).await.unwrap_err();
        let row = (error.code, error.retryable, error.kind);
        assert_eq!(
            row,
            (ErrorCode::ProviderTimeout, true, kind::FIRST_TOKEN_TIMEOUT)
        );
        server.closed().await;
    }
}

#[tokio::test]
async fn a_silence_between_tokens_is_waited_for_only_so_long() {
    let script = vec![open(), data(&[HELLO]), Step::Hang];
    let mut server = Server::start(vec![script]).await;
    let api = patient(
        &server.base,
        Duration::from_secs(20),
        Duration::from_millis(100),
    );
    let (text, error) = ask(&api).await.unwrap_err();
    let row = (error.code, error.retryable, error.kind);
    assert_eq!(row, (ErrorCode::ProviderTimeout, true, kind::IDLE_TIMEOUT));
    assert_eq!(text, "Hello");
    server.closed().await;
}

#[tokio::test]
async fn a_server_that_never_closes_does_not_hold_up_the_answer() {
    for events in [&[HELLO, STOP, USAGE][..], &[HELLO, STOP, USAGE, "[DONE]"]] {
        let mut server = Server::start(vec![vec![open(), data(events), Step::Hang]]).await;
        let api = patient(
            &server.base,
            Duration::from_secs(20),
            Duration::from_millis(200),
        );
        assert_eq!(
            ask(&api).await.unwrap(),
            told("Hello", true, "stop", Some("m-1"))
        );
        server.closed().await;
    }
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    let script = vec![open(), data(&[HELLO]), Step::Hang];
    let mut server = Server::start(vec![script]).await;
    let api = api(&server.base);
    let mut stream = api.call(&request()).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first, ModelEvent::Text("Hello".to_owned()));
    drop(stream);
    server.closed().await;
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_whole_answer() {
    let events = format!("data: {HELLO}\n\ndata: {STOP}\n\ndata: [DONE]\n\n");
    let answer = write(format!(
        "{STREAM}transfer-encoding: chunked\r\n\r\n{:x}\r\n{events}\r\n0\r\n\r\n",
        events.len()
    ));
    let mut server = Server::start(vec![vec![answer.clone()], vec![answer]]).await;
    let api = api(&server.base);
    for _ in 0..2 {
        ask(&api).await.unwrap();
        let seen = server.seen.recv().await.unwrap();
        assert!(
            matches!(seen, Seen::Request { connection: 0, .. }),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn every_call_is_counted_once_however_it_ends() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let server = Server::start(vec![
        vec![open(), data(&[HELLO, STOP, USAGE, "[DONE]"]), Step::Close],
        vec![open(), data(&[HELLO]), Step::Close],
        reply("503 X", "", "{}"),
        vec![open(), data(&[HELLO]), Step::Hang],
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
async fn fields_that_a_server_does_not_take_are_left_out_from_then_on() {
    let refuse = |param: &str, code: &str, text: &str| {
        let error = serde_json::json!({"error":{"message":text,"param":param,"code":code}});
        reply("400 X", "", &error.to_string())
    };
    let good = || vec![open(), data(&[HELLO, STOP, "[DONE]"]), Step::Close];
    let mut server = Server::start(vec![
        reply("400 X", "", r#"{"detail":"unknown field stream_options"}"#),
        refuse(
            "max_tokens",
            "unsupported_parameter",
            "use 'max_completion_tokens' instead",
        ),
        refuse("temperature", "unsupported_value", "only the default"),
        good(),
        good(),
    ])
    .await;
    let api = api(&server.base);
    ask(&api).await.unwrap();
    ask(&api).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..5 {
        let (_, body) = server.request().await;
        let keys = [
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
        ];
        sent.push(keys.map(|key| u8::from(body.get(key).is_some())));
    }
    let last = [0, 0, 1, 0];
    assert_eq!(sent, [[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], last, last]);
}

#[tokio::test]
async fn a_429_slows_the_next_call_also_from_within_a_stream() {
    let inside = r#"{"error":{"code":429,"message":"slow down"}}"#;
    for refused in [
        reply("429 X", "retry-after-ms: 300\r\n", "{}"),
        vec![open(), data(&[inside]), Step::Close],
    ] {
        let good = vec![open(), data(&[HELLO, STOP, "[DONE]"]), Step::Close];
        let server = Server::start(vec![refused, good]).await;
        let api = api(&server.base);
        let (_, error) = ask(&api).await.unwrap_err();
        let refused_at = Instant::now();
        assert_eq!(error.kind, kind::RATE_LIMITED);
        ask(&api).await.unwrap();
        assert!(refused_at.elapsed() >= Duration::from_millis(250));
    }
}

fn parsed(pieces: Vec<Bytes>) -> Vec<Result<Event, String>> {
    let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    let events = sse::events(pieces).map(|event| event.map_err(|e| e.to_string()));
    futures_util::FutureExt::now_or_never(events.collect()).unwrap()
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_events(
        cuts in prop::collection::vec(0_usize..400, 0..30),
        line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
    ) {
        let text = [
            ": comment", "", "data: {\"a\":\"Grüße 👋\"}", "", "event: error", "data: x", "",
            "error: {\"code\":500}", "", "err: no", "error", "data:a", "data: b", "", "e", "",
            "id: error:", "data: error: data", "", "data: [DONE]",
        ].join(line_end);
        let event = |data: &str, is_error| Ok(Event { data: data.to_owned(), is_error });
        let expected = vec![
            event("{\"a\":\"Grüße 👋\"}", false),
            event("x", true),
            event("{\"code\":500}", true),
            event("a\nb", false),
            event("error: data", false),
            event("[DONE]", false),
        ];
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < text.len()).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([text.len()]) {
            pieces.push(Bytes::copy_from_slice(&text.as_bytes()[from..cut]));
            from = cut;
        }
        prop_assert_eq!(parsed(pieces), expected);
    }
}

#[test]
fn every_single_byte_apart_and_a_bound_on_events_not_on_streams() {
    let line = format!("data: {}\n\n", "x".repeat(1000));
    let bytes = line.bytes().map(|byte| Bytes::copy_from_slice(&[byte]));
    assert_eq!(parsed(bytes.collect()).len(), 1);
    let many = vec![Bytes::from(line); MAX_EVENT_BYTES / 500];
    assert_eq!(parsed(many).len(), MAX_EVENT_BYTES / 500);
    let line = Bytes::from(format!("data: {}\r\n", "x".repeat(1000)));
    let events = parsed(vec![line; MAX_EVENT_BYTES / 500]);
    assert!(
        matches!(&events[..], [Err(text)] if text.contains("more than")),
        "{events:?}"
    );
}
