//! The close codes and refusals of `chatmesh.v1`, over real sockets.

use std::time::Duration;

use fred::interfaces::KeysInterface;

use crate::support::classic::ClassicClient;
use crate::support::model::Script;
use crate::support::redis::redis_client;
use crate::support::stack::Stack;
use crate::support::system::{Backend, TestSystem};
use crate::support::v1::V1Client;
use crate::support::{TEST_TIMEOUT, http, unique_name, wait_until};

#[tokio::test]
async fn protocol_violation_closes_the_socket_with_its_code() {
    let system = TestSystem::start(Backend::Embedded, &[]).await;
    let mut device = V1Client::open(system.port(0), "alice").await;
    device.send_binary(b"{}").await;
    assert_eq!(device.expect_close().await, Some(1003));

    let mut device = V1Client::open(system.port(0), "alice").await;
    device.send_invalid_utf8().await;
    assert_eq!(device.expect_close().await, Some(1007));

    let mut device = V1Client::open(system.port(0), "alice").await;
    device.send_stray_continuation().await;
    assert_eq!(device.expect_close().await, Some(1002));

    let mut device = V1Client::open(system.port(0), "alice").await;
    device.send_text(&"x".repeat(70_000)).await;
    // The close frame can be lost when the server resets a connection with unread bytes.
    let code = device.expect_close().await;
    assert!([Some(1009), None].contains(&code), "{code:?}");
}

#[tokio::test]
async fn rejected_client_gets_a_close_code() {
    let system = TestSystem::start(Backend::Embedded, &[]).await;
    let mut device = V1Client::new("alice");
    for path in ["/ws?userid=alice", "/ws?token=&userid=alice"] {
        device
            .upgrade(system.port(0), path, &[])
            .await
            .expect("an upgrade");
        assert_eq!(device.expect_close().await, Some(4401), "{path}");
        assert!(device.frames.is_empty());
    }
    let foreign_origin = [("origin", "http://evil.example")];
    let path = "/ws?token=t&userid=alice";
    device
        .upgrade(system.port(0), path, &foreign_origin)
        .await
        .expect("an upgrade");
    assert_eq!(device.expect_close().await, Some(4403));
    // Invalid parameters are an error of the program, not of its user, so they are refused with an
    // HTTP status.
    for path in ["/ws?token=t&userid=a%20b", "/ws?token=t"] {
        let refused = device.upgrade(system.port(0), path, &[]).await.unwrap_err();
        assert_eq!(refused.status, 400, "{path}: {refused:?}");
    }
    // A client without the subprotocol is refused with an HTTP status.
    let refused =
        ClassicClient::connect_with(system.port(0), "/ws?userid=alice", &[], "alice").await;
    assert_eq!(refused.unwrap_err().status, 401);
}

#[tokio::test]
async fn client_without_pong_is_closed() {
    let env = [("PING_INTERVAL_MS", "300"), ("PING_TIMEOUT_MS", "400")];
    let system = TestSystem::start(Backend::Embedded, &env).await;
    let mut device = V1Client::open(system.port(0), "alice").await;
    let mut other = V1Client::open(system.port(0), "bob").await;
    // The other client reads, so its library answers pings and it stays connected. The first client
    // does not read.
    other.expect_no_frame(Duration::from_secs(2)).await;
    assert_eq!(device.expect_close().await, Some(4408));
}

#[tokio::test]
async fn draining_process_sends_closing_before_the_close() {
    let mut system = TestSystem::start(Backend::Embedded, &[]).await;
    let prompt = unique_name("drained");
    let slow = Script::complete("one two three four").chunk_interval(Duration::from_millis(150));
    system.model().queue_answer(&prompt, slow);
    let mut device = V1Client::open(system.port(0), "alice").await;
    let mut idle = V1Client::open(system.port(0), "bob").await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "one").await;
    system.gateways[0].terminate();
    for client in [&mut idle, &mut device] {
        assert_eq!(client.expect_close().await, Some(1001));
        let closing = client.frames.last().unwrap();
        assert_eq!(closing["type"], "closing", "{closing}");
    }
    let status = system.gateways[0].wait_exit(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_token_admits_until_it_expires() {
    let stack = Stack::start().await;
    let gateway = stack
        .gateway("server_1")
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "open")
        .env("TOKEN_TTL", "3")
        .start()
        .await;
    let mut device = V1Client::new("alice");
    device.token = "wrong".to_owned();
    let path = "/ws?token=wrong&userid=alice";
    device
        .upgrade(gateway.port(), path, &[])
        .await
        .expect("an upgrade");
    assert_eq!(device.expect_close().await, Some(4401));
    let reply = http::post(&gateway.url("/token?userid=alice"), &[]).await;
    device.token = reply.json()["token"].as_str().unwrap().to_owned();
    device.connect(gateway.port()).await;
    assert_eq!(
        device.expect_close().await,
        Some(4401),
        "expected the close code of an expired token"
    );
    match device.try_connect(gateway.port()).await {
        Ok(welcome) => panic!("an expired token was accepted: {welcome}"),
        Err(_) => assert_eq!(device.close_code, Some(4401)),
    }
    // The token of a classic client is checked only at the upgrade, so the connection outlives the
    // token.
    let reply = http::post(&gateway.url("/token?userid=bob"), &[]).await;
    let token = reply.json()["token"].as_str().unwrap().to_owned();
    let mut classic = ClassicClient::connect(gateway.port(), &token, "bob")
        .await
        .unwrap();
    let redis = redis_client(&stack.redis.url()).await;
    wait_until(
        "the token of the classic client expires",
        TEST_TIMEOUT,
        || async {
            let stored: Option<String> = redis.get("token:bob").await.unwrap();
            stored.is_none()
        },
    )
    .await;
    // The connection still receives replies.
    classic.send_text("no JSON").await;
    assert_eq!(classic.next_frame().await["code"], "invalid_message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_client_is_refused_while_redis_is_unavailable() {
    let mut stack = Stack::start().await;
    let mut gateway = stack.gateway("server_1").start().await;
    stack.redis.kill();
    let mut device = V1Client::new("alice");
    let refused = device
        .try_connect(gateway.port())
        .await
        .map(|_| ())
        .unwrap_err();
    let is_temporary_refusal = refused.status == 503 || device.close_code == Some(4503);
    assert!(is_temporary_refusal, "{refused:?}, {:?}", device.close_code);
    stack.redis.restart().await;
    gateway.wait_ready(TEST_TIMEOUT).await;
    device.connect_with_retries(&[gateway.port()]).await;
}
