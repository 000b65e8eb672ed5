//! Every close code, and every refusal, over a real socket.

use std::time::Duration;

use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::model::Script;
use crate::support::stack::Stack;
use crate::support::system::{Backend, TestSystem};
use crate::support::v1::V1Client;
use crate::support::{TEST_TIMEOUT, http, unique_name};

#[tokio::test]
async fn frames_that_no_client_should_send_close_the_socket_with_their_code() {
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
async fn who_may_not_come_in_learns_it_by_a_close_code() {
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
    let evil = [("origin", "http://evil.example")];
    let path = "/ws?token=t&userid=alice";
    device
        .upgrade(system.port(0), path, &evil)
        .await
        .expect("an upgrade");
    assert_eq!(device.expect_close().await, Some(4403));
    // Bad parameters are a mistake of the page, not of its user.
    for path in ["/ws?token=t&userid=a%20b", "/ws?token=t"] {
        let refused = device.upgrade(system.port(0), path, &[]).await.unwrap_err();
        assert_eq!(refused.status, 400, "{path}: {refused:?}");
    }
    // Without the subprotocol it is a status, and an unknown one is not echoed.
    let refused =
        ClassicClient::connect_with(system.port(0), "/ws?userid=alice", &[], "alice").await;
    assert_eq!(refused.unwrap_err().status, 401);
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed() {
    let env = [("PING_INTERVAL_MS", "300"), ("PING_TIMEOUT_MS", "400")];
    let system = TestSystem::start(Backend::Embedded, &env).await;
    let mut device = V1Client::open(system.port(0), "alice").await;
    let mut other = V1Client::open(system.port(0), "bob").await;
    // It reads, and so answers.
    other.expect_no_frame(Duration::from_secs(2)).await;
    assert_eq!(device.expect_close().await, Some(4408));
}

#[tokio::test]
async fn a_draining_process_says_when_to_come_back() {
    let mut system = TestSystem::start(Backend::Embedded, &[]).await;
    let prompt = unique_name("drained");
    let slow = Script::complete("one two three four").chunk_interval(Duration::from_millis(150));
    system.model().queue_answer(&prompt, slow);
    let mut device = V1Client::open(system.port(0), "alice").await;
    let mut idle = V1Client::open(system.port(0), "bob").await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "one").await;
    system.gateways[0].terminate();
    for socket in [&mut idle, &mut device] {
        assert_eq!(socket.expect_close().await, Some(1001));
        let closing = socket.frames.last().unwrap();
        assert_eq!(closing["type"], "closing", "{closing}");
    }
    let status = system.gateways[0].wait_exit(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_tokens_open_the_door_and_close_it_when_they_expire() {
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
        "its token has expired"
    );
    match device.try_connect(gateway.port()).await {
        Ok(welcome) => panic!("an expired token let it in: {welcome}"),
        Err(_) => assert_eq!(device.closed, Some(4401)),
    }
    // A classic client's token only opens the door.
    let reply = http::post(&gateway.url("/token?userid=bob"), &[]).await;
    let token = reply.json()["token"].as_str().unwrap().to_owned();
    let mut classic = ClassicClient::connect(gateway.port(), &token, "bob")
        .await
        .unwrap();
    match classic.next_event(Duration::from_secs(5)).await {
        ClientEvent::TimedOut => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_a_new_socket_is_told_to_come_back() {
    let mut stack = Stack::start().await;
    let mut gateway = stack.gateway("server_1").start().await;
    stack.redis.kill();
    let mut device = V1Client::new("alice");
    let refused = device
        .try_connect(gateway.port())
        .await
        .map(|_| ())
        .unwrap_err();
    let told = refused.status == 503 || device.closed == Some(4503);
    assert!(told, "{refused:?}, {:?}", device.closed);
    stack.redis.restart().await;
    gateway.wait_ready(TEST_TIMEOUT).await;
    device.connect_with_retries(&[gateway.port()]).await;
}
