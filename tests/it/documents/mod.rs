//! Tests of the documents for people: every command in them runs, and every setting and file that
//! they name exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::process::ProcessSpec;

mod commands;
mod settings;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A document, with its path relative to the root of the repository.
struct Document {
    name: String,
    text: String,
}

impl Document {
    fn folder(&self) -> PathBuf {
        root().join(&self.name).parent().unwrap().to_owned()
    }
}

fn documents() -> Vec<Document> {
    let mut documents = Vec::new();
    for folder in ["", "docs", "deploy", "web"] {
        let Ok(entries) = std::fs::read_dir(root().join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                let text = read(&path);
                documents.push(Document { name, text });
            }
        }
    }
    documents.sort_by(|first, second| first.name.cmp(&second.name));
    assert!(
        documents
            .iter()
            .any(|document| document.name == "README.md")
    );
    documents
}

/// The lines outside fenced blocks, each with its number (from 1).
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut in_block = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            lines.push((number + 1, line));
        }
    }
    lines
}

#[test]
fn every_linked_file_exists() {
    let mut missing = Vec::new();
    for document in documents() {
        for (line, text) in prose(&document.text) {
            let targets = text
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split_once(')'));
            let sources = text
                .split("src=\"")
                .skip(1)
                .filter_map(|rest| rest.split_once('"'));
            for (target, _) in targets.chain(sources) {
                let target = target.split(['#', ' ']).next().unwrap_or_default();
                let is_external = target.contains("://") || target.starts_with("mailto:");
                if !target.is_empty() && !is_external && !document.folder().join(target).exists() {
                    missing.push(format!("{}:{line}: {target}", document.name));
                }
            }
        }
    }
    assert!(missing.is_empty(), "links to missing files: {missing:#?}");
}

#[test]
fn prose_is_at_most_100_characters_wide() {
    let mut wide_lines = Vec::new();
    for document in documents() {
        for (line, text) in prose(&document.text) {
            // A table's row and a link can't be wrapped.
            let is_exempt = text.trim_start().starts_with('|') || !text.trim().contains(' ');
            if !is_exempt && text.chars().count() > 100 {
                wide_lines.push(format!("{}:{line}", document.name));
            }
        }
    }
    assert!(
        wide_lines.is_empty(),
        "lines over 100 characters: {wide_lines:#?}"
    );
}

/// Words in capitals that are not settings of chatmesh.
const NOT_SETTINGS: &[&str] = &[
    // Variables of the shell, the terminal, cargo and the tests.
    "HOME",
    "XDG_STATE_HOME",
    "NO_COLOR",
    "TERM",
    "PATH",
    "UPDATE_CONTRACTS",
    "UPDATE_SETTINGS",
    "RUST_BACKTRACE",
    "CHATMESH_TEST_TIMEOUT_SECONDS",
    "CHATMESH_TAG",
    "CHATMESH_CHAOS_SEED",
    "CHATMESH_CHAOS_SET",
    "CHATMESH_CHAOS_SECONDS",
    "CHATMESH_CHAOS_USERS",
    "CHATMESH_CHAOS_PACE_MS",
    "CHATMESH_CHAOS_ONLY",
    "CHATMESH_CHAOS_PROVIDER",
    "CARGO_PROFILE_RELEASE_STRIP",
    "TOKIO_WORKER_THREADS",
    "SIM_SEED",
    "SIM_FAULTS",
    "SIM_PIECES",
    "SIM_TRACES",
    "SIM_RUNS",
    "ENV_FILE",
    // A constant in an example of the style guide.
    "DEDUP_FRAMES",
    // A variable of OpenTelemetry that chatmesh does not support, as the documents say.
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    // Words of HTTP, Redis, Kafka, signals and formats.
    "DELETE",
    "PATCH",
    "OPTIONS",
    "HEAD",
    "SPUBLISH",
    "PUBLISH",
    "SIGTERM",
    "SIGINT",
    "SIGSTOP",
    "SIGKILL",
    "SIGCONT",
    "SASL_SSL",
    "PLAIN",
    "JSON",
    "YAML",
    "TOML",
    "HTTP",
    "HTTPS",
    "UUID",
    "HS256",
    "RS256",
    "ES256",
    "CHANGELOG",
    "README",
    "ARCHITECTURE",
    "CONTRIBUTING",
    "SECURITY",
    "LICENSE",
    "TOKEN",
    "USER",
    "SHELL",
    "NAME",
    "NAMES",
    "FILE",
    "TODO",
];

/// The names of variables in code spans. A word with `*` or `…` stands for several variables and is
/// ignored.
fn setting_names(text: &str) -> Vec<String> {
    let is_name_char = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut names = Vec::new();
    for code in text.split('`').skip(1).step_by(2) {
        for word in code.split(|c: char| !(is_name_char(c) || c == '*' || c == '…')) {
            let name = word.trim_matches(|c| c == '*' || c == '…');
            let is_upper = name.starts_with(|c: char| c.is_ascii_uppercase());
            // A single word is ignored, because it is often the name of a protocol or format.
            if is_upper && word == name && name.contains('_') && !name.ends_with('_') {
                names.push(name.to_owned());
            }
        }
    }
    names
}

#[test]
fn every_named_setting_exists() {
    let keys = read(&root().join("src/config/keys.rs"));
    let is_name_char = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let keys: BTreeSet<&str> = keys.split(|c| !is_name_char(c)).collect();
    let (_, chat_help, _) = ProcessSpec::new(&["chat", "--help"]).run();
    let mut unknown = BTreeSet::new();
    for document in documents() {
        // The changelog names settings that no longer exist.
        if document.name == "CHANGELOG.md" {
            continue;
        }
        for (line, text) in prose(&document.text) {
            for name in setting_names(text) {
                let is_known = keys.contains(name.as_str())
                    || chat_help.contains(&format!("[env: {name}"))
                    || name.starts_with("TEST_")
                    || name == "CHATMESH_CONFIG"
                    || NOT_SETTINGS.contains(&name.as_str());
                if !is_known {
                    unknown.insert(format!("{}:{line}: {name}", document.name));
                }
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "the documents name settings that do not exist. Correct them, or add words that are not \
         settings to NOT_SETTINGS in tests/it/documents: {unknown:#?}"
    );
}
