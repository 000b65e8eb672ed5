//! Tests of every way in which a call can fail, and of how the failure is classified.

use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn an_end_without_a_finish_reason_is_a_failure() {
    let cut_off = (ErrorCode::ProviderFailed, true, kind::CUT_OFF);
    assert_eq!(
        error_of(vec![stream_head(), data(&[HELLO]), Step::Close]).await,
        cut_off
    );
    assert_eq!(
        error_of(vec![stream_head(), data(&[HELLO, "[DONE]"]), Step::Close]).await,
        cut_off
    );
    assert_eq!(error_of(vec![stream_head(), Step::Close]).await, cut_off);
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
async fn a_broken_connection_after_the_finish_reason_is_ignored() {
    let chunked = write(format!("{STREAM}transfer-encoding: chunked\r\n\r\n"));
    let events = format!("data: {HELLO}\n\ndata: {STOP}\n\n");
    let piece = write(format!(
        "{:x}\r\n{events}\r\nff\r\ndata: {{\"cho",
        events.len()
    ));
    let script = vec![chunked, piece, Step::Close];
    assert_eq!(
        ask_once(script).await.unwrap(),
        recorded("Hello", false, "stop", Some("m-1"))
    );
}

#[tokio::test]
async fn an_error_in_the_stream_is_recognised_in_every_form() {
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
        let (text, failure) = ask_once(script).await.unwrap_err();
        assert_eq!(
            (failure.code, failure.retryable, failure.kind),
            failed,
            "{error}"
        );
        assert_eq!(text, "Hello");
        // The error is also recognised after the finish reason.
        let script = body(format!("data: {HELLO}\n\ndata: {STOP}\n\n{error}\n\n"));
        assert_eq!(error_of(script).await, failed, "{error}");
    }
    let overload = r#"error: {"code":500,"message":"my secret diary","type":"server_error"}"#;
    let server = (ErrorCode::ProviderFailed, true, kind::SERVER);
    assert_eq!(error_of(body(overload)).await, server);
}

#[tokio::test]
async fn a_body_that_is_no_event_stream_is_a_failure() {
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
async fn a_refusal_with_an_endless_body_is_still_classified() {
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
async fn an_unreachable_server_is_a_connect_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_, error) = ask(&api(&base)).await.unwrap_err();
    let row = (error.code, error.retryable, error.kind);
    assert_eq!(row, (ErrorCode::ProviderFailed, true, kind::CONNECT));
    assert!(!error.detail.contains("127.0.0.1/"), "{}", error.detail);
}

#[tokio::test]
async fn a_missing_first_token_times_out() {
    let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    for script in [
        vec![Step::Hang],
        vec![stream_head(), Step::Hang],
        vec![stream_head(), data(&[role]), Step::Hang],
        vec![
            write(format!("{STREAM}content-type: application/json\r\n\r\n{{")),
            Step::Hang,
        ],
    ] {
        let mut server = Server::start(vec![script]).await;
        let api = api_with_timeouts(
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
        server.wait_until_closed().await;
    }
}

#[tokio::test]
async fn a_silence_between_tokens_times_out() {
    let script = vec![stream_head(), data(&[HELLO]), Step::Hang];
    let mut server = Server::start(vec![script]).await;
    let api = api_with_timeouts(
        &server.base,
        Duration::from_secs(20),
        Duration::from_millis(100),
    );
    let (text, error) = ask(&api).await.unwrap_err();
    let row = (error.code, error.retryable, error.kind);
    assert_eq!(row, (ErrorCode::ProviderTimeout, true, kind::IDLE_TIMEOUT));
    assert_eq!(text, "Hello");
    server.wait_until_closed().await;
}

#[tokio::test]
async fn a_429_delays_the_next_call_even_if_it_arrives_in_a_stream() {
    let in_stream = r#"{"error":{"code":429,"message":"slow down"}}"#;
    for refused in [
        reply("429 X", "retry-after-ms: 300\r\n", "{}"),
        vec![stream_head(), data(&[in_stream]), Step::Close],
    ] {
        let good = vec![stream_head(), data(&[HELLO, STOP, "[DONE]"]), Step::Close];
        let server = Server::start(vec![refused, good]).await;
        let api = api(&server.base);
        let (_, error) = ask(&api).await.unwrap_err();
        let refused_at = Instant::now();
        assert_eq!(error.kind, kind::RATE_LIMITED);
        ask(&api).await.unwrap();
        assert!(refused_at.elapsed() >= Duration::from_millis(250));
    }
}
