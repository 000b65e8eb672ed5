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
    terminal.send_line("hello").await;
    terminal.wait_for_text("echo: hello").await;
    terminal.send_line("a long story").await;
    terminal.wait_for_text("so far it ").await;
    terminal.type_keys(CTRL_C);
    terminal.wait_for_text("stopped").await;
    wait_until("the model's stream is closed", TEST_TIMEOUT, || async {
        model.aborted_prompts().contains(&"a long story".to_owned())
    })
    .await;
    terminal.send_line("still there?").await;
    terminal.wait_for_text("echo: still there?").await;
    terminal.wait_for_text("> ").await;
    terminal.type_keys(CTRL_C);
    assert_eq!(terminal.exit_code().await, Some(0));

    let history_file = spec.dir().join(".local/state/chatmesh/chat-history");
    let history = std::fs::read_to_string(&history_file).unwrap();
    assert!(history.contains("a long story"), "{history}");
    let mode = history_file.metadata().unwrap().permissions().mode();
    assert_eq!(
        mode & 0o077,
        0,
        "expected a history that other users cannot read"
    );

    let mut terminal = Pty::run(&spec);
    for expected in [
        "> hello",
        "echo: hello",
        "> a long story",
        "(stopped)",
        "so far it",
    ] {
        terminal.wait_for_text(expected).await;
    }
    terminal.wait_for_text("echo: still there?").await;
    terminal.wait_for_text("> ").await;
    // Arrow up shows the previous line of the history.
    terminal.type_keys("\x1b[A");
    terminal.wait_for_text("still there?").await;
    terminal.type_keys("\x15\x04");
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
    terminal.send_line("a story").await;
    terminal.wait_for_text("word5 ").await;
    proxy.interrupt().await;
    terminal.wait_for_text("connection lost").await;
    proxy.resume().await;
    terminal.wait_for_text("connected again").await;
    terminal.wait_for_text("word59").await;
    terminal.wait_for_text("> ").await;
    let output = terminal.output();
    for word in &words {
        let count = output.matches(word.as_str()).count();
        assert_eq!(count, 1, "expected {word:?} once, got {count} times");
    }
    assert_eq!(
        model.request_count_for("a story"),
        1,
        "expected one model call"
    );
}

#[tokio::test]
async fn answer_of_a_killed_server_starts_again_with_a_notice() {
    let model = ScriptedModel::start().await;
    let half_answer = Script::new().role().text("half an ans").hang();
    model.queue_answer("will it come?", half_answer);
    model.queue_answer("will it come?", Script::complete("the whole answer"));
    let spec = with_model(ProcessSpec::durable(), &model);
    let mut process = spec.start().await;
    let mut terminal = Pty::run(&chat(process.port()));
    terminal.send_line("will it come?").await;
    terminal.wait_for_text("half an").await;
    process.kill();
    terminal.wait_for_text("connection lost").await;
    let _restarted = spec.start().await;
    terminal.wait_for_text("connected again").await;
    terminal.wait_for_text("starts again").await;
    terminal.wait_for_text("the whole answer").await;
    terminal.wait_for_text("> ").await;
}

#[tokio::test]
async fn control_sequences_of_an_answer_do_not_reach_the_terminal() {
    let model = ScriptedModel::start().await;
    let hostile = "before \x1b]0;pwned\x07\u{9b}2J\x1b[31mred\r\x08 after";
    // The second answer has a sequence that is split between two deltas.
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
    terminal.send_line("attack").await;
    terminal.wait_for_text("after").await;
    terminal.send_line("again").await;
    terminal.wait_for_text(" end").await;
    terminal.wait_for_text("> ").await;
    let output = terminal.output();
    for sequence in ["\x1b]", "\u{9b}", "\x07", "\x1b[31m", "\x08 after"] {
        assert!(
            !output.contains(sequence),
            "expected no {sequence:?} in the terminal"
        );
    }
    assert!(
        output.contains("␛]0;pwned␇"),
        "expected visible symbols for the control characters"
    );
}

#[tokio::test]
async fn pasted_lines_are_sent_as_one_message() {
    let model = ScriptedModel::start().await;
    let server = server(&model).start().await;
    let mut terminal = Pty::run(&chat(server.port()));
    terminal.wait_for_text("> ").await;
    terminal.type_keys("\x1b[200~line one\rline two\x1b[201~");
    terminal.wait_for_text("line two").await;
    terminal.type_keys("\r");
    terminal.wait_for_text("echo: line one").await;
    assert_eq!(model.request_count_for("line one\nline two"), 1);
}
