//! What the documents for people say is so: every command in them runs, every setting and every
//! file that they name exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::process::ProcessSpec;

mod commands;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A document, named from the root.
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
    let mut all = Vec::new();
    for folder in ["", "docs", "deploy", "web"] {
        let Ok(entries) = std::fs::read_dir(root().join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                let text = read(&path);
                all.push(Document { name, text });
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.iter().any(|document| document.name == "README.md"));
    all
}

/// Line numbers (from 1) and texts outside fenced blocks.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((number + 1, line));
        }
    }
    lines
}

#[test]
fn every_file_that_a_document_links_to_is_there() {
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
                let elsewhere = target.contains("://") || target.starts_with("mailto:");
                if !target.is_empty() && !elsewhere && !document.folder().join(target).exists() {
                    missing.push(format!("{}:{line}: {target}", document.name));
                }
            }
        }
    }
    assert!(missing.is_empty(), "links that lead nowhere: {missing:#?}");
}

/// Words in capitals that are no settings of ours.
const NOT_SETTINGS: &[&str] = &[
    // Of the shell, the terminal, cargo and the tests.
    "HOME",
    "XDG_STATE_HOME",
    "NO_COLOR",
    "TERM",
    "PATH",
    "UPDATE_CONTRACTS",
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
    // Of OpenTelemetry, and said to be none of ours.
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    // Of HTTP, SQL, Redis, Kafka, signals and formats.
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

/// What is a word of this form is a setting, or stands for a family of them with `*` or `…`.
fn settings_in(text: &str) -> Vec<String> {
    let of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut found = Vec::new();
    for code in text.split('`').skip(1).step_by(2) {
        for word in code.split(|c: char| !(of_name(c) || c == '*' || c == '…')) {
            let name = word.trim_matches(|c| c == '*' || c == '…');
            let begins = name.starts_with(|c: char| c.is_ascii_uppercase());
            // Only names of two words: others are words of protocols and formats, too.
            if begins && word == name && name.contains('_') && !name.ends_with('_') {
                found.push(name.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_setting_that_a_document_names_exists() {
    let keys = read(&root().join("src/config/keys.rs"));
    let of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let keys: BTreeSet<&str> = keys.split(|c| !of_name(c)).collect();
    let (_, chat_help, _) = ProcessSpec::new(&["chat", "--help"]).run();
    let mut unknown = BTreeSet::new();
    for document in documents() {
        // The changelog may tell of what is gone.
        if document.name == "CHANGELOG.md" {
            continue;
        }
        for (line, text) in prose(&document.text) {
            for name in settings_in(text) {
                let known = keys.contains(name.as_str())
                    || chat_help.contains(&format!("[env: {name}"))
                    || name.starts_with("TEST_")
                    || name == "CHATMESH_CONFIG"
                    || NOT_SETTINGS.contains(&name.as_str());
                if !known {
                    unknown.insert(format!("{}:{line}: {name}", document.name));
                }
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "named in the documents, and neither in src/config/keys.rs nor in NOT_SETTINGS of \
         tests/it/documents: {unknown:#?}"
    );
}
