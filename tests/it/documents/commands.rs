//! Runs every command in blocks of shell code. If a test cannot run a command, the files and
//! recipes that the command names must exist.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Document, documents, read, root};
use crate::support::process::{ChatmeshProcess, ProcessSpec};

/// A command in a document.
struct Step {
    /// Document and line.
    location: String,
    text: String,
}

/// The fenced blocks of these languages, each with its numbered lines (from 1).
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

/// The commands of a document. A backslash continues a line. Comments, and the output in `console`
/// blocks, are ignored.
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
                let (_, next) = lines.next().expect("another line follows a backslash");
                text = format!("{head} {next}");
            }
            let text = strip_comment(&text).trim().to_owned();
            if !text.is_empty() {
                let location = format!("{}:{number}", document.name);
                steps.push(Step { location, text });
            }
        }
    }
    steps
}

/// Removes a comment, which begins with a `#` outside quotes at the beginning of a word.
fn strip_comment(text: &str) -> &str {
    let mut quote = None;
    let mut previous = ' ';
    for (index, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '#' && previous.is_whitespace() => return &text[..index],
            Some(_) | None => {}
        }
        previous = c;
    }
    text
}

/// Commands that a test cannot run, with the reason. The files that they name must exist.
const NOT_RUN: &[(&str, &str)] = &[
    ("docker", "needs a Docker daemon"),
    ("kubectl", "needs a cluster"),
    (
        "just",
        "its recipes start containers, or are commands of this list",
    ),
    ("tests/run", "runs this test itself"),
    ("git", "changes the clone"),
    (
        "cargo",
        "builds for minutes; the test runs the built executable instead of `cargo run`",
    ),
    ("npm", "needs the network"),
    ("apt-get", "changes the machine"),
    ("sudo", "changes the machine"),
    ("kcat", "is not installed everywhere"),
    ("redis-cli", "is not installed everywhere"),
    ("websocat", "is not installed everywhere"),
    ("promtool", "is not installed everywhere"),
    ("openssl", "is not installed everywhere"),
    ("kill", "the process differs here"),
    ("jq", "is not installed everywhere"),
    ("tar", "the directory differs here"),
    ("mv", "the directory differs here"),
    ("cp", "the directory differs here"),
];

/// Builtins of the shell that affect only the commands after them.
const SHELL_BUILTINS: &[&str] = &["export", "cd", "source", "eval", "set"];

/// Commands that are run unchanged, in a pipe or alone.
const RUN_UNCHANGED: &[&str] = &[
    "echo", "printf", "cat", "head", "tail", "grep", "sort", "less", "tee", "wc", "curl",
];

/// The roles. They run until they are stopped, so only their command line is checked.
const ROLES: &[&str] = &["gateway", "ai-worker", "relay", "all-in-one"];

/// Subcommands that are run unchanged. The others need Kafka or Redis, or write files, so only
/// their command line is checked.
const RUN_SUBCOMMANDS: &[&str] = &[
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

/// The simple commands of a line, each as its words. Quotes group words, and redirections are
/// ignored. The documents use no other syntax.
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
        if let Some(redirection) = command.iter().position(|word| word.starts_with(['>', '<'])) {
            command.truncate(redirection);
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

/// The arguments of a command that runs chatmesh. `None` for other commands.
fn chatmesh_arguments(command: &[String]) -> Option<&[String]> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["chatmesh" | "./chatmesh" | "target/release/chatmesh", ..] => Some(&command[1..]),
        ["cargo", "run", ..] => {
            let separator = words.iter().position(|word| *word == "--")?;
            Some(&command[separator + 1..])
        }
        _ => None,
    }
}

/// Runs commands against a server, and collects their problems.
struct Runner {
    server: ChatmeshProcess,
    problems: Vec<String>,
}

impl Runner {
    fn add_problem(&mut self, step: &Step, problem: &str) {
        self.problems
            .push(format!("{}: `{}`: {problem}", step.location, step.text));
    }

    /// Checks the arguments by appending `--help`, so nothing is started.
    fn check_arguments(&mut self, step: &Step, arguments: &[String]) {
        let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        words.push("--help");
        let (code, _, err) = ProcessSpec::new(&words).run();
        if code != Some(0) {
            self.add_problem(step, &format!("chatmesh rejects the arguments: {err}"));
        }
    }

    /// Runs a command in a shell with `chatmesh` on the path. The address of the test's server
    /// replaces the addresses of local servers.
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
            let mut stdin = child.stdin.take().unwrap();
            // Some commands ask for a message. Others ignore their input.
            let _ = stdin.write_all(b"hello\n");
        }
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            self.add_problem(step, &format!("ended with {}: {err}", output.status));
        }
    }

    fn process(&mut self, step: &Step) {
        let mut can_run = true;
        for command in simple_commands(&step.text) {
            let name = command[0].as_str();
            if let Some(arguments) = chatmesh_arguments(&command) {
                let subcommand = arguments.first().map_or("", String::as_str);
                if ROLES.contains(&subcommand) || !RUN_SUBCOMMANDS.contains(&subcommand) {
                    self.check_arguments(step, arguments);
                    can_run = false;
                }
            } else if SHELL_BUILTINS.contains(&name) {
                // The shell runs a builtin together with the commands that follow.
            } else if NOT_RUN.iter().any(|(command, _)| *command == name) {
                self.check_named_files(step, &command);
                can_run = false;
            } else if !RUN_UNCHANGED.contains(&name) {
                self.add_problem(
                    step,
                    "the test does not know this command: add it to NOT_RUN in \
                     tests/it/documents/commands.rs with the reason, or mark the block `text`",
                );
                can_run = false;
            } else if name == "curl" && !(curl_calls_test_server(&command) && has_curl()) {
                can_run = false;
            }
        }
        if can_run {
            self.execute(step);
        }
    }

    /// Checks that the files, recipes and flags of a command that is not run exist.
    fn check_named_files(&mut self, step: &Step, command: &[String]) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["just", recipe, ..] if !recipe.starts_with('-') => {
                let recipes = read(&root().join("Justfile"));
                let is_recipe = |line: &str| {
                    let rest = line.strip_prefix(recipe);
                    rest.is_some_and(|rest| rest.starts_with([' ', ':']))
                };
                if !recipes.lines().any(is_recipe) {
                    self.add_problem(step, &format!("the Justfile has no recipe {recipe}"));
                }
            }
            ["tests/run", flag, ..]
                if flag.starts_with("--")
                    && !read(&root().join("tests/run")).contains(&format!("{flag})")) =>
            {
                self.add_problem(step, "tests/run has no such option");
            }
            ["cargo", subcommand, ..] => {
                let known_subcommands = [
                    "build", "test", "fmt", "clippy", "doc", "install", "deny", "run",
                ];
                if !known_subcommands.contains(subcommand) {
                    self.add_problem(step, "the test does not know this cargo command");
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
            self.add_problem(step, &format!("there is no {file}"));
        }
    }
}

fn has_curl() -> bool {
    let output = Command::new("curl").arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

/// Whether a curl command calls a local server, whose address the test's server replaces.
fn curl_calls_test_server(command: &[String]) -> bool {
    let is_local =
        |word: &String| word.contains("localhost:8000") || word.contains("127.0.0.1:8000");
    command.iter().any(is_local)
}

#[tokio::test]
async fn every_command_in_the_documents_runs() {
    let server = ProcessSpec::ephemeral().start().await;
    let mut runner = Runner {
        server,
        problems: Vec::new(),
    };
    let mut count = 0;
    for document in documents() {
        for step in steps(&document) {
            count += 1;
            runner.process(&step);
        }
    }
    assert!(count >= 10, "only {count} commands were found");
    assert!(runner.problems.is_empty(), "{}", runner.problems.join("\n"));
}

#[test]
fn commands_are_split_like_in_a_shell() {
    let words = |text: &str| -> Vec<Vec<String>> { simple_commands(text) };
    assert_eq!(
        words("A=1 B='x y' chatmesh gateway --port 1 | head > out && echo 'a | b'"),
        [
            vec!["chatmesh", "gateway", "--port", "1"],
            vec!["head"],
            vec!["echo", "a | b"]
        ]
    );
    assert_eq!(strip_comment("just up   # starts 'all'"), "just up   ");
    assert_eq!(strip_comment("echo '# no'"), "echo '# no'");
    let document = Document {
        name: "d.md".into(),
        text: "```sh\na \\\n  b # c\n# d\n```\n```text\nx\n```\n```console\n$ e\nprinted\n```\n"
            .into(),
    };
    let commands: Vec<String> = steps(&document).into_iter().map(|step| step.text).collect();
    assert_eq!(commands, ["a  b", "e"]);
}
