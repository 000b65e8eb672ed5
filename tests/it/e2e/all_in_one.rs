//! One process with everything embedded.

use std::time::Duration;

use crate::support::client::Classic;
use crate::support::model::{Script, ScriptedModel};
use crate::support::process::Spec;
use crate::support::{SOON, eventually, http};

fn with_model(spec: Spec, model: &ScriptedModel) -> Spec {
    spec.env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
}

#[tokio::test]
async fn the_demo_model_answers_and_says_that_it_is_none() {
    let process = Spec::ephemeral().start().await;
    let mut client = Classic::open(process.port(), "alice").await;
    let frame = client.ask("is anybody there?").await;
    assert_eq!(frame["type"], "response", "{frame}");
    let content = frame["content"].as_str().unwrap();
    assert!(content.contains("is anybody there?"), "{content}");
    assert!(process.log().to_lowercase().contains("demo"));
}

#[tokio::test]
async fn the_terminal_says_where_it_listens() {
    let process = Spec::ephemeral().start().await;
    let address = format!("127.0.0.1:{}", process.port());
    process.says(&address, SOON).await;
}

#[tokio::test]
async fn a_frame_has_all_fields_of_the_classic_protocol() {
    let model = ScriptedModel::start().await;
    let process = with_model(Spec::ephemeral(), &model).start().await;
    let mut client = Classic::open(process.port(), "alice").await;
    let frame = client.ask("hello").await;
    assert_eq!(frame["type"], "response");
    assert_eq!(frame["content"], "echo: hello");
    assert_eq!(frame["userid"], "alice");
    assert!(frame["processing_time_ms"].is_u64(), "{frame}");
    for name in ["timestamp", "correlation_id", "message_id"] {
        assert!(frame[name].is_string(), "{name} is missing: {frame}");
    }
    let connection = client.correlation_id.clone().expect("X-Correlation-ID");
    let of_message = frame["correlation_id"].as_str().unwrap();
    assert!(
        of_message.starts_with(&connection),
        "{of_message} of {connection}"
    );
}

#[tokio::test]
async fn all_sockets_of_a_user_get_the_answer_and_nobody_else_does() {
    let model = ScriptedModel::start().await;
    let process = with_model(Spec::ephemeral(), &model).start().await;
    let mut laptop = Classic::open(process.port(), "alice").await;
    let mut phone = Classic::open(process.port(), "alice").await;
    let mut other = Classic::open(process.port(), "alice2").await;
    let frame = laptop.ask("hello").await;
    assert_eq!(phone.frame().await, frame);
    other.expect_silence(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn an_unanswered_message_is_answered_after_kill_9_and_restart() {
    let model = ScriptedModel::start().await;
    model.next_for("before", Script::say("early"));
    model.next_for("unanswered", Script::new().token("half an ans").hang());
    // Slow enough that the client, which can't resume, is back first.
    let late = Script::say("whole answer").after(Duration::from_secs(4));
    model.next_for("unanswered", late);
    let spec = with_model(Spec::durable(), &model);
    let mut process = spec.start().await;
    let mut client = Classic::open(process.port(), "alice").await;
    assert_eq!(client.ask("before").await["content"], "early");
    client.send_message("unanswered").await;
    eventually("the model is asked", SOON, || async {
        model.count_for("unanswered") == 1
    })
    .await;
    process.kill9();
    assert_eq!(client.expect_close().await, None);

    let process = spec.start().await;
    let mut client = Classic::open(process.port(), "alice").await;
    let frame = client.frame().await;
    assert_eq!(frame["content"], "whole answer", "{frame}");
    client.expect_silence(Duration::from_secs(6)).await;
    assert_eq!(model.count_for("unanswered"), 2);
    assert_eq!(model.count_for("before"), 1, "it was paid twice");
    // The conversation is still there as context.
    client.ask("after").await;
    let asked = model.asked_for("after").remove(0);
    let contents: Vec<String> = asked.messages().into_iter().map(|(_, text)| text).collect();
    for turn in ["before", "early", "unanswered", "whole answer", "after"] {
        let times = contents.iter().filter(|text| *text == turn).count();
        assert_eq!(times, 1, "{turn} in {contents:?}");
    }
}

#[tokio::test]
async fn kill_9_again_and_again_loses_nothing_and_answers_nothing_twice() {
    const ROUNDS: usize = 4;
    const USERS: usize = 20;
    // Slow enough to be killed in the middle.
    let model = ScriptedModel::start_with(|asked| {
        Script::echo(asked).paced(Duration::from_millis(40)).into()
    })
    .await;
    let spec = with_model(Spec::durable(), &model);
    for round in 0..ROUNDS {
        let mut process = spec.start().await;
        let before = model.count();
        for user in 0..USERS {
            let mut client = Classic::open(process.port(), &format!("user{user}")).await;
            client
                .send_message(&format!("{user} in round {round}"))
                .await;
            client.close().await;
        }
        // Asked means accepted. Not all are, when the process dies.
        eventually("some of them are asked", SOON, || async {
            model.count() >= before + USERS / 2
        })
        .await;
        process.kill9();
    }
    let asked: std::collections::BTreeSet<String> = model
        .asked()
        .into_iter()
        .map(|asked| asked.prompt)
        .collect();
    let process = spec.start().await;
    // After the last start everything that was once asked has its answer in the history.
    let answered = |user: usize| {
        let (model, port) = (&model, process.port());
        async move {
            let mut client = Classic::open(port, &format!("user{user}")).await;
            let question = format!("{user} looks back");
            // What still was open is answered first, in order.
            client.send_message(&question).await;
            loop {
                let frame = client.frame().await;
                if frame["content"] == format!("echo: {question}") {
                    break;
                }
            }
            model.asked_for(&question).remove(0).messages()
        }
    };
    for user in 0..USERS {
        let context = answered(user).await;
        for round in 0..ROUNDS {
            let prompt = format!("{user} in round {round}");
            let answer = format!("echo: {prompt}");
            let questions = context.iter().filter(|(_, text)| *text == prompt).count();
            let answers = context.iter().filter(|(_, text)| *text == answer).count();
            assert_eq!(questions, answers, "{prompt}: {context:?}");
            assert!(answers <= 1, "{prompt} was answered twice: {context:?}");
            if asked.contains(&prompt) {
                assert_eq!(answers, 1, "{prompt} was lost: {context:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_drain_keeps_classic_clients_until_they_are_answered_and_turns_others_away() {
    let model =
        ScriptedModel::start_with(|asked| Script::echo(asked).after(Duration::from_secs(3)).into())
            .await;
    let mut process = with_model(Spec::ephemeral(), &model).start().await;
    let mut waiting = Classic::open(process.port(), "alice").await;
    let mut idle = Classic::open(process.port(), "bob").await;
    waiting.send_message("are you still there?").await;
    eventually("the model is asked", SOON, || async { model.count() == 1 }).await;
    process.term();
    assert_eq!(idle.expect_close().await, Some(1001));
    let ready = http::get(&process.url("/health/ready")).await;
    assert_eq!(ready.status, 503);
    let Err(refused) = Classic::connect(process.port(), "any", "carol").await else {
        panic!("a draining gateway took a new client");
    };
    assert_eq!(refused.status, 503);
    let frame = waiting.frame().await;
    assert_eq!(frame["content"], "echo: are you still there?", "{frame}");
    assert_eq!(waiting.expect_close().await, Some(1001));
    assert_eq!(process.wait_exit(SOON).await.code(), Some(0));
}
