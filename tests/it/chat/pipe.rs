//! `chatmesh chat` without a terminal: one question from standard input, for programs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{chat, server};
use crate::support::TEST_TIMEOUT;
use crate::support::http::post;
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;

/// Runs a command with this standard input. Returns exit code, standard output and standard error.
async fn run_with_input(spec: &ProcessSpec, input: &'static str) -> (Option<i32>, String, String) {
    let mut command = spec.command();
    let run = move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Writing fails if the command exits without reading its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn standard_output_has_only_the_answer_and_exit_codes_tell_failures() {
    let model = ScriptedModel::start().await;
    // The text of the first attempt is not part of the answer.
    model.queue_answer("twice", Script::new().role().text("half ").disconnect());
    model.queue_answer("twice", Script::complete("whole \x1b[1m"));
    model.queue_answer(
        "no",
        Answer::error(400, "bad", "this is not for the client"),
    );
    let server = server(&model).start().await;
    let chat = chat(server.port());
    let answered = |text: &str| (Some(0), text.to_owned(), String::new());
    let no_conversations = (Some(0), String::new(), "no conversations yet\n".to_owned());
    assert_eq!(
        run_with_input(&chat.clone().arg("--list"), "").await,
        no_conversations
    );
    assert_eq!(run_with_input(&chat, "hi\n").await, answered("echo: hi\n"));
    // The client closes its connection with a close frame.
    server
        .wait_for_log("\"reason\":\"normal\"", TEST_TIMEOUT)
        .await;
    // A program gets control characters unchanged.
    assert_eq!(
        run_with_input(&chat, "twice").await,
        answered("whole \x1b[1m\n")
    );
    assert_eq!(
        run_with_input(&chat, "line one\nline two\n").await,
        answered("echo: line one\nline two\n")
    );
    let empty_answer = Script::new().role().finish("stop").done();
    model.queue_answer("say nothing", empty_answer);
    let (code, out, err) = run_with_input(&chat, "say nothing").await;
    assert_eq!((code, out.trim()), (Some(0), ""), "{err}");
    assert_eq!(err, "the answer is empty\n");
    let (code, out, err) = run_with_input(&chat, "no").await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(
        err.starts_with("error: the model refused this request")
            && err.contains("provider_rejected"),
        "{err}"
    );

    for (arguments, input) in [
        (vec!["chat", "--url", "ftp://nowhere"], "hi"),
        (vec!["chat", "--user", "a b"], "hi"),
        (vec!["chat", "--conversation", "a b"], "hi"),
        (vec!["chat", "--new", "--list"], "hi"),
        (vec!["chat"], " \n"),
    ] {
        let (code, out, err) = run_with_input(&ProcessSpec::new(&arguments), input).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.starts_with("error: "), "{err}");
    }
    let (code, out, err) =
        run_with_input(&ProcessSpec::new(&["chat", "--url", "127.0.0.1:9"]), "hi").await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("can't be reached"), "{err}");
}

#[tokio::test]
async fn conversations_are_separate_and_listed() {
    let model = ScriptedModel::start().await;
    let server = server(&model).start().await;
    let port = server.port();
    assert_eq!(run_with_input(&chat(port), "one").await.0, Some(0));
    let trip = chat(port).arg("--conversation").arg("trip");
    assert_eq!(run_with_input(&trip, "two").await.0, Some(0));
    assert_eq!(run_with_input(&trip, "three").await.0, Some(0));
    let (code, out, notice) = run_with_input(&chat(port).arg("--new"), "four").await;
    assert_eq!((code, out.as_str()), (Some(0), "echo: four\n"), "{notice}");
    let request = model.requests_for("three").remove(0);
    let prompt: Vec<String> = request
        .messages()
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert!(
        prompt.contains(&"two".to_owned()) && !prompt.contains(&"one".to_owned()),
        "{prompt:?}"
    );
    let prompt = model.requests_for("four").remove(0).messages();
    assert!(prompt.iter().all(|(_, text)| text != "one"), "{prompt:?}");
    let (code, list, _) = run_with_input(&chat(port).arg("--list"), "").await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert!(
        lines[0].starts_with("chat-"),
        "expected the newest conversation first: {list}"
    );
    let name = lines[0].split('\t').next().unwrap();
    assert_eq!(notice, format!("conversation {name}\n"));
    assert!(lines[0].contains("\t1 turn\t20"), "{list}");
    assert!(lines[1].starts_with("trip\t2 turns\t"), "{list}");
}

#[tokio::test]
async fn wrong_address_and_unreachable_server_have_different_errors() {
    let server = ProcessSpec::ephemeral().start().await;
    let port = server.port();
    for (url, expected) in [
        (format!("https://127.0.0.1:{port}"), "seems to speak http"),
        (
            format!("http://127.0.0.1:{port}/nope"),
            "no chatmesh at http://127.0.0.1",
        ),
    ] {
        let (code, out, err) =
            run_with_input(&ProcessSpec::new(&["chat", "--url", &url]), "hi").await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains(expected), "{err}");
        assert!(!err.contains("is it running"), "{err}");
    }
    // This server issues no tokens, and the client has none.
    let closed_server = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "off");
    let closed_server = closed_server.start().await;
    let (code, _, err) = run_with_input(&chat(closed_server.port()), "hi").await;
    assert_eq!(code, Some(1));
    assert!(
        err.contains("none was given") && err.contains("CHATMESH_TOKEN"),
        "{err}"
    );
}

#[tokio::test]
async fn token_is_fetched_or_given_and_never_printed() {
    let model = ScriptedModel::start().await;
    let server_with_tokens = |endpoint: &str| {
        server(&model)
            .env("AUTH_MODE", "stored")
            .env("TOKEN_ENDPOINT", endpoint)
            .env("ADMIN_KEY", "an-admin-key-of-some-length")
    };
    let open_server = server_with_tokens("open").start().await;
    assert_eq!(
        run_with_input(&chat(open_server.port()), "hi").await.0,
        Some(0)
    );

    let closed_server = server_with_tokens("admin").start().await;
    let (code, out, err) = run_with_input(&chat(closed_server.port()), "hi").await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("CHATMESH_TOKEN"), "{err}");
    let chat_with_wrong_token =
        chat(closed_server.port()).env("CHATMESH_TOKEN", "wrong-and-secret");
    let (code, _, err) = run_with_input(&chat_with_wrong_token, "hi").await;
    assert_eq!(code, Some(1));
    assert!(!err.contains("wrong-and-secret"), "{err}");
    let (_, help, _) = run_with_input(&chat_with_wrong_token.arg("--help"), "").await;
    assert!(
        help.contains("CHATMESH_TOKEN") && !help.contains("wrong-and-secret"),
        "{help}"
    );

    let key = [("authorization", "Bearer an-admin-key-of-some-length")];
    let issued = post(&closed_server.url("/token?userid=me"), &key)
        .await
        .json();
    let token = issued["token"].as_str().unwrap();
    let chat_with_token = chat(closed_server.port()).env("CHATMESH_TOKEN", token);
    assert_eq!(
        run_with_input(&chat_with_token, "hi").await,
        (Some(0), "echo: hi\n".into(), String::new())
    );
    assert!(
        !closed_server.log().contains(token),
        "expected that the log does not contain the token"
    );
}

#[tokio::test]
async fn completions_are_valid_scripts_of_their_shells() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, err) = ProcessSpec::new(&["completions", shell]).run();
        assert_eq!(code, Some(0), "{shell}: {err}");
        for word in ["all-in-one", "completions", "conversation"] {
            assert!(
                script.contains(word),
                "expected {word} in the completions of {shell}"
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        // PowerShell and elvish cannot check a script without running it.
        let arguments: &[&str] = match shell {
            "bash" | "zsh" => &["-n"],
            "fish" => &["--no-execute"],
            _ => continue,
        };
        let result = Command::new(shell)
            .args(arguments)
            .arg(file.path())
            .output();
        match result {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(error) => assert_ne!(shell, "bash", "bash can't be run: {error}"),
        }
    }
    assert_eq!(ProcessSpec::new(&["completions", "csh"]).run().0, Some(2));
}
