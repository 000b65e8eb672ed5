//! How much a client may ask of a gateway, and who is put out.

use chatmesh::fanout::Limit;
use secrecy::SecretString;

use super::*;

async fn upgraded(gateway: &Gateway, query: &str, headers: &[(&'static str, &str)]) -> Client {
    loop {
        match gateway.upgrade(query, headers).await {
            Ok(client) => return client,
            Err((503, body)) if body.contains("yet") => tokio::task::yield_now().await,
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_user_has_so_many_connections_and_a_place_is_free_again_at_once() {
    let gateway = start(GatewaySettings {
        limits: ConnectionLimits {
            per_user: 2,
            ..ConnectionLimits::default()
        },
        ..settings()
    })
    .await;
    let alice = "?token=t&userid=alice";
    let first = upgraded(&gateway, alice, &[]).await;
    let _second = upgraded(&gateway, alice, &[]).await;
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
    let _bob = upgraded(&gateway, "?token=t&userid=bob", &[]).await;
    drop(first);
    let freed = async {
        while gateway.try_upgrade(alice, &[]).await.0 == 503 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, freed).await.unwrap();
}

#[tokio::test]
async fn an_address_is_the_trusted_proxys_word() {
    let gateway = start(GatewaySettings {
        limits: ConnectionLimits {
            per_address: 1,
            trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
            ..ConnectionLimits::default()
        },
        ..settings()
    })
    .await;
    let from = |ip: &'static str| [("x-forwarded-for", ip)];
    let _one = upgraded(&gateway, "?token=t&userid=a", &from("9.9.9.9")).await;
    let again = gateway
        .try_upgrade("?token=t&userid=b", &from("9.9.9.9"))
        .await;
    assert_eq!(again.0, 503);
    // The first of the list is only what the client says of itself.
    let forged = gateway
        .try_upgrade("?token=t&userid=b", &from("1.1.1.1, 9.9.9.9"))
        .await;
    assert_eq!(forged.0, 503);
    let _two = upgraded(&gateway, "?token=t&userid=b", &from("8.8.8.8")).await;
}

#[tokio::test]
async fn new_connections_over_the_pace_are_told_to_come_back() {
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
    assert!(refused >= 10, "{refused}");
}

#[tokio::test]
async fn a_message_over_the_rate_is_refused_in_the_originals_words_and_abuse_is_closed() {
    let gateway = start(settings()).await;
    let mut client = gateway.connect("alice").await;
    *gateway.fanout.refuse.lock().unwrap() = Some(Limit::Rate(Duration::from_secs(6)));
    client.ask("one").await;
    let frame = client.json().await;
    assert_eq!(frame["type"], "error");
    assert_eq!(frame["code"], "rate_limited");
    assert_eq!(frame["message"], "Rate limit exceeded. Please slow down.");
    assert!(gateway.log.is_empty());
    for _ in 0..98 {
        client.ask("again").await;
        assert_eq!(client.json().await["code"], "rate_limited");
    }
    client.ask("the hundredth").await;
    assert_eq!(client.closed().await, 4429);
}

#[tokio::test]
async fn with_the_fan_out_away_messages_are_refused_or_taken_as_it_is_set() {
    for open in [false, true] {
        let gateway = start(GatewaySettings {
            produce_timeout: Duration::from_millis(400),
            rate_fail_open: open,
            ..settings()
        })
        .await;
        let mut client = gateway.connect("alice").await;
        gateway
            .fanout
            .away
            .store(true, std::sync::atomic::Ordering::SeqCst);
        client.ask("hello").await;
        if open {
            let taken = timeout(PATIENCE, gateway.log.records(1)).await;
            assert_eq!(taken.unwrap().len(), 1);
        } else {
            assert_eq!(client.json().await["code"], "unavailable");
            assert!(gateway.log.is_empty());
        }
    }
}

#[tokio::test]
async fn with_the_fan_out_known_to_be_away_nobody_waits_for_it() {
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
    // The fan-out would answer: refused is refused without having asked it.
    client.ask("hello").await;
    assert_eq!(client.json().await["code"], "unavailable");
    gateway.health.set("redis", Ok(()));
    client.ask("hello").await;
    let taken = timeout(PATIENCE, gateway.log.records(1)).await;
    assert_eq!(taken.unwrap().len(), 1);
}

#[tokio::test]
async fn revoking_closes_the_users_sockets_and_nobody_elses() {
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
        clients.push((upgraded(&gateway, &query, &[]).await, query));
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
        assert_eq!(client.closed().await, 4401);
        assert_eq!(gateway.try_upgrade(&query, &[]).await.0, 401);
    }
    bob.expect_no_frame().await;
}

#[tokio::test]
async fn without_an_admin_key_nobody_revokes() {
    let gateway = start(settings()).await;
    let (status, _, _) = gateway.http("DELETE /token?userid=alice HTTP/1.1").await;
    assert_eq!(status, 404);
}
