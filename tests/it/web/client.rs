//! `chatmesh.js` in Node: its own tests, and the example of its guide against a real server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::ProcessSpec;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("web")
}

/// The one that `tests/run` installs where the system's is too old, otherwise the system's.
fn node() -> Command {
    let program = std::env::var_os("TEST_NODE").unwrap_or_else(|| "node".into());
    Command::new(program)
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .expect("run node (tests/run installs it where it is missing)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out
}

#[test]
fn the_clients_own_tests_pass() {
    let tests = std::fs::read_dir(folder().join("test")).unwrap();
    let tests = tests.map(|file| file.unwrap().path());
    let tests = tests.filter(|path| path.to_string_lossy().ends_with(".test.mjs"));
    run(node().arg("--test").args(tests).current_dir(folder()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_the_guide_runs_as_it_stands() {
    let server = ProcessSpec::ephemeral().start().await;
    let guide = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let example = guide.split("```js\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let address = format!("127.0.0.1:{}", server.port());
    assert!(example.contains("127.0.0.1:8000"));
    let example = example.replace("127.0.0.1:8000", &address);
    let there = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder().join("chatmesh.js"),
        there.path().join("chatmesh.js"),
    )
    .unwrap();
    std::fs::write(there.path().join("example.mjs"), example).unwrap();
    let mut command = node();
    // Before Node 22 the WebSocket has to be asked for.
    let version = run(node().arg("--version"));
    if version.starts_with("v20.") || version.starts_with("v21.") {
        command.arg("--experimental-websocket");
    }
    let command = command.arg("example.mjs").current_dir(there.path());
    let said = tokio::task::block_in_place(|| run(command));
    assert!(said.contains("Hello, how are you?"), "{said}");
    assert!(said.contains("turn 1"), "{said}");
}
