//! One process with all roles, and an embedded log and fan-out.

use std::time::Duration;

use crate::support::classic::ClassicClient;
use crate::support::model::{Script, ScriptedModel};
use crate::support::process::ProcessSpec;
use crate::support::{MAILBOX_CHECK_QUIET_PERIOD, TEST_TIMEOUT, http, wait_until};

/// Makes the process use this model.
fn with_model(spec: ProcessSpec, model: &ScriptedModel) -> ProcessSpec {
    spec.env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
}

#[tokio::test]
async fn demo_model_answers_and_the_log_names_it() {
    let process = ProcessSpec::ephemeral().start().await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    let frame = client.send_and_wait("is anybody there?").await;
    assert_eq!(frame["type"], "response", "{frame}");
    let content = frame["content"].as_str().unwrap();
    assert!(content.contains("is anybody there?"), "{content}");
    assert!(process.log().to_lowercase().contains("demo"));
}

#[tokio::test]
async fn startup_output_names_the_listen_address() {
    let process = ProcessSpec::ephemeral().start().await;
    let address = format!("127.0.0.1:{}", process.port());
    process.wait_for_log(&address, TEST_TIMEOUT).await;
}

#[tokio::test]
async fn classic_answer_has_all_documented_fields() {
    let model = ScriptedModel::start().await;
    let process = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    let frame = client.send_and_wait("hello").await;
    assert_eq!(frame["type"], "response");
    assert_eq!(frame["content"], "echo: hello");
    assert_eq!(frame["userid"], "alice");
    assert!(frame["processing_time_ms"].is_u64(), "{frame}");
    for name in ["timestamp", "correlation_id", "message_id"] {
        assert!(frame[name].is_string(), "{name} is missing: {frame}");
    }
    let connection_id = client.correlation_id.clone().expect("X-Correlation-ID");
    let message_correlation_id = frame["correlation_id"].as_str().unwrap();
    assert!(
        message_correlation_id.starts_with(&connection_id),
        "{message_correlation_id} does not begin with {connection_id}"
    );
}

#[tokio::test]
async fn answer_reaches_all_sockets_of_its_user_and_no_other() {
    let model = ScriptedModel::start().await;
    let process = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let mut laptop = ClassicClient::open(process.port(), "alice").await;
    let mut phone = ClassicClient::open(process.port(), "alice").await;
    let mut other = ClassicClient::open(process.port(), "alice2").await;
    let frame = laptop.send_and_wait("hello").await;
    assert_eq!(phone.next_frame().await, frame);
    // The first frame of the other user is the answer to its own message, so it received no frame
    // before.
    assert_eq!(other.send_and_wait("mine").await["content"], "echo: mine");
}

#[tokio::test]
async fn unanswered_message_is_answered_after_kill_and_restart() {
    let model = ScriptedModel::start().await;
    model.queue_answer("before", Script::complete("early"));
    model.queue_answer("unanswered", Script::new().token("half an ans").hang());
    // The second answer is so slow that the client, which cannot resume, reconnects before it.
    let delayed_answer = Script::complete("whole answer").initial_delay(Duration::from_secs(4));
    model.queue_answer("unanswered", delayed_answer);
    let spec = with_model(ProcessSpec::durable(), &model);
    let mut process = spec.start().await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    assert_eq!(client.send_and_wait("before").await["content"], "early");
    client.send_message("unanswered").await;
    wait_until("the message reaches the model", TEST_TIMEOUT, || async {
        model.request_count_for("unanswered") == 1
    })
    .await;
    process.kill();
    assert_eq!(client.expect_close().await, None);

    let process = spec.start().await;
    let mut client = ClassicClient::open(process.port(), "alice").await;
    let frame = client.next_frame().await;
    assert_eq!(frame["content"], "whole answer", "{frame}");
    client.expect_no_frame(MAILBOX_CHECK_QUIET_PERIOD).await;
    assert_eq!(model.request_count_for("unanswered"), 2);
    assert_eq!(
        model.request_count_for("before"),
        1,
        "the model was called again for an answered message"
    );
    // The context of the next request to the model has each turn of the conversation once.
    client.send_and_wait("after").await;
    let request = model.requests_for("after").remove(0);
    let context: Vec<String> = request
        .messages()
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    for turn in ["before", "early", "unanswered", "whole answer", "after"] {
        let occurrences = context.iter().filter(|text| *text == turn).count();
        assert_eq!(occurrences, 1, "{turn} in {context:?}");
    }
}

#[tokio::test]
async fn repeated_kills_lose_nothing_and_answer_nothing_twice() {
    const ROUNDS: usize = 4;
    const USERS: usize = 20;
    // The answers are so slow that the kill interrupts some of them.
    let model = ScriptedModel::start_with(|request| {
        Script::echo(request)
            .chunk_interval(Duration::from_millis(40))
            .into()
    })
    .await;
    let spec = with_model(ProcessSpec::durable(), &model);
    for round in 0..ROUNDS {
        let mut process = spec.start().await;
        let previous_requests = model.request_count();
        for user in 0..USERS {
            let mut client = ClassicClient::open(process.port(), &format!("user{user}")).await;
            client
                .send_message(&format!("{user} in round {round}"))
                .await;
            client.close().await;
        }
        // A message that reached the model was accepted. Others may be lost with the process
        // before they are accepted.
        wait_until(
            "half of the messages reach the model",
            TEST_TIMEOUT,
            || async { model.request_count() >= previous_requests + USERS / 2 },
        )
        .await;
        process.kill();
    }
    let requested_prompts: std::collections::BTreeSet<String> = model
        .requests()
        .into_iter()
        .map(|request| request.prompt)
        .collect();
    let process = spec.start().await;
    // After the last start, the context of a new request has the answer to every message that
    // reached the model.
    let context_of_next_request = |user: usize| {
        let (model, port) = (&model, process.port());
        async move {
            let mut client = ClassicClient::open(port, &format!("user{user}")).await;
            let question = format!("{user} sends a last message");
            // The answers to open messages arrive first, in order.
            client.send_message(&question).await;
            loop {
                let frame = client.next_frame().await;
                if frame["content"] == format!("echo: {question}") {
                    break;
                }
            }
            model.requests_for(&question).remove(0).messages()
        }
    };
    for user in 0..USERS {
        let context = context_of_next_request(user).await;
        for round in 0..ROUNDS {
            let prompt = format!("{user} in round {round}");
            let answer = format!("echo: {prompt}");
            let questions = context.iter().filter(|(_, text)| *text == prompt).count();
            let answers = context.iter().filter(|(_, text)| *text == answer).count();
            assert_eq!(questions, answers, "{prompt}: {context:?}");
            assert!(answers <= 1, "{prompt} was answered twice: {context:?}");
            if requested_prompts.contains(&prompt) {
                assert_eq!(answers, 1, "{prompt} was lost: {context:?}");
            }
        }
    }
}

#[tokio::test]
async fn drain_answers_waiting_classic_clients_and_refuses_new_ones() {
    let model = ScriptedModel::start_with(|request| {
        Script::echo(request)
            .initial_delay(Duration::from_secs(3))
            .into()
    })
    .await;
    let mut process = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let mut waiting = ClassicClient::open(process.port(), "alice").await;
    let mut idle = ClassicClient::open(process.port(), "bob").await;
    waiting.send_message("are you still there?").await;
    wait_until("the message reaches the model", TEST_TIMEOUT, || async {
        model.request_count() == 1
    })
    .await;
    process.terminate();
    assert_eq!(idle.expect_close().await, Some(1001));
    let ready = http::get(&process.url("/health/ready")).await;
    assert_eq!(ready.status, 503);
    let Err(refused) = ClassicClient::connect(process.port(), "any", "carol").await else {
        panic!("a draining gateway accepted a new client");
    };
    assert_eq!(refused.status, 503);
    let frame = waiting.next_frame().await;
    assert_eq!(frame["content"], "echo: are you still there?", "{frame}");
    assert_eq!(waiting.expect_close().await, Some(1001));
    assert_eq!(process.wait_exit(TEST_TIMEOUT).await.code(), Some(0));
}
