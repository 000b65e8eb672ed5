//! A model that is slow, fails, breaks off or refuses, seen by a client at the end of the chain.

use std::time::Duration;

use serde_json::Value;

use crate::support::classic::ClassicClient;
use crate::support::model::{Answer, Script, ScriptedModel, StreamErrorFormat};
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::stack::{MESSAGES, RESPONSES, Stack, WORKERS};
use crate::support::{TEST_TIMEOUT, wait_until};

/// Everything embedded, on this model.
async fn small(model: &ScriptedModel) -> ChatmeshProcess {
    small_spec(model).start().await
}

fn small_spec(model: &ScriptedModel) -> ProcessSpec {
    ProcessSpec::ephemeral()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "3000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "1500")
}

fn assert_failed(frame: &Value, code: &str) {
    assert_eq!(frame["type"], "error", "{frame}");
    assert_eq!(
        frame["message"], "Service temporarily unavailable",
        "{frame}"
    );
    assert_eq!(frame["code"], code, "{frame}");
    assert!(frame["correlation_id"].is_string(), "{frame}");
}

/// Asks in a conversation of its own (every user has one), so that cases run side by side.
async fn ask(port: u16, user: &str, prompt: &str) -> Value {
    let mut client = ClassicClient::open(port, user).await;
    client.send_message(prompt).await;
    let frame = client.next_frame_within(Duration::from_secs(60)).await;
    client.close().await;
    frame
}

#[tokio::test]
async fn a_passing_fault_is_tried_again_and_only_the_last_attempt_is_seen() {
    let model = ScriptedModel::start().await;
    let process = small(&model).await;
    let half = || Script::new().role().token("half ").token("an ");
    let faults: Vec<(&str, Answer)> = vec![
        ("408", Answer::error(408, "timeout", "try again")),
        ("409", Answer::error(409, "conflict", "try again")),
        ("500", Answer::error(500, "server_error", "oh no")),
        ("503", Answer::error(503, "overloaded", "later")),
        ("429", Answer::rate_limited().header("retry-after-ms", "50")),
        ("cut", half().cut().into()),
        ("cut before the first byte", Script::new().cut().into()),
        ("no finish_reason", half().done().into()),
        ("end without anything", half().into()),
        ("stall", half().hang().into()),
        ("never a status", Answer::Hang),
        ("never a token", Script::new().role().hang().into()),
        (
            "error, nested",
            half().error(StreamErrorFormat::Nested, "broken").into(),
        ),
        (
            "error, flat",
            half().error(StreamErrorFormat::Flat, "broken").into(),
        ),
        (
            "error, line",
            half().error(StreamErrorFormat::Line, "broken").into(),
        ),
        (
            "400 that says try again",
            Answer::error(400, "odd", "again").header("x-should-retry", "true"),
        ),
    ];
    let mut asking = tokio::task::JoinSet::new();
    for (n, (name, fault)) in faults.into_iter().enumerate() {
        model.queue_answer(name, fault);
        let port = process.port();
        asking.spawn(async move { (name, ask(port, &format!("user{n}"), name).await) });
    }
    while let Some(asked) = asking.join_next().await {
        let (name, frame) = asked.unwrap();
        assert_eq!(frame["type"], "response", "{name}: {frame}");
        assert_eq!(frame["content"], format!("echo: {name}"), "{frame}");
        assert_eq!(model.request_count_for(name), 2, "{name}");
    }
}

#[tokio::test]
async fn a_final_refusal_is_not_tried_again() {
    let model = ScriptedModel::start().await;
    let process = small(&model).await;
    let refusals = [
        ("400", Answer::error(400, "invalid_request_error", "no")),
        ("401", Answer::error(401, "invalid_api_key", "no")),
        ("404", Answer::error(404, "model_not_found", "no")),
        ("quota", Answer::out_of_quota()),
        (
            "500 that says never",
            Answer::error(500, "server_error", "no").header("x-should-retry", "false"),
        ),
    ];
    for (name, refusal) in refusals {
        model.queue_answer(name, refusal);
        let frame = ask(process.port(), "alice", name).await;
        assert_eq!(frame["type"], "error", "{name}: {frame}");
        assert_eq!(model.request_count_for(name), 1, "{name}");
    }
    // And the process has taken no harm.
    let frame = ask(process.port(), "alice", "hello").await;
    assert_eq!(frame["content"], "echo: hello");
}

#[tokio::test]
async fn a_lasting_fault_is_tried_three_times_and_ends_in_one_error() {
    let model = ScriptedModel::start_with(|asked| match asked.prompt.as_str() {
        "broken" => Answer::error(503, "overloaded", "later"),
        "silent" => Answer::Hang,
        "limited" => Answer::rate_limited().header("retry-after-ms", "20"),
        _ => Script::echo(asked).into(),
    })
    .await;
    let process = small_spec(&model)
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
        client.expect_no_frame(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn a_429_slows_every_call_of_the_worker() {
    let pause = Duration::from_secs(2);
    let model = ScriptedModel::start().await;
    let process = small(&model).await;
    let limited = Answer::rate_limited().header("retry-after-ms", "2000");
    model.queue_answer("first", limited);
    let port = process.port();
    let first = tokio::spawn(async move { ask(port, "alice", "first").await });
    wait_until("the first was refused", TEST_TIMEOUT, || async {
        model.request_count_for("first") == 1 && model.open_requests() == 0
    })
    .await;
    // Not at once: the refusal must have been read.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = ask(port, "bob", "second").await;
    assert_eq!(second["content"], "echo: second");
    assert_eq!(first.await.unwrap()["content"], "echo: first");
    let refused = model.requests_for("first")[0].at;
    let earliest = pause.checked_sub(Duration::from_millis(100)).unwrap();
    for again in [
        &model.requests_for("first")[1],
        &model.requests_for("second")[0],
    ] {
        let waited = again.at - refused;
        assert!(waited >= earliest, "{} came after {waited:?}", again.prompt);
    }
}

#[tokio::test]
async fn retry_after_in_seconds_is_honoured() {
    let model = ScriptedModel::start().await;
    let process = small(&model).await;
    let busy = Answer::error(503, "overloaded", "later").header("Retry-After", "2");
    model.queue_answer("hello", busy);
    assert_eq!(
        ask(process.port(), "alice", "hello").await["content"],
        "echo: hello"
    );
    let asked = model.requests_for("hello");
    let waited = asked[1].at - asked[0].at;
    assert!(waited >= Duration::from_millis(1900), "{waited:?}");
}

#[tokio::test]
async fn other_vendors_streams_are_understood() {
    let model = ScriptedModel::start().await;
    let process = small(&model).await;
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
            "abort",
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
        ("single bytes", Script::complete(text).split(1)),
        ("odd pieces", Script::complete(text).crlf().split(7)),
    ];
    for (name, script) in vendors {
        model.queue_answer(name, script);
        let frame = ask(process.port(), "alice", name).await;
        assert_eq!(frame["content"], text, "{name}: {frame}");
        assert_eq!(model.request_count_for(name), 1, "{name}");
    }
}

#[tokio::test]
async fn the_key_goes_to_the_api_and_a_local_server_needs_none() {
    let model = ScriptedModel::start().await;
    let keyless = small(&model).await;
    ask(keyless.port(), "alice", "without").await;
    assert_eq!(model.requests_for("without")[0].authorization, None);
    let keyed = small_spec(&model)
        .env("OPENAI_API_KEY", "sk-secret")
        .start()
        .await;
    ask(keyed.port(), "alice", "with").await;
    let asked = model.requests_for("with").remove(0);
    assert_eq!(asked.authorization.as_deref(), Some("Bearer sk-secret"));
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.body["stream"], true);
    assert_eq!(asked.body["model"], "gpt-3.5-turbo");
    assert_eq!(asked.body["max_tokens"], 500);
    assert!((asked.body["temperature"].as_f64().unwrap() - 0.7).abs() < 1e-6);
    assert!(!keyed.log().contains("sk-secret"));
}

#[tokio::test]
async fn the_context_has_each_earlier_turn_once_and_no_failed_one() {
    let model = ScriptedModel::start().await;
    let process = small_spec(&model)
        .env("SYSTEM_PROMPT", "Be brief.")
        .start()
        .await;
    model.queue_answer("two", Answer::error(400, "invalid_request_error", "no"));
    model.queue_answer("three", Script::new().role().token("half").cut());
    let mut client = ClassicClient::open(process.port(), "alice").await;
    // All at once: the later ones are queued while the earlier ones are answered.
    for prompt in ["one", "two", "three", "four"] {
        client.send_message(prompt).await;
    }
    for _ in 0..4 {
        client.next_frame().await;
    }
    let turn = |role: &str, text: &str| (role.to_owned(), text.to_owned());
    let asked = model.requests_for("four").remove(0);
    assert_eq!(
        asked.messages(),
        [
            turn("system", "Be brief."),
            turn("user", "one"),
            turn("assistant", "echo: one"),
            turn("user", "three"),
            turn("assistant", "echo: three"),
            turn("user", "four"),
        ]
    );
    // Another user's conversation is another.
    ask(process.port(), "bob", "five").await;
    assert_eq!(model.requests_for("five").remove(0).messages().len(), 2);
}

#[tokio::test]
async fn without_keep_history_every_message_stands_alone() {
    let model = ScriptedModel::start().await;
    let process = small_spec(&model)
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
async fn a_slow_conversation_holds_up_no_other() {
    let model = ScriptedModel::start().await;
    model.queue_answer(
        "slow",
        Script::complete("at last").chunk_interval(Duration::from_secs(1)),
    );
    let process = small(&model).await;
    let mut slow = ClassicClient::open(process.port(), "slow").await;
    slow.send_message("slow").await;
    wait_until("the slow one is asked", TEST_TIMEOUT, || async {
        model.request_count_for("slow") == 1
    })
    .await;
    let began = tokio::time::Instant::now();
    for n in 0..20 {
        ask(process.port(), &format!("user{n}"), "hello").await;
    }
    assert!(
        model.open_requests() == 1,
        "the slow one is over already, after {:?}",
        began.elapsed()
    );
    assert_eq!(slow.next_frame().await["content"], "at last");
}

#[tokio::test]
async fn max_workers_bounds_the_calls_at_once() {
    let model = ScriptedModel::start_with(|asked| {
        Script::echo(asked)
            .initial_delay(Duration::from_millis(300))
            .into()
    })
    .await;
    let process = small_spec(&model).env("MAX_WORKERS", "4").start().await;
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..16 {
        let port = process.port();
        asking.spawn(async move { ask(port, &format!("user{n}"), "hello").await });
    }
    for frame in asking.join_all().await {
        assert_eq!(frame["content"], "echo: hello", "{frame}");
    }
    assert_eq!(model.max_open_requests(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_distributed_chain_survives_every_fault_and_keeps_dead_letters() {
    let model = ScriptedModel::start_with(|asked| match asked.prompt.as_str() {
        "broken" => Answer::error(500, "server_error", "always"),
        _ => Script::echo(asked).into(),
    })
    .await;
    model.queue_answer(
        "slow",
        Script::complete("echo: slow").chunk_interval(Duration::from_millis(700)),
    );
    model.queue_answer("cut", Script::new().role().token("half").cut());
    model.queue_answer(
        "limited",
        Answer::rate_limited().header("retry-after-ms", "500"),
    );
    model.queue_answer("refused", Answer::error(400, "invalid_request_error", "no"));
    let stack = Stack::start_with(model).await;
    let gateway = stack.gateway("server_1").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let mut asking = tokio::task::JoinSet::new();
    for prompt in ["slow", "cut", "limited", "refused", "broken", "fine"] {
        let port = gateway.port();
        asking.spawn(async move { (prompt, ask(port, &format!("the-{prompt}"), prompt).await) });
    }
    while let Some(asked) = asking.join_next().await {
        let (prompt, frame) = asked.unwrap();
        match prompt {
            "refused" => assert_failed(&frame, "provider_rejected"),
            "broken" => assert_failed(&frame, "provider_failed"),
            _ => assert_eq!(frame["content"], format!("echo: {prompt}"), "{frame}"),
        }
    }
    assert_eq!(stack.model.request_count_for("broken"), 3);
    assert_eq!(stack.model.request_count_for("refused"), 1);

    let kafka = stack.kafka_client();
    let originals = kafka.read(MESSAGES, 6, TEST_TIMEOUT).await;
    let dead = kafka
        .read(&format!("{MESSAGES}.dlq"), 2, TEST_TIMEOUT)
        .await;
    assert_eq!(dead.len(), 2, "{dead:?}");
    for letter in &dead {
        let (partition, offset) = (
            &letter.headers["dlq.partition"],
            &letter.headers["dlq.offset"],
        );
        let original = originals
            .iter()
            .find(|seen| {
                seen.partition.to_string() == *partition && seen.offset.to_string() == *offset
            })
            .expect("the record that it came from");
        assert_eq!(
            (&letter.key, &letter.value),
            (&original.key, &original.value)
        );
        assert_eq!(letter.headers["dlq.topic"], MESSAGES);
        assert!(!letter.headers["dlq.reason"].is_empty());
        assert!(
            letter.headers["dlq.timestamp"].parse::<i64>().is_ok(),
            "{letter:?}"
        );
        assert!(
            letter.headers["dlq.attempts"].parse::<u32>().is_ok(),
            "{letter:?}"
        );
        let content = letter.json()["content"].as_str().unwrap().to_owned();
        assert!(
            ["refused", "broken"].contains(&content.as_str()),
            "{letter:?}"
        );
    }
    // One terminal record each, and nothing stays behind.
    assert_eq!(kafka.read(RESPONSES, 6, TEST_TIMEOUT).await.len(), 6);
    wait_until("everything is committed", TEST_TIMEOUT, || async {
        kafka.lag(WORKERS, MESSAGES).await == 0
    })
    .await;
}
