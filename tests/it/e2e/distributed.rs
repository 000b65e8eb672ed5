//! Two processes of each role on real Kafka and Redis. Some of them are killed, paused or drained.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::load::{Load, LoadPlan, accepted_messages, assert_answered_once_in_order, message_text};
use crate::support::classic::ClassicClient;
use crate::support::model::{Script, ScriptedModel};
use crate::support::process::ChatmeshProcess;
use crate::support::redis::subscribe;
use crate::support::stack::{MESSAGES, RELAYS, RESPONSES, Stack, WORKERS};
use crate::support::{MAILBOX_CHECK_QUIET_PERIOD, TEST_TIMEOUT, wait_until};

/// A model that needs about a tenth of a second for an answer.
async fn slow_model() -> ScriptedModel {
    ScriptedModel::start_with(|request| {
        Script::echo(request)
            .chunk_interval(Duration::from_millis(15))
            .into()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_paused_processes_lose_nothing_duplicate_nothing_and_keep_the_order() {
    const MESSAGES_PER_USER: usize = 20;
    const USERS: usize = 100;
    let stack = Stack::start_with(slow_model().await).await;
    let gateways = [
        stack.gateway("server_1").start().await,
        stack.gateway("server_2").start().await,
    ];
    let mut worker_1 = stack.worker("worker_1").start().await;
    let worker_2 = stack.worker("worker_2").start().await;
    let mut relay_1 = stack.relay("relay_1").start().await;
    let _relay_2 = stack.relay("relay_2").start().await;

    let plan = LoadPlan {
        users: USERS,
        messages_per_user: MESSAGES_PER_USER,
        send_interval: Duration::from_millis(1500),
        limit: Duration::from_secs(150),
        quiet_period: MAILBOX_CHECK_QUIET_PERIOD,
    };
    let load = Load::start(&gateways.each_ref().map(ChatmeshProcess::port), plan).await;

    wait_until(
        "the first messages reach the model",
        TEST_TIMEOUT,
        || async { stack.model.request_count() > 100 },
    )
    .await;
    worker_1.kill();
    let _worker_3 = stack.worker("worker_3").start().await;
    let previous_requests = stack.model.request_count();
    wait_until("more messages reach the model", TEST_TIMEOUT, || async {
        stack.model.request_count() > previous_requests + 100
    })
    .await;
    relay_1.kill();
    let _relay_3 = stack.relay("relay_3").start().await;
    let previous_requests = stack.model.request_count();
    wait_until("more messages reach the model", TEST_TIMEOUT, || async {
        stack.model.request_count() > previous_requests + 100
    })
    .await;
    worker_2.pause();
    // Its session (6 s) and its leases (3 s) expire, so another worker takes over its messages.
    let kafka = stack.kafka_client();
    wait_until(
        "the paused worker is removed from the group",
        TEST_TIMEOUT,
        || kafka.is_group_stable(WORKERS, 1),
    )
    .await;
    worker_2.resume();

    let all_frames = load.finish().await;
    assert_answered_once_in_order(&all_frames, MESSAGES_PER_USER);

    let records = stack
        .kafka_client()
        .read(
            MESSAGES,
            USERS * MESSAGES_PER_USER + 1,
            Duration::from_secs(5),
        )
        .await;
    assert_eq!(records.len(), USERS * MESSAGES_PER_USER);
    assert_eq!(accepted_messages(&records).len(), USERS * MESSAGES_PER_USER);
    // A second model call is allowed only for a message that was in flight when its worker was
    // killed or paused. Each user has at most one such message at either time.
    let model_calls = stack.model.request_count();
    assert!(
        model_calls <= USERS * MESSAGES_PER_USER + 2 * USERS,
        "{model_calls} model calls"
    );
    for (group, topic) in [(WORKERS, MESSAGES), (RELAYS, RESPONSES)] {
        wait_until("all offsets are committed", TEST_TIMEOUT, || async {
            stack.kafka_client().lag(group, topic).await == 0
        })
        .await;
    }
    let mut worker_2 = worker_2;
    worker_2.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_accepted_by_a_killed_gateway_is_delivered_once() {
    const USERS: usize = 40;
    let stack = Stack::start_with(slow_model().await).await;
    let mut killed_gateway = stack.gateway("server_1").start().await;
    let mut other_gateway = stack.gateway("server_2").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;

    // A classic client cannot resume, so the test counts deliveries on the channels that the
    // gateways read.
    let mut listeners = Vec::new();
    let mut clients = Vec::new();
    for n in 0..USERS {
        let user = format!("user{n}");
        let channel = format!("user:{user}");
        listeners.push(subscribe(&stack.redis.url(), &channel).await);
        clients.push(ClassicClient::open(killed_gateway.port(), &user).await);
    }
    for round in 0..3 {
        for client in &mut clients {
            let text = message_text(&client.user, round);
            client.send_message(&text).await;
        }
    }
    wait_until(
        "the first messages reach the model",
        TEST_TIMEOUT,
        || async { stack.model.request_count() > 20 },
    )
    .await;
    killed_gateway.kill();
    for client in &mut clients {
        assert_eq!(client.expect_close().await, None);
    }

    wait_until(
        "all messages are processed and their answers delivered",
        Duration::from_secs(60),
        || async {
            let kafka = stack.kafka_client();
            stack.model.request_count() > 20
                && kafka.lag(WORKERS, MESSAGES).await == 0
                && kafka.lag(RELAYS, RESPONSES).await == 0
        },
    )
    .await;
    let records = stack
        .kafka_client()
        .read(MESSAGES, USERS * 3 + 1, Duration::from_secs(5))
        .await;
    let accepted = accepted_messages(&records);
    // The log and the relay keep the order of a user's messages. So each user sends one more
    // message: the frames before its answer on the channel are all frames that were delivered.
    let sentinel = "the last message";
    for n in 0..USERS {
        let mut client = ClassicClient::open(other_gateway.port(), &format!("user{n}")).await;
        client.send_message(sentinel).await;
        client.close().await;
    }
    let mut delivered: BTreeMap<String, usize> = BTreeMap::new();
    for (_, listener) in &mut listeners {
        loop {
            let frame = tokio::time::timeout(TEST_TIMEOUT, listener.recv()).await;
            let frame = frame
                .expect("the answer to the sentinel")
                .expect("an open channel");
            let frame: Value = serde_json::from_str(&frame).unwrap();
            if frame["content"] == format!("echo: {sentinel}") {
                break;
            }
            let id = frame["message_id"].as_str().expect("message_id").to_owned();
            assert_eq!(frame["userid"], accepted[&id].as_str());
            *delivered.entry(id).or_default() += 1;
        }
    }
    let delivered_once: BTreeMap<String, usize> = accepted.into_keys().map(|id| (id, 1)).collect();
    assert_eq!(delivered, delivered_once);

    // The other gateway answers a user of the killed one.
    let mut client = ClassicClient::open(other_gateway.port(), "user0").await;
    assert_eq!(
        client.send_and_wait("hello").await["content"],
        "echo: hello"
    );
    other_gateway.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_roles_finish_or_hand_over_their_messages() {
    const MESSAGES_PER_USER: usize = 10;
    let stack = Stack::start_with(slow_model().await).await;
    let gateway = stack.gateway("server_1").start().await;
    let mut worker = stack.worker("worker_1").start().await;
    let mut relay = stack.relay("relay_1").start().await;
    let plan = LoadPlan {
        users: 30,
        messages_per_user: MESSAGES_PER_USER,
        send_interval: Duration::from_millis(800),
        limit: Duration::from_secs(90),
        quiet_period: MAILBOX_CHECK_QUIET_PERIOD,
    };
    let load = Load::start(&[gateway.port()], plan).await;
    wait_until(
        "the first messages reach the model",
        TEST_TIMEOUT,
        || async { stack.model.request_count() > 30 },
    )
    .await;
    let _worker_2 = stack.worker("worker_2").start().await;
    let _relay_2 = stack.relay("relay_2").start().await;
    worker.drain().await;
    relay.drain().await;
    assert_answered_once_in_order(&load.finish().await, MESSAGES_PER_USER);
    // No message caused a second model call when it was handed over.
    assert_eq!(stack.model.request_count(), 30 * MESSAGES_PER_USER);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_gateway_closes_sockets_as_going_away() {
    let stack = Stack::start().await;
    let mut gateway = stack.gateway("server_1").start().await;
    let mut client = ClassicClient::open(gateway.port(), "alice").await;
    gateway.terminate();
    assert_eq!(client.expect_close().await, Some(1001));
    let status = gateway.wait_exit(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_reaches_a_users_sockets_at_two_gateways() {
    let stack = Stack::start().await;
    let gateways = [
        stack.gateway("server_1").start().await,
        stack.gateway("server_2").start().await,
    ];
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let mut laptop = ClassicClient::open(gateways[0].port(), "alice").await;
    let mut phone = ClassicClient::open(gateways[1].port(), "alice").await;
    let frame = laptop.send_and_wait("hello").await;
    assert_eq!(frame["content"], "echo: hello");
    assert_eq!(phone.next_frame().await, frame);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_answered_over_configured_topics_with_one_partition() {
    let stack = Stack::start().await;
    let with_topics =
        |spec: crate::support::process::ProcessSpec, consume_topic: &str, produce_topic: &str| {
            spec.env("KAFKA_TOPIC_PARTITIONS", "1")
                .env("CONSUME_TOPIC", consume_topic)
                .env("PRODUCE_TOPIC", produce_topic)
        };
    let gateway = with_topics(stack.gateway("server_1"), "", "questions")
        .start()
        .await;
    let _worker = with_topics(stack.worker("worker_1"), "questions", "answers")
        .start()
        .await;
    let _relay = with_topics(stack.relay("relay_1"), "answers", "")
        .start()
        .await;
    let mut client = ClassicClient::open(gateway.port(), "alice").await;
    assert_eq!(
        client.send_and_wait("hello").await["content"],
        "echo: hello"
    );
    let records = stack.kafka_client().read("answers", 1, TEST_TIMEOUT).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].partition, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn correlation_id_is_in_the_logs_of_all_roles_and_secrets_in_none() {
    let stack = Stack::start().await;
    let with_json_log = |spec: crate::support::process::ProcessSpec| spec.env("LOG_FORMAT", "json");
    let gateway = with_json_log(stack.gateway("server_1")).start().await;
    let worker = with_json_log(stack.worker("worker_1")).start().await;
    let relay = with_json_log(stack.relay("relay_1")).start().await;
    let headers = [("x-correlation-id", "trace-me-please")];
    let path = "/ws?token=a-secret-token&userid=alice";
    let mut client = ClassicClient::connect_with(gateway.port(), path, &headers, "alice")
        .await
        .unwrap();
    assert_eq!(client.correlation_id.as_deref(), Some("trace-me-please"));
    let frame = client.send_and_wait("a confidential question").await;
    let id = frame["correlation_id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("trace-me-please-"), "{id}");
    for role in [&gateway, &worker, &relay] {
        role.wait_for_log(&id, TEST_TIMEOUT).await;
        let log = role.log();
        assert!(!log.contains("a-secret-token") && !log.contains("sk-test"));
        assert!(
            !log.contains("confidential"),
            "the content is logged at a level above debug"
        );
        for line in log.lines().filter(|line| line.contains(&id)) {
            let line: Value = serde_json::from_str(line).expect("a JSON line");
            assert!(line.to_string().contains(&id));
        }
    }
}
