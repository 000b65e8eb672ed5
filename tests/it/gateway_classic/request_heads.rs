//! Generated requests: each is answered or closed, and none causes an internal error.

use chatmesh::config::settings::{JwtKeys, JwtSettings};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;

/// Text for a request line or a header, valid or not.
fn request_text(max_length: usize) -> impl Strategy<Value = String> {
    let pattern = move |set: &str| format!("{set}{{0,{max_length}}}");
    prop_oneof![
        prop::string::string_regex(&pattern("[!-~]")).unwrap(),
        prop::string::string_regex(&pattern("[A-Za-z0-9._~%&=+/?:@,;-]")).unwrap(),
        prop::sample::select(vec![
            "alice",
            "%",
            "%2",
            "%zz",
            "%00",
            "%ff%fe",
            "%2e%2e%2f",
            "%0d%0a",
            "..",
            "default",
            "bearer.x.y.z",
            "chatmesh.v1, bearer.",
            "Bearer ",
            "Bearer a.b.c",
            "127.0.0.1",
            "[::1",
            "[::1]:",
            "localhost:99999",
            ",,,",
            "18446744073709551616",
            "-1",
            "a~0~1.7",
        ])
        .prop_map(str::to_owned),
    ]
}

fn request_head() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec!["GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "X"]);
    let path = prop_oneof![
        Just("/ws".to_owned()),
        Just("/token".to_owned()),
        Just("/conversations".to_owned()),
        request_text(40).prop_map(|name| format!("/conversations/{name}")),
        request_text(40).prop_map(|name| format!("/conversations/{name}/messages")),
        request_text(60).prop_map(|path| format!("/{path}")),
    ];
    let names = ["userid", "token", "since", "before", "after", "limit", "x"];
    let parameter = (prop::sample::select(names.to_vec()), request_text(60))
        .prop_map(|(name, value)| format!("{name}={value}"));
    let names = [
        "Authorization",
        "Origin",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Upgrade",
        "X-Forwarded-For",
        "X-Correlation-ID",
        "traceparent",
        "Content-Length",
        "Transfer-Encoding",
        "Access-Control-Request-Method",
    ];
    let header = (prop::sample::select(names.to_vec()), request_text(60))
        .prop_map(|(name, value)| format!("\r\n{name}: {value}"));
    let parameters = prop::collection::vec(parameter, 0..4);
    (
        method,
        path,
        parameters,
        prop::collection::vec(header, 0..5),
    )
        .prop_map(|(method, path, parameters, headers)| {
            let (query, headers) = (parameters.join("&"), headers.concat());
            format!("{method} {path}?{query} HTTP/1.1{headers}")
        })
}

#[tokio::test]
async fn every_request_is_answered_or_closed() {
    let gateway = start(GatewaySettings {
        auth: AuthMode::Jwt,
        jwt: Some(JwtSettings {
            keys: JwtKeys::Secret("0123456789abcdef0123456789abcdef".into()),
            audience: Vec::new(),
            issuer: Vec::new(),
        }),
        token_endpoint: TokenEndpoint::Open,
        limits: ConnectionLimits {
            trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
            ..ConnectionLimits::default()
        },
        head_timeout: Duration::from_millis(200),
        ..settings()
    })
    .await;
    let mut runner = TestRunner::deterministic();
    let (heads, mut response_count) = (request_head(), 0);
    for _ in 0..400 {
        let head = heads.new_tree(&mut runner).unwrap().current();
        let request = format!(
            "{head}\r\nHost: {}\r\nConnection: close\r\n\r\n",
            gateway.addr
        );
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        let read = timeout(TEST_TIMEOUT, stream.read_to_end(&mut response)).await;
        let _ = read.unwrap_or_else(|_| panic!("the connection of {request:?} was not closed"));
        let response = String::from_utf8_lossy(&response).into_owned();
        // A connection that is closed without a response may mean a panic, except after a request
        // with a body, which the gateway does not read.
        let has_no_body = !head.contains("Content-Length") && !head.contains("Transfer-Encoding");
        assert!(
            !has_no_body || response.starts_with("HTTP/1."),
            "{request:?}: {response}"
        );
        let status = response
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        assert!(
            status.is_none_or(|status: u16| status < 500 || status == 503),
            "{request:?}: {response}"
        );
        response_count += usize::from(status.is_some());
    }
    assert!(
        response_count > 300,
        "only {response_count} of 400 requests were answered"
    );
    assert_eq!(gateway.http("GET /health HTTP/1.1").await.0, 200);
}
