//! Chatmesh roles together with services of the original system. The tests simulate these services
//! with Kafka and Redis clients that do not use chatmesh's code. Each of them can replace the
//! corresponding chatmesh role.

use std::time::Duration;

use fred::interfaces::{KeysInterface, PubsubInterface};
use serde_json::{Value, json};

use crate::support::classic::ClassicClient;
use crate::support::kafka_client::receive;
use crate::support::process::ProcessSpec;
use crate::support::redis::{redis_client, subscribe};
use crate::support::stack::{MESSAGES, RELAYS, RESPONSES, Stack, WORKERS};
use crate::support::{MAILBOX_CHECK_QUIET_PERIOD, TEST_TIMEOUT, http, wait_until};

/// Sets `INTEROP`, because a service of the original system runs in the same system.
fn with_interop(spec: ProcessSpec) -> ProcessSpec {
    spec.env("INTEROP", "true")
}

/// A question record as the original gateway writes it.
fn original_question(user: &str, content: &str, correlation_id: &str) -> String {
    json!({
        "type": "message", "content": content, "userid": user,
        "timestamp": "2024-01-01T12:00:00.000000Z", "server_id": "server_1",
        "correlation_id": correlation_id,
    })
    .to_string()
}

/// A terminal record as the original worker writes it.
fn original_answer(question: &Value, content: &str) -> String {
    json!({
        "type": "response", "content": content, "userid": question["userid"],
        "timestamp": "2024-01-01T12:00:01.000000Z", "processing_time_ms": 12,
        "correlation_id": question["correlation_id"],
    })
    .to_string()
}

/// Checks the fields that the original gateway needs to forward a frame to its client.
fn assert_original_frame(frame: &Value, user: &str) {
    assert_eq!(frame["type"], "response", "{frame}");
    assert_eq!(frame["userid"], user, "{frame}");
    assert!(frame["content"].is_string(), "{frame}");
    assert!(frame["timestamp"].is_string(), "{frame}");
    assert!(frame["processing_time_ms"].is_number(), "{frame}");
    // If the value were not a string, the original gateway would stop delivering to all users.
    assert!(frame["correlation_id"].is_string(), "{frame}");
}

/// Returns the next payload of a subscription as JSON.
async fn next_json(receiver: &mut tokio::sync::mpsc::UnboundedReceiver<String>) -> Value {
    let text = tokio::time::timeout(TEST_TIMEOUT, receiver.recv())
        .await
        .expect("a frame on the user's channel")
        .expect("an open channel");
    serde_json::from_str(&text).expect("JSON on the user's channel")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_gateway_receives_answers() {
    let stack = Stack::start().await;
    let _worker = with_interop(stack.worker("worker_1")).start().await;
    let _relay = with_interop(stack.relay("relay_1")).start().await;
    let (_client, mut channel) = subscribe(&stack.redis.url(), "user:user123").await;
    let kafka = stack.kafka_client();
    for n in 0..5 {
        let record = original_question("user123", &format!("question {n}"), &format!("corr-{n}"));
        kafka.produce(MESSAGES, Some("user123"), &record, &[]).await;
    }
    for n in 0..5 {
        let frame = next_json(&mut channel).await;
        assert_original_frame(&frame, "user123");
        assert_eq!(frame["content"], format!("echo: question {n}"));
        assert_eq!(frame["correlation_id"], format!("corr-{n}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_record_without_key_and_headers_is_answered() {
    let stack = Stack::start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let (_client, mut channel) = subscribe(&stack.redis.url(), "user:user123").await;
    let line = r#"{"type":"message","content":"Hello, how are you?","userid":"user123"}"#;
    stack.kafka_client().produce_with_kcat(MESSAGES, line);
    let frame = next_json(&mut channel).await;
    assert_original_frame(&frame, "user123");
    assert_eq!(frame["content"], "echo: Hello, how are you?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_worker_answers_clients_of_a_chatmesh_gateway() {
    let stack = Stack::start().await;
    let gateway = with_interop(stack.gateway("server_1")).start().await;
    let _relay = with_interop(stack.relay("relay_1")).start().await;
    let kafka = stack.kafka_client();
    let worker = kafka.member(WORKERS, MESSAGES);
    let mut client = ClassicClient::open(gateway.port(), "user123").await;
    for n in 0..3 {
        client.send_message(&format!("question {n}")).await;
        let record = receive(&worker, TEST_TIMEOUT)
            .await
            .expect("the gateway's record");
        assert_eq!(record.key.as_deref(), Some("user123"));
        let question = record.json();
        // The record must have the fields that the original worker reads.
        assert_eq!(question["type"], "message");
        assert_eq!(question["content"], format!("question {n}"));
        assert_eq!(question["userid"], "user123");
        assert_eq!(question["server_id"], "server_1");
        assert!(question["timestamp"].is_string() && question["correlation_id"].is_string());
        let answer = original_answer(&question, &format!("answer {n}"));
        kafka
            .produce(RESPONSES, Some("user123"), &answer, &[])
            .await;
        let frame = client.next_frame().await;
        assert_original_frame(&frame, "user123");
        assert_eq!(frame["content"], format!("answer {n}"));
    }
    client.expect_no_frame(MAILBOX_CHECK_QUIET_PERIOD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_relay_delivers_to_clients_of_a_chatmesh_gateway() {
    let stack = Stack::start().await;
    let gateway = with_interop(stack.gateway("server_1")).start().await;
    let _worker = with_interop(stack.worker("worker_1")).start().await;
    let kafka = stack.kafka_client();
    let relay = kafka.member(RELAYS, RESPONSES);
    let redis = redis_client(&stack.redis.url()).await;
    let mut client = ClassicClient::open(gateway.port(), "user123").await;
    for n in 0..3 {
        client.send_message(&format!("question {n}")).await;
        let record = receive(&relay, TEST_TIMEOUT)
            .await
            .expect("the worker's record");
        let answer = record.json();
        assert_original_frame(&answer, "user123");
        // The original relay publishes the value unchanged.
        let channel = format!("user:{}", answer["userid"].as_str().unwrap());
        let _: i64 = redis.publish(channel, record.value).await.unwrap();
        let frame = client.next_frame().await;
        assert_eq!(frame["content"], format!("echo: question {n}"));
        assert_eq!(frame["type"], "response");
    }
    client.expect_no_frame(MAILBOX_CHECK_QUIET_PERIOD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_and_chatmesh_workers_share_one_group() {
    const USERS: usize = 24;
    let stack = Stack::start().await;
    let kafka = stack.kafka_client();
    let gateway = with_interop(stack.gateway("server_1")).start().await;
    let _relay = with_interop(stack.relay("relay_1")).start().await;
    let _chatmesh_worker = with_interop(stack.worker("worker_1")).start().await;
    let original_worker = kafka.member(WORKERS, MESSAGES);
    let (answer_count, original_task) = {
        let kafka = kafka.clone();
        let (sender, answer_count) = tokio::sync::watch::channel(0_usize);
        let original_task = tokio::spawn(async move {
            loop {
                let Some(record) = receive(&original_worker, Duration::from_secs(1)).await else {
                    continue;
                };
                let question = record.json();
                let content = format!("original: {}", question["content"].as_str().unwrap());
                let answer = original_answer(&question, &content);
                let user = question["userid"].as_str().unwrap().to_owned();
                kafka.produce(RESPONSES, Some(&user), &answer, &[]).await;
                sender.send_modify(|count| *count += 1);
            }
        });
        (answer_count, original_task)
    };
    // Send messages until both workers have partitions and answer.
    let mut round = 0;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let chatmesh_calls = stack.model.request_count();
        let original_answers = *answer_count.borrow();
        for n in 0..USERS {
            let user = format!("user{n}");
            let mut client = ClassicClient::open(gateway.port(), &user).await;
            let question = format!("round {round}");
            let frame = client.send_and_wait(&question).await;
            let content = frame["content"].as_str().unwrap().to_owned();
            let possible_contents = [format!("echo: {question}"), format!("original: {question}")];
            assert!(possible_contents.contains(&content), "{content}");
            client.close().await;
        }
        round += 1;
        if stack.model.request_count() > chatmesh_calls && *answer_count.borrow() > original_answers
        {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "one of the workers receives no message"
        );
    }
    original_task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_token_is_valid_at_original_and_chatmesh_gateways() {
    let stack = Stack::start().await;
    let redis = redis_client(&stack.redis.url()).await;
    let gateway = stack
        .gateway("server_1")
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "open")
        .start()
        .await;
    // The gateway accepts a token that an original gateway stored.
    let stored_token = "A".repeat(43);
    let ttl = Some(fred::types::Expiration::EX(3600));
    let _: () = redis
        .set("token:alice", &stored_token, ttl, None, false)
        .await
        .unwrap();
    assert!(
        ClassicClient::connect(gateway.port(), &stored_token, "alice")
            .await
            .is_ok()
    );
    let refused = ClassicClient::connect(gateway.port(), &"B".repeat(43), "alice").await;
    assert_eq!(refused.unwrap_err().status, 401);
    let refused = ClassicClient::connect(gateway.port(), &stored_token, "bob")
        .await
        .unwrap_err();
    assert!([401, 403].contains(&refused.status), "{refused:?}");

    // The gateway stores a token that it issues, in the form of the original.
    let reply = http::post(&gateway.url("/token?userid=carol"), &[]).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let issued = reply.json();
    let token = issued["token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    assert_eq!(issued["userid"], "carol");
    let stored: Option<String> = redis.get("token:carol").await.unwrap();
    assert_eq!(stored.as_deref(), Some(token));
    let ttl_seconds: i64 = redis.ttl("token:carol").await.unwrap();
    assert!((3500..=3600).contains(&ttl_seconds), "{ttl_seconds}");
    let issued_again = http::post(&gateway.url("/token?userid=carol"), &[])
        .await
        .json();
    assert_eq!(
        issued_again["token"], token,
        "the stored token was not returned"
    );
    let issued_for_alice = http::post(&gateway.url("/token?userid=alice"), &[])
        .await
        .json();
    assert_eq!(
        issued_for_alice["token"],
        stored_token.as_str(),
        "the token that an original gateway stored was not returned"
    );
    assert!(
        ClassicClient::connect(gateway.port(), token, "carol")
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_is_an_error_frame_that_an_original_gateway_forwards() {
    let stack = Stack::start().await;
    let _worker = with_interop(stack.worker("worker_1")).start().await;
    let _relay = with_interop(stack.relay("relay_1")).start().await;
    let refusal = crate::support::model::Answer::error(400, "invalid_request_error", "no");
    stack.model.queue_answer("refused", refusal);
    let (_client, mut channel) = subscribe(&stack.redis.url(), "user:user123").await;
    let record = original_question("user123", "refused", "corr-1");
    stack
        .kafka_client()
        .produce(MESSAGES, Some("user123"), &record, &[])
        .await;
    let frame = next_json(&mut channel).await;
    assert_eq!(frame["type"], "error", "{frame}");
    assert_eq!(frame["userid"], "user123");
    assert_eq!(frame["correlation_id"], "corr-1");
    assert_eq!(frame["message"], "Service temporarily unavailable");
    wait_until(
        "the worker has committed the offset",
        TEST_TIMEOUT,
        || async { stack.kafka_client().lag(WORKERS, MESSAGES).await == 0 },
    )
    .await;
}
