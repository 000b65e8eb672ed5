//! Limits of connections and messages, and revocation.

use chatmesh::fanout::Limit;
use secrecy::SecretString;

use super::*;

async fn connect_when_ready(
    gateway: &Gateway,
    query: &str,
    headers: &[(&'static str, &str)],
) -> Client {
    loop {
        match gateway.upgrade(query, headers).await {
            Ok(client) => return client,
            Err((503, body)) if body.contains("yet") => tokio::task::yield_now().await,
            Err(refusal) => panic!("{refusal:?}"),
        }
    }
}

#[tokio::test]
async fn connections_per_user_are_bounded_and_a_close_frees_one_at_once() {
    let gateway = start(GatewaySettings {
        limits: ConnectionLimits {
            per_user: 2,
            ..ConnectionLimits::default()
        },
        ..settings()
    })
    .await;
    let alice = "?token=t&userid=alice";
    let first = connect_when_ready(&gateway, alice, &[]).await;
    let _second = connect_when_ready(&gateway, alice, &[]).await;
    let (status, body) = gateway.try_upgrade(alice, &[]).await;
    assert_eq!(status, 503);
    assert!(body.contains("too many connections"), "{body}");
    let (_, head, _) = gateway
        .http(
            "GET /ws?token=t&userid=alice HTTP/1.1\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Connection: Upgrade",
        )
        .await;
    assert!(head.contains("retry-after: "), "{head}");
    let _bob = connect_when_ready(&gateway, "?token=t&userid=bob", &[]).await;
    drop(first);
    let wait_for_slot = async {
        while gateway.try_upgrade(alice, &[]).await.0 == 503 {
            tokio::task::yield_now().await;
        }
    };
    timeout(TEST_TIMEOUT, wait_for_slot).await.unwrap();
}

#[tokio::test]
async fn client_address_is_the_one_reported_by_a_trusted_proxy() {
    let gateway = start(GatewaySettings {
        limits: ConnectionLimits {
            per_address: 1,
            trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
            ..ConnectionLimits::default()
        },
        ..settings()
    })
    .await;
    let forwarded_for = |ip: &'static str| [("x-forwarded-for", ip)];
    let _first_address =
        connect_when_ready(&gateway, "?token=t&userid=a", &forwarded_for("9.9.9.9")).await;
    let second = gateway
        .try_upgrade("?token=t&userid=b", &forwarded_for("9.9.9.9"))
        .await;
    assert_eq!(second.0, 503);
    // Only the last entry was added by the proxy. The client can forge the others.
    let forged = gateway
        .try_upgrade("?token=t&userid=b", &forwarded_for("1.1.1.1, 9.9.9.9"))
        .await;
    assert_eq!(forged.0, 503);
    let _second_address =
        connect_when_ready(&gateway, "?token=t&userid=b", &forwarded_for("8.8.8.8")).await;
}

#[tokio::test]
async fn new_connections_above_the_rate_are_refused() {
    let gateway = start(GatewaySettings {
        limits: ConnectionLimits {
            per_second: 3,
            ..ConnectionLimits::default()
        },
        ..settings()
    })
    .await;
    let mut refused = 0;
    for _ in 0..20 {
        let (status, body) = gateway.try_upgrade("?token=t&userid=a", &[]).await;
        refused += u32::from(status == 503 && body.contains("too many new"));
    }
    assert!(
        refused >= 10,
        "only {refused} of 20 connections were refused"
    );
}

#[tokio::test]
async fn message_above_the_rate_is_refused_with_the_original_text_and_abuse_is_closed() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    *gateway.fanout.refusal.lock().unwrap() = Some(Limit::Rate(Duration::from_secs(6)));
    client.send_message("one").await;
    let frame = client.next_json().await;
    assert_eq!(frame["type"], "error");
    assert_eq!(frame["code"], "rate_limited");
    assert_eq!(frame["message"], "Rate limit exceeded. Please slow down.");
    assert!(gateway.log.is_empty());
    for _ in 0..98 {
        client.send_message("again").await;
        assert_eq!(client.next_json().await["code"], "rate_limited");
    }
    client.send_message("the hundredth").await;
    assert_eq!(client.close_code().await, 4429);
}

#[tokio::test]
async fn messages_without_fanout_are_refused_or_accepted_as_configured() {
    for fail_open in [false, true] {
        let gateway = start(GatewaySettings {
            produce_timeout: Duration::from_millis(400),
            rate_fail_open: fail_open,
            ..settings()
        })
        .await;
        let mut client = gateway.connect("alice").await;
        gateway
            .fanout
            .is_unavailable
            .store(true, std::sync::atomic::Ordering::SeqCst);
        client.send_message("hello").await;
        if fail_open {
            let records = timeout(TEST_TIMEOUT, gateway.log.records(1)).await;
            assert_eq!(records.unwrap().len(), 1);
        } else {
            assert_eq!(client.next_json().await["code"], "unavailable");
            assert!(gateway.log.is_empty());
        }
    }
}

#[tokio::test]
async fn message_does_not_wait_for_a_fanout_known_to_be_unavailable() {
    let gateway = start(GatewaySettings {
        produce_timeout: Duration::from_millis(400),
        ..settings()
    })
    .await;
    let mut client = gateway.connect("alice").await;
    gateway.health.set("redis", Err("refused".into()));
    while gateway.health.unavailable_for("redis") <= Duration::from_millis(200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The fan-out would respond, so the refusal shows that it was not called.
    client.send_message("hello").await;
    assert_eq!(client.next_json().await["code"], "unavailable");
    gateway.health.set("redis", Ok(()));
    client.send_message("hello").await;
    let records = timeout(TEST_TIMEOUT, gateway.log.records(1)).await;
    assert_eq!(records.unwrap().len(), 1);
}

#[tokio::test]
async fn revocation_closes_the_connections_of_its_user_only() {
    let gateway = start(GatewaySettings {
        auth: AuthMode::Stored,
        token_endpoint: TokenEndpoint::Open,
        admin_key: Some(SecretString::from("the-admin-key")),
        ..settings()
    })
    .await;
    let mut clients = Vec::new();
    for name in ["alice", "alice", "bob"] {
        let (_, _, body) = gateway
            .http(&format!("POST /token?userid={name} HTTP/1.1"))
            .await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let token = body["token"].as_str().unwrap().to_owned();
        let query = format!("?token={token}&userid={name}");
        clients.push((connect_when_ready(&gateway, &query, &[]).await, query));
    }
    let key = "\r\nAuthorization: Bearer the-admin-key";
    for (head, status) in [
        ("DELETE /token?userid=alice HTTP/1.1".to_owned(), 401),
        (format!("DELETE /token?userid=alice HTTP/1.1{key}x"), 401),
        (format!("DELETE /token?userid=* HTTP/1.1{key}"), 400),
        (format!("DELETE /token HTTP/1.1{key}"), 400),
        (format!("DELETE /token?userid=alice HTTP/1.1{key}"), 200),
    ] {
        assert_eq!(gateway.http(&head).await.0, status, "{head}");
    }
    let (mut bob, _) = clients.pop().unwrap();
    for (mut client, query) in clients {
        assert_eq!(client.close_code().await, 4401);
        assert_eq!(gateway.try_upgrade(&query, &[]).await.0, 401);
    }
    bob.expect_no_frame().await;
}

#[tokio::test]
async fn revocation_requires_a_configured_admin_key() {
    let gateway = start(settings()).await;
    let (status, _, _) = gateway.http("DELETE /token?userid=alice HTTP/1.1").await;
    assert_eq!(status, 404);
}
