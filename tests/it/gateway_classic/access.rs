//! Access to the gateway: refusals, tokens, origins, health.

use std::sync::atomic::Ordering;

use secrecy::SecretString;
use serde_json::Value;

use super::*;

/// The error code in the body of a refusal.
fn error_code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["type"], "error");
    assert!(body["message"].is_string());
    body["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_refusal_has_its_status_and_an_error_as_body() {
    let gateway = start(GatewaySettings {
        auth: AuthMode::Stored,
        token_endpoint: TokenEndpoint::Open,
        ..settings()
    })
    .await;
    let (status, head, body) = gateway.http("POST /token?userid=alice HTTP/1.1").await;
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("cache-control: no-store"));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["userid"], "alice");
    assert_eq!(body["expires_in"], 3600);
    let token = body["token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    let (_, _, second_body) = gateway.http("POST /token?userid=alice HTTP/1.1").await;
    assert!(
        second_body.contains(token),
        "a stored token must be returned again"
    );

    let valid_query = format!("?token={token}&userid=alice");
    // The gateway refuses upgrades until its feed is open.
    while gateway.try_upgrade(&valid_query, &[]).await.0 == 503 {}
    assert_eq!(gateway.try_upgrade(&valid_query, &[]).await.0, 101);
    let allowed_origin = [("origin", "https://chat.example")];
    assert_eq!(
        gateway.try_upgrade(&valid_query, &allowed_origin).await.0,
        101
    );
    for (query, headers, status, expected_code) in [
        ("?token=x".to_owned(), vec![], 400, "invalid_message"),
        (
            "?token=x&userid=a%20b".into(),
            vec![],
            400,
            "invalid_message",
        ),
        ("?token=x&userid=*".into(), vec![], 400, "invalid_message"),
        ("?userid=alice".into(), vec![], 401, "unauthorized"),
        ("?userid=alice&token=".into(), vec![], 401, "unauthorized"),
        ("?userid=alice&token=x".into(), vec![], 401, "unauthorized"),
        (
            format!("?userid=bob&token={token}"),
            vec![],
            401,
            "unauthorized",
        ),
        (
            valid_query.clone(),
            vec![("origin", "https://evil.example")],
            403,
            "unauthorized",
        ),
    ] {
        let (actual_status, body) = gateway.try_upgrade(&query, &headers).await;
        assert_eq!(actual_status, status, "{query}");
        assert_eq!(error_code(&body), expected_code, "{query}");
    }
    gateway.fanout.is_unavailable.store(true, Ordering::SeqCst);
    let (status, body) = gateway.try_upgrade(&valid_query, &[]).await;
    assert_eq!((status, error_code(&body).as_str()), (503, "unavailable"));
    let (status, _, _) = gateway.http("POST /token?userid=alice HTTP/1.1").await;
    assert_eq!(status, 503);
    let (status, _, body) = gateway
        .http(&format!("GET /ws{valid_query} HTTP/1.1"))
        .await;
    assert_eq!(
        (status, error_code(&body).as_str()),
        (400, "invalid_message")
    );
    assert_eq!(gateway.http("GET /nothing HTTP/1.1").await.0, 404);
    assert_eq!(gateway.http("GET /token HTTP/1.1").await.0, 405);
}

#[tokio::test]
async fn no_web_page_can_use_an_open_gateway_on_loopback() {
    let gateway = start(settings()).await;
    let query = "?token=t&userid=alice";
    gateway.connect("alice").await;
    let own_origin = format!("http://{}", gateway.addr);
    assert_eq!(
        gateway
            .try_upgrade(query, &[("origin", &own_origin)])
            .await
            .0,
        101
    );
    for headers in [
        [("origin", "https://chat.example")],
        [("origin", "null")],
        [("host", "evil.example:8000")],
    ] {
        let (status, _) = gateway.try_upgrade(query, &headers).await;
        assert_eq!(status, 403, "{headers:?}");
    }
    let empty_token = gateway.try_upgrade("?token=&userid=alice", &[]).await;
    assert_eq!(empty_token.0, 401);
}

#[tokio::test]
async fn tokens_are_issued_only_as_configured() {
    let gateway = start(settings()).await;
    let request = "POST /token?userid=alice HTTP/1.1";
    assert_eq!(gateway.http(request).await.0, 404);

    let gateway = start(GatewaySettings {
        auth: AuthMode::Stored,
        token_endpoint: TokenEndpoint::Admin(SecretString::from("key")),
        ..settings()
    })
    .await;
    for (authorization, status) in [
        ("X: y", 401),
        ("Authorization: Bearer kez", 401),
        ("Authorization: Bearer ", 401),
        ("Authorization: Basic key", 401),
        ("Authorization: Bearer key", 200),
    ] {
        let (actual_status, _, _) = gateway.http(&format!("{request}\r\n{authorization}")).await;
        assert_eq!(actual_status, status, "{authorization}");
    }
    let invalid_userid = "POST /token?userid=a%20b HTTP/1.1\r\nAuthorization: Bearer key";
    assert_eq!(gateway.http(invalid_userid).await.0, 400);

    let origin = "Origin: https://chat.example";
    let preflight = format!("OPTIONS /token?userid=alice HTTP/1.1\r\n{origin}");
    let (status, head, _) = gateway.http(&preflight).await;
    assert_eq!(status, 204);
    assert!(
        head.contains("access-control-allow-origin: https://chat.example"),
        "{head}"
    );
    assert!(head.contains("authorization"), "{head}");
    let (_, head, _) = gateway.http(&format!("{request}\r\n{origin}")).await;
    assert!(
        head.contains("access-control-allow-origin: https://chat.example"),
        "{head}"
    );
    let (status, head, _) = gateway
        .http("OPTIONS /token HTTP/1.1\r\nOrigin: https://evil.example")
        .await;
    assert_eq!(status, 403);
    assert!(!head.contains("access-control-allow-origin"), "{head}");
}

#[tokio::test]
async fn health_counts_users_and_connections_like_the_original() {
    let gateway = start(settings()).await;
    let mut first = gateway.connect("alice").await;
    let _second = gateway.connect("alice").await;
    let _third = gateway.connect("bob").await;
    let health = gateway.health().await;
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["service"], "websocket-server");
    assert_eq!(health["server_id"], "server_1");
    assert_eq!(health["active_users"], 2);
    assert_eq!(health["total_connections"], 3);
    first.stream.close(None).await.unwrap();
    while gateway.health().await["total_connections"] != 2 {}
}

#[tokio::test]
async fn correlation_id_is_echoed_and_unknown_subprotocol_is_not() {
    let gateway = start(settings()).await;
    gateway.connect("alice").await;
    let client = gateway
        .upgrade("?token=t&userid=alice", &[("x-correlation-id", "trace-7")])
        .await
        .unwrap();
    assert_eq!(client.correlation_id, "trace-7");
    let upgrade = "GET /ws?token=t&userid=alice HTTP/1.1\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
        Sec-WebSocket-Protocol: soap\r\nConnection: Upgrade";
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let request = format!("{upgrade}\r\nHost: {}\r\n\r\n", gateway.addr);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(!head.contains("sec-websocket-protocol"), "{head}");
}

#[tokio::test]
async fn idle_http_connection_does_not_delay_the_drain() {
    let mut gateway = start(settings()).await;
    let _idle = TcpStream::connect(gateway.addr).await.unwrap();
    gateway.connect("alice").await;
    gateway.drain.cancel();
    let served = timeout(Duration::from_secs(7), &mut gateway.served).await;
    served.unwrap().unwrap().unwrap();
}
