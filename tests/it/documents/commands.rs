//! Every command in a block marked `sh` or `console` is run, or, where it can't be run in a test,
//! what it names is looked for.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Document, documents, read, root};
use crate::support::process::{ChatmeshProcess, ProcessSpec};

/// A command as it stands in a document.
struct Step {
    place: String,
    text: String,
}

/// The blocks of these languages, as line numbers (from 1) and texts.
fn blocks<'a>(text: &'a str, languages: &[&str]) -> Vec<(String, Vec<(usize, &'a str)>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<(usize, &str)>)> = None;
    for (number, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, &mut open) {
            (Some(language), None) => open = Some((language.trim().to_owned(), Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, lines))) => lines.push((number + 1, line.trim())),
            (None, None) => {}
        }
    }
    blocks.retain(|(language, _)| languages.contains(&language.as_str()));
    blocks
}

/// Lines that end with a backslash go on; comments and what a `console` prints are left out.
fn steps(document: &Document) -> Vec<Step> {
    let mut steps = Vec::new();
    for (language, lines) in blocks(&document.text, &["sh", "bash", "shell", "console"]) {
        let mut lines = lines.into_iter();
        while let Some((number, line)) = lines.next() {
            let line = if language == "console" {
                let Some(line) = line.strip_prefix("$ ") else {
                    continue;
                };
                line
            } else {
                line
            };
            let mut text = line.to_owned();
            while let Some(head) = text.strip_suffix('\\') {
                let (_, next) = lines.next().expect("a line goes on");
                text = format!("{head} {next}");
            }
            let text = without_comment(&text).trim().to_owned();
            if !text.is_empty() {
                let place = format!("{}:{number}", document.name);
                steps.push(Step { place, text });
            }
        }
    }
    steps
}

/// A `#` outside quotes, at the beginning of a word.
fn without_comment(text: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '#' && before.is_whitespace() => return &text[..at],
            Some(_) | None => {}
        }
        before = c;
    }
    text
}

/// What can't be run in a test, and why. What such a command names is looked for all the same.
const NOT_RUN: &[(&str, &str)] = &[
    ("docker", "needs a Docker daemon"),
    ("kubectl", "needs a cluster"),
    (
        "just",
        "its recipes start containers, or are other commands of this list",
    ),
    ("tests/run", "is what runs this test"),
    ("git", "changes the clone"),
    (
        "cargo",
        "builds for minutes; `cargo run` is run as the executable it would build",
    ),
    ("npm", "needs the network"),
    ("apt-get", "changes the machine"),
    ("sudo", "changes the machine"),
    ("kcat", "is not installed everywhere"),
    ("redis-cli", "is not installed everywhere"),
    ("websocat", "is not installed everywhere"),
    ("promtool", "is not installed everywhere"),
    ("openssl", "is not installed everywhere"),
    ("kill", "the process is another one here"),
    ("jq", "is not installed everywhere"),
    ("tar", "the folder is another one here"),
    ("mv", "the folder is another one here"),
    ("cp", "the folder is another one here"),
];

/// Commands of the shell's own that set something for those after them.
const HARMLESS: &[&str] = &["export", "cd", "source", "eval", "set"];

/// Run as they stand, in a pipe or alone.
const FILTERS: &[&str] = &[
    "echo", "printf", "cat", "head", "tail", "grep", "sort", "less", "tee", "wc", "curl",
];

/// Roles that would run for ever: the command line is checked only.
const ROLES: &[&str] = &["gateway", "ai-worker", "relay", "all-in-one"];

/// Subcommands that are run as they stand. Others of chatmesh's need a Kafka, a Redis, or write
/// files: their command line is checked.
const RUN: &[&str] = &[
    "chat",
    "config",
    "completions",
    "healthcheck",
    "--help",
    "--version",
];

fn is_assignment(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else {
        return false;
    };
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The simple commands of a line, each as its words. Enough for documents: quotes keep words
/// together, redirections are left out.
fn simple_commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word = String::new();
    let mut quote = None;
    let mut in_word = false;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.push(c),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                in_word = true;
            }
            None if c.is_whitespace() || matches!(c, '|' | ';' | '&') => {
                if in_word {
                    commands.last_mut().unwrap().push(std::mem::take(&mut word));
                    in_word = false;
                }
                if !c.is_whitespace() && !commands.last().unwrap().is_empty() {
                    commands.push(Vec::new());
                }
            }
            None => {
                word.push(c);
                in_word = true;
            }
        }
    }
    if in_word {
        commands.last_mut().unwrap().push(word);
    }
    for command in &mut commands {
        if let Some(at) = command.iter().position(|word| word.starts_with(['>', '<'])) {
            command.truncate(at);
        }
        let assignments = command
            .iter()
            .take_while(|word| is_assignment(word))
            .count();
        command.drain(..assignments);
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// What `chatmesh` is told, where this is `chatmesh` in any of its forms.
fn chatmesh(command: &[String]) -> Option<&[String]> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["chatmesh" | "./chatmesh" | "target/release/chatmesh", ..] => Some(&command[1..]),
        ["cargo", "run", ..] => {
            let at = words.iter().position(|word| *word == "--")?;
            Some(&command[at + 1..])
        }
        _ => None,
    }
}

struct Run {
    server: ChatmeshProcess,
    faults: Vec<String>,
}

impl Run {
    fn fault(&mut self, step: &Step, what: &str) {
        self.faults
            .push(format!("{}: `{}`: {what}", step.place, step.text));
    }

    /// Reads the command line as far as `--help` at its end, so nothing is started.
    fn check_arguments(&mut self, step: &Step, arguments: &[String]) {
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        all.push("--help");
        let (code, _, err) = ProcessSpec::new(&all).run();
        if code != Some(0) {
            self.fault(step, &format!("chatmesh does not take that: {err}"));
        }
    }

    /// In a shell with `chatmesh` on its path, and the server that runs here as its server.
    fn execute(&mut self, step: &Step) {
        let folder = tempfile::tempdir().unwrap();
        let executable = Path::new(env!("CARGO_BIN_EXE_chatmesh"));
        let path = format!(
            "{}:{}",
            executable.parent().unwrap().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let port = self.server.port().to_string();
        let text = step
            .text
            .replace("cargo run --release -- ", "chatmesh ")
            .replace("localhost:8000", &format!("localhost:{port}"))
            .replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"));
        let mut child = Command::new("sh")
            .args(["-c", &text])
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", path)
            .env("HOME", folder.path())
            .env("CHATMESH_URL", self.server.url(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        {
            use std::io::Write as _;
            let mut typed = child.stdin.take().unwrap();
            // Where the command asks a person.
            let _ = typed.write_all(b"hello\n");
        }
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            self.fault(step, &format!("ended with {}: {err}", output.status));
        }
    }

    fn take(&mut self, step: &Step) {
        let mut run = true;
        for command in simple_commands(&step.text) {
            let name = command[0].as_str();
            if let Some(arguments) = chatmesh(&command) {
                let subcommand = arguments.first().map_or("", String::as_str);
                if ROLES.contains(&subcommand) || !RUN.contains(&subcommand) {
                    self.check_arguments(step, arguments);
                    run = false;
                }
            } else if HARMLESS.contains(&name) {
                // Of the shell.
            } else if NOT_RUN.iter().any(|(known, _)| *known == name) {
                self.look_for(step, &command);
                run = false;
            } else if !FILTERS.contains(&name) {
                self.fault(
                    step,
                    "the test does not know this command: add it to NOT_RUN in \
                     tests/it/documents/commands.rs with the reason, or mark the block `text`",
                );
                run = false;
            } else if name == "curl" && !(curl_reaches_us(&command) && has_curl()) {
                run = false;
            }
        }
        if run {
            self.execute(step);
        }
    }

    /// Files, recipes and flags that a command which is not run names.
    fn look_for(&mut self, step: &Step, command: &[String]) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["just", recipe, ..] if !recipe.starts_with('-') => {
                let recipes = read(&root().join("Justfile"));
                let named = |line: &str| {
                    let rest = line.strip_prefix(recipe);
                    rest.is_some_and(|rest| rest.starts_with([' ', ':']))
                };
                if !recipes.lines().any(named) {
                    self.fault(step, &format!("the Justfile has no recipe {recipe}"));
                }
            }
            ["tests/run", flag, ..]
                if flag.starts_with("--")
                    && !read(&root().join("tests/run")).contains(&format!("{flag})")) =>
            {
                self.fault(step, "tests/run has no such option");
            }
            ["cargo", subcommand, ..] => {
                let known = [
                    "build", "test", "fmt", "clippy", "doc", "install", "deny", "run",
                ];
                if !known.contains(subcommand) {
                    self.fault(step, "not a command of cargo that is known here");
                }
            }
            _ => {}
        }
        let files = words
            .windows(2)
            .filter(|pair| matches!(pair[0], "-f" | "-k" | "--file"));
        let paths = words.iter().copied().filter(|word| {
            ["deploy/", "tests/", "docs/", "web/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        });
        let missing: Vec<&str> = files
            .map(|pair| pair[1])
            .chain(paths)
            .filter(|file| *file != "-" && !root().join(file).exists())
            .collect();
        for file in missing {
            self.fault(step, &format!("there is no {file}"));
        }
    }
}

fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

/// Only what is said to our own server can be answered here.
fn curl_reaches_us(command: &[String]) -> bool {
    let ours = |word: &String| word.contains("localhost:8000") || word.contains("127.0.0.1:8000");
    command.iter().any(ours)
}

#[tokio::test]
async fn every_command_in_the_documents_runs() {
    let server = ProcessSpec::ephemeral().start().await;
    let mut run = Run {
        server,
        faults: Vec::new(),
    };
    let mut count = 0;
    for document in documents() {
        for step in steps(&document) {
            count += 1;
            run.take(&step);
        }
    }
    assert!(count >= 10, "only {count} commands were found");
    assert!(run.faults.is_empty(), "{}", run.faults.join("\n"));
}

#[test]
fn commands_are_read_as_a_shell_reads_them() {
    let words = |text: &str| -> Vec<Vec<String>> { simple_commands(text) };
    assert_eq!(
        words("A=1 B='x y' chatmesh gateway --port 1 | head > out && echo 'a | b'"),
        [
            vec!["chatmesh", "gateway", "--port", "1"],
            vec!["head"],
            vec!["echo", "a | b"]
        ]
    );
    assert_eq!(without_comment("just up   # starts 'all'"), "just up   ");
    assert_eq!(without_comment("echo '# no'"), "echo '# no'");
    let document = Document {
        name: "d.md".into(),
        text: "```sh\na \\\n  b # c\n# d\n```\n```text\nx\n```\n```console\n$ e\nprinted\n```\n"
            .into(),
    };
    let found: Vec<String> = steps(&document).into_iter().map(|step| step.text).collect();
    assert_eq!(found, ["a  b", "e"]);
}
