//! Faults of the model API, as a client observes them: it is slow, fails, disconnects or refuses.

use std::time::Duration;

use serde_json::Value;

use crate::support::classic::ClassicClient;
use crate::support::model::{Answer, Script, ScriptedModel, StreamErrorFormat};
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::stack::{MESSAGES, RESPONSES, Stack, WORKERS};
use crate::support::{TEST_TIMEOUT, wait_until};

/// Starts a process with all roles that uses this model.
async fn start_embedded(model: &ScriptedModel) -> ChatmeshProcess {
    embedded_spec(model).start().await
}

/// A process with all roles that uses this model, with short timeouts.
fn embedded_spec(model: &ScriptedModel) -> ProcessSpec {
    ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "3000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "1500")
}

/// Checks that a frame is the terminal error of a failed model call, with this code.
fn assert_failed(frame: &Value, code: &str) {
    assert_eq!(frame["type"], "error", "{frame}");
    assert_eq!(
        frame["message"], "Service temporarily unavailable",
        "{frame}"
    );
    assert_eq!(frame["code"], code, "{frame}");
    assert!(frame["correlation_id"].is_string(), "{frame}");
}

/// Sends a prompt as this user and returns the terminal frame. Each user has a conversation of its
/// own, so prompts of several users can be answered at the same time.
async fn request_answer(port: u16, user: &str, prompt: &str) -> Value {
    let mut client = ClassicClient::open(port, user).await;
    client.send_message(prompt).await;
    let frame = client.next_frame_within(Duration::from_secs(60)).await;
    client.close().await;
    frame
}

#[tokio::test]
async fn transient_fault_is_retried_and_only_the_last_attempt_is_shown() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let half_answer = || Script::new().role().token("half ").token("an ");
    let faults: Vec<(&str, Answer)> = vec![
        ("408", Answer::error(408, "timeout", "try again")),
        ("409", Answer::error(409, "conflict", "try again")),
        ("500", Answer::error(500, "server_error", "oh no")),
        ("503", Answer::error(503, "overloaded", "later")),
        ("429", Answer::rate_limited().header("retry-after-ms", "50")),
        ("disconnect", half_answer().disconnect().into()),
        (
            "disconnect before the first byte",
            Script::new().disconnect().into(),
        ),
        ("[DONE] without finish_reason", half_answer().done().into()),
        ("end without finish_reason and [DONE]", half_answer().into()),
        ("stall", half_answer().hang().into()),
        ("no status", Answer::Hang),
        ("no token", Script::new().role().hang().into()),
        (
            "nested error object",
            half_answer()
                .error(StreamErrorFormat::Nested, "broken")
                .into(),
        ),
        (
            "flat error object",
            half_answer()
                .error(StreamErrorFormat::Flat, "broken")
                .into(),
        ),
        (
            "error line",
            half_answer()
                .error(StreamErrorFormat::Line, "broken")
                .into(),
        ),
        (
            "400 with x-should-retry: true",
            Answer::error(400, "odd", "again").header("x-should-retry", "true"),
        ),
    ];
    let mut requests = tokio::task::JoinSet::new();
    for (n, (name, fault)) in faults.into_iter().enumerate() {
        model.queue_answer(name, fault);
        let port = process.port();
        requests
            .spawn(async move { (name, request_answer(port, &format!("user{n}"), name).await) });
    }
    while let Some(result) = requests.join_next().await {
        let (name, frame) = result.unwrap();
        assert_eq!(frame["type"], "response", "{name}: {frame}");
        assert_eq!(frame["content"], format!("echo: {name}"), "{frame}");
        assert_eq!(model.request_count_for(name), 2, "{name}");
    }
}

#[tokio::test]
async fn final_refusal_is_not_retried() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let refusals = [
        ("400", Answer::error(400, "invalid_request_error", "no")),
        ("401", Answer::error(401, "invalid_api_key", "no")),
        ("404", Answer::error(404, "model_not_found", "no")),
        ("quota", Answer::out_of_quota()),
        (
            "500 with x-should-retry: false",
            Answer::error(500, "server_error", "no").header("x-should-retry", "false"),
        ),
    ];
    for (name, refusal) in refusals {
        model.queue_answer(name, refusal);
        let frame = request_answer(process.port(), "alice", name).await;
        assert_eq!(frame["type"], "error", "{name}: {frame}");
        assert_eq!(model.request_count_for(name), 1, "{name}");
    }
    // The process answers the next message.
    let frame = request_answer(process.port(), "alice", "hello").await;
    assert_eq!(frame["content"], "echo: hello");
}

#[tokio::test]
async fn lasting_fault_ends_in_one_error_after_three_calls() {
    let model = ScriptedModel::start_with(|request| match request.prompt.as_str() {
        "broken" => Answer::error(503, "overloaded", "later"),
        "silent" => Answer::Hang,
        "limited" => Answer::rate_limited().header("retry-after-ms", "20"),
        _ => Script::echo(request).into(),
    })
    .await;
    let process = embedded_spec(&model)
        .env("OPENAI_TIMEOUT_MS", "500")
        .start()
        .await;
    for (prompt, code) in [
        ("broken", "provider_failed"),
        ("silent", "provider_timeout"),
        ("limited", "provider_rate_limited"),
    ] {
        let mut client = ClassicClient::open(process.port(), prompt).await;
        client.send_message(prompt).await;
        let frame = client.next_frame_within(Duration::from_secs(60)).await;
        assert_failed(&frame, code);
        assert_eq!(model.request_count_for(prompt), 3, "{prompt}");
        // The next frame is the answer to the next message, so the failed message ended only once.
        assert_eq!(client.send_and_wait("next").await["content"], "echo: next");
    }
}

#[tokio::test]
async fn rate_limit_delays_every_call_of_the_worker() {
    let retry_after = Duration::from_secs(2);
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let limited = Answer::rate_limited().header("retry-after-ms", "2000");
    model.queue_answer("first", limited);
    let port = process.port();
    let first = tokio::spawn(async move { request_answer(port, "alice", "first").await });
    wait_until("the first call is refused", TEST_TIMEOUT, || async {
        model.request_count_for("first") == 1 && model.open_requests() == 0
    })
    .await;
    process
        .wait_for_log("failed and is retried", TEST_TIMEOUT)
        .await;
    let second = request_answer(port, "bob", "second").await;
    assert_eq!(second["content"], "echo: second");
    assert_eq!(first.await.unwrap()["content"], "echo: first");
    let refused_at = model.requests_for("first")[0].received_at;
    let min_wait = retry_after.checked_sub(Duration::from_millis(100)).unwrap();
    for request in [
        &model.requests_for("first")[1],
        &model.requests_for("second")[0],
    ] {
        let wait = request.received_at - refused_at;
        assert!(
            wait >= min_wait,
            "{} was requested after {wait:?}",
            request.prompt
        );
    }
}

#[tokio::test]
async fn retry_after_in_seconds_is_respected() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let overloaded = Answer::error(503, "overloaded", "later").header("Retry-After", "2");
    model.queue_answer("hello", overloaded);
    assert_eq!(
        request_answer(process.port(), "alice", "hello").await["content"],
        "echo: hello"
    );
    let requests = model.requests_for("hello");
    let wait = requests[1].received_at - requests[0].received_at;
    assert!(wait >= Duration::from_millis(1900), "{wait:?}");
}

#[tokio::test]
async fn streams_of_other_vendors_are_parsed() {
    let model = ScriptedModel::start().await;
    let process = start_embedded(&model).await;
    let text = "Grüße, 世界 🦀!";
    let vendors: Vec<(&str, Script)> = vec![
        (
            "no usage",
            Script::new().role().text(text).finish("stop").done(),
        ),
        (
            "null content",
            Script::new()
                .null_role()
                .text(text)
                .finish("stop")
                .usage()
                .done(),
        ),
        (
            "finish_reason abort",
            Script::new().role().text(text).finish("abort").done(),
        ),
        ("no [DONE]", Script::new().role().text(text).finish("stop")),
        (
            "comments",
            Script::new()
                .comment("hi")
                .role()
                .comment("")
                .text(text)
                .finish("stop")
                .done(),
        ),
        ("CRLF", Script::complete(text).crlf()),
        ("single bytes", Script::complete(text).split_every(1)),
        ("odd pieces", Script::complete(text).crlf().split_every(7)),
    ];
    for (name, script) in vendors {
        model.queue_answer(name, script);
        let frame = request_answer(process.port(), "alice", name).await;
        assert_eq!(frame["content"], text, "{name}: {frame}");
        assert_eq!(model.request_count_for(name), 1, "{name}");
    }
}

#[tokio::test]
async fn api_key_is_sent_if_configured_and_never_logged() {
    let model = ScriptedModel::start().await;
    let process_without_key = start_embedded(&model).await;
    request_answer(process_without_key.port(), "alice", "without key").await;
    assert_eq!(model.requests_for("without key")[0].authorization, None);
    let process_with_key = embedded_spec(&model)
        .env("OPENAI_API_KEY", "sk-secret")
        .start()
        .await;
    request_answer(process_with_key.port(), "alice", "with key").await;
    let request = model.requests_for("with key").remove(0);
    assert_eq!(request.authorization.as_deref(), Some("Bearer sk-secret"));
    assert_eq!(request.path, "/v1/chat/completions");
    assert_eq!(request.body["stream"], true);
    assert_eq!(request.body["model"], "gpt-3.5-turbo");
    assert_eq!(request.body["max_tokens"], 500);
    assert!((request.body["temperature"].as_f64().unwrap() - 0.7).abs() < 1e-6);
    assert!(!process_with_key.log().contains("sk-secret"));
}

#[tokio::test]
async fn context_has_each_earlier_turn_once_and_no_failed_one() {
    let model = ScriptedModel::start().await;
    let process = embedded_spec(&model)
        .env("SYSTEM_PROMPT", "Be brief.")
        .start()
        .await;
    model.queue_answer("two", Answer::error(400, "invalid_request_error", "no"));
    model.queue_answer("three", Script::new().role().token("half").disconnect());
    let mut client = ClassicClient::open(process.port(), "alice").await;
    // Send all messages at once, so that later ones wait while earlier ones are answered.
    for prompt in ["one", "two", "three", "four"] {
        client.send_message(prompt).await;
    }
    for _ in 0..4 {
        client.next_frame().await;
    }
    let turn = |role: &str, text: &str| (role.to_owned(), text.to_owned());
    let request = model.requests_for("four").remove(0);
    assert_eq!(
        request.messages(),
        [
            turn("system", "Be brief."),
            turn("user", "one"),
            turn("assistant", "echo: one"),
            turn("user", "three"),
            turn("assistant", "echo: three"),
            turn("user", "four"),
        ]
    );
    // The context of another user has none of these turns: only the system prompt and the question.
    request_answer(process.port(), "bob", "five").await;
    assert_eq!(model.requests_for("five").remove(0).messages().len(), 2);
}

#[tokio::test]
async fn without_keep_history_the_context_is_empty() {
    let model = ScriptedModel::start().await;
    let process = embedded_spec(&model)
        .env("KEEP_HISTORY", "false")
        .env("SYSTEM_PROMPT", "Be brief.")
        .start()
        .await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    client.send_and_wait("one").await;
    client.send_and_wait("two").await;
    assert_eq!(model.requests_for("two").remove(0).messages().len(), 2);
}

#[tokio::test]
async fn slow_conversation_delays_no_other() {
    let model = ScriptedModel::start().await;
    model.queue_answer(
        "slow",
        Script::complete("at last").chunk_interval(Duration::from_secs(1)),
    );
    let process = start_embedded(&model).await;
    let mut slow = ClassicClient::open(process.port(), "slow").await;
    slow.send_message("slow").await;
    wait_until(
        "the slow prompt reaches the model",
        TEST_TIMEOUT,
        || async { model.request_count_for("slow") == 1 },
    )
    .await;
    let started = tokio::time::Instant::now();
    for n in 0..20 {
        request_answer(process.port(), &format!("user{n}"), "hello").await;
    }
    assert!(
        model.open_requests() == 1,
        "the slow answer ended before the others, after {:?}",
        started.elapsed()
    );
    assert_eq!(slow.next_frame().await["content"], "at last");
}

#[tokio::test]
async fn max_workers_limits_concurrent_model_calls() {
    let model = ScriptedModel::start_with(|request| {
        Script::echo(request)
            .initial_delay(Duration::from_millis(300))
            .into()
    })
    .await;
    let process = embedded_spec(&model).env("MAX_WORKERS", "4").start().await;
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..16 {
        let port = process.port();
        requests.spawn(async move { request_answer(port, &format!("user{n}"), "hello").await });
    }
    for frame in requests.join_all().await {
        assert_eq!(frame["content"], "echo: hello", "{frame}");
    }
    assert_eq!(model.max_open_requests(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distributed_system_survives_model_faults_and_keeps_dead_letters() {
    let model = ScriptedModel::start_with(|request| match request.prompt.as_str() {
        "broken" => Answer::error(500, "server_error", "always"),
        _ => Script::echo(request).into(),
    })
    .await;
    model.queue_answer(
        "slow",
        Script::complete("echo: slow").chunk_interval(Duration::from_millis(700)),
    );
    model.queue_answer(
        "disconnected",
        Script::new().role().token("half").disconnect(),
    );
    model.queue_answer(
        "limited",
        Answer::rate_limited().header("retry-after-ms", "500"),
    );
    model.queue_answer("refused", Answer::error(400, "invalid_request_error", "no"));
    let stack = Stack::start_with(model).await;
    let gateway = stack.gateway("server_1").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let mut requests = tokio::task::JoinSet::new();
    for prompt in [
        "slow",
        "disconnected",
        "limited",
        "refused",
        "broken",
        "fine",
    ] {
        let port = gateway.port();
        requests.spawn(async move {
            (
                prompt,
                request_answer(port, &format!("user-{prompt}"), prompt).await,
            )
        });
    }
    while let Some(result) = requests.join_next().await {
        let (prompt, frame) = result.unwrap();
        match prompt {
            "refused" => assert_failed(&frame, "provider_rejected"),
            "broken" => assert_failed(&frame, "provider_failed"),
            _ => assert_eq!(frame["content"], format!("echo: {prompt}"), "{frame}"),
        }
    }
    assert_eq!(stack.model.request_count_for("broken"), 3);
    assert_eq!(stack.model.request_count_for("refused"), 1);

    let kafka = stack.kafka_client();
    let records = kafka.read(MESSAGES, 6, TEST_TIMEOUT).await;
    let dead_letters = kafka
        .read(&format!("{MESSAGES}.dlq"), 2, TEST_TIMEOUT)
        .await;
    assert_eq!(dead_letters.len(), 2, "{dead_letters:?}");
    for dead_letter in &dead_letters {
        let (partition, offset) = (
            &dead_letter.headers["dlq.partition"],
            &dead_letter.headers["dlq.offset"],
        );
        let original = records
            .iter()
            .find(|record| {
                record.partition.to_string() == *partition && record.offset.to_string() == *offset
            })
            .expect("the original record");
        assert_eq!(
            (&dead_letter.key, &dead_letter.value),
            (&original.key, &original.value)
        );
        assert_eq!(dead_letter.headers["dlq.topic"], MESSAGES);
        assert!(!dead_letter.headers["dlq.reason"].is_empty());
        assert!(
            dead_letter.headers["dlq.timestamp"].parse::<i64>().is_ok(),
            "{dead_letter:?}"
        );
        assert!(
            dead_letter.headers["dlq.attempts"].parse::<u32>().is_ok(),
            "{dead_letter:?}"
        );
        let content = dead_letter.json()["content"].as_str().unwrap().to_owned();
        assert!(
            ["refused", "broken"].contains(&content.as_str()),
            "{dead_letter:?}"
        );
    }
    // Each message has one terminal record, and every offset is committed.
    assert_eq!(kafka.read(RESPONSES, 6, TEST_TIMEOUT).await.len(), 6);
    wait_until("all offsets are committed", TEST_TIMEOUT, || async {
        kafka.lag(WORKERS, MESSAGES).await == 0
    })
    .await;
}
