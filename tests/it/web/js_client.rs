//! `chatmesh.js` in Node: its own tests, and the example of its README against a real server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::ProcessSpec;

fn web_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("web")
}

/// The Node that `tests/run` installs if the system's is too old, otherwise the system's.
fn node() -> Command {
    let program = std::env::var_os("TEST_NODE").unwrap_or_else(|| "node".into());
    Command::new(program)
}

/// Runs a command that must succeed. Returns its standard output.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .expect("node runs (tests/run installs it where it is missing)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
}

#[test]
fn javascript_tests_pass() {
    let tests = std::fs::read_dir(web_folder().join("test")).unwrap();
    let tests = tests.map(|file| file.unwrap().path());
    let tests = tests.filter(|path| path.to_string_lossy().ends_with(".test.mjs"));
    run(node().arg("--test").args(tests).current_dir(web_folder()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readme_example_runs_unchanged() {
    let server = ProcessSpec::ephemeral().start().await;
    let readme = std::fs::read_to_string(web_folder().join("README.md")).unwrap();
    let example = readme.split("```js\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let address = format!("127.0.0.1:{}", server.port());
    assert!(example.contains("127.0.0.1:8000"));
    let example = example.replace("127.0.0.1:8000", &address);
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(
        web_folder().join("chatmesh.js"),
        directory.path().join("chatmesh.js"),
    )
    .unwrap();
    std::fs::write(directory.path().join("example.mjs"), example).unwrap();
    let mut command = node();
    // Before Node 22, WebSocket is behind a flag.
    let version = run(node().arg("--version"));
    if version.starts_with("v20.") || version.starts_with("v21.") {
        command.arg("--experimental-websocket");
    }
    let command = command.arg("example.mjs").current_dir(directory.path());
    let output = tokio::task::block_in_place(|| run(command));
    assert!(output.contains("Hello, how are you?"), "{output}");
    assert!(output.contains("turn 1"), "{output}");
}
