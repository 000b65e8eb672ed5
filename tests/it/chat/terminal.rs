//! `chatmesh chat` in a terminal.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::proxy::Proxy;
use super::pty::{CTRL_C, Pty};
use super::{chat, server, with_model};
use crate::support::model::{Script, ScriptedModel};
use crate::support::process::ProcessSpec;
use crate::support::{TEST_TIMEOUT, wait_until};

#[tokio::test]
async fn ctrl_c_cancels_an_answer_or_quits_and_the_history_is_restored() {
    let model = ScriptedModel::start().await;
    let endless = Script::new().role().text("so far it ").hang();
    model.queue_answer("a long story", endless);
    let server = server(&model).start().await;
    let spec = chat(server.port());
    let mut terminal = Pty::run(&spec);
    terminal.says("hello").await;
    terminal.shows("echo: hello").await;
    terminal.says("a long story").await;
    terminal.shows("so far it ").await;
    terminal.types(CTRL_C);
    terminal.shows("stopped").await;
    wait_until("the model's stream is closed", TEST_TIMEOUT, || async {
        model.aborted_prompts().contains(&"a long story".to_owned())
    })
    .await;
    terminal.says("still there?").await;
    terminal.shows("echo: still there?").await;
    terminal.shows("> ").await;
    terminal.types(CTRL_C);
    assert_eq!(terminal.exit_code().await, Some(0));

    let lines = spec.dir().join(".local/state/chatmesh/chat-history");
    let history = std::fs::read_to_string(&lines).unwrap();
    assert!(history.contains("a long story"), "{history}");
    let mode = lines.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the history is readable for others");

    let mut terminal = Pty::run(&spec);
    for shown in [
        "> hello",
        "echo: hello",
        "> a long story",
        "(stopped)",
        "so far it",
    ] {
        terminal.shows(shown).await;
    }
    terminal.shows("echo: still there?").await;
    terminal.shows("> ").await;
    // Arrow up shows the previous line of the history.
    terminal.types("\x1b[A");
    terminal.shows("still there?").await;
    terminal.types("\x15\x04");
    assert_eq!(terminal.exit_code().await, Some(0));
    assert_eq!(model.request_count_for("still there?"), 1);
}

#[tokio::test]
async fn answer_continues_without_repetition_after_a_reconnect() {
    let words: Vec<String> = (0..60).map(|n| format!("word{n} ")).collect();
    let story = Script::complete(&words.concat()).chunk_interval(Duration::from_millis(60));
    let model = ScriptedModel::start().await;
    model.queue_answer("a story", story);
    let server = server(&model).start().await;
    let mut proxy = Proxy::start(server.port()).await;
    let mut terminal = Pty::run(&chat(proxy.port()));
    terminal.says("a story").await;
    terminal.shows("word5 ").await;
    proxy.interrupt().await;
    terminal.shows("connection lost").await;
    proxy.resume().await;
    terminal.shows("connected again").await;
    terminal.shows("word59").await;
    terminal.shows("> ").await;
    let all = terminal.all();
    for word in &words {
        let times = all.matches(word.as_str()).count();
        assert_eq!(times, 1, "{word:?} is shown {times} times");
    }
    assert_eq!(
        model.request_count_for("a story"),
        1,
        "the model was called twice"
    );
}

#[tokio::test]
async fn answer_of_a_killed_server_starts_again_with_a_notice() {
    let model = ScriptedModel::start().await;
    let half = Script::new().role().text("half an ans").hang();
    model.queue_answer("will it come?", half);
    model.queue_answer("will it come?", Script::complete("the whole answer"));
    let spec = with_model(ProcessSpec::durable(), &model);
    let mut process = spec.start().await;
    let mut terminal = Pty::run(&chat(process.port()));
    terminal.says("will it come?").await;
    terminal.shows("half an").await;
    process.kill();
    terminal.shows("connection lost").await;
    let _restarted = spec.start().await;
    terminal.shows("connected again").await;
    terminal.shows("starts again").await;
    terminal.shows("the whole answer").await;
    terminal.shows("> ").await;
}

#[tokio::test]
async fn control_sequences_of_an_answer_do_not_reach_the_terminal() {
    let model = ScriptedModel::start().await;
    let hostile = "before \x1b]0;pwned\x07\u{9b}2J\x1b[31mred\r\x08 after";
    // Also a sequence that is split between two deltas.
    model.queue_answer("attack", Script::complete(hostile));
    model.queue_answer(
        "again",
        Script::new()
            .role()
            .token("\x1b")
            .token("]52;c;aGk=\x07 end")
            .finish("stop")
            .done(),
    );
    let server = server(&model).start().await;
    let mut terminal = Pty::run(&chat(server.port()));
    terminal.says("attack").await;
    terminal.shows("after").await;
    terminal.says("again").await;
    terminal.shows(" end").await;
    terminal.shows("> ").await;
    let all = terminal.all();
    for sequence in ["\x1b]", "\u{9b}", "\x07", "\x1b[31m", "\x08 after"] {
        assert!(!all.contains(sequence), "{sequence:?} reached the terminal");
    }
    assert!(
        all.contains("␛]0;pwned␇"),
        "the control characters are not made visible"
    );
}

#[tokio::test]
async fn pasted_lines_are_sent_as_one_message() {
    let model = ScriptedModel::start().await;
    let server = server(&model).start().await;
    let mut terminal = Pty::run(&chat(server.port()));
    terminal.shows("> ").await;
    terminal.types("\x1b[200~line one\rline two\x1b[201~");
    terminal.shows("line two").await;
    terminal.types("\r");
    terminal.shows("echo: line one").await;
    assert_eq!(model.request_count_for("line one\nline two"), 1);
}
